"""Validation of X and y for estimators whose samples are not rows of numbers."""

import numbers
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.utils.validation import _check_y, _num_samples, validate_data

from sktransfer.inputs._content import to_numpy
from sktransfer.inputs._reader import Reader, Samples, is_missing


def check_samples(
    estimator, X, y="no_validation", *, reader: Reader, reset: bool, **checks
):
    """Validate samples and targets, as scikit-learn's `validate_data` does for arrays.

    Returns
    -------
    samples : Sequence, or ndarray of shape (n_samples, n_features)
        The samples. An ndarray is a table of numbers, validated by scikit-learn.
    y : ndarray
        The validated targets. Returned only if `y` was passed.
    """
    shape = getattr(estimator, "image_shape", None)
    if shape is not None and reader.kind != "image":
        raise ValueError(
            f"Invalid image_shape={shape!r}: expected None, as the samples of this "
            f"backbone are {reader.kind}s. Only images have a shape."
        )
    X, y = on_host(X), on_host(y)
    samples = reader.samples(X)
    with_y = not (isinstance(y, str) and y == "no_validation")
    if with_y:
        _refuse_missing_targets(estimator, y, reader.kind)
    if samples is None:
        _refuse_numbers(X, reader.kind)
        return validate_data(estimator, X, y, dtype="numeric", reset=reset, **checks)
    # A frame or an array of one column has a number and perhaps names of columns, but
    # `transform` without `fit` has nothing to compare them with.
    if len(getattr(X, "shape", ())) == 2 and (
        reset or hasattr(estimator, "n_features_in_")
    ):
        validate_data(estimator, X, skip_check_array=True, reset=reset)
    elif reset:
        # An earlier fit on a table left these, and they must not be checked any more.
        vars(estimator).pop("n_features_in_", None)
        vars(estimator).pop("feature_names_in_", None)
    if not with_y:
        return samples
    # `validate_data` would delete the names of the columns if it got no X.
    y = _check_y(y, estimator=estimator, **checks)
    if _num_samples(y) != len(samples):
        raise ValueError(
            f"Invalid y: expected one target for each {reader.kind}, but X has "
            f"{len(samples)} {reader.kind}s and y has {_num_samples(y)} targets."
        )
    return samples, y


def on_host(values):
    """Return a tensor as an array, and anything else as it is.

    Samples are read on the host. With scikit-learn's array API dispatch, its checks
    would return tensors as they are.
    """
    return to_numpy(values) if isinstance(values, torch.Tensor) else values


def as_samples(reader: Reader, checked, image_shape=None, value_range=None) -> Samples:
    """Return the samples that `check_samples` returned as `Samples`."""
    if isinstance(checked, np.ndarray):
        return reader.table(checked, image_shape, value_range)
    return Samples(checked, reader)


def _refuse_numbers(X, kind: str) -> None:
    if isinstance(X, Sequence):
        single = isinstance(X[0], numbers.Number)
    else:
        single = len(getattr(X, "shape", ())) == 1
    if single:
        raise ValueError(
            f"Invalid X: expected a list or a stack of {kind}s, or a table of shape "
            f"(n_{kind}s, n_numbers), but it contains single numbers. Nothing was "
            f"read. Reshape your data so that it has one row for each {kind}: "
            f"X.reshape(n_{kind}s, -1) if X is an array."
        )


def _refuse_missing_targets(estimator, y, kind: str) -> None:
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but "
            f"the target y is None. Pass one target for each {kind}."
        )
    try:
        # NumPy would convert a list with a single string to strings, and a missing
        # target would become the class "nan".
        as_they_are = object if isinstance(y, list | tuple) else None
        targets = np.atleast_1d(np.asarray(y, dtype=as_they_are))
    except ValueError:
        return  # rows of unequal lengths, which scikit-learn refuses later
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
            f"missing, in rows {shown}. Expected a label or number for each {kind}. "
            "Nothing was fitted. Remove these rows from X and y (from a frame with "
            "df.dropna(subset=[name of the target]))."
        )
