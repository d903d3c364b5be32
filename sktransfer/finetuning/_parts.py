"""The one part of an estimator that has a pretrained network."""

from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.finetuning._base import BaseFineTune


def find_source(estimator):
    """Name and value of the one part of an estimator that has a pretrained network."""
    kinds = (BaseFineTune, PretrainedFeatureExtractor)
    parts = {"": estimator, **estimator.get_params(deep=True)}
    found = {name: part for name, part in parts.items() if isinstance(part, kinds)}
    # A network that another one starts from is a part of that one.
    outer = [
        name for name in found if not any(_is_within(name, other) for other in found)
    ]
    if len(outer) != 1:
        raise ValueError(
            f"{type(estimator).__name__} has {len(outer)} parts with a pretrained "
            f"network{f' ({outer})' if outer else ''}, and exactly one is needed. "
            "Accepted are FineTuneClassifier, FineTuneRegressor, and pipelines and "
            "searches with one of these or a PretrainedFeatureExtractor."
        )
    return outer[0], found[outer[0]]


def _is_within(name, other) -> bool:
    return name != other and (not other or name.startswith(f"{other}__"))
