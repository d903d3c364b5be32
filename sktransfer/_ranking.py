"""Which pretrained network, and which of its stages, suits a task."""

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import check_cv, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from sktransfer._embeddings import (
    Refusals,
    UnreadableImageError,
    image_digests,
    run_on,
    stack_squares,
)
from sktransfer._extractor import PretrainedFeatureExtractor
from sktransfer._images import check_images, checked_images
from sktransfer._lanes import readers, run_lanes
from sktransfer._loading import weights_licence
from sktransfer._passes import Pass, resolve_cache
from sktransfer._scores import SCORES, is_classes
from sktransfer._tables import Table


def rank_backbones(
    X,
    y,
    backbones=("tiny",),
    *,
    scoring=None,
    stages=None,
    cv=5,
    image_shape=None,
    image_size=None,
    device="auto",
    precision="float32",
    cache="auto",
    random_state=0,
    verbose=0,
):
    """Rank pretrained networks by how well their embeddings suit a task.

    Nothing is trained but the linear probe. Candidates whose recipes are the same
    share the decoded images, and each stage sees each image once.

    Parameters
    ----------
    X : sequence of images, or array-like of shape (n_samples, n_pixels)
    y : array-like of shape (n_samples,)
        Labels, or numbers to regress on.
    backbones : list, default=("tiny",)
        Each a name or any other ``backbone=`` of `PretrainedFeatureExtractor`, or
        such an extractor, which may have weights, a stage and a size of its own.
    scoring : str, callable, list of these or None, default=None
        "logme", "h_score", "knn", or functions ``(features, y) -> float``, higher
        being better. None are all three, without "h_score" where `y` are numbers.
    stages : "all", list of str or None, default=None
        The stages to rank of each backbone; None is the last one.
    cv : int, splitter, iterable or None, default=5
        Folds of the linear probe; None leaves it out.
    image_shape, image_size, device, precision, cache, random_state
        As in `PretrainedFeatureExtractor`.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    Table
        A list of dict, best mean rank first, a row for each backbone and stage:
        ``backbone``, ``stage``, each score and its rank (``logme_rank``), ``probe``
        (mean cross-validated accuracy, or R2, of a linear model) with its standard
        error ``probe_se`` over the folds and what guessing the most frequent class,
        or the mean, gets (``chance``),
        ``seconds`` of computation for 1,000 images, ``parameters`` of the stages,
        ``megabytes`` of their weights, ``licence`` of the weights where it is known,
        and ``error``. A backbone that fails has a row too, with its error, at the end.

    Raises
    ------
    ValueError
        If an image cannot be read, a score is unknown, or no candidate succeeds.

    Notes
    -----
    LogME and the H-score are cheap where there are many candidates; the probe is what
    they stand for, and tells the size of a difference.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import rank_backbones
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> ranking = rank_backbones(X[:90], y[:90], ["tiny"], stages=["layer2", "layer4"])
    >>> sorted(row["stage"] for row in ranking)
    ['layer2', 'layer4']
    """
    shared = {
        "image_shape": image_shape,
        "image_size": image_size,
        "device": device,
        "precision": precision,
        "cache": cache,
        "random_state": random_state,
    }
    samples, y = check_images(PretrainedFeatureExtractor(), X, y, reset=True)
    images = checked_images(samples, image_shape)
    scores = resolve_scoring(scoring, y)
    candidates = [make_candidate(given, shared, stages) for given in backbones]

    def more(candidate, way, features):
        return _probe(features, y, cv) | _costs(candidate, way)

    cache = resolve_cache(cache)
    return Table(
        row for row, _ in rank(images, y, candidates, scores, cache, verbose, more)
    )


@dataclass
class Candidate:
    """A backbone to rank: the ways to its stages, and what came of them."""

    label: str
    extractor: PretrainedFeatureExtractor
    ways: list[Pass] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    error: str | None = None

    def fail(self, error: Exception) -> None:
        self.error = f"{type(error).__name__}: {error}"


def make_candidate(given, shared: dict, stages) -> Candidate:
    """Load a backbone, or note why that fails."""
    extractor = given
    if not isinstance(given, PretrainedFeatureExtractor):
        extractor = PretrainedFeatureExtractor(given, **shared)
    candidate = Candidate(_label(extractor), extractor)
    try:
        way = extractor._pass()
        names = way.backbone.stage_names
        if stages is None:
            candidate.ways = [way]
            return candidate
        depths = map(way.backbone.depth, names if stages == "all" else stages)
        candidate.ways = [replace(way, depth=depth) for depth in sorted(set(depths))]
    except Exception as error:
        candidate.fail(error)
    return candidate


def _label(extractor) -> str:
    """Name a candidate by its network and, if they are not the usual ones, weights."""
    name, weights = extractor.backbone, extractor.weights
    if not isinstance(name, str):
        name = getattr(name, "name", type(name).__name__)
    if weights is None:
        return f"{name}, random"
    path = weights[0] if isinstance(weights, tuple) else weights
    return name if path == "default" else f"{name}, {os.path.basename(str(path))}"


def resolve_scoring(scoring, y) -> dict[str, Callable]:
    """Turn a ``scoring=`` parameter into functions by name."""
    if scoring is None:
        scoring = [name for name in SCORES if name != "h_score" or is_classes(y)]
    if isinstance(scoring, str) or callable(scoring):
        scoring = [scoring]
    unknown = [s for s in scoring if not callable(s) and s not in SCORES]
    if unknown or not scoring:
        raise ValueError(
            f"scoring={unknown or scoring!r} is not known. Accepted are "
            f"{list(SCORES)}, functions (features, y) -> float, and lists of these."
        )
    named = (s if callable(s) else SCORES[s] for s in scoring)
    keys = (getattr(s, "__name__", repr(s)) if callable(s) else s for s in scoring)
    return dict(zip(keys, named, strict=True))


def rank(images, y, candidates, scores, cache, verbose, more=None) -> list[tuple]:
    """Embed with all candidates, score their embeddings, and sort.

    `more` gives further columns of a row. Returns pairs of a row and its Pass, None of
    a candidate that failed.
    """
    if not candidates:
        raise ValueError("There is no backbone to rank. Pass at least ['tiny'].")
    embed_all(images, candidates, cache, verbose)
    pairs = [
        pair for candidate in candidates for pair in _scored(candidate, y, scores, more)
    ]
    good = [pair for pair in pairs if pair[1] is not None]
    if not good:
        errors = "; ".join(f"{row['backbone']}: {row['error']}" for row, _ in pairs)
        raise ValueError(f"All {len(pairs)} candidates failed. {errors}")
    for name in scores:
        ranks = rankdata([-row[name] for row, _ in good], method="min")
        for (row, _), place in zip(good, ranks, strict=True):
            row[f"{name}_rank"] = int(place)
    first, places = next(iter(scores)), [f"{name}_rank" for name in scores]
    good.sort(key=lambda pair: (sum(pair[0][p] for p in places), -pair[0][first]))
    columns = dict.fromkeys([*good[0][0], "error"])
    return [({**columns, **row}, way) for row, way in good] + [
        ({**columns, **row}, None) for row, way in pairs if way is None
    ]


def embed_all(images, candidates: list[Candidate], cache, verbose=0) -> None:
    """Embed images with all stages of all candidates, batch after batch.

    A batch is decoded once for all candidates of the same recipe, and each stage runs
    once. A candidate that fails is left out from then on.
    """
    refusals = Refusals(images, strict=True)
    digests = image_digests(images, refusals) if cache is not None else None
    jobs = [
        _Embedding(c, cache, digests, len(images)) for c in candidates if not c.error
    ]
    size = max((job.ways[-1].size for job in jobs), default=1)
    batches = [
        range(i, min(i + size, len(images))) for i in range(0, len(images), size)
    ]

    def work(each, batch):
        square = functools.cache(lambda recipe, row: refusals.read(row, recipe.read))
        for job in jobs:
            if job.candidate.error is None:
                job.run(
                    batch,
                    lambda recipe, rows: each(functools.partial(square, recipe), rows),
                )
        yield (len(batch),)

    device = jobs[0].ways[-1].device if jobs else "cpu"
    with (
        tqdm(
            total=len(images), desc="ranking", unit="image", disable=not verbose
        ) as progress,
        readers(device) as each,
    ):
        run_lanes(batches, functools.partial(work, each), progress.update, device)


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

    def run(self, batch, squares) -> None:
        """Fill the rows of a batch: from the cache, or by one run of the stages."""
        try:
            missing = [row for row in batch if not self._known(row)]
            size = self.ways[-1].size
            for first in range(0, len(missing), size):
                self._compute(missing[first : first + size], squares)
        except UnreadableImageError:
            raise
        except Exception as error:
            self.candidate.fail(error)

    def _known(self, row) -> bool:
        if self.cache is None:
            return False
        keys = [keys[row] for keys in self.keys]
        found = self.cache.get_many(keys)
        if len(found) < len(set(keys)):
            return False
        for out, key in zip(self.out, keys, strict=True):
            out[row] = found[key]
        return True

    def _compute(self, rows, squares) -> None:
        last = self.ways[-1]
        keep = {way.depth: way.pooling for way in self.ways}
        recipe = last.backbone.recipe
        batch = stack_squares(squares(recipe, rows))
        found = last.run(batch, keep=keep)
        entries = {}
        for i, way in enumerate(self.ways):
            self.out[i][rows] = values = found[way.depth].numpy()
            if self.cache is not None:
                keys = (self.keys[i][row] for row in rows)
                entries.update(zip(keys, values, strict=True))
        if entries:
            self.cache.put_many(entries)


def _scored(candidate, y, scores, more) -> list[tuple]:
    """Rows of the table with their ways, one for each stage."""
    pairs = []
    try:
        for way, features in zip(
            candidate.ways if candidate.error is None else [],
            candidate.features,
            strict=False,
        ):
            stage = way.backbone.stage_names[way.depth - 1]
            row = {"backbone": candidate.label, "stage": stage}
            row |= {name: float(score(features, y)) for name, score in scores.items()}
            row |= dict.fromkeys(f"{name}_rank" for name in scores)
            pairs.append((row | (more(candidate, way, features) if more else {}), way))
    except Exception as error:
        candidate.fail(error)
    if candidate.error is None:
        return pairs
    return [({"backbone": candidate.label, "error": candidate.error}, None)]


def linear_steps(classes: bool) -> list:
    """Make the steps of a linear probe, for classes or numbers."""
    # At this strength the probe of embeddings of a few hundred images is near its best.
    linear = LogisticRegression(C=0.01, max_iter=1000) if classes else Ridge(100.0)
    return [StandardScaler(), linear]


def _probe(features, y, cv) -> dict:
    """Cross-validated score of a linear model, and of one that guesses."""
    if cv is None:
        return {}
    classes = is_classes(y)
    folds = list(check_cv(cv, y, classifier=classes).split(features, y))
    found = cross_val_score(
        make_pipeline(*linear_steps(classes)), features, y, cv=folds
    )
    chance = np.unique(y, return_counts=True)[1].max() / len(y) if classes else 0.0
    error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
    return {
        "probe": float(found.mean()),
        "probe_se": float(error),
        "chance": float(chance),
    }


def _timed(noise, way) -> float:
    start = time.perf_counter()
    run_on(noise, way)
    return time.perf_counter() - start


def _costs(candidate: Candidate, way: Pass) -> dict:
    """What a stage costs: time, memory, and terms of use."""
    crop = way.backbone.recipe.crop
    count = way.size * torch.get_num_threads()
    noise = torch.randint(0, 256, (count, 3, crop, crop), dtype=torch.uint8)
    seconds = min(_timed(noise, way) for _ in range(3))
    tensors = way.backbone.stages[: way.depth].state_dict().values()
    parameters = way.backbone.stages[: way.depth].parameters()
    extractor = candidate.extractor
    return {
        "seconds": 1000 * seconds / count,
        "parameters": sum(p.numel() for p in parameters),
        "megabytes": sum(t.nbytes for t in tensors) / 1e6,
        "licence": weights_licence(extractor.backbone, extractor.weights),
    }
