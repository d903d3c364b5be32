"""Reading of files: regular ones only, of bounded size."""

import os
import stat
from pathlib import Path

from sktransfer.inputs._file_kinds import text_kind

# Larger files are refused, as all of a file is read into memory.
MAX_FILE_BYTES = 2**29
# The bytes that are read at a time of a file whose size is not known.
_PART = 2**20
# The words that a path hardly has, while most texts do.
_WORDS = 8
_IS_FOLDER = (
    "it is a folder (list its {kind}s with sktransfer.datasets.list_{kind}s, or with "
    "load_{kind}_folder where it has a folder for each class)"
)


def read_file(path: str | os.PathLike, kind: str) -> bytes:
    """Return the bytes of the file of a sample of some kind, such as "image"."""
    if not os.fspath(path):
        raise ValueError("the path is empty")
    # Opening a FIFO or a device could block for ever, so O_NONBLOCK opens it at once.
    # The opened file is then checked, rather than its path, which may lead to another
    # file a moment later. O_BINARY keeps Windows from converting line ends.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(Path(path).expanduser(), flags)
    except (OSError, ValueError) as error:
        raise ValueError(_why_not_opened(path, kind, error)) from error
    try:
        status = os.fstat(descriptor)
        _check_file(status, kind)
        return _read_all(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, expected: int) -> bytes:
    """Return what an open file holds, which is mostly of the expected size."""
    # A file object would take longer to make than most files take to be read.
    parts = [os.read(descriptor, expected + 1)]
    if len(parts[0]) == expected:
        return parts[0]
    # The size has changed, or is not told, as that of the files of /proc.
    while parts[-1]:
        parts.append(os.read(descriptor, _PART))
    return b"".join(parts)


def _why_not_opened(path, kind: str, error: Exception) -> str:
    """Explain why a path cannot be opened, without repeating a long text."""
    known = text_kind(os.fspath(path))
    if known:
        return known
    # On Windows, opening a folder is a matter of permissions.
    if isinstance(error, PermissionError) and is_folder(path):
        return _IS_FOLDER.format(kind=kind)
    reason = getattr(error, "strerror", None) or str(error)
    if len(os.fspath(path).split()) >= _WORDS:
        return f"{reason} (a text, as it seems, needs a backbone of texts: 'hf/<name>')"
    if isinstance(error, FileNotFoundError) and not Path(path).is_absolute():
        reason += f" (a relative path starts in the working folder, {os.getcwd()!r})"
    return reason


def is_folder(path) -> bool:
    return os.path.isdir(os.path.expanduser(path))


def _check_file(status: os.stat_result, kind: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(_IS_FOLDER.format(kind=kind))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(
            f"the file has {status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}"
        )
