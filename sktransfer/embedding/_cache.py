"""A content-addressed store of arrays, in memory or in a folder.

A key is the SHA-256 digest of everything that a value depends on, its *full cause*. A
value therefore never goes out of date, and deleting one is always safe.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import NamedTuple

import numpy as np

from sktransfer._tables import Table
from sktransfer.embedding._key_index import KEY_BYTES
from sktransfer.embedding._shards import DTYPES, ShardStore

__all__ = ["CacheInfo", "EmbeddingCache"]

# One lock guards all caches, so that a cache holds no lock that cannot be pickled. It
# is acquired before a fork and released after it in both processes: a child process
# thus starts with stores that nobody is changing and with a free lock.
_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_LOCK.acquire,
        after_in_parent=_LOCK.release,
        after_in_child=_LOCK.release,
    )


class CacheInfo(NamedTuple):
    """The contents of an `EmbeddingCache` and how often it was used.

    ``rows`` and ``bytes`` describe what is currently stored, including keys and
    headers; ``hits`` and ``misses`` count the look-ups of this object in this process.
    A sample that is new is looked up once for each stage that it could start from.
    """

    rows: int
    bytes: int
    max_bytes: int
    hits: int
    misses: int
    location: str | None


class EmbeddingCache:
    """A size-limited store of embeddings, shared by estimators and processes.

    An embedding is stored under the digest of everything that it depends on (weights,
    stage, preprocessing, sample). A cache therefore never changes a result, whether it
    is shared, old, damaged or deleted.

    Parameters
    ----------
    location : str or PathLike, default=None
        The folder in which rows are stored. It is shared by all processes that use it
        and created when the first row is written; ``~`` is expanded. If None, the rows
        are kept in the memory of this process.

    max_bytes : int, default=2**30
        The maximum number of bytes to store. If it is exceeded, the least recently
        used rows are removed from memory, or the oldest files from the folder.

    Notes
    -----
    Copies (`copy.deepcopy`, `sklearn.base.clone`) are the same cache. A pickle
    contains only the two parameters: in another process, a cache in a folder uses the
    same folder, and a cache in memory is empty.

    If the folder cannot be written to, a single `UserWarning` is issued, and the
    computation continues without caching.

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
        # Opened, and its parameters validated, at the first use.
        self._store = None
        self._hits = self._misses = 0

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the arrays stored under the given keys.

        Parameters
        ----------
        keys : iterable of bytes
            The keys to look up, digests of 32 bytes.

        Returns
        -------
        dict of bytes to ndarray
            The stored arrays, which are read-only. Keys that are not stored are
            omitted.
        """
        # Without duplicates, which would be counted as several hits or misses.
        keys = list(dict.fromkeys(keys))
        with _LOCK:
            found = self._opened().get_many(keys)
            self._hits += len(found)
            self._misses += len(keys) - len(found)
        return found

    def put_many(self, items: Mapping[bytes, np.ndarray]) -> None:
        """Store arrays; keys that are already stored are skipped.

        Parameters
        ----------
        items : mapping of bytes to ndarray
            The arrays to store, of dtype float32, float16 or uint8, by their keys,
            digests of 32 bytes.
        """
        # All items are checked before the first is stored: it is all of them or none.
        rows = {_checked_key(key): _frozen(value) for key, value in items.items()}
        with _LOCK:
            self._opened().put_many(rows)

    def info(self) -> CacheInfo:
        """Return the contents of the cache and how often it was used.

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

    def verify(self) -> Table:
        """Read all files in the folder, and return a table of those that are not right.

        Nothing is deleted or changed. A damaged file never changes a result, whether it
        is found here or not: a row whose checksum is wrong is not used. Other processes
        may use the cache meanwhile.

        Returns
        -------
        list of dict
            A list of rows that is printed as a table, and that ``pandas.DataFrame``
            converts to a data frame. Each row stands for one file, with its path as
            ``file``, the ``problem``, and as ``advice`` what to do about it. Found are
            files that are damaged, cut short or of another version of the format, those
            that cannot be read, those of writers that were killed more than an hour
            ago, and what is not a file of the cache. If all files are right, or if the
            cache is in memory, the list is empty.

        Raises
        ------
        OSError
            If the location is not a folder, or cannot be listed.

        Examples
        --------
        >>> import hashlib, os, tempfile
        >>> import numpy as np
        >>> from sktransfer import EmbeddingCache
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = EmbeddingCache(folder)
        ...     key = hashlib.sha256(b"the full cause of a value").digest()
        ...     cache.put_many({key: np.arange(3, dtype="float32")})
        ...     (name,) = os.listdir(folder)
        ...     path = os.path.join(folder, name)
        ...     os.truncate(path, os.path.getsize(path) - 1)
        ...     found = cache.verify()
        >>> [(row["problem"], row["advice"][:10]) for row in found]
        [('cut short', 'Delete it.')]
        """
        # Without the lock: reading may take long, and nothing is changed.
        faults = self._opened().verify()
        return Table(
            {"file": path, "problem": problem, "advice": advice}
            for path, (problem, advice) in faults.items()
        )

    def clear(self) -> None:
        """Remove all rows. In a folder, only files of this format are deleted."""
        with _LOCK:
            self._opened().clear()
            self._hits = self._misses = 0

    def _opened(self):
        if self._store is None:
            self._store = _open_store(self.location, self.max_bytes)
        return self._store

    # A cloned or copied estimator must share the cache of the original, so a copy of a
    # cache is the cache itself.
    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    # The state is that of the parameters alone, so that `joblib.hash` of an estimator
    # does not change when its cache is used.
    def __getstate__(self):
        return {"location": self.location, "max_bytes": self.max_bytes}

    def __setstate__(self, state):
        self.__init__(**state)

    def __repr__(self):
        path = self.location
        path = os.fspath(path) if isinstance(path, os.PathLike) else path
        return f"{type(self).__name__}({path!r}, max_bytes={self.max_bytes!r})"


def _open_store(location, max_bytes):
    # A bool is an int, too, but never a number of bytes.
    is_int = isinstance(max_bytes, Integral) and not isinstance(max_bytes, bool)
    if not is_int or max_bytes <= 0:
        raise ValueError(
            f"Invalid max_bytes={max_bytes!r}: expected a positive int. Nothing was "
            "stored. Pass a number of bytes such as 2**30 (1 GiB), or cache=None to "
            "the estimator to store nothing."
        )
    if location is None:
        return _MemoryStore(int(max_bytes))
    path = os.fspath(location) if isinstance(location, os.PathLike) else location
    if not isinstance(path, str) or not path:
        raise TypeError(
            f"Invalid location={location!r}: expected the path of a folder (str or "
            "PathLike) or None. Nothing was stored. Pass a folder such as "
            "'embeddings', or None to keep the rows in memory."
        )
    return ShardStore(os.path.abspath(os.path.expanduser(path)), int(max_bytes))


def _checked_key(key):
    if isinstance(key, bytes) and len(key) == KEY_BYTES:
        return key
    raise ValueError(
        f"Invalid key {key!r}: expected {KEY_BYTES} bytes. Nothing was stored. Pass "
        "the SHA-256 digest of everything that the value depends on."
    )


def _frozen(value):
    """Return a read-only little-endian copy, which later changes do not affect."""
    value = np.asarray(value)
    dtype = value.dtype.newbyteorder("<")
    if dtype.str not in DTYPES:
        raise TypeError(
            f"Invalid array of dtype {dtype}: expected float32, float16 or uint8. "
            "Nothing was stored. Convert the array with astype."
        )
    data = value.astype(dtype, copy=False).tobytes()
    return np.ndarray(value.shape, dtype, buffer=data)


class _MemoryStore:
    """Rows in the memory of this process; the least recently used are removed first."""

    # The bytes that Python needs for an entry besides its data (measured: 372 to 405).
    # Without counting them, small rows would take several times `max_bytes`.
    ROW_OVERHEAD = 400

    def __init__(self, max_bytes):
        self.max_bytes = max_bytes
        self.clear()

    def clear(self):
        self._rows = OrderedDict()
        self._bytes = 0

    def info(self):
        return len(self._rows), self._bytes, None

    def verify(self):
        return {}

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
            # Counted before it is stored, so that an interrupt in between cannot leave
            # more in memory than is counted.
            self._bytes += size
            while self._rows and self._bytes > self.max_bytes:
                _, oldest = self._rows.popitem(last=False)
                self._bytes -= oldest.nbytes + self.ROW_OVERHEAD
            self._rows[key] = row


class Writer:
    """Collects rows, so that a cache on disk consists of few files rather than many."""

    _BYTES = 2**23  # with which rows are passed on to the cache

    def __init__(self, cache: EmbeddingCache | None):
        self._cache = cache
        self._rows: dict[bytes, np.ndarray] = {}
        self._bytes = 0

    def keeps(self, exact: bool) -> bool:
        """Whether rows are stored: only those of the batch size in their keys."""
        # Rows of halved batches may differ in the last bit.
        return exact and self._cache is not None

    def add(self, keys: Iterable[bytes], values: np.ndarray) -> None:
        for key, value in zip(keys, values, strict=True):
            self._rows[key] = value
            self._bytes += value.nbytes
        if self._bytes >= self._BYTES:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._cache.put_many(self._rows)
            self._rows, self._bytes = {}, 0
