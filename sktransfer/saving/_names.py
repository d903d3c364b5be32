"""Names of the classes that a file may contain, and the refusal of all others."""

import importlib
from itertools import chain

from sklearn.base import BaseEstimator

from sktransfer.finetuning._parts import parts_of

# Classes of scikit-learn that hold estimators and are none themselves.
_HOLDERS = {
    "sklearn.calibration:_CalibratedClassifier",
    "sklearn.metrics._scorer:_PassthroughScorer",
}
# Modules of scikit-learn that do more than define classes when they are imported.
_CODE_TO_RUN = {"tests", "conftest", "experimental", "externals"}


def refusal(where: str, what: str) -> ValueError:
    """Return the error for what a file without code cannot hold."""
    return ValueError(
        f"{where} is {what}, which a file without code cannot hold. Accepted are "
        "estimators of sktransfer and scikit-learn whose parameters are numbers, "
        "strings, paths, lists, dicts and arrays of these, splitters and scorers of "
        "scikit-learn (make_scorer with a function of sklearn.metrics), distributions "
        "of scipy.stats, classes of torch.optim, or an EmbeddingCache. Nothing was "
        "written. Change that parameter; save a part without it, such as the "
        "best_estimator_ of a search; or save the estimator with joblib.dump, whose "
        "files run code when they are loaded."
    )


def ours_in(value) -> type | None:
    """Return the class of the first part of this package that a value contains."""
    # The best estimator stands for a search among the parts, but the others are saved,
    # too.
    parts = chain(parts_of(value), parts_of(getattr(value, "__dict__", {})))
    return next(filter(is_ours, map(type, parts)), None)


def is_ours(kind: type) -> bool:
    """Whether a class is one of this package."""
    return kind.__module__.split(".")[0] == "sktransfer"


def class_name(kind: type, where: str) -> str:
    """Return the name by which `find_class` finds a class, or refuse the class."""
    # The public name of a class of this package survives a move between its modules.
    module = "sktransfer" if is_ours(kind) else kind.__module__
    name = f"{module}:{kind.__name__}"
    try:
        known = find_class(name)
    except (ValueError, AttributeError):
        known = None
    if known is not kind:
        raise refusal(where, f"a {kind.__module__}.{kind.__qualname__}")
    return name


def find_class(name: str) -> type:
    """Import an estimator class of this package or scikit-learn, and nothing else."""
    module, _, name = name.partition(":")
    package, *parts = module.split(".")
    if package not in ("sktransfer", "sklearn") or not _CODE_TO_RUN.isdisjoint(parts):
        raise ValueError(f"a class of {module!r}")
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(f"{error}, in which {name!r} is looked for") from error
    if not (isinstance(kind, type) and issubclass(kind, BaseEstimator)):
        raise ValueError(f"{name!r}, which is not an estimator")
    return kind


def holder_name(kind: type) -> str | None:
    """Return the name of a class that holds estimators, if a file may contain it."""
    name = f"{kind.__module__}:{kind.__name__}"
    return name if name in _HOLDERS and find_holder(name) is kind else None


def find_holder(name: str) -> type:
    """Import a class that holds estimators, by the name that `holder_name` gives."""
    if name not in _HOLDERS:
        raise ValueError(f"a class {name!r}")
    module, _, name = name.partition(":")
    return getattr(importlib.import_module(module), name)
