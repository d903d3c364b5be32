"""What `X` may be -> a sequence of images, or None for a table of numbers."""

import numbers
import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from scipy.sparse import issparse

from sktransfer.inputs._content import is_folder, to_numpy
from sktransfer.inputs._reader import is_missing


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
        X = to_numpy(X)
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


def _refuse_single(X) -> None:
    if isinstance(X, str | os.PathLike) and is_folder(X):
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


def _is_numbers(sample) -> bool:
    if isinstance(sample, list | tuple) and sample:
        return isinstance(sample[0], numbers.Number)
    if isinstance(sample, np.ndarray) and sample.ndim < 2:
        return sample.dtype.kind not in "OUST"
    return isinstance(sample, numbers.Number)
