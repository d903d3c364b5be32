"""Which pretrained network, and which of its stages, suits a task."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import check_cv, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer._tables import Table
from sktransfer.backbones._load import weights_licence
from sktransfer.choosing._candidates import (
    Candidate,
    embed_all,
    listed,
    make_candidates,
    reader_of,
    said,
)
from sktransfer.choosing._scores import SCORES, is_classes
from sktransfer.embedding._embed import StageOutputs, embed
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.embedding._prefix import Prefix, resolve_cache
from sktransfer.inputs._validate import as_samples, check_samples


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
    share the decoded images, and each stage of a candidate sees each image once.

    Parameters
    ----------
    X : sequence of images, or array-like of shape (n_samples, n_pixels)
        The images of the task.
    y : array-like of shape (n_samples,)
        Labels, or numbers to regress on.
    backbones : list, default=("tiny",)
        Each a name or any other ``backbone=`` of `PretrainedFeatureExtractor`, or
        such an extractor, which may have weights, a stage and a size of its own. The
        images are read once for all: its ``image_shape`` is None, or `image_shape`.
    scoring : str, callable, list of these or None, default=None
        "logme", "h_score", "knn", or functions ``(features, y) -> float``, higher
        being better, of different names, which become columns. None are all three,
        without "h_score" where `y` are numbers.
    stages : "all", list of str or None, default=None
        The stages to rank of each backbone; None is the last one. Stages whose
        embeddings are the same, such as a last one that averages and the one before
        it, are one row, by the name of the last of them.
    cv : int, splitter, iterable or None, default=5
        Folds of the linear probe, the same for all candidates; None leaves it out.
    image_shape, image_size, device, precision, cache, random_state : optional
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
        and ``error``. A backbone, or a stage of it, that fails has a row too, with its
        error, at the end. Not to be finite is a failure of a score.

    Raises
    ------
    ValueError
        If an image cannot be read, a score is unknown, two have the same name, a
        candidate has another `image_shape`, or no candidate succeeds.

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
    backbones = listed("backbones", backbones, Iterable)
    candidates = make_candidates(backbones, shared, stages)
    reader = reader_of(candidates)
    checked, y = check_samples(
        PretrainedFeatureExtractor(), X, y, reader=reader, reset=True
    )
    samples = as_samples(reader, checked, image_shape)
    scores = resolve_scoring(scoring, y)
    # Made once: an iterator gives its folds once, and all candidates are to share them.
    folds = None if cv is None else _folds(cv, checked, y)

    def more(candidate, prefix, features):
        return _probe(features, y, folds) | _costs(candidate, prefix)

    cache = resolve_cache(cache)
    results = rank(samples, y, candidates, scores, cache, verbose, more)
    return Table(result.row for result in results)


@dataclass
class Result:
    """A row of the table, and what it is about; no prefix where that failed."""

    row: dict
    candidate: Candidate
    prefix: Prefix | None = None


def resolve_scoring(scoring, y) -> dict[str, Callable]:
    """Turn a ``scoring=`` parameter into functions by name."""
    if scoring is None:
        scoring = [name for name in SCORES if name != "h_score" or is_classes(y)]
    single = isinstance(scoring, str) or callable(scoring)
    scoring = [scoring] if single else list(scoring)
    unknown = [s for s in scoring if not callable(s) and s not in SCORES]
    if unknown or not scoring:
        raise ValueError(
            f"scoring={unknown or scoring!r} is not known. Accepted are "
            f"{list(SCORES)}, functions (features, y) -> float, and lists of these."
        )
    names = [getattr(s, "__name__", repr(s)) if callable(s) else s for s in scoring]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"scoring has several scores of the name {repeated[0]!r}, and each is a "
            "column of the table. Accepted are scores of different names: leave the "
            "others out, or write functions with `def` and names of their own."
        )
    functions = [s if callable(s) else SCORES[s] for s in scoring]
    return dict(zip(names, functions, strict=True))


def rank(samples, y, candidates, scores, cache, verbose, more=None) -> list[Result]:
    """Embed with all candidates, score their embeddings, and sort.

    `more` gives further columns of a row. What failed comes last.
    """
    if not candidates:
        raise ValueError("There is no backbone to rank. Pass at least ['tiny'].")
    embed_all(samples, candidates, cache, verbose)
    results = [
        result
        for candidate in candidates
        for result in _scored(candidate, y, scores, more)
    ]
    good = [result for result in results if result.prefix is not None]
    bad = [result for result in results if result.prefix is None]
    if not good:
        raise ValueError(_all_failed(candidates, bad))
    _place(good, scores)
    columns = dict.fromkeys([*good[0].row, "error"])
    return [replace(result, row={**columns, **result.row}) for result in good + bad]


def _all_failed(candidates, results) -> str:
    rows = (result.row for result in results)
    errors = "; ".join(
        f"{', '.join(filter(None, (row['backbone'], row.get('stage'))))}: "
        f"{row['error']}"
        for row in rows
    )
    return f"All {len(candidates)} candidates failed. {errors}"


def _place(results: list[Result], scores) -> None:
    """Set the ranks under each score, and sort by their sum."""
    rows = [result.row for result in results]
    for name in scores:
        ranks = rankdata([-row[name] for row in rows], method="min")
        for row, place in zip(rows, ranks, strict=True):
            row[f"{name}_rank"] = int(place)
    first, places = next(iter(scores)), [f"{name}_rank" for name in scores]
    results.sort(key=lambda one: (sum(one.row[p] for p in places), -one.row[first]))


def _scored(candidate, y, scores, more) -> list[Result]:
    """Rows of the table, one for each stage."""
    if candidate.error is not None:
        row = {"backbone": candidate.label, "error": candidate.error}
        return [Result(row, candidate)]
    return [
        _scored_stage(candidate, prefix, features, y, scores, more)
        for prefix, features in zip(candidate.prefixes, candidate.features, strict=True)
    ]


def _scored_stage(candidate, prefix, features, y, scores, more) -> Result:
    backbone = prefix.backbone
    stage = backbone.stage_names[prefix.depth - 1]
    row = {"backbone": candidate.label, "stage": stage}
    try:
        found = {name: _finite(name, f(features, y)) for name, f in scores.items()}
        found |= dict.fromkeys(f"{name}_rank" for name in scores)
        found |= more(candidate, prefix, features) if more else {}
    except Exception as error:
        return Result({**row, "error": said(error)}, candidate)
    return Result(row | found, candidate, prefix)


def _finite(name: str, score) -> float:
    score = float(score)
    if not np.isfinite(score):
        # It has no place among the others.
        raise ValueError(f"score {name!r} is {score}, and only finite ones are ranked.")
    return score


def linear_steps(classes: bool) -> list:
    """Make the steps of a linear probe, for classes or numbers."""
    # At this strength the probe of embeddings of a few hundred images is near its best.
    linear = LogisticRegression(C=0.01, max_iter=1000) if classes else Ridge(100.0)
    return [StandardScaler(), linear]


def _folds(cv, samples, y) -> list:
    folds = list(check_cv(cv, y, classifier=is_classes(y)).split(samples, y))
    if not folds:
        raise ValueError(
            f"cv={cv!r} has no folds. Accepted are a number of folds, a splitter, an "
            "iterable of (train, test), and None. If it was an iterator that has been "
            "used before, pass its splitter or a list."
        )
    return folds


def _probe(features, y, folds) -> dict:
    """Cross-validated score of a linear model, and of one that guesses."""
    if folds is None:
        return {}
    classes = is_classes(y)
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


def _timed(noise: StageOutputs, prefix: Prefix) -> float:
    start = time.perf_counter()
    embed(noise, [prefix])
    return time.perf_counter() - start


def _costs(candidate: Candidate, prefix: Prefix) -> dict:
    """What a stage costs: time, memory, and terms of use."""
    count = prefix.size * torch.get_num_threads()
    noise = StageOutputs(prefix.backbone.reader.example(count))
    seconds = min(_timed(noise, prefix) for _ in range(3))
    stages = prefix.backbone.stages[: prefix.depth]
    extractor = candidate.extractor
    return {
        "seconds": 1000 * seconds / count,
        "parameters": sum(p.numel() for p in stages.parameters()),
        "megabytes": sum(t.nbytes for t in stages.state_dict().values()) / 1e6,
        "licence": weights_licence(extractor.backbone, extractor.weights),
    }
