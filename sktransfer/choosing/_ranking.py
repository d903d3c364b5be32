"""Which pretrained network, and which of its stages, suits a task."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score
from sklearn.model_selection import KFold, check_cv, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer._tables import Table
from sktransfer.backbones._load import weights_licence
from sktransfer.choosing._candidates import (
    Candidate,
    check_for,
    embed_all,
    listed,
    make_candidates,
    said,
)
from sktransfer.choosing._scores import SCORES, is_classes, is_labels
from sktransfer.embedding._embed import StageOutputs, embed
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.embedding._prefix import Prefix, resolve_cache


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
    max_length=None,
    sampling_rate=None,
    decoding="exact",
    device="auto",
    precision="float32",
    cache="auto",
    random_state=0,
    verbose=0,
):
    """Rank pretrained networks by how well their embeddings suit a task.

    Only the linear probe is trained. Candidates with the same preprocessing share the
    samples that are read, and each sample passes each stage of a candidate once.

    Parameters
    ----------
    X : sequence of samples, or array-like of shape (n_samples, n_pixels)
        The samples of the task.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        The class labels, the indicator matrix of a multilabel task, or the real values
        to regress on. A matrix of zeros and ones is one of labels.
    backbones : list, default=("tiny",)
        The candidates. Each is a name, anything else that the ``backbone`` parameter of
        `PretrainedFeatureExtractor` accepts, or such an extractor, which may have its
        own weights, stage and size. Since the samples are read once for all candidates,
        the ``image_shape`` of an extractor must be None or equal to `image_shape`.
    scoring : str, callable, list of these or None, default=None
        The scores to compute: "logme", "h_score", "knn", or functions with the
        signature ``(features, y) -> float`` where higher is better. Each score becomes
        a column, so their names must differ. If None, all three scores are computed,
        except for "h_score" when `y` is continuous.
    stages : "all", list of str or None, default=None
        The stages of each backbone to rank. If None, only the last stage is ranked.
        "all" are whole stages; a list may name blocks, such as "layer4.1", as well.
        Stages with the same embeddings, such as a final average pooling and the stage
        before it, share one row, which has the name of the last of them.
    cv : int, cross-validation splitter, iterable or None, default=5
        The folds on which the linear probe is scored, the same for all candidates. A
        number stands for stratified folds of classes, and for shuffled ones of
        multilabel targets. If None, no probe is fitted.
    image_shape, image_size, max_length, sampling_rate, decoding : optional
        The parameters of the same name of `PretrainedFeatureExtractor`.
    device, precision, cache, random_state : optional
        The parameters of the same name of `PretrainedFeatureExtractor`.
    verbose : int, default=0
        The verbosity level. If 1, a progress bar is shown.

    Returns
    -------
    Table
        A list of dict with one row per backbone and stage, sorted by mean rank, best
        first. Its columns are:

        - ``backbone`` and ``stage``;
        - each score and its rank, such as ``logme`` and ``logme_rank``;
        - ``probe``: the mean cross-validated accuracy, or R2, of a linear model; for
          multilabel targets the average precision, averaged over the labels;
        - ``probe_se``: the standard error of ``probe`` over the folds;
        - ``chance``: the score of guessing the most frequent class, the mean, or labels
          at random;
        - ``seconds``: the computation time for 1,000 samples;
        - ``parameters``: the number of parameters of the stages;
        - ``megabytes``: the size of the weights of the stages;
        - ``licence``: the licence of the weights, if it is known;
        - ``error``: the reason why a backbone or stage has failed, else None. Such
          rows come last. A score that is not finite counts as a failure.

    Raises
    ------
    ValueError
        If a sample cannot be read, a score is unknown, two scores have the same name,
        the `image_shape` of a candidate differs, or all candidates fail.

    Notes
    -----
    LogME and the H-score are cheap when there are many candidates. They are proxies
    for the accuracy of the probe, which also shows how large a difference is. For
    multilabel targets, each of the scores is the mean of those of the labels.

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
        "max_length": max_length,
        "sampling_rate": sampling_rate,
        "decoding": decoding,
        "device": device,
        "precision": precision,
        "cache": cache,
        "random_state": random_state,
    }
    backbones = listed("backbones", backbones, Iterable)
    candidates = make_candidates(backbones, shared, stages)
    extractor = PretrainedFeatureExtractor(image_shape=image_shape)
    checked, samples, y = check_for(candidates, extractor, X, y)
    scores, cache = resolve_scoring(scoring, y), resolve_cache(cache)
    # The folds are made once, since an iterator can be consumed only once and all
    # candidates must be compared on the same folds.
    folds = None if cv is None else _folds(cv, checked, y)

    def more(candidate, prefix, features):
        return _probe(features, y, folds) | _costs(candidate, prefix)

    results = rank(samples, y, candidates, scores, cache, verbose, more)
    return Table(result.row for result in results)


@dataclass
class Result:
    """A row of the table with its candidate, and its prefix unless that failed."""

    row: dict
    candidate: Candidate
    prefix: Prefix | None = None


def resolve_scoring(scoring, y) -> dict[str, Callable]:
    """Return the scoring functions of a ``scoring`` parameter, by name."""
    if scoring is None:
        # The H-score is defined for classes and labels only.
        classes = is_classes(y) or is_labels(y)
        scoring = [name for name in SCORES if name != "h_score" or classes]
    single = isinstance(scoring, str) or callable(scoring)
    scoring = [scoring] if single else list(scoring)
    unknown = [s for s in scoring if not callable(s) and s not in SCORES]
    if unknown or not scoring:
        raise ValueError(
            f"Invalid scoring={unknown or scoring!r}: expected one of {list(SCORES)}, "
            "a function (features, y) -> float, or a non-empty list of these."
        )
    names = [getattr(s, "__name__", repr(s)) if callable(s) else s for s in scoring]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"scoring has several scores named {repeated[0]!r}, but each score is a "
            "column of the table and needs a name of its own. Leave out the others, or "
            "define the functions with `def` under different names."
        )
    functions = [s if callable(s) else SCORES[s] for s in scoring]
    return dict(zip(names, functions, strict=True))


def rank(
    samples, y, candidates, scores, cache, verbose, more=None, task=None
) -> list[Result]:
    """Embed the samples with all candidates, score the embeddings and sort the rows.

    `more` returns further columns of a row. Rows of failures come last. The batches are
    subtasks of a `task`.
    """
    if not candidates:
        raise ValueError(
            "There is no backbone to rank. Pass at least one, such as ['tiny']."
        )
    embed_all(samples, candidates, cache, verbose, task)
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
    # All rows have the same columns, in the same order, whether they failed or not.
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
    """Set the ranks under each score, and sort the results by the sum of the ranks."""
    rows = [result.row for result in results]
    for name in scores:
        ranks = rankdata([-row[name] for row in rows], method="min")
        for row, place in zip(rows, ranks, strict=True):
            row[f"{name}_rank"] = int(place)
    # The first score breaks ties of the sums.
    first, places = next(iter(scores)), [f"{name}_rank" for name in scores]
    results.sort(key=lambda one: (sum(one.row[p] for p in places), -one.row[first]))


def _scored(candidate, y, scores, more) -> list[Result]:
    """Return the results of a candidate, one for each stage."""
    if candidate.error is not None:
        row = {"backbone": candidate.label, "error": candidate.error}
        return [Result(row, candidate)]
    failed = [
        {"backbone": candidate.label, "stage": stage, "error": error}
        for stage, error in candidate.stage_errors.items()
    ]
    return [Result(row, candidate) for row in failed] + [
        _scored_stage(candidate, prefix, features, y, scores, more)
        for prefix, features in zip(candidate.prefixes, candidate.features, strict=True)
    ]


def _scored_stage(candidate, prefix, features, y, scores, more) -> Result:
    backbone = prefix.backbone
    stage = backbone.stage_names[prefix.depth - 1]
    row = {"backbone": candidate.label, "stage": stage}
    # A score may be any function of the user's. One that fails for a single stage must
    # not cost the embeddings of all the others.
    try:
        found = {name: _finite(name, f(features, y)) for name, f in scores.items()}
        # The ranks are filled in later; here they take their place among the columns.
        found |= dict.fromkeys(f"{name}_rank" for name in scores)
        found |= more(candidate, prefix, features) if more else {}
    except Exception as error:
        return Result({**row, "error": said(error)}, candidate)
    return Result(row | found, candidate, prefix)


def _finite(name: str, score) -> float:
    score = float(score)
    if not np.isfinite(score):
        # NaN cannot be ordered, and an infinite score would win over every other one.
        raise ValueError(
            f"score {name!r} is {score}, and only finite scores can be ranked."
        )
    return score


def linear_steps(classes: bool) -> list:
    """Return the steps of a linear probe for classes, or else for real values."""
    # With these penalties, a probe of embeddings of a few hundred images is close to
    # its best score.
    linear = LogisticRegression(C=0.01, max_iter=1000) if classes else Ridge(100.0)
    return [StandardScaler(), linear]


def linear_pipeline(*steps, multilabel: bool) -> Pipeline:
    """Make a pipeline that ends in a linear model, or in one for each label."""
    *before, linear = steps
    if multilabel and is_classifier(linear):
        linear = OneVsRestClassifier(linear)
    return make_pipeline(*before, linear)


def _folds(cv, samples, y) -> list:
    if is_labels(y) and isinstance(cv, Integral):
        # Labels cannot be stratified, and samples are often sorted by them.
        cv = KFold(cv, shuffle=True, random_state=0)
    folds = list(check_cv(cv, y, classifier=is_classes(y)).split(samples, y))
    if not folds:
        raise ValueError(
            f"Invalid cv={cv!r}, which has no folds: expected a number of folds, a "
            "splitter, an iterable of (train, test), or None. If it is an iterator "
            "that has already been consumed, pass its splitter or a list."
        )
    return folds


def _probe(features, y, folds) -> dict:
    """Return the cross-validated score of a linear model, and that of guessing."""
    if folds is None:
        return {}
    classes, labels = is_classes(y), is_labels(y)
    model = linear_pipeline(*linear_steps(classes or labels), multilabel=labels)
    scoring = _average_precision if labels else None
    with warnings.catch_warnings():
        # A label so rare that no sample of a training fold has it.
        warnings.filterwarnings("ignore", "Label not", UserWarning)
        found = cross_val_score(model, features, y, cv=folds, scoring=scoring)
    # The R2 of predicting the mean is zero.
    chance = 0.0
    if labels:
        chance = np.mean(y)
    elif classes:
        chance = np.unique(y, return_counts=True)[1].max() / len(y)
    error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
    return {
        "probe": float(found.mean()),
        "probe_se": float(error),
        "chance": float(chance),
    }


def _average_precision(model, features, y) -> float:
    """Return the average precision, averaged over the labels that samples have."""
    there = y.any(axis=0)
    return average_precision_score(
        y[:, there], model.decision_function(features)[:, there]
    )


def _timed(noise: StageOutputs, prefix: Prefix) -> float:
    start = time.perf_counter()
    embed(noise, [prefix])
    return time.perf_counter() - start


def _costs(candidate: Candidate, prefix: Prefix) -> dict:
    """Return what a stage costs: its time, its memory and its terms of use."""
    # One batch for each thread, since batches may be computed side by side.
    count = prefix.size * torch.get_num_threads()
    noise = StageOutputs(prefix.backbone.reader.example(count))
    # The fastest run is the one that other processes disturbed least.
    seconds = min(_timed(noise, prefix) for _ in range(3))
    stages = prefix.backbone.stages[: prefix.depth]
    extractor = candidate.extractor
    return {
        "seconds": 1000 * seconds / count,
        "parameters": sum(p.numel() for p in stages.parameters()),
        "megabytes": sum(t.nbytes for t in stages.state_dict().values()) / 1e6,
        "licence": weights_licence(extractor.backbone, extractor.weights),
    }
