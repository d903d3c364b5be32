"""The store of a cache on disk: files in one folder, shared by many processes.

A *row* is one array with a key of 32 bytes, a *shard* is one file of rows.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import struct
import time
import uuid
import warnings
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from sktransfer.embedding._key_index import KEY_BYTES, KeyIndex

# Little-endian, so that a shard can be read on every machine.
DTYPES = ("<f4", "<f2", "|u1")

# A shard consists of: magic bytes, length of the description, number of rows |
# description (JSON: dtype, shape of a row) | keys | checksums of the rows | digest of
# everything so far | rows. The checksums verify the rows, the digest verifies the
# checksums.
_HEAD = struct.Struct("<8sIQ")
_MAGIC = b"sktrows\x01"  # the last byte is the version of the format
_SUM_BYTES = 8
_DIGEST_BYTES = 16
# Files are named by their digest, so that processes that write the same rows write the
# same file. A temporary file has a second part after "-".
_SUFFIX = ".sktrows"
_OUR_NAME = re.compile(r"[0-9a-f]{32}\.sktrows(-[0-9a-f]{32})?")
# An older temporary file is considered abandoned by a writer that was killed.
_TEMPORARY_SECONDS = 3600
# What to do about the files that `verify` finds.
_DELETE = "Delete it. Its rows are computed again when they are needed."
_ALLOW = "Allow this user to read it, or delete it."
_NOTHING = "Nothing. The next use of the cache deletes it."
_LEAVE = "Move it elsewhere, or leave it: the cache neither reads nor deletes it."


@dataclass(eq=False)
class _Shard:
    """The positions of the rows in one file; a file that cannot be read has none."""

    path: str
    size: int
    kind: tuple | None = None
    key_bytes: bytes = b""
    sum_bytes: bytes = b""
    row_bytes: int = 0
    touched: bool = False

    @property
    def n_rows(self):
        return len(self.key_bytes) // KEY_BYTES

    @property
    def keys(self):
        starts = range(0, len(self.key_bytes), KEY_BYTES)
        return [self.key_bytes[i : i + KEY_BYTES] for i in starts]

    def read(self, rows):
        """Yield (key, array) for each (key, position) whose checksum is correct."""
        dtype, shape = self.kind
        start = self.size - self.n_rows * self.row_bytes
        # Not mapped into memory: if another process truncated the file, SIGBUS would
        # kill this one. Unbuffered, as single rows are read from anywhere in the file.
        with open(self.path, "rb", buffering=0) as file:
            for key, position in rows:
                file.seek(start + position * self.row_bytes)
                data = file.read(self.row_bytes)
                sum_at = position * _SUM_BYTES
                if _row_sum(key, data) == self.sum_bytes[sum_at : sum_at + _SUM_BYTES]:
                    yield key, np.ndarray(shape, dtype, buffer=data)

    def touch(self):
        """Mark the file as used, once per process; errors are ignored."""
        if not self.touched:
            self.touched = True
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _row_sum(key, data):
    # blake2b takes 2.7 us for 512 float32 values. crc32 takes 0.6 us, but misses one
    # error in 2**32.
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
    """Return the shard in a file, without rows if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return _read_header(file, path, size)
    except (OSError, ValueError, TypeError, struct.error):
        return _Shard(path, size)


def _read_header(file, path, size):
    head = file.read(_HEAD.size)
    magic, n_about, n_rows = _HEAD.unpack(head)
    n_header = n_about + n_rows * (KEY_BYTES + _SUM_BYTES) + _DIGEST_BYTES
    if magic != _MAGIC:
        raise ValueError("not of this version of the format")
    # Checked before reading, as a damaged count could ask for terabytes of memory.
    if n_header > size:
        raise ValueError("damaged header, or cut short")
    header = head + file.read(n_header)
    body = header[:-_DIGEST_BYTES]
    if header != body + _digest(body):
        raise ValueError("damaged header")
    dtype, shape = json.loads(body[_HEAD.size : _HEAD.size + n_about])
    row_bytes = _row_bytes(dtype, shape)
    if size != len(header) + n_rows * row_bytes:
        raise ValueError("cut short")
    sums_at = len(body) - n_rows * _SUM_BYTES
    keys, sums = body[_HEAD.size + n_about : sums_at], body[sums_at:]
    return _Shard(path, size, (dtype, tuple(shape)), keys, sums, row_bytes)


def _fault_of(entry):
    """Return what is wrong with a file in the folder and what to do, or None."""
    regular = entry.is_file(follow_symlinks=False)
    if not _OUR_NAME.fullmatch(entry.name) or not regular:
        return "not a file of the cache", _LEAVE
    stat = entry.stat()
    if not entry.name.endswith(_SUFFIX):
        old = time.time() - stat.st_mtime > _TEMPORARY_SECONDS
        return ("left by a writer that was killed", _NOTHING) if old else None
    try:
        with open(entry.path, "rb") as file:
            shard = _read_header(file, entry.path, stat.st_size)
        rows = zip(shard.keys, range(shard.n_rows), strict=True)
        n_right = sum(1 for _ in shard.read(rows))
    except FileNotFoundError:
        raise
    except OSError as error:
        return f"cannot be read: {error.strerror}", _ALLOW
    except (ValueError, TypeError, struct.error) as error:
        known = type(error) is ValueError
        return (str(error) if known else "damaged header"), _DELETE
    n_bad = shard.n_rows - n_right
    return (f"{n_bad} of {shard.n_rows} rows are damaged", _DELETE) if n_bad else None


def _row_bytes(dtype, shape):
    if dtype not in DTYPES or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"no rows are of dtype {dtype} and shape {shape}")
    return np.dtype(dtype).itemsize * math.prod(shape)


def _remove(path):
    """Remove a file and return whether it no longer exists."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    return not os.path.lexists(path)


def _mtime(shard):
    try:
        return os.stat(shard.path).st_mtime_ns
    except OSError:
        return 0


class ShardStore:
    """Rows in the shards of one folder, which are written once and never changed.

    Every state of the folder is valid, so no locks are needed: a shard appears as a
    whole when its temporary file is renamed, and rows of a shard that another process
    removed are misses.
    """

    # If there are more than MAX_SMALL small shards of rows of the same kind,
    # MERGED_AT_ONCE of them are merged. This limits the number of files in the folder,
    # the memory that a merge takes (64 MiB), and how often a row is copied (once for
    # each factor of 32).
    MAX_SMALL = 256
    MERGED_AT_ONCE = 32
    SMALL_BYTES = 2**21

    def __init__(self, folder, max_bytes):
        self.folder = folder
        self.max_bytes = max_bytes
        self._shards = {}  # path -> _Shard
        self._index = KeyIndex()  # of the shards
        self._temporary_bytes = 0
        self._warned = False

    def info(self):
        self._refresh()
        return len(self._index), self._total_bytes(), self.folder

    def verify(self):
        faults = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                # Another process may have merged or removed a file meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    if fault := _fault_of(entry):
                        faults[entry.path] = fault
        return faults

    def clear(self):
        self._refresh()
        # Temporary files are kept, as other processes are still writing them. The list
        # is copied, as dropping a shard removes it from the dictionary.
        for shard in list(self._shards.values()):
            self._drop(shard)

    def get_many(self, keys):
        found = self._read(keys)
        missing = [key for key in keys if key not in found]
        # Other processes may have added the missing rows, or merged shards that were
        # known here.
        if missing and self._refresh():
            found.update(self._read(missing))
        return found

    def put_many(self, rows):
        self._refresh()
        kinds, known = defaultdict(dict), self._index.find(rows)
        for key, row in rows.items():
            if key not in known:
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
            f"EmbeddingCache could not write to {self.folder!r}: {error}. Expected a "
            "writable folder with free space. Results are correct, but not all of them "
            "are cached. This warning is issued once. Check the folder, choose another "
            "location, or pass cache=None.",
            UserWarning,
            # From here through the `put_many` of this class and of `EmbeddingCache` up
            # to the caller of the latter.
            stacklevel=4,
        )

    def _refresh(self):
        """Bring the list of shards up to date and return whether any is new."""
        self._temporary_bytes = 0
        known, seen, new = self._shards, set(), []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.path in known:
                    seen.add(entry.path)
                # Only regular files, as opening a FIFO would block for ever.
                elif _OUR_NAME.fullmatch(entry.name) and entry.is_file(
                    follow_symlinks=False
                ):
                    new.append(entry)
        for path in known.keys() - seen:
            self._forget(known[path])
        found = [shard for entry in new if (shard := self._discover(entry))]
        self._add(found)
        return bool(found)

    def _discover(self, entry):
        """Return the shard in a file that was not known yet, if it is one."""
        with contextlib.suppress(OSError):
            stat = entry.stat()
            if entry.name.endswith(_SUFFIX):
                return _parse_shard(entry.path, stat.st_size)
            if time.time() - stat.st_mtime > _TEMPORARY_SECONDS:
                os.unlink(entry.path)
            else:
                self._temporary_bytes += stat.st_size
        return None

    def _total_bytes(self):
        sizes = (shard.size for shard in self._shards.values())
        return self._temporary_bytes + sum(sizes)

    def _add(self, shards):
        for shard in shards:
            # A shard of the same rows has the same path.
            if shard.path in self._shards:
                self._forget(self._shards[shard.path])
            self._shards[shard.path] = shard
        self._index.add(shards)

    def _forget(self, shard):
        if self._shards.get(shard.path) is shard:
            del self._shards[shard.path]
            self._index.remove(shard)

    def _drop(self, shard):
        gone = _remove(shard.path)
        if gone:
            self._forget(shard)
        return gone

    def _read(self, keys):
        wanted = defaultdict(list)
        for key, (shard, position) in self._index.find(keys).items():
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
            # The shard is damaged. It is removed, as it could otherwise hide intact
            # copies of its rows from every process.
            if len(found) < len(rows):
                _remove(shard.path)
        if len(found) < len(rows):
            self._forget(shard)
        return found

    def _write(self, kind, rows):
        """Write a shard of as many rows as the limit allows and return it."""
        room = self.max_bytes - len(_header(kind, {}))
        n_rows = max(0, room // (KEY_BYTES + _SUM_BYTES + _row_bytes(*kind)))
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
            # Only a file that can be read again gets its final name.
            if not shard.n_rows:
                raise OSError("the file that was written cannot be read")
            os.replace(temporary, path)
        finally:
            _remove(temporary)
        shard.path = path
        self._add([shard])
        return shard

    def _merge(self):
        small = min(self.SMALL_BYTES, self.max_bytes // 512)
        kinds = defaultdict(list)
        for shard in self._shards.values():
            if shard.n_rows and shard.size < small:
                kinds[shard.kind].append(shard)
        for kind, shards in kinds.items():
            if len(shards) > self.MAX_SMALL:
                shards.sort(key=lambda shard: (shard.size, shard.path))
                self._merge_shards(kind, shards[: self.MERGED_AT_ONCE])

    def _merge_shards(self, kind, shards):
        rows = {}
        for shard in shards:
            # Only rows that are looked up in this shard. Rows stored twice, for example
            # by two merges at the same time, thus become one again.
            found = self._index.find(shard.keys).items()
            own = [(key, row) for key, (where, row) in found if where is shard]
            rows.update(self._read_shard(shard, own))
        merged = self._write(kind, rows)
        # A merged shard of the same rows has the same name, and must not be removed.
        for shard in shards:
            if merged is None or shard.path != merged.path:
                self._drop(shard)

    def _trim(self):
        """Remove the oldest shards until the folder is within its limit."""
        excess = self._total_bytes() - self.max_bytes
        # Usually the case; then no file's time needs to be looked up.
        if excess <= 0:
            return
        # Sorting is stable: among shards of the same time, the last written comes last.
        for shard in sorted(self._shards.values(), key=_mtime):
            if excess > 0 and self._drop(shard):
                excess -= shard.size
