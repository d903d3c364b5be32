"""Tables of numbers whose rows are flattened images."""

import math
import numbers
import sys
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np

# Black and white of a table of such numbers.
_RANGES = {
    np.dtype(bool): (0.0, 1.0),
    np.dtype(np.uint8): (0.0, 255.0),
    np.dtype(np.uint16): (0.0, 65535.0),
}
# Of a square that a row is taken for, in pixels.
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
        uint8, uint16 and bool are scaled by their range. Of other numbers, a row
        within [0, 1] is taken as it is, and any other is stretched between its own
        minimum and maximum, so that a row never depends on its neighbours.
    image_shape : tuple of int or None
        As in `numpy.reshape`, one -1 allowed. None infers a square grey or RGB
        image, else one row of pixels, and warns where that is hardly an image. A
        one-row image is repeated downwards to a square, so that a square crop loses
        none of it.
    value_range : (low, high) or None
        The values that stand for black and white, in place of the rule above; where
        they are those of a dtype, numbers of another such dtype, and floats within
        [0, 1], are scaled by their own.

    Returns
    -------
    images : list of ndarray
    content : callable
        An image of the list -> its content, an array of pixels.
    """
    images = X.reshape(len(X), *row_shape(X, image_shape))
    if X.dtype in _RANGES and value_range in (None, *_RANGES.values()):
        return list(images), _row_content
    return list(images), partial(_scaled_content, value_range=value_range)


def table_range(X: np.ndarray) -> tuple[float, float]:
    """Values of a table that stand for black and white."""
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
        # Integers of a full range may come as floats: in [0, 1], or as they were.
        within = image.min() >= 0 and image.max() <= 1
        value_range = (0.0, 1.0) if within else value_range
    return _row_content(_scale(image.astype(np.float64), value_range))


def _scale(image: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    low, high = value_range or (image.min(), image.max())
    if value_range is not None or low < 0 or high > 1:
        image = (image - low) / ((high - low) or 1.0)
    return image.astype(np.float32)


def row_shape(X: np.ndarray, image_shape) -> tuple[int, ...]:
    """Shape of the image that each row of a table is.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_pixels)
    image_shape : tuple of int or None
        As in `numpy.reshape`, one -1 allowed. None infers a square grey or RGB image,
        else one row of pixels, and warns where that is hardly an image.

    Raises
    ------
    ValueError
        If `image_shape` does not fit.
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
            f"image_shape={image_shape!r} does not fit rows of {n_pixels} values. "
            "Accepted are (H, W) and (H, W, 1|3|4), one -1 allowed, whose product is "
            "the number of columns of X; None infers a square."
        )
    return tuple(n_pixels // known if side == -1 else int(side) for side in shape)


def _inferred_shape(n_pixels: int) -> tuple[int, ...]:
    for channels in ((), (3,)):
        side = math.isqrt(n_pixels // math.prod(channels))
        if side * side * math.prod(channels) == n_pixels:
            return (side, side, *channels)
    return (1, n_pixels)


def _warn_of_odd_rows(X: np.ndarray, shape: tuple[int, ...]) -> None:
    """Warn where rows, read as None for image_shape says, are hardly images."""
    size, alone = " x ".join(map(str, shape)), _seems_one_image(X)
    if shape == (1, X.shape[1]) != (1, 1):
        what = f"no square grey or RGB image: each is read as one row of pixels, {size}"
    elif shape[0] < _SMALLEST_SIDE:
        what = f"read as images of {size} pixels, too small to show anything"
    elif alone:
        what = f"read as {len(X)} images of {size} pixels"
    else:
        return
    hint = (
        f"X, of shape {X.shape}, seems to be a single image, as each of its rows "
        "is much like the next: if it is, wrap it in a list, [X]"
        if alone
        else "If X is a table of measurements, a network for images has no use for it"
    )
    warnings.warn(
        f"Rows of {X.shape[1]} value{'s' * (X.shape[1] > 1)} are {what}. {hint}; if "
        "the rows are images, set image_shape=(height, width) or (height, width, "
        "channels).",
        UserWarning,
        stacklevel=_level_of_the_caller(),
    )


def _seems_one_image(X: np.ndarray) -> bool:
    """Whether a table has the sides of an image, and rows that go on in the next."""
    short, long = sorted(X.shape)
    if short < 32 or long > 8 * short:
        return False
    rows = X[:, :: -(-X.shape[1] // 256)].astype(np.float64)
    far = np.abs(rows - np.roll(rows, len(rows) // 2, axis=0)).mean()
    # The ratio of 99 in 100 photos is below 0.45, of most 0.1; that of flattened
    # images is 1, or 0.5 where those of a class stand together.
    return bool(np.abs(np.diff(rows, axis=0)).mean() < 0.45 * far)


def _level_of_the_caller() -> int:
    """How far up the stack is what called scikit-learn or this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_within(frame.f_globals.get("__name__")):
        frame, level = frame.f_back, level + 1
    return level


def _is_within(module: str | None) -> bool:
    return str(module).partition(".")[0] in ("sktransfer", "sklearn", "joblib")
