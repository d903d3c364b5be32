"""The parts of an estimator: steps, results of searches, members of ensembles."""

from collections.abc import Iterator

from sklearn.base import BaseEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline

from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.finetuning._base import BaseFineTune

_NETWORKS = (BaseFineTune, PretrainedFeatureExtractor)


def find_source(estimator):
    """Return name and value of the only part that has a pretrained network."""
    parts = {"": estimator, **estimator.get_params(deep=True)}
    found = {name: part for name, part in parts.items() if isinstance(part, _NETWORKS)}
    # A fitted network that another one starts from, as its `backbone`, does not count.
    outer = [
        name for name in found if not any(is_within(name, other) for other in found)
    ]
    if len(outer) != 1:
        raise ValueError(
            f"{type(estimator).__name__} has {len(outer)} parts with a pretrained "
            f"network{f' ({outer})' if outer else ''}, and exactly one is needed. "
            "Accepted are FineTuneClassifier, FineTuneRegressor, and pipelines and "
            "searches with one of these or a PretrainedFeatureExtractor."
        )
    return outer[0], found[outer[0]]


def is_within(name, other) -> bool:
    """Whether a parameter belongs to the part that another parameter names."""
    return name != other and (not other or name.startswith(f"{other}__"))


def ends_of(estimator) -> Iterator:
    """Yield an estimator, its last step or the estimator of a search, and so on.

    A search that was fitted without a refit is an end, as it has nothing to predict
    with.
    """
    yield estimator
    if hasattr(estimator, "best_estimator_"):
        yield from ends_of(estimator.best_estimator_)
    elif isinstance(estimator, BaseSearchCV) and not hasattr(estimator, "cv_results_"):
        yield from ends_of(estimator.estimator)
    elif isinstance(estimator, Pipeline):
        yield from ends_of(estimator[-1])


def parts_of(value, _seen=None) -> Iterator:
    """Yield all parts of an estimator, outermost first, and each object once.

    Fitted parts replace those that they were fitted from. The network that an
    estimator of this package starts from is not a part of it.
    """
    # Objects may refer to each other in circles.
    seen = set() if _seen is None else _seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        held = value.values()
    elif isinstance(value, list | tuple):
        held = value
    else:
        yield value
        held = _held_by(value)
    for part in held:
        yield from parts_of(part, seen)


def _held_by(value) -> list:
    """Return the values of the attributes that may be, or contain, parts."""
    if hasattr(value, "best_estimator_"):
        # The candidates of a search may be estimators, too, but were not chosen.
        return [value.best_estimator_]
    if isinstance(value, _NETWORKS):
        return []
    package, *_ = type(value).__module__.split(".")
    if package != "sklearn" and not isinstance(value, BaseEstimator):
        return []
    # By scikit-learn's convention, `estimator` is fitted as `estimator_`, or several
    # times as `estimators_`.
    held = getattr(value, "__dict__", {})
    return [v for k, v in held.items() if not {f"{k}_", f"{k}s_"} & held.keys()]
