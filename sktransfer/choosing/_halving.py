"""How many candidates a halving search has in each iteration, and of what."""

from math import ceil, floor, log

import numpy as np
from sklearn.base import is_classifier


def resources_of(search, y, n_samples: int, n_splits: int) -> tuple[int, int]:
    """Return the smallest and the largest resources of an iteration.

    With ``min_resources="exhaust"``, the smallest may grow with the candidates.
    """
    least, most = search.min_resources, search.max_resources
    if least in ("smallest", "exhaust"):
        least = 1
        if search.resource == "n_samples":
            # As scikit-learn does: two samples of each class in each fold.
            classes = len(np.unique(y)) if is_classifier(search.estimator) else 1
            least = 2 * n_splits * classes
    most = n_samples if most == "auto" else most
    if least > most:
        raise ValueError(
            f"Invalid min_resources={search.min_resources!r}: the first iteration "
            f"would have {least} of {search.resource!r}, and max_resources is {most}. "
            "Pass more samples, fewer folds or a smaller min_resources."
        )
    return least, most


def iterations_of(search, n_candidates: int, least: int, most: int) -> list:
    """Return the number of candidates and the resources of each iteration."""
    factor = search.factor
    required = 1 + floor(log(n_candidates, factor))
    if search.min_resources == "exhaust":
        least = max(least, int(most // factor ** (required - 1)))
    possible = 1 + floor(log(most // least, factor))
    aggressive = search.aggressive_elimination
    found = []
    for i in range(required if aggressive else min(possible, required)):
        power = max(0, i - required + possible) if aggressive else i
        found.append((n_candidates, min(int(factor**power * least), most)))
        n_candidates = ceil(n_candidates / factor)
    return found
