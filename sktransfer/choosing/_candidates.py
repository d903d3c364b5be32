"""The candidate backbones and the embeddings of all their stages."""

import itertools
import os
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.sparse import issparse
from torch import nn

from sktransfer.embedding._embed import embed
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.embedding._prefix import Prefix
from sktransfer.embedding._tasks import Task
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Reader
from sktransfer.inputs._validate import as_samples, check_samples

# Embeddings that differ by less than this fraction of the largest value are the same:
# different orders of summation in float32 differ by as much.
_ROUNDING = 1e-5


@dataclass
class Candidate:
    """A backbone to rank: the prefixes up to its stages, and their embeddings."""

    label: str
    extractor: PretrainedFeatureExtractor
    prefixes: list[Prefix] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    error: str | None = None
    # Name of a stage -> why it cannot be ranked.
    stage_errors: dict[str, str] = field(default_factory=dict)

    def load(self, stages) -> None:
        """Load the backbone and make the prefixes, or note why that failed."""
        # A candidate that cannot be loaded is a row of the table, not an end of it. A
        # factory of the user's can raise anything.
        try:
            self.extractor._validate_params()
            prefix = self.extractor._prefix()
            names = prefix.backbone.stage_names
            if stages is None:
                self.prefixes = [prefix]
                return
            asked = names if stages == "all" else stages
            for stage in asked:
                prefix = self._cut(prefix, stage)
            depths = {self._depth(prefix, stage) for stage in asked}
            self.prefixes = [
                replace(prefix, depth=depth) for depth in sorted(depths - {None})
            ]
        except Exception as error:
            self.fail(error)

    def _cut(self, prefix: Prefix, stage) -> Prefix:
        try:
            return replace(prefix, backbone=prefix.backbone.cut(stage))
        except ValueError as error:
            self.stage_errors[str(stage)] = said(error)
            return prefix

    def _depth(self, prefix: Prefix, stage) -> int | None:
        try:
            return prefix.backbone.depth(stage)
        except ValueError as error:
            self.stage_errors.setdefault(str(stage), said(error))
            return None

    def fail(self, error: Exception) -> None:
        self.error = said(error)

    def merge(self) -> None:
        """Drop each stage whose embeddings are the same as those of the next one.

        A final average pooling, for example, gives the same embeddings as the stage
        before it does once its output has been pooled.
        """
        if not self.prefixes:
            return
        both = list(zip(self.prefixes, self.features, strict=True))
        kept = [
            one
            for one, following in itertools.zip_longest(both, both[1:])
            if following is None or not _same_values(one[1], following[1])
        ]
        self.prefixes, self.features = map(list, zip(*kept, strict=True))


def _same_values(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether embeddings are equal up to rounding."""
    if one.shape != other.shape:
        return False
    return bool(np.abs(one - other).max() <= _ROUNDING * np.abs(other).max())


def said(error: Exception) -> str:
    """Return an error as the text that stands in a table."""
    return f"{type(error).__name__}: {error}"


def listed(argument: str, given, accepted) -> list:
    """Return the backbones of an argument as a list, and refuse a bare backbone."""
    # A string and an nn.Sequential are iterable too, by letter and by layer.
    if isinstance(given, accepted) and not isinstance(given, str | bytes | nn.Module):
        return list(given)
    text = isinstance(given, str)
    raise ValueError(
        f"Invalid {argument}={repr(given) if text else type(given).__name__}: expected "
        "a list of backbones. Pass a list even for a single backbone: "
        f"[{repr(given) if text else 'backbone'}]."
    )


def make_candidates(backbones: list, shared: dict, stages) -> list[Candidate]:
    """Load the candidates, or note why that failed.

    `shared` are the parameters of extractors that all of them have in common.
    """
    if isinstance(stages, str) and stages != "all":
        raise ValueError(
            f"Invalid stages={stages!r}: expected 'all', a list of stages, such as "
            f"[{stages!r}], or None for the last stage of each backbone."
        )
    candidates = [_candidate(given, shared) for given in backbones]
    for candidate in candidates:
        candidate.load(stages)
    return candidates


def _reader_of(candidates: list[Candidate]) -> Reader:
    """Return the reader of the first backbone that was loaded, to validate samples."""
    readers = {
        candidate.label: prefix.backbone.reader
        for candidate in candidates
        for prefix in candidate.prefixes
    }
    if len({reader.kind for reader in readers.values()}) > 1:
        kinds = ", ".join(f"{label!r} {r.kind}s" for label, r in readers.items())
        raise ValueError(
            "Invalid candidates: expected backbones for samples of one kind, but they "
            f"take: {kinds}. Nothing was read."
        )
    # If no candidate could be loaded, the errors that say why come after validation.
    return next(iter(readers.values()), ImageReader())


def check_for(candidates: list[Candidate], estimator, X, y):
    """Validate samples and targets for an estimator that ranks candidates.

    Returns
    -------
    checked : list or ndarray
        The validated samples.
    samples : Samples
        The same as all candidates read them.
    y : ndarray
        The validated targets.
    """
    reader = _reader_of(candidates)
    # np.asarray would wrap a sparse matrix in an array of one object.
    y = y.toarray() if issparse(y) else y
    checked, y = check_samples(
        estimator, X, y, reader=reader, reset=True, multi_output=True
    )
    return checked, as_samples(reader, checked, estimator.image_shape), y


def _candidate(given, shared: dict) -> Candidate:
    extractor = given
    if not isinstance(given, PretrainedFeatureExtractor):
        extractor = PretrainedFeatureExtractor(given, **shared)
    label, own, common = _label(extractor), extractor.image_shape, shared["image_shape"]
    if own is not None and not _same_shape(own, common):
        raise ValueError(
            f"Candidate {label!r} has image_shape={own!r}, but the shared image_shape "
            f"is {common!r}, and the images are read once for all candidates. Pass "
            f"image_shape={own!r} beside the candidates, or set that of the candidate "
            "to None."
        )
    return Candidate(label, extractor)


def _same_shape(one, other) -> bool:
    # A list and a tuple of the same numbers are the same shape.
    both = isinstance(one, list | tuple) and isinstance(other, list | tuple)
    return list(one) == list(other) if both else one is other


def _label(extractor) -> str:
    """Name a candidate by its network and its weights, unless they are the default."""
    name, weights = extractor.backbone, extractor.weights
    if not isinstance(name, str):
        name = getattr(name, "name", type(name).__name__)
    if weights is None:
        return f"{name}, random"
    # Weights may be a pair of a path and the hash that the file must have.
    path = weights[0] if isinstance(weights, tuple) else weights
    return name if path == "default" else f"{name}, {os.path.basename(str(path))}"


def embed_all(
    samples, candidates: list[Candidate], cache, verbose=0, task: Task | None = None
) -> None:
    """Embed samples with all stages of all candidates in a single pass.

    A candidate that fails is skipped. Among stages with the same embeddings, only the
    last one is kept.
    """
    good = [candidate for candidate in candidates if candidate.error is None]
    prefixes = [prefix for candidate in good for prefix in candidate.prefixes]
    failures = {}
    found = embed(
        samples, prefixes, cache=cache, failures=failures, task=task, verbose=verbose
    )
    results = enumerate(found)
    for candidate in good:
        # The results come in the order of the prefixes, so that the next ones belong to
        # this candidate.
        own = list(itertools.islice(results, len(candidate.prefixes)))
        candidate.features = [features for _, features in own]
        errors = [failures[number] for number, _ in own if number in failures]
        if errors:
            candidate.fail(errors[0])
        else:
            candidate.merge()
