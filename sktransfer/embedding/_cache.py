"""A content-addressed store of arrays, in memory or in a folder.

A key is the SHA-256 of a value's full cause, so a value never goes out of date and
deleting one is always safe.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import NamedTuple

import numpy as np

from sktransfer.embedding._shards import DTYPES, KEY_BYTES, ShardStore

__all__ = ["CacheInfo", "EmbeddingCache"]

# One lock for all caches, outside their pickles. It is held across a fork: a child
# process gets stores that are at rest and a lock that is free.
_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_LOCK.acquire,
        after_in_parent=_LOCK.release,
        after_in_child=_LOCK.release,
    )


class CacheInfo(NamedTuple):
    """What an `EmbeddingCache` holds and how it was used.

    ``rows`` and ``bytes`` are what is stored now, keys and headers included;
    ``hits`` and ``misses`` count this object's look-ups in this process.
    """

    rows: int
    bytes: int
    max_bytes: int
    hits: int
    misses: int
    location: str | None


class EmbeddingCache:
    """A bounded store of embeddings, to share between estimators and processes.

    What is stored is found by the digest of its full cause (weights, stage,
    preprocessing, image), so a cache never changes a result, whether it is shared,
    old, damaged or deleted.

    Parameters
    ----------
    location : str or PathLike, default=None
        A folder, shared by all processes that name it and made at the first write
        (``~`` is expanded). None keeps the rows in this process's memory.

    max_bytes : int, default=2**30
        The most to store. Above it, memory gives up the rows that were not used for
        longest, a folder its oldest files.

    Notes
    -----
    Copies (`copy.deepcopy`, `sklearn.base.clone`) are the same cache. A pickle carries
    the two parameters alone: the location is found again in another process, and
    a cache in memory arrives empty.

    A folder that cannot be written to gives one `UserWarning`, and work goes on
    uncached.

    Examples
    --------
    >>> import hashlib
    >>> import numpy as np
    >>> from sktransfer import EmbeddingCache
    >>> cache = EmbeddingCache(max_bytes=2**20)
    >>> key = hashlib.sha256(b"the full cause of a value").digest()
    >>> cache.get_many([key])
    {}
    >>> cache.put_many({key: np.arange(3, dtype="float32")})
    >>> cache.get_many([key])[key]
    array([0., 1., 2.], dtype=float32)
    >>> info = cache.info()
    >>> info.rows, info.hits, info.misses
    (1, 1, 1)
    """

    def __init__(self, location=None, *, max_bytes=2**30):
        self.location = location
        self.max_bytes = max_bytes
        self._store = None
        self._hits = self._misses = 0

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the arrays of those keys that are stored.

        Parameters
        ----------
        keys : iterable of bytes
            Digests of 32 bytes.

        Returns
        -------
        dict of bytes to ndarray
            The arrays, which are read-only; without the keys that are not stored.
        """
        keys = list(dict.fromkeys(keys))
        with _LOCK:
            found = self._opened().get_many(keys)
            self._hits += len(found)
            self._misses += len(keys) - len(found)
        return found

    def put_many(self, items: Mapping[bytes, np.ndarray]) -> None:
        """Store arrays; keys that are stored already are skipped.

        Parameters
        ----------
        items : mapping of bytes to ndarray
            Arrays of float32, float16 or uint8 by digests of 32 bytes.
        """
        rows = {_checked_key(key): _frozen(value) for key, value in items.items()}
        with _LOCK:
            self._opened().put_many(rows)

    def info(self) -> CacheInfo:
        """Tell what is stored and how it was used.

        Returns
        -------
        CacheInfo
            A named tuple of ``rows``, ``bytes``, ``max_bytes``, ``hits``, ``misses``
            and ``location``.
        """
        with _LOCK:
            n_rows, n_bytes, folder = self._opened().info()
            counts = self._hits, self._misses
        return CacheInfo(n_rows, n_bytes, self.max_bytes, *counts, folder)

    def clear(self) -> None:
        """Remove all rows; in a folder, the files of this format and no others."""
        with _LOCK:
            self._opened().clear()
            self._hits = self._misses = 0

    def _opened(self):
        if self._store is None:
            self._store = _open_store(self.location, self.max_bytes)
        return self._store

    # Sharing is the purpose of a cache: cloning an estimator must not split it.
    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    # Parameters only: joblib.hash of an estimator must not change through use.
    def __getstate__(self):
        return {"location": self.location, "max_bytes": self.max_bytes}

    def __setstate__(self, state):
        self.__init__(**state)

    def __repr__(self):
        path = self.location
        path = os.fspath(path) if isinstance(path, os.PathLike) else path
        return f"{type(self).__name__}({path!r}, max_bytes={self.max_bytes!r})"


def _open_store(location, max_bytes):
    is_int = isinstance(max_bytes, Integral) and not isinstance(max_bytes, bool)
    if not is_int or max_bytes <= 0:
        raise ValueError(
            f"EmbeddingCache got max_bytes={max_bytes!r}; it accepts a positive int. "
            "Nothing was stored. Pass a number of bytes such as 2**30 (1 GiB), or "
            "cache=None to the estimator to store nothing."
        )
    if location is None:
        return _MemoryStore(int(max_bytes))
    path = os.fspath(location) if isinstance(location, os.PathLike) else location
    if not isinstance(path, str) or not path:
        raise TypeError(
            f"EmbeddingCache got location={location!r}; it accepts the path of a "
            "folder (str or PathLike) or None. Nothing was stored. Pass a folder "
            "such as 'embeddings', or None to keep rows in memory."
        )
    return ShardStore(os.path.abspath(os.path.expanduser(path)), int(max_bytes))


def _checked_key(key):
    if isinstance(key, bytes) and len(key) == KEY_BYTES:
        return key
    raise ValueError(
        f"EmbeddingCache got the key {key!r}; it accepts {KEY_BYTES} bytes. Nothing "
        "was stored. Pass the SHA-256 digest of the value's full cause."
    )


def _frozen(value):
    """A read-only little-endian copy: later changes to `value` do not reach it."""
    value = np.asarray(value)
    dtype = value.dtype.newbyteorder("<")
    if dtype.str not in DTYPES:
        raise TypeError(
            f"EmbeddingCache got an array of dtype {dtype}; it accepts float32, "
            "float16 and uint8. Nothing was stored. Convert the array with astype."
        )
    data = value.astype(dtype, copy=False).tobytes()
    return np.ndarray(value.shape, dtype, buffer=data)


class _MemoryStore:
    """Rows in this process's memory; the least recently used go first."""

    # What Python needs for an entry beside its data (measured: 372 to 405 bytes);
    # uncounted, small rows would take several times max_bytes.
    ROW_OVERHEAD = 400

    def __init__(self, max_bytes):
        self.max_bytes = max_bytes
        self.clear()

    def clear(self):
        self._rows = OrderedDict()
        self._bytes = 0

    def info(self):
        return len(self._rows), self._bytes, None

    def get_many(self, keys):
        found = {key: self._rows[key] for key in keys if key in self._rows}
        for key in found:
            self._rows.move_to_end(key)
        return found

    def put_many(self, rows):
        for key, row in rows.items():
            size = row.nbytes + self.ROW_OVERHEAD
            if key in self._rows or size > self.max_bytes:
                continue
            # Counted before stored, so that an interrupt cannot exceed the bound.
            self._bytes += size
            while self._rows and self._bytes > self.max_bytes:
                _, oldest = self._rows.popitem(last=False)
                self._bytes -= oldest.nbytes + self.ROW_OVERHEAD
            self._rows[key] = row
