"""A content-addressed store of arrays, in memory or in a folder.

A key is the SHA-256 of a value's full cause, so a value never goes out of date and
deleting one is always safe. A *row* is one such array, a *shard* one file of rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import struct
import threading
import time
import uuid
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import NamedTuple

import numpy as np

__all__ = ["CacheInfo", "EmbeddingCache"]

_KEY_BYTES = 32
# Little-endian, so that a shard means the same on every machine.
_DTYPES = ("<f4", "<f2", "|u1")

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
        """Return the arrays, read-only, of those keys that are stored."""
        keys = list(dict.fromkeys(keys))
        with _LOCK:
            found = self._opened().get_many(keys)
            self._hits += len(found)
            self._misses += len(keys) - len(found)
        return found

    def put_many(self, items: Mapping[bytes, np.ndarray]) -> None:
        """Store arrays under their 32-byte keys; keys already stored are skipped."""
        rows = {_checked_key(key): _frozen(value) for key, value in items.items()}
        with _LOCK:
            self._opened().put_many(rows)

    def info(self) -> CacheInfo:
        """Return a `CacheInfo`: rows, bytes, max_bytes, hits, misses, location."""
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
    return _ShardStore(os.path.abspath(os.path.expanduser(path)), int(max_bytes))


def _checked_key(key):
    if isinstance(key, bytes) and len(key) == _KEY_BYTES:
        return key
    raise ValueError(
        f"EmbeddingCache got the key {key!r}; it accepts {_KEY_BYTES} bytes. Nothing "
        "was stored. Pass the SHA-256 digest of the value's full cause."
    )


def _frozen(value):
    """A read-only little-endian copy: later changes to `value` do not reach it."""
    value = np.asarray(value)
    dtype = value.dtype.newbyteorder("<")
    if dtype.str not in _DTYPES:
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


# A shard: magic, length of the description, number of rows | description (JSON:
# dtype, row shape) | keys | row checksums | digest of all so far | rows. Each row is
# vouched for by its checksum, each checksum by the digest.
_HEAD = struct.Struct("<8sIQ")
_MAGIC = b"sktrows\x01"  # the last byte is the version of the format
_SUM_BYTES = 8
_DIGEST_BYTES = 16
# Named by the digest: processes that write the same rows write the same file.
_SUFFIX = ".sktrows"
_OUR_NAME = re.compile(r"[0-9a-f]{32}\.sktrows(-[0-9a-f]{32})?")  # "-": temporary
_TEMPORARY_SECONDS = 3600


@dataclass(eq=False)
class _Shard:
    """Where the rows of one file are; a file that does not read right has none."""

    path: str
    size: int
    kind: tuple | None = None
    keys: list[bytes] = field(default_factory=list)
    sums: list[bytes] = field(default_factory=list)
    row_bytes: int = 0
    touched: bool = False

    def read(self, rows):
        """Yield (key, array) for those (key, position) that prove right."""
        dtype, shape = self.kind
        start = self.size - len(self.keys) * self.row_bytes
        # No mmap: a file cut short by others would kill the process with SIGBUS.
        with open(self.path, "rb", buffering=0) as file:
            for key, position in rows:
                file.seek(start + position * self.row_bytes)
                data = file.read(self.row_bytes)
                if _row_sum(key, data) == self.sums[position]:
                    yield key, np.ndarray(shape, dtype, buffer=data)

    def touch(self):
        """Mark the file as used, once per process; best effort."""
        if not self.touched:
            self.touched = True
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _row_sum(key, data):
    # blake2b: 2.7 us for 512 float32 here; crc32 (0.6 us) passes 1 error in 2**32.
    checksum = hashlib.blake2b(key, digest_size=_SUM_BYTES)
    checksum.update(data)
    return checksum.digest()


def _header(kind, rows):
    about = json.dumps(kind).encode()
    sums = (_row_sum(key, row.tobytes()) for key, row in rows.items())
    head = _HEAD.pack(_MAGIC, len(about), len(rows))
    body = b"".join([head, about, *rows, *sums])
    return body + _digest(body)


def _digest(data):
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _parse_shard(path, size):
    """The shard in a file, with no rows if it is damaged or of another version."""
    try:
        with open(path, "rb") as file:
            return _read_header(file, path, size)
    except (OSError, ValueError, TypeError, struct.error):
        return _Shard(path, size)


def _read_header(file, path, size):
    head = file.read(_HEAD.size)
    magic, n_about, n_rows = _HEAD.unpack(head)
    n_header = n_about + n_rows * (_KEY_BYTES + _SUM_BYTES) + _DIGEST_BYTES
    # Checked before reading: a damaged count must not ask for terabytes.
    if magic != _MAGIC or n_header > size:
        raise ValueError("another format or version, or a damaged one")
    header = head + file.read(n_header)
    body = header[:-_DIGEST_BYTES]
    if header != body + _digest(body):
        raise ValueError("damaged header")
    dtype, shape = json.loads(body[_HEAD.size : _HEAD.size + n_about])
    row_bytes = _row_bytes(dtype, shape)
    if size != len(header) + n_rows * row_bytes:
        raise ValueError("cut short")
    sums_at = len(body) - n_rows * _SUM_BYTES
    keys = _split(body[_HEAD.size + n_about : sums_at], _KEY_BYTES)
    sums = _split(body[sums_at:], _SUM_BYTES)
    return _Shard(path, size, (dtype, tuple(shape)), keys, sums, row_bytes)


def _row_bytes(dtype, shape):
    if dtype not in _DTYPES or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"no rows are of dtype {dtype} and shape {shape}")
    return np.dtype(dtype).itemsize * math.prod(shape)


def _split(data, width):
    return [data[i : i + width] for i in range(0, len(data), width)]


def _remove(path):
    """Remove a file; say whether it is gone."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    return not os.path.lexists(path)


def _mtime(shard):
    try:
        return os.stat(shard.path).st_mtime_ns
    except OSError:
        return 0


class _ShardStore:
    """Rows in the shards of one folder, written once and never changed.

    Every state of the folder is a right one, so nobody locks it: a shard appears whole
    by its rename, and one that others removed is a miss.
    """

    # More small shards of a kind than this are merged, so many at a time: that bounds
    # the files in the folder, the memory of a merge (64 MiB), and how often a row is
    # copied (once per factor of 32).
    MAX_SMALL = 256
    MERGED_AT_ONCE = 32
    SMALL_BYTES = 2**21

    def __init__(self, folder, max_bytes):
        self.folder = folder
        self.max_bytes = max_bytes
        self._shards = {}  # path -> _Shard
        self._rows = {}  # key -> (_Shard, position)
        self._temporary_bytes = 0
        self._warned = False

    def info(self):
        self._refresh()
        return len(self._rows), self._total_bytes(), self.folder

    def clear(self):
        self._refresh()
        # Not the temporary files: they are others' writes under way.
        for shard in list(self._shards.values()):
            self._drop(shard)

    def get_many(self, keys):
        found = self._read(keys)
        missing = [key for key in keys if key not in found]
        # Other processes may have added the rest, or merged what we knew.
        if missing and self._refresh():
            found.update(self._read(missing))
        return found

    def put_many(self, rows):
        self._refresh()
        kinds = defaultdict(dict)
        for key, row in rows.items():
            if key not in self._rows:
                kinds[row.dtype.str, row.shape][key] = row
        try:
            for kind, some in kinds.items():
                self._write(kind, some)
            self._merge()
        except OSError as error:
            self._warn(error)
        else:
            self._trim()

    def _warn(self, error):
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"EmbeddingCache could not write to {self.folder!r}: {error}. It accepts "
            "a writable folder with free space. Results are right but not all are "
            "cached (this is said once). Check the folder, choose another location, "
            "or pass cache=None.",
            UserWarning,
            stacklevel=4,
        )

    def _refresh(self):
        """List the folder, forget what is gone; say whether a new shard was found."""
        self._temporary_bytes = 0
        known, seen, new = self._shards, set(), []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.path in known:
                    seen.add(entry.path)
                # Regular files only: opening a FIFO would wait for ever.
                elif _OUR_NAME.fullmatch(entry.name) and entry.is_file(
                    follow_symlinks=False
                ):
                    new.append(entry)
        for path in known.keys() - seen:
            self._forget(known[path])
        found = [self._discover(entry) for entry in new]
        return any(found)

    def _discover(self, entry):
        """Take in a file of ours that is new here; say whether it is a shard."""
        with contextlib.suppress(OSError):
            stat = entry.stat()
            if entry.name.endswith(_SUFFIX):
                self._add(_parse_shard(entry.path, stat.st_size))
                return True
            if time.time() - stat.st_mtime > _TEMPORARY_SECONDS:
                os.unlink(entry.path)  # its writer was killed
            else:
                self._temporary_bytes += stat.st_size
        return False

    def _total_bytes(self):
        sizes = (shard.size for shard in self._shards.values())
        return self._temporary_bytes + sum(sizes)

    def _add(self, shard):
        self._shards[shard.path] = shard
        self._rows.update((key, (shard, i)) for i, key in enumerate(shard.keys))

    def _forget(self, shard):
        self._shards.pop(shard.path, None)
        for key in shard.keys:
            if self._rows.get(key, (None,))[0] is shard:
                del self._rows[key]

    def _drop(self, shard):
        gone = _remove(shard.path)
        if gone:
            self._forget(shard)
        return gone

    def _read(self, keys):
        wanted = defaultdict(list)
        for key in keys:
            if key in self._rows:
                shard, position = self._rows[key]
                wanted[shard].append((key, position))
        found = {}
        for shard, rows in wanted.items():
            found.update(self._read_shard(shard, rows))
            shard.touch()
        return found

    def _read_shard(self, shard, rows):
        found = {}
        with contextlib.suppress(OSError):
            found.update(shard.read(rows))
            # Damaged: left there, it could hide sound doubles from every reader.
            if len(found) < len(rows):
                _remove(shard.path)
        if len(found) < len(rows):
            self._forget(shard)
        return found

    def _write(self, kind, rows):
        """Write one shard of rows, as many as the limit allows, and return it."""
        room = self.max_bytes - len(_header(kind, {}))
        n_rows = max(0, room // (_KEY_BYTES + _SUM_BYTES + _row_bytes(*kind)))
        rows = dict(itertools.islice(rows.items(), n_rows))
        if not rows:
            return None
        header = _header(kind, rows)
        path = os.path.join(self.folder, header[-_DIGEST_BYTES:].hex() + _SUFFIX)
        temporary = f"{path}-{uuid.uuid4().hex}"
        os.makedirs(self.folder, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(header)
                file.writelines(rows.values())
            shard = _parse_shard(temporary, os.stat(temporary).st_size)
            if not shard.keys:
                raise OSError("what was written did not read back")
            os.replace(temporary, path)
        finally:
            _remove(temporary)
        shard.path = path
        self._add(shard)
        return shard

    def _merge(self):
        small = min(self.SMALL_BYTES, self.max_bytes // 512)
        kinds = defaultdict(list)
        for shard in self._shards.values():
            if shard.keys and shard.size < small:
                kinds[shard.kind].append(shard)
        for kind, shards in kinds.items():
            if len(shards) > self.MAX_SMALL:
                shards.sort(key=lambda shard: (shard.size, shard.path))
                self._merge_shards(kind, shards[: self.MERGED_AT_ONCE])

    def _merge_shards(self, kind, shards):
        rows = {}
        for shard in shards:
            # Only rows found here: doubles, as of two merges at once, end with this.
            own = [(key, self._rows.get(key)) for key in shard.keys]
            own = [(key, at[1]) for key, at in own if at and at[0] is shard]
            rows.update(self._read_shard(shard, own))
        merged = self._write(kind, rows)
        for shard in shards:
            if merged is None or shard.path != merged.path:
                self._drop(shard)

    def _trim(self):
        """Remove the oldest shards until the folder is within its limit."""
        excess = self._total_bytes() - self.max_bytes
        if excess <= 0:  # the usual case, spared a stat of every file
            return
        # Equal times keep their order, and what was written last is listed last.
        for shard in sorted(self._shards.values(), key=_mtime):
            if excess > 0 and self._drop(shard):
                excess -= shard.size
