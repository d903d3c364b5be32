"""Reading of an image in any form to its content: encoded bytes or an array."""

import os
import stat
from functools import singledispatch
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from sktransfer.inputs._decoding import checked_array, pil_array
from sktransfer.inputs._file_kinds import text_kind
from sktransfer.inputs._reader import is_missing

# Larger files are refused, as all of a file is read into memory.
MAX_FILE_BYTES = 2**29
# The words that a path hardly has, while most texts do.
_WORDS = 8
_IS_FOLDER = (
    "it is a folder (list its images with sktransfer.datasets.list_images, or with "
    "load_image_folder where it has a folder for each class)"
)


@singledispatch
def image_content(sample) -> bytes | np.ndarray:
    """Return the content of an image: encoded bytes or an array of pixel values.

    Support for further types of images is added with ``image_content.register``.
    """
    if hasattr(sample, "__array__"):
        return image_content(np.asarray(sample))
    if is_missing(sample):
        raise ValueError(f"it is missing: {sample} instead of an image or its path")
    raise ValueError(f"it is of type {type(sample).__name__}")


@image_content.register(str)
@image_content.register(os.PathLike)
def _read_path(path) -> bytes:
    if not os.fspath(path):
        raise ValueError("the path is empty")
    # Opening a FIFO or a device could block for ever, so O_NONBLOCK opens it at once.
    # The opened file is then checked, rather than its path, which may lead to another
    # file a moment later. O_BINARY keeps Windows from converting line ends.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(Path(path).expanduser(), flags)
    except (OSError, ValueError) as error:
        raise ValueError(_why_not_opened(path, error)) from error
    try:
        _check_file(os.fstat(descriptor))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _why_not_opened(path, error: Exception) -> str:
    """Explain why a path cannot be opened, without repeating a long text."""
    kind = text_kind(os.fspath(path))
    if kind:
        return kind
    # On Windows, opening a folder is a matter of permissions.
    if isinstance(error, PermissionError) and is_folder(path):
        return _IS_FOLDER
    reason = getattr(error, "strerror", None) or str(error)
    if len(os.fspath(path).split()) >= _WORDS:
        return f"{reason} (a text, as it seems, needs a backbone of texts: 'hf/<name>')"
    if isinstance(error, FileNotFoundError) and not Path(path).is_absolute():
        reason += f" (a relative path starts in the working folder, {os.getcwd()!r})"
    return reason


def is_folder(path) -> bool:
    return os.path.isdir(os.path.expanduser(path))


def _check_file(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(_IS_FOLDER)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(
            f"the file has {status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}"
        )


@image_content.register(bytes)
def _read_bytes(data) -> bytes:
    return data


@image_content.register(bytearray)
@image_content.register(memoryview)
def _read_buffer(data) -> bytes:
    return bytes(data)


@image_content.register(torch.Tensor)
def _read_tensor(tensor) -> np.ndarray:
    return image_content(to_numpy(tensor))


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


image_content.register(np.ndarray)(checked_array)
image_content.register(PIL.Image.Image)(pil_array)
