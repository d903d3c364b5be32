"""Files that are either complete or absent."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path) -> Iterator[Path]:
    """Let a file be written beside `path`, and move it to `path` once it is complete.

    A file that was at `path` before stays there until then, and after an error.

    Yields
    ------
    Path
        The path to write to.

    Raises
    ------
    FileNotFoundError
        If the folder of `path` does not exist.
    IsADirectoryError
        If `path` is a folder.
    """
    path = Path(path).expanduser()
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(path.parent)!r} to write {path.name!r} to. "
            "Nothing was written. Create the folder first."
        )
    if path.is_dir():
        raise IsADirectoryError(
            f"{str(path)!r} is a folder, where the path of a file is needed. Nothing "
            f"was written. Add a file name, such as {str(path / 'model')!r}."
        )
    # A file in the same folder is on the same file system, where a move replaces the
    # target in one step. The unique name keeps writers of the same file apart.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        # After a move there is nothing left to delete.
        partial.unlink(missing_ok=True)
