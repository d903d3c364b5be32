"""What ``class_weight=`` means for classes, and for several labels."""

from numbers import Real

import numpy as np
from sklearn.utils import compute_class_weight

# A class without any weight must not divide by zero; no example uses its factor.
_LEAST = 1e-12


def class_factors(class_weight, classes, codes, weights) -> np.ndarray:
    """Return the factor of each class.

    Parameters
    ----------
    class_weight : dict or "balanced"
        The weight of each class.
    classes : ndarray of shape (n_classes,)
        The sorted labels.
    codes : ndarray of shape (n_samples,)
        The index of the class of each sample.
    weights : ndarray of shape (n_samples,)
        The sample weights.
    """
    if isinstance(class_weight, list):
        raise ValueError(
            f"Invalid class_weight={class_weight!r}: a list is for multilabel targets, "
            "and y has one label for each sample. Pass a dict of its classes, or "
            "'balanced'."
        )
    if class_weight == "balanced":
        return _balanced(codes, weights, len(classes))
    factors = compute_class_weight(class_weight, classes=classes, y=classes[codes])
    if factors.min() < 0:
        raise ValueError(
            f"Invalid class_weight={class_weight!r}: expected no negative weight. Use "
            "0 to leave a class out."
        )
    return factors


def label_factors(class_weight, y, weights) -> np.ndarray | None:
    """Return the factors of the absence (row 0) and presence (row 1) of each label.

    Parameters
    ----------
    class_weight : dict, list of dict, "balanced" or None
        The weights of 0 and 1, for all labels or for each of them.
    y : ndarray of shape (n_samples, n_labels)
        The indicator matrix.
    weights : ndarray of shape (n_samples,)
        The sample weights.

    Returns
    -------
    ndarray of shape (2, n_labels), or None without class weights
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        columns = (y == 1).astype(int).T
        return np.column_stack([_balanced(codes, weights, 2) for codes in columns])
    each = class_weight
    if isinstance(class_weight, dict):
        each = [class_weight] * y.shape[1]
    if len(each) != y.shape[1] or not all(map(_weighs_a_label, each)):
        raise ValueError(
            f"Invalid class_weight={class_weight!r}: expected, for {y.shape[1]} "
            "labels, a dict of the weights of 0 and 1 for each of them, as in "
            "[{0: 1, 1: 5}, ...], a single dict for all, 'balanced' or None. Weights "
            "are not negative, and not both 0."
        )
    return np.array([[d.get(code, 1.0) for d in each] for code in (0, 1)], dtype=float)


def _weighs_a_label(weights) -> bool:
    if not isinstance(weights, dict) or not weights.keys() <= {0, 1}:
        return False
    both = [weights.get(code, 1.0) for code in (0, 1)]
    return all(isinstance(w, Real) and w >= 0 for w in both) and max(both) > 0


def _balanced(codes, weights, n_classes: int) -> np.ndarray:
    # Counts are weighted, so that a weight of k stays equivalent to k copies.
    counts = np.bincount(codes, weights=weights, minlength=n_classes)
    return weights.sum() / (n_classes * np.maximum(counts, _LEAST))
