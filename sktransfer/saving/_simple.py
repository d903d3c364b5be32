"""Types whose values are stored as simpler values."""

import os
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch
from torchvision.models import WeightsEnum, get_weight

from sktransfer._tables import Table
from sktransfer.embedding._cache import EmbeddingCache


def _random_state(state) -> np.random.RandomState:
    generator = np.random.RandomState()
    generator.set_state(state)
    return generator


# For each tag: a type, a function that turns its values into simpler ones to encode in
# their place, and its inverse. A subclass comes before its base class, as the first
# match counts.
SIMPLE = {
    "scalar": (np.generic, np.asarray, lambda array: array[()]),
    "float": (float, str, float),
    "table": (Table, list, Table),
    # The results of a search, where not all candidates have all parameters.
    "masked": (
        np.ma.MaskedArray,
        lambda a: [a.data, np.ma.getmaskarray(a), a.fill_value],
        lambda content: np.ma.MaskedArray(*content[:2], fill_value=content[2]),
    ),
    "tuple": (tuple, list, tuple),
    "bunch": (Bunch, dict, lambda content: Bunch(**content)),
    "range": (range, lambda r: [r.start, r.stop, r.step], lambda ends: range(*ends)),
    "slice": (slice, lambda s: [s.start, s.stop, s.step], lambda ends: slice(*ends)),
    "path": (Path, str, Path),
    "weights": (WeightsEnum, str, get_weight),
    "random_state": (np.random.RandomState, lambda r: r.get_state(), _random_state),
    "cache": (
        EmbeddingCache,
        lambda cache: [cache.location and os.fspath(cache.location), cache.max_bytes],
        lambda content: EmbeddingCache(content[0], max_bytes=content[1]),
    ),
}
