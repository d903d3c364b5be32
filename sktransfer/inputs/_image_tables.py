"""Tables of numbers whose rows are flattened images."""

import math
import numbers
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np

from sktransfer.inputs._callers import level_of_the_caller

# The values that are black and white in tables of these dtypes.
_RANGES = {
    np.dtype(bool): (0.0, 1.0),
    np.dtype(np.uint8): (0.0, 255.0),
    np.dtype(np.uint16): (0.0, 65535.0),
}
# An inferred square whose sides are shorter, in pixels, is hardly an image.
_SMALLEST_SIDE = 8


def table_images(
    X: np.ndarray,
    image_shape: tuple[int, ...] | None = None,
    value_range: tuple[float, float] | None = None,
) -> tuple[list[np.ndarray], Callable]:
    """Read the rows of a table as flattened images.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        The table. uint8, uint16 and bool are scaled by their range. Of other dtypes,
        a row within [0, 1] is used unchanged, and any other is scaled by its own
        minimum and maximum, so that a row never depends on its neighbours.
    image_shape : tuple of int or None
        The shape of an image, as in `numpy.reshape`; one dimension may be -1. If None,
        a square grey or RGB image is inferred, or else an image of one row, and a
        warning is issued if that is hardly an image. An image of one row is repeated
        vertically to a square, so that a square crop contains all of it.
    value_range : (low, high) or None
        The values that are black and white, in place of the rule above. If they are
        those of a dtype, tables of another such dtype, and floats within [0, 1], are
        scaled by their own range.

    Returns
    -------
    images : list of ndarray
        The images, not yet scaled.
    content : callable
        A function from one of these images to its content, an array.
    """
    images = X.reshape(len(X), *row_shape(X, image_shape))
    if X.dtype in _RANGES and value_range in (None, *_RANGES.values()):
        return list(images), _row_content
    return list(images), partial(_scaled_content, value_range=value_range)


def table_range(X: np.ndarray) -> tuple[float, float]:
    """Return the values of a table that are black and white."""
    low, high = float(X.min()), float(X.max())
    within = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    return _RANGES.get(X.dtype, within)


def _row_content(image: np.ndarray) -> np.ndarray:
    if len(image) == 1:
        side = image.shape[1]
        image = np.broadcast_to(image, (side, *image.shape[1:]))
    return image


def _scaled_content(image: np.ndarray, value_range) -> np.ndarray:
    if image.dtype.kind == "f" and value_range in _RANGES.values():
        # The integers of a dtype may have become floats, divided by their range or not.
        within = image.min() >= 0 and image.max() <= 1
        value_range = (0.0, 1.0) if within else value_range
    return _row_content(_scale(image.astype(np.float64), value_range))


def _scale(image: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    low, high = value_range or (image.min(), image.max())
    if value_range is not None or low < 0 or high > 1:
        # A constant image would be divided by 0.
        image = (image - low) / ((high - low) or 1.0)
    return image.astype(np.float32)


def row_shape(X: np.ndarray, image_shape) -> tuple[int, ...]:
    """Return the shape of the image in each row of a table.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_pixels)
        The table.
    image_shape : tuple of int or None
        The shape as in `numpy.reshape`; one dimension may be -1. If None, a square grey
        or RGB image is inferred, or else an image of one row, and a warning is issued
        if that is hardly an image.

    Raises
    ------
    ValueError
        If `image_shape` does not fit the number of columns.
    """
    if image_shape is None:
        shape = _inferred_shape(X.shape[1])
        _warn_of_odd_rows(X, shape)
        return shape
    return _given_shape(X.shape[1], image_shape)


def _given_shape(n_pixels: int, image_shape) -> tuple[int, ...]:
    shape = tuple(image_shape) if isinstance(image_shape, list | tuple) else ()
    known = math.prod(side for side in shape if side != -1)
    fits = n_pixels == known if -1 not in shape else n_pixels % max(known, 1) == 0
    if not (
        len(shape) in (2, 3)
        and all(isinstance(side, numbers.Integral) for side in shape)
        and all(side > 0 or side == -1 for side in shape)
        and shape.count(-1) <= 1
        and (len(shape) == 2 or shape[2] in (1, 3, 4))
        and fits
    ):
        raise ValueError(
            f"Invalid image_shape={image_shape!r}: expected None, (H, W) or "
            "(H, W, 1|3|4), with at most one -1, whose product is the number of "
            f"columns of X, {n_pixels}. If None, a square is inferred."
        )
    return tuple(n_pixels // known if side == -1 else int(side) for side in shape)


def _inferred_shape(n_pixels: int) -> tuple[int, ...]:
    for channels in ((), (3,)):
        side = math.isqrt(n_pixels // math.prod(channels))
        if side * side * math.prod(channels) == n_pixels:
            return (side, side, *channels)
    return (1, n_pixels)


def _warn_of_odd_rows(X: np.ndarray, shape: tuple[int, ...]) -> None:
    """Warn if the rows are hardly images when their shape is inferred."""
    # A table of a single column is (1, 1), which is a square as well as a row.
    size, alone = " x ".join(map(str, shape)), _seems_one_image(X)
    if shape == (1, X.shape[1]) != (1, 1):
        what = f"not square grey or RGB images: each is read as one row, {size} pixels"
    elif shape[0] < _SMALLEST_SIDE:
        what = f"read as images of {size} pixels, which is too small to show anything"
    elif alone:
        what = f"read as {len(X)} images of {size} pixels"
    else:
        return
    hint = (
        f"X, of shape {X.shape}, seems to be a single image, as each of its rows "
        "is similar to the next. If it is, wrap it in a list: [X]"
        if alone
        else "If X is a table of measurements, a network for images is of no use"
    )
    warnings.warn(
        f"Rows of {X.shape[1]} value{'s' * (X.shape[1] > 1)} are {what}. {hint}. If "
        "the rows are images, set image_shape=(height, width) or (height, width, "
        "channels).",
        UserWarning,
        stacklevel=level_of_the_caller(),
    )


def _seems_one_image(X: np.ndarray) -> bool:
    """Whether a table has the shape of an image, and rows similar to the next ones."""
    short, long = sorted(X.shape)
    if short < 32 or long > 8 * short:
        return False
    # At most 256 columns are enough to compare each row with the next and with one that
    # is far away.
    rows = X[:, :: -(-X.shape[1] // 256)].astype(np.float64)
    far = np.abs(rows - np.roll(rows, len(rows) // 2, axis=0)).mean()
    # This ratio is below 0.45 for 99 in 100 photos, and about 0.1 for most. For tables
    # of flattened images it is 1, or 0.5 if the images are sorted by class.
    return bool(np.abs(np.diff(rows, axis=0)).mean() < 0.45 * far)
