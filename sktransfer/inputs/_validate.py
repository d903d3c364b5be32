"""Validation of X and y of an estimator whose samples are no rows of numbers."""

import numbers
from collections.abc import Sequence

import numpy as np
from sklearn.utils.validation import _check_y, _num_samples, validate_data

from sktransfer.inputs._reader import Reader, Samples, is_missing


def check_samples(
    estimator, X, y="no_validation", *, reader: Reader, reset: bool, **checks
):
    """Do for an estimator of samples what scikit-learn's `validate_data` does.

    Returns
    -------
    samples : list, or ndarray of shape (n_samples, n_features)
        An ndarray is a table of numbers, which scikit-learn has validated.
    y : ndarray
        Only where a `y` is given.
    """
    samples = reader.samples(X)
    with_y = not (isinstance(y, str) and y == "no_validation")
    if with_y:
        _refuse_missing_targets(estimator, y, reader.kind)
    if samples is None:
        _refuse_numbers(X, reader.kind)
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
            f"X has {len(samples)} {reader.kind}s and y has {_num_samples(y)} targets. "
            f"Pass one target for each {reader.kind}."
        )
    return list(samples), y


def as_samples(reader: Reader, checked, image_shape=None, value_range=None) -> Samples:
    """Make samples of what `check_samples` has returned."""
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
            f"X has single numbers where {kind}s are needed. Accepted are a list or a "
            f"stack of {kind}s, and a table of shape (n_{kind}s, n_numbers). Nothing "
            f"was read. Reshape your data so that it has a row for each {kind}: "
            f"X.reshape(n_{kind}s, -1) of an array."
        )


def _refuse_missing_targets(estimator, y, kind: str) -> None:
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but "
            f"the target y is None. Pass one target for each {kind}."
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
            f"missing, in rows {shown}. Accepted is a label or number for each {kind}. "
            "Nothing was fitted. Leave those rows out of X and y (of a frame: "
            "df.dropna(subset=[name of the target]))."
        )
