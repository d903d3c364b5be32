"""Any image input -> undecoded sources and their content digests.

A *source* is what is hashed and decoded: the encoded bytes of a file, or an array
of pixels. Everything is lazy: an `Images` holds what the user gave, one source is
read when its turn comes.
"""

import hashlib
import math
import numbers
import os
import stat
from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from scipy.sparse import issparse
from sklearn.utils.validation import _check_y, _num_samples, validate_data

from sktransfer.inputs._decoding import checked_array, pil_array
from sktransfer.inputs._file_kinds import shortened, text_kind
from sktransfer.inputs._image_shape import picture_shape

ACCEPTED = (
    "An image is a path, a PIL image, encoded bytes, or an array or tensor of shape "
    "(H, W), (H, W, 1|3|4) or (3, H, W) of dtype uint8, uint16 or float in [0, 1]."
)
MAX_FILE_BYTES = 2**29
_IS_FOLDER = (
    "it is a folder (list its images with sktransfer.datasets.list_images, or with "
    "load_image_folder where it has a folder for each class)"
)
# Black and white of a table of such numbers.
_RANGES = {
    np.dtype(bool): (0.0, 1.0),
    np.dtype(np.uint8): (0.0, 255.0),
    np.dtype(np.uint16): (0.0, 65535.0),
}


class Images(Sequence):
    """Images as given, each read when asked for.

    Parameters
    ----------
    samples : sequence
        Paths, PIL images, arrays, tensors, encoded bytes, mixed as they come.
    read : callable, optional
        Sample -> source; `read` by default.
    rows : sequence of int, optional
        What the rows are called in messages, if not 0 to n - 1.
    """

    def __init__(
        self,
        samples: Sequence,
        read: Callable | None = None,
        rows: Sequence[int] | None = None,
    ):
        self.samples = samples
        self.rows = range(len(samples)) if rows is None else rows
        self._read = globals()["read"] if read is None else read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> bytes | np.ndarray:
        return self._read(self.samples[row])

    def take(self, rows: Sequence[int]) -> "Images":
        """Return the images at these rows, in this order."""
        samples = [self.samples[row] for row in rows]
        return Images(samples, self._read, [self.rows[row] for row in rows])

    def describe(self, row: int) -> str:
        """Name a row for an error message, by its file where it has one."""
        sample = self.samples[row]
        if is_missing(sample):
            return f"row {self.rows[row]} (missing)"
        if isinstance(sample, str | os.PathLike):
            return f"row {self.rows[row]} ({shortened(os.fspath(sample))!r})"
        return f"row {self.rows[row]} ({type(sample).__name__})"


def image_samples(X) -> Sequence | None:
    """Return the samples of `X`, or None where `X` is a table of numbers.

    Parameters
    ----------
    X : list, array, tensor, series, one-column frame, or stack of images
        A table is everything that scikit-learn's own validation is to judge: 2-D
        numbers (flattened images), a flat list of numbers, a sparse matrix.

    Raises
    ------
    ValueError
        If `X` is a single image, empty, or nothing that holds images.
    """
    _refuse_single(X)
    names = getattr(X, "columns", None)
    if issparse(X):
        return None
    if isinstance(X, torch.Tensor):
        X = _to_numpy(X)
    if not isinstance(X, np.ndarray | Sequence):
        if not hasattr(X, "__array__"):
            raise ValueError(
                f"X is of type {type(X).__name__}, which holds no sequence of images. "
                "Pass a list, array, series or one-column frame of images."
            )
        X = np.asarray(X)
    if isinstance(X, np.ndarray):
        return _array_samples(X, names)
    if len(X) == 0:
        raise ValueError("Found 0 images in X; a minimum of 1 is required.")
    return None if _are_numbers(X) else X


def check_images(estimator, X, y="no_validation", *, reset: bool, **checks):
    """Do for an estimator with images what scikit-learn's `validate_data` does.

    Returns
    -------
    samples : sequence, or ndarray of shape (n_samples, n_pixels)
        An ndarray is a table of flattened images, which scikit-learn has validated.
    y : ndarray
        Only where a `y` is given.
    """
    samples = image_samples(X)
    with_y = not (isinstance(y, str) and y == "no_validation")
    if with_y:
        _refuse_missing_targets(estimator, y)
    if samples is None:
        _refuse_numbers(X)
        return validate_data(estimator, X, y, dtype="numeric", reset=reset, **checks)
    if len(getattr(X, "shape", ())) == 2 and (
        reset or hasattr(estimator, "n_features_in_")
    ):
        validate_data(estimator, X, skip_check_array=True, reset=reset)
    elif reset:
        # What an earlier fit on a table has left.
        vars(estimator).pop("n_features_in_", None)
        vars(estimator).pop("feature_names_in_", None)
    if not with_y:
        return list(samples)
    # Not `validate_data`, which without an X forgets the names of columns.
    y = _check_y(y, estimator=estimator, **checks)
    if _num_samples(y) != len(samples):
        raise ValueError(
            f"X has {len(samples)} images and y has {_num_samples(y)} targets. Pass "
            "one target for each image."
        )
    return list(samples), y


def _refuse_numbers(X) -> None:
    if isinstance(X, Sequence):
        single = isinstance(X[0], numbers.Number)
    else:
        single = len(getattr(X, "shape", ())) == 1
    if single:
        raise ValueError(
            "X has single numbers where images are needed. Accepted are a list or a "
            "stack of images, and a table of shape (n_images, n_pixels). "
            "Nothing was read. Reshape your data so that it has a row for each image: "
            "X.reshape(n_images, -1) of an array."
        )


def _refuse_missing_targets(estimator, y) -> None:
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but "
            "the target y is None. Pass one target for each image."
        )
    try:
        # Of a list with a string, NumPy would make strings of all: a class "nan".
        as_they_are = object if isinstance(y, list | tuple) else None
        targets = np.atleast_1d(np.asarray(y, dtype=as_they_are))
    except ValueError:
        return  # of unequal lengths: scikit-learn says so
    if targets.dtype.kind not in "fO" or not targets.size:
        return
    flat = targets.reshape(len(targets), -1)
    if targets.dtype.kind == "f":
        missing = np.isnan(flat)
    else:
        missing = np.array([[is_missing(value) for value in row] for row in flat])
    rows = np.flatnonzero(missing.any(axis=1)).tolist()
    if rows:
        shown = f"{rows[:10]}"[:-1] + (", ...]" if len(rows) > 10 else "]")
        raise ValueError(
            f"Input y contains NaN or None: {len(rows)} of {len(targets)} targets are "
            f"missing, in rows {shown}. Accepted is a label or number for each image. "
            "Nothing was fitted. Leave those rows out of X and y (of a frame: "
            "df.dropna(subset=[name of the target]))."
        )


def _refuse_single(X) -> None:
    if isinstance(X, str | os.PathLike) and _is_folder(X):
        raise ValueError(
            f"X is the folder {os.fspath(X)!r}, where a list of images is needed. "
            "Nothing was read. Pass sktransfer.datasets.list_images(X), or X and y of "
            "load_image_folder where it has a folder for each class."
        )
    single = isinstance(X, str | bytes | os.PathLike | PIL.Image.Image)
    shape = getattr(X, "shape", ())
    if single or (len(shape) == 3 and shape[-1] in (3, 4)):
        what = f"array of shape {tuple(shape)}" if shape else type(X).__name__
        raise ValueError(
            f"X looks like a single image ({what}), where a list or stack of images "
            "is needed. Wrap one image in a list: [image]."
        )


def _array_samples(X: np.ndarray, names=None) -> Sequence | None:
    if X.ndim in (3, 4):
        return list(X)
    if X.dtype.kind not in "OUST":
        if X.ndim > 4:
            raise ValueError(
                f"X has shape {X.shape}; a stack of images has shape (n, H, W) or "
                "(n, H, W, C), flattened images (n, n_pixels)."
            )
        return None
    if X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    _refuse_columns(X, names)
    if X.ndim != 1 or (len(X) and _are_numbers(X)):
        return None
    if len(X) == 0:
        raise ValueError("Found 0 images in X; a minimum of 1 is required.")
    return list(X)


def _refuse_columns(X: np.ndarray, names) -> None:
    first = X[0] if X.ndim == 2 and len(X) and X.dtype.kind in "OUST" else ()
    paths = [column for column, sample in enumerate(first) if _is_path(sample)]
    if paths:
        name = paths[0] if names is None else names[paths[0]]
        raise ValueError(
            f"X has {X.shape[1]} columns, and images are one of them. Accepted is that "
            f"one column, it seems {name!r}. Nothing was read. Pass it alone, as "
            f"X[[{name!r}]]; of a ColumnTransformer, give the step with the images no "
            f"other column: (..., [{name!r}])."
        )


def _is_path(sample) -> bool:
    if isinstance(sample, os.PathLike):
        return True
    try:
        float(sample)
    except ValueError:
        return isinstance(sample, str)
    except TypeError:
        return False
    return False


def _are_numbers(X) -> bool:
    """Whether samples are numbers, or rows of them: the first not missing decides."""
    there = (x for x in X if not is_missing(x))
    return _is_numbers(next(there, X[0]))


def is_missing(value) -> bool:
    """Whether a value is None, NaN, or what pandas has in place of these."""
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _is_numbers(sample) -> bool:
    if isinstance(sample, list | tuple) and sample:
        return isinstance(sample[0], numbers.Number)
    if isinstance(sample, np.ndarray) and sample.ndim < 2:
        return sample.dtype.kind not in "OUST"
    return isinstance(sample, numbers.Number)


def checked_images(samples, image_shape=None, value_range=None) -> Images:
    """Make images of what `check_images` has returned."""
    if isinstance(samples, np.ndarray):
        return table_images(samples, image_shape, value_range)
    return Images(samples)


def table_images(
    X: np.ndarray,
    image_shape: tuple[int, ...] | None = None,
    value_range: tuple[float, float] | None = None,
) -> Images:
    """Read the rows of a table as flattened images.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        uint8, uint16 and bool are scaled by their range. Of other numbers, a row
        within [0, 1] is taken as it is, and any other is stretched between its own
        minimum and maximum, so that a row never depends on its neighbours.
    image_shape : tuple of int or None
        As in `numpy.reshape`, one -1 allowed. None infers a square grey or RGB
        image, else one row of pixels, and warns where that is hardly a picture. A
        one-row image is repeated downwards to a square, so that a square crop loses
        none of it.
    value_range : (low, high) or None
        The values that stand for black and white, in place of the rule above; where
        they are those of a dtype, numbers of another such dtype, and floats within
        [0, 1], are scaled by their own.
    """
    pictures = X.reshape(len(X), *picture_shape(X, image_shape))
    if X.dtype in _RANGES and value_range in (None, *_RANGES.values()):
        return Images(list(pictures), _row_source)

    return Images(list(pictures), partial(_scaled_source, value_range=value_range))


def table_range(X: np.ndarray) -> tuple[float, float]:
    """Values of a table that stand for black and white."""
    low, high = float(X.min()), float(X.max())
    within = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    return _RANGES.get(X.dtype, within)


def _row_source(picture: np.ndarray) -> np.ndarray:
    if len(picture) == 1:
        side = picture.shape[1]
        picture = np.broadcast_to(picture, (side, *picture.shape[1:]))
    return picture


def _scaled_source(picture: np.ndarray, value_range) -> np.ndarray:
    if picture.dtype.kind == "f" and value_range in _RANGES.values():
        # Integers of a full range may come as floats: in [0, 1], or as they were.
        within = picture.min() >= 0 and picture.max() <= 1
        value_range = (0.0, 1.0) if within else value_range
    return _row_source(_scale(picture.astype(np.float64), value_range))


def _scale(picture: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    low, high = value_range or (picture.min(), picture.max())
    if value_range is not None or low < 0 or high > 1:
        picture = (picture - low) / ((high - low) or 1.0)
    return picture.astype(np.float32)


@singledispatch
def read(sample) -> bytes | np.ndarray:
    """Turn one sample into its source: encoded bytes, or an array of pixels.

    New kinds of samples are added with ``read.register``.
    """
    if hasattr(sample, "__array__"):
        return read(np.asarray(sample))
    if is_missing(sample):
        raise ValueError(f"{sample} stands where an image or its path should be")
    raise ValueError(f"it is of type {type(sample).__name__}")


@read.register(str)
@read.register(os.PathLike)
def _read_path(path) -> bytes:
    if not os.fspath(path):
        raise ValueError("the path is empty")
    # Opening a FIFO or a device would block for ever; O_NONBLOCK opens it at once,
    # and what was opened (not what the name means a moment later) is then judged.
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
    """Say what a path is that leads to no file, without all of a long text."""
    kind = text_kind(os.fspath(path))
    if kind:
        return kind
    if isinstance(error, PermissionError) and _is_folder(path):
        return _IS_FOLDER
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, FileNotFoundError) and not Path(path).is_absolute():
        reason += f" (a relative path starts in the working folder, {os.getcwd()!r})"
    return reason


def _is_folder(path) -> bool:
    return os.path.isdir(os.path.expanduser(path))


def _check_file(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(_IS_FOLDER)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(
            f"the file has {status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}"
        )


@read.register(bytes)
def _read_bytes(data) -> bytes:
    return data


@read.register(bytearray)
@read.register(memoryview)
def _read_buffer(data) -> bytes:
    return bytes(data)


@read.register(torch.Tensor)
def _read_tensor(tensor) -> np.ndarray:
    return read(_to_numpy(tensor))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    # NumPy has no such numbers.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


read.register(np.ndarray)(checked_array)
read.register(PIL.Image.Image)(pil_array)


def digest(source: bytes | np.ndarray) -> bytes:
    """SHA-256 of what a source says: the encoded bytes, or dtype, shape and values."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    array = np.ascontiguousarray(source)
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + array.tobytes()).digest()
