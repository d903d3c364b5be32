"""Encoded bytes: of paths, of open files, and of objects and dicts that hold them."""

import copy
import io
import os
import threading
from collections.abc import Mapping

from sktransfer.inputs._file_kinds import is_base64
from sktransfer.inputs._files import MAX_FILE_BYTES, read_file

BUFFERS = bytes | bytearray | memoryview
# Open files are read one at a time: they may share a position, as a file may be in
# several rows, and as all members of a tar archive do.
_reading = threading.RLock()


def is_encoded(sample) -> bool:
    """Whether a sample is a path, bytes, or an object or dict to get them from."""
    if isinstance(sample, BUFFERS | str | os.PathLike):
        return True
    if isinstance(sample, Mapping):
        return "bytes" in sample or "path" in sample
    # A frame has its columns as attributes, of which one may be called "read".
    if hasattr(sample, "shape"):
        return False
    return hasattr(sample, "read_bytes") or hasattr(sample, "read") or _opens(sample)


def encoded_bytes(sample, kind: str) -> bytes:
    """Return the encoded bytes of a sample of some kind, such as "image".

    Parameters
    ----------
    sample : path, buffer, mapping or object
        The mapping is one of Hugging Face datasets, with ``"bytes"`` or, if these are
        None, ``"path"``. The object has a method ``read_bytes``, as paths of zip files
        and of remote files have it, a method ``read``, as open files have it, or opens
        one, as those of fsspec do.
    kind : str
        What the sample is called in messages.
    """
    if isinstance(sample, Mapping):
        sample = _held(sample, kind)
    if isinstance(sample, BUFFERS):
        return bytes(sample)
    if is_local_path(sample):
        return read_file(sample, kind)
    data = _read(sample)
    if not isinstance(data, BUFFERS):
        raise ValueError(
            f"reading it gave {type(data).__name__} instead of bytes (open a file in "
            "mode 'rb')"
        )
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES:,} bytes")
    return bytes(data)


def file_name(sample) -> str | None:
    """Return the path or name of the file of a sample, or None if it has none."""
    if isinstance(sample, Mapping):
        sample = sample.get("path")
    if is_local_path(sample):
        # A string of NumPy is shown as np.str_('...').
        name = str(os.fspath(sample))
        return None if is_base64(name) else name
    if hasattr(sample, "read_bytes") and type(sample).__str__ is not object.__str__:
        return str(sample)
    if not is_encoded(sample):
        return None
    # The name of a file without one, such as a pipe, is its number.
    names = (getattr(sample, attribute, None) for attribute in ("name", "path"))
    return next((name for name in names if isinstance(name, str)), None)


def is_local_path(sample) -> bool:
    """Whether a sample is a path of this machine."""
    if isinstance(sample, str):
        return True
    # Paths in a cloud may be path-like, too: to ask them for a path is to download.
    own = not hasattr(sample, "read_bytes") or _is_of_pathlib(sample)
    return isinstance(sample, os.PathLike) and own


def _is_of_pathlib(sample) -> bool:
    # A package since Python 3.14, whose classes may be those of a module in it.
    return type(sample).__module__.partition(".")[0] == "pathlib"


def _opens(sample) -> bool:
    # An archive can be opened and closed, too, but has no path.
    return all(hasattr(sample, name) for name in ("path", "open", "__enter__"))


def _held(sample: Mapping, kind: str):
    """Return what a dict of Hugging Face datasets holds."""
    if not is_encoded(sample):
        raise ValueError(
            f"it is a mapping with the keys {list(sample)}, and without 'bytes' or "
            "'path' (Hugging Face datasets has such dicts)"
        )
    for key in ("bytes", "path"):
        if sample.get(key) is not None:
            return sample[key]
    raise ValueError(f"it is missing: a dict without bytes or path of the {kind}")


def _read(sample):
    if hasattr(sample, "read_bytes"):
        return sample.read_bytes()
    if hasattr(sample, "read"):
        with _reading:
            return _read_whole(sample)
    if _opens(sample):
        # A copy, since the file that it opens is kept in it, and closed with it.
        with copy.copy(sample) as file:
            return file.read()
    raise ValueError(f"it is of type {type(sample).__name__}")


def _read_whole(file):
    """Read an open file from its beginning, and leave it at its present position."""
    if isinstance(file, io.TextIOBase):
        raise ValueError("it is a file that was opened as text (open it in mode 'rb')")
    # Content is read more than once: to hash it, to decode it, and in the next call.
    if not hasattr(file, "seek") or not getattr(file, "seekable", lambda: True)():
        raise ValueError(
            "it is a stream that can be read only once, of which nothing was read "
            "(pass file.read())"
        )
    position = file.tell()
    try:
        file.seek(0)
        return file.read(MAX_FILE_BYTES + 1)
    finally:
        file.seek(position)
