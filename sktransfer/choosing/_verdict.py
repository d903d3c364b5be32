"""The verdict of a report: whether transfer helps, and how far that is known."""

import numpy as np

AS_GIVEN, SCRATCH = "as given", "from scratch"
# Fewer folds do not show how much a difference varies. With two, a difference that
# happens to be the same in both would have an interval of zero width.
_LEAST_FOLDS = 3
# Differences that vary by less than this fraction of the largest score are equal:
# subtracting scores in floating point leaves as much.
_ROUNDING = 1e-9
_ALIKE = "cannot be distinguished from"
# The keys say on which side of the model from scratch the estimator is.
_VERDICTS = {
    1: ("transfer helps", "is above"),
    0: ("no evidence", _ALIKE),
    -1: ("negative transfer", "is below"),
}
_SIMPLER = {
    "linear probe": "A linear probe",
    "guessing": "Guessing",
}


def judge(rows, scores, tested: str) -> tuple[str, str]:
    """Return the verdict and its explanation, which says how much the folds test."""
    by_name = {row["model"]: row for row in rows}
    scratch = by_name[SCRATCH]
    side, unknown = _side(scratch, scores)
    verdict, how = _VERDICTS[side]
    text = (
        f"{verdict.capitalize()}: {by_name[AS_GIVEN]['score']:.3f} {how} the "
        f"{scratch['score']:.3f} from scratch"
    )
    low, high = scratch["low"], scratch["high"]
    if unknown:
        text += f", since {unknown}."
    else:
        text += f" (95 % interval of the difference {low:+.3f} to {high:+.3f})."
    if not unknown and side == 0:
        text += (
            f" Differences below {(high - low) / 2:.2g} could not be seen with "
            f"{len(scores[AS_GIVEN])} folds of {tested}."
        )
    for name in [name for name in by_name if name not in (AS_GIVEN, SCRATCH)]:
        what = _SIMPLER.get(name, f"A linear model of the {name}")
        side, unknown = _side(by_name[name], scores)
        score = f"{what} ({by_name[name]['score']:.3f})"
        if unknown:
            text += f" {score} {_ALIKE} it, since {unknown}."
        elif side <= 0:
            text += f" {score} {'is better than' if side < 0 else _ALIKE} it."
    return verdict, text


def _side(row, scores) -> tuple[int, str | None]:
    """Return 1 if the estimator is better than a model, -1 if worse, 0 if unknown.

    The second value is why it is unknown, or None if the interval contains zero.
    """
    unknown = _why_open(scores[AS_GIVEN], scores[row["model"]])
    side = 0 if unknown else int(row["low"] > 0) - int(row["high"] < 0)
    return side, unknown


def _why_open(given, other) -> str | None:
    """Return why scores cannot distinguish two models, whatever their interval is."""
    differences, n_folds = given - other, len(given)
    if not np.isfinite(differences).all():
        fold = np.flatnonzero(~np.isfinite(differences))[0]
        return f"the scores of fold {fold + 1} are {given[fold]} and {other[fold]}"
    if n_folds < _LEAST_FOLDS:
        return (
            f"{n_folds} folds are too few to tell how much the difference varies: pass "
            f"at least {_LEAST_FOLDS}, such as cv=5"
        )
    if np.ptp(differences) <= _ROUNDING * np.abs([given, other]).max():
        return (
            f"the difference is {differences.mean():+.3f} in each of the {n_folds} "
            "folds, and without spread nothing tells how much it would vary: pass "
            "more samples or, for classes, scoring='neg_log_loss'"
        )
    return None


def folds_told(folds, kind: str) -> str:
    """Format the range of the numbers of test samples of the folds."""
    sizes = sorted({len(test) for _, test in folds})
    count = " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
    return f"{count} {kind}{'s' * (sizes[-1] > 1)}"
