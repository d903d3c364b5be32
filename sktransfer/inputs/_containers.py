"""Conversion of all types that `X` may have to a sequence of samples."""

import math
import numbers
import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from scipy.sparse import issparse

from sktransfer.inputs._content import to_numpy
from sktransfer.inputs._encoded import is_encoded, is_local_path
from sktransfer.inputs._files import is_folder
from sktransfer.inputs._reader import is_missing


def image_samples(X) -> Sequence | None:
    """Return the images of `X`, or None if `X` is a table of numbers.

    Parameters
    ----------
    X : list, array, tensor, series, one-column frame, or stack of images
        The images. Everything that scikit-learn itself can validate is a table: 2-D
        numbers (flattened images), a flat list of numbers, a sparse matrix.

    Raises
    ------
    ValueError
        If `X` is a single image, is empty, or does not contain images.
    """
    _refuse_single(X)
    return samples_of(X, "image")


def samples_of(X, kind: str) -> Sequence | None:
    """Return the samples of `X`, of any kind, or None if `X` is a table of numbers."""
    # Taken before `X` becomes an array, for the error message.
    names = getattr(X, "columns", None)
    if issparse(X):
        return None
    if isinstance(X, torch.Tensor):
        X = to_numpy(X)
    X = _dicts_of_polars(X)
    if not isinstance(X, np.ndarray | Sequence):
        if not hasattr(X, "__array__"):
            raise ValueError(
                f"Invalid X of type {type(X).__name__}: expected a list, array, series "
                f"or one-column frame of {kind}s. Nothing was read."
            )
        X = np.asarray(X)
    if isinstance(X, np.ndarray):
        return _array_samples(X, kind, names)
    if len(X) == 0:
        raise _none_found(kind)
    return None if _are_numbers(X, kind) else X


def refuse_folder(X, kind: str) -> None:
    """Raise an error if `X` is a folder rather than a list of its files."""
    if is_local_path(X) and is_folder(X):
        raise ValueError(
            f"Invalid X={os.fspath(X)!r}: expected a list of {kind}s, but it is a "
            f"folder. Nothing was read. Pass sktransfer.datasets.list_{kind}s(X), or "
            f"the X and y of load_{kind}_folder if it has a folder for each class."
        )


def _refuse_single(X) -> None:
    refuse_folder(X, "image")
    single = is_encoded(X) or isinstance(X, PIL.Image.Image)
    # An array (H, W, 3) could also be a stack of grey images, three pixels wide, but a
    # single colour image is far more likely.
    shape = getattr(X, "shape", ())
    if single or (len(shape) == 3 and shape[-1] in (3, 4)):
        what = f"array of shape {tuple(shape)}" if shape else type(X).__name__
        raise ValueError(
            f"Invalid X: expected a list or stack of images, but it seems to be a "
            f"single image ({what}). Nothing was read. Wrap the image in a list: "
            "[image]."
        )


def _dicts_of_polars(X):
    """Return a column of structs as dicts, whose keys are lost in arrays of polars."""
    if not type(X).__module__.startswith("polars"):
        return X
    column = X.to_series() if getattr(X, "width", 0) == 1 else X
    is_struct = str(getattr(column, "dtype", "")).startswith("Struct")
    return column.to_list() if is_struct else X


def _array_samples(X: np.ndarray, kind: str, names) -> Sequence | None:
    # Texts are not stacked.
    if X.ndim in (3, 4) and kind != "text":
        return list(X)
    # Objects and strings of any kind, such as paths; all other dtypes are numbers.
    if X.dtype.kind not in "OUST":
        if X.ndim > 4 and kind == "image":
            raise ValueError(
                f"Invalid X of shape {X.shape}: expected a stack of images of shape "
                "(n, H, W) or (n, H, W, C), or flattened images of shape (n, n_pixels)."
            )
        return None
    if X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    _refuse_columns(X, kind, names)
    if X.ndim != 1 or (len(X) and _are_numbers(X, kind)):
        return None
    if len(X) == 0:
        raise _none_found(kind)
    return list(X)


def _none_found(kind: str) -> ValueError:
    return ValueError(f"Found 0 {kind}s in X; a minimum of 1 is required.")


def _refuse_columns(X: np.ndarray, kind: str, names) -> None:
    first = X[0] if X.ndim == 2 and len(X) and X.dtype.kind in "OUST" else ()
    likely = [c for c, sample in enumerate(first) if _may_be_sample(sample, kind)]
    if likely:
        # Labels are shorter than texts and paths.
        best = max(likely, key=lambda column: _length(first[column]))
        name = best if names is None else names[best]
        raise ValueError(
            f"Invalid X with {X.shape[1]} columns: expected a single column of {kind}s,"
            f" which seems to be {name!r}. Nothing was read. Pass only this column, "
            f"X[[{name!r}]]; in a ColumnTransformer, select only this column in the "
            f"step for {kind}s: (..., [{name!r}])."
        )


def _may_be_sample(sample, kind: str) -> bool:
    """Whether a value is a text or, of other kinds, a path or other file."""
    if not isinstance(sample, str):
        held = isinstance(sample, np.ndarray | torch.Tensor | PIL.Image.Image)
        return kind != "text" and (held or is_encoded(sample))
    # A string such as "1.5" is a number, as in a table read from a CSV file.
    try:
        float(sample)
    except ValueError:
        return True
    return False


def _length(sample) -> float:
    return len(sample) if isinstance(sample, str) else math.inf


def _are_numbers(X, kind: str) -> bool:
    """Whether samples are numbers or rows of numbers, judged by the first present."""
    # A missing image is None or NaN; only if all are missing is NaN taken for a number.
    first = next((x for x in X if not is_missing(x)), X[0])
    if kind != "sound":
        _refuse_sound(first, kind)
    return _is_numbers(first, kind)


def _refuse_sound(sample, kind: str) -> None:
    """Raise an error if a sample is a pair of a rate and the values of a sound."""
    if not isinstance(sample, list | tuple) or len(sample) != 2:
        return
    rate, values = sample
    if isinstance(rate, numbers.Number) and hasattr(values, "__len__"):
        raise ValueError(
            f"Invalid X: expected {kind}s, but it has a pair (rate, array), which is a "
            f"sound, and the backbone reads {kind}s. Nothing was read. Pass a backbone "
            f"of sounds, or {kind}s."
        )


def _is_numbers(sample, kind: str) -> bool:
    if isinstance(sample, list | tuple) and sample:
        # A sound may be a pair of its rate, a number, and an array.
        values = sample[:2] if kind == "sound" else sample[:1]
        return all(isinstance(value, numbers.Number) for value in values)
    if isinstance(sample, np.ndarray) and sample.ndim < 2:
        return kind != "sound" and sample.dtype.kind not in "OUST"
    return isinstance(sample, numbers.Number)
