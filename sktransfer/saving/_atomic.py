"""Files that are whole or not there."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path) -> Iterator[Path]:
    """Let a file be written beside `path`, and put it there once it is whole.

    What was at `path` stays until then, and after an error.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    path = Path(path).expanduser()
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(path.parent)!r} to write {path.name!r} to. "
            "Nothing was written: make the folder first."
        )
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
