"""The backbones to choose from, and the embeddings of all their stages."""

import functools
import itertools
import os
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from sktransfer.embedding._embed import (
    Refusals,
    UnreadableImageError,
    Writer,
    image_digests,
    stack_squares,
)
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.embedding._prefix import Pass
from sktransfer.embedding._threads import readers, run_lanes

# Of the largest value: what ways of summing in float32 differ by.
_ROUNDING = 1e-5


@dataclass
class Candidate:
    """A backbone to rank: the ways to its stages, and what came of them."""

    label: str
    extractor: PretrainedFeatureExtractor
    ways: list[Pass] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    error: str | None = None

    def load(self, stages) -> None:
        """Load the backbone and find the ways, or note why that fails."""
        try:
            self.extractor._validate_params()
            way = self.extractor._pass()
            names = way.backbone.stage_names
            if stages is None:
                self.ways = [way]
                return
            depths = map(way.backbone.depth, names if stages == "all" else stages)
            self.ways = [replace(way, depth=depth) for depth in sorted(set(depths))]
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        self.error = said(error)

    def merge(self) -> None:
        """Leave out each stage whose embeddings are those of the next one.

        A last stage that averages gives what the pooled stage before it gives.
        """
        both = list(zip(self.ways, self.features, strict=True))
        kept = [
            one
            for one, following in itertools.zip_longest(both, both[1:])
            if following is None or not _same_values(one[1], following[1])
        ]
        self.ways, self.features = map(list, zip(*kept, strict=True))


def _same_values(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether embeddings are the same but for rounding."""
    if one.shape != other.shape:
        return False
    return bool(np.abs(one - other).max() <= _ROUNDING * np.abs(other).max())


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def listed(argument: str, given, accepted) -> list:
    """Make a list of the backbones given for an argument, and refuse a bare one."""
    # A text and an nn.Sequential could be gone through, too, by letter and by layer.
    if isinstance(given, accepted) and not isinstance(given, str | bytes | nn.Module):
        return list(given)
    text = isinstance(given, str)
    raise ValueError(
        f"{argument} is {repr(given) if text else 'a ' + type(given).__name__}, and "
        "accepted is a list of backbones. Pass a list, also of a single one: "
        f"[{repr(given) if text else 'backbone'}]."
    )


def make_candidates(backbones: list, shared: dict, stages) -> list[Candidate]:
    """Load backbones, or note why that fails; `shared` are parameters of them all."""
    candidates = [_candidate(given, shared) for given in backbones]
    for candidate in candidates:
        candidate.load(stages)
    return candidates


def _candidate(given, shared: dict) -> Candidate:
    extractor = given
    if not isinstance(given, PretrainedFeatureExtractor):
        extractor = PretrainedFeatureExtractor(given, **shared)
    label, own, common = _label(extractor), extractor.image_shape, shared["image_shape"]
    if own is not None and not _same_shape(own, common):
        raise ValueError(
            f"Candidate {label!r} has image_shape={own!r}, and the image_shape of all "
            f"candidates is {common!r}: the images are read once for all. Pass "
            f"image_shape={own!r} beside the candidates, or set that of the candidate "
            "to None."
        )
    return Candidate(label, extractor)


def _same_shape(one, other) -> bool:
    both = isinstance(one, list | tuple) and isinstance(other, list | tuple)
    return list(one) == list(other) if both else one is other


def _label(extractor) -> str:
    """Name a candidate by its network and, if they are not the usual ones, weights."""
    name, weights = extractor.backbone, extractor.weights
    if not isinstance(name, str):
        name = getattr(name, "name", type(name).__name__)
    if weights is None:
        return f"{name}, random"
    path = weights[0] if isinstance(weights, tuple) else weights
    return name if path == "default" else f"{name}, {os.path.basename(str(path))}"


def embed_all(images, candidates: list[Candidate], cache, verbose=0) -> None:
    """Embed images with all stages of all candidates, batch after batch.

    A batch is decoded once for all candidates of the same recipe, and each stage runs
    once. A candidate that fails is left out from then on. Of stages that give the
    same, the last is left.
    """
    refusals = Refusals(images, strict=True)
    digests = image_digests(images, refusals) if cache is not None else None
    writer = Writer(cache)
    jobs = [
        _Embedding(c, cache, digests, len(images)) for c in candidates if not c.error
    ]
    size = max((job.ways[-1].size for job in jobs), default=1)
    batches = [
        range(i, min(i + size, len(images))) for i in range(0, len(images), size)
    ]

    def work(each, batch):
        square = functools.cache(lambda recipe, row: refusals.read(row, recipe.read))

        def squares(recipe, rows):
            return each(functools.partial(square, recipe), rows)

        # Also of a batch that is known already: that much is done.
        yield len(batch), [found for job in jobs for found in job.run(batch, squares)]

    device = jobs[0].ways[-1].device if jobs else "cpu"
    with (
        tqdm(
            total=len(images), desc="ranking", unit="image", disable=not verbose
        ) as progress,
        readers(device) as each,
    ):

        def accept(done, computed):
            for keys, values, exact in computed:
                if writer.keeps(exact):
                    writer.add(keys, values)
            progress.update(done)

        try:
            run_lanes(batches, functools.partial(work, each), accept, device)
        finally:
            writer.flush()
    for job in jobs:
        job.candidate.merge()


class _Embedding:
    """The embeddings of one candidate."""

    def __init__(self, candidate, cache, digests, n_images):
        self.candidate = candidate
        self.cache = cache
        self.ways = candidate.ways
        self.keys = [way.keys(digests) for way in self.ways] if cache else None
        self.out = [
            np.empty((n_images, *way.shape), dtype=np.float32) for way in self.ways
        ]
        candidate.features = self.out

    def run(self, batch, squares) -> list[tuple]:
        """Fill the rows of a batch: from the cache, or by one run of the stages.

        What was computed is returned for the cache: keys, values, and whether these
        are exact.
        """
        if self.candidate.error is not None:
            return []
        try:
            missing, size = self._fill_known(batch), self.ways[-1].size
            parts = [missing[i : i + size] for i in range(0, len(missing), size)]
            return [found for part in parts for found in self._compute(part, squares)]
        except UnreadableImageError:
            raise
        except Exception as error:
            self.candidate.fail(error)
            return []

    def _fill_known(self, batch) -> list[int]:
        """Fill the rows of which the cache has all stages; return the others."""
        if self.cache is None:
            return list(batch)
        known = self.cache.get_many(keys[row] for keys in self.keys for row in batch)
        missing = []
        for row in batch:
            if not all(keys[row] in known for keys in self.keys):
                missing.append(row)
                continue
            for out, keys in zip(self.out, self.keys, strict=True):
                out[row] = known[keys[row]]
        return missing

    def _compute(self, rows, squares):
        last = self.ways[-1]
        keep = {way.depth: way.pooling for way in self.ways}
        batch = stack_squares(squares(last.backbone.recipe, rows))
        used, found = last.run_fitting(batch, keep=keep)
        for i, way in enumerate(self.ways):
            values = found[way.depth]
            self.out[i][rows] = values.numpy()
            keys = [self.keys[i][row] for row in rows] if self.cache else None
            yield keys, values, used is last
