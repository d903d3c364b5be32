"""What a search will compute, known before it starts."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.model_selection import (
    GridSearchCV,
    ParameterGrid,
    ParameterSampler,
    RandomizedSearchCV,
    check_cv,
)
from sklearn.model_selection._search_successive_halving import (
    BaseSuccessiveHalving,
    HalvingGridSearchCV,
)
from sklearn.utils import check_random_state

from sktransfer.choosing._halving import iterations_of, resources_of
from sktransfer.choosing._search_time import Seconds, search_seconds, time_candidates
from sktransfer.finetuning._base import BaseFineTune
from sktransfer.finetuning._parts import find_source

_REFIT = ", and the best once more, counted as the costliest"


@dataclass(frozen=True)
class SearchCost:
    """What a search will compute; `str` describes it in words.

    It is not known beforehand which candidate will be refitted as the best. If the
    candidates differ in cost, the refit counts as the costliest of them.

    Parameters
    ----------
    n_candidates, n_splits, n_fits : int
        The number of combinations of parameters, of folds, and of fits in total,
        including the refit.
    n_images : int
        The number of samples that the search is given.
    n_passes : int
        The number of passes of the source network over all samples, for the frozen
        stages and for the first head. It is an upper bound, since a part of a pass
        counts as a whole one. Freeze depths, folds, candidates and epochs share a pass
        as long as the cache holds its results, so that there is one for each network,
        or two if samples are augmented and only some stages are frozen. A cache in
        memory is shared within a single process. With ``cache=None``, or random weights
        without a seed (``weights=None, random_state=None``), each fit makes its own
        passes. A second run of stages that only some candidates freeze is not counted.
    n_steps : int
        The number of samples that pass the trained stages forwards and backwards, over
        all epochs of all fits. Where frozen stages cannot be run beforehand
        (``augment``), they run in each epoch. With ``early_stopping`` it is an upper
        bound, since samples are held out and the training may stop early.
    n_augmented : int
        The number of fits in which frozen stages run in each epoch.
    kind : {"image", "text", "sound"}
        What the samples are.
    n_iterations : int, default=1
        The number of iterations of a halving search. It is not known beforehand which
        candidates survive one, so that these are counted as the costliest.
    refit : bool, default=False
        Whether the best parameters are fitted to all samples at the end.
    seconds : float or None, default=None
        An estimate of the time that the search takes in one process, in seconds, or
        None if nothing was timed. The refit, and what survives an iteration, counts as
        the costliest.
    min_seconds : float or None, default=None
        The same if these are the cheapest of the candidates.
    """

    n_candidates: int
    n_splits: int
    n_fits: int
    n_images: int
    n_passes: int
    n_steps: int
    n_augmented: int
    kind: str
    n_iterations: int = 1
    refit: bool = False
    seconds: float | None = None
    min_seconds: float | None = None

    def __str__(self):
        augmented = (
            f"\n{self.n_augmented} fits augment their {self.kind}s, so that frozen "
            "stages run in each of their epochs."
        )
        halved = f", halved over {self.n_iterations} iterations"
        return (
            f"{_count(self.n_fits, 'fit')}: {_count(self.n_candidates, 'candidate')} "
            f"in {self.n_splits} folds{halved * (self.n_iterations > 1)}"
            f"{_REFIT * self.refit}.\n"
            f"Source network: {_count(self.n_passes, 'pass', 'passes')} over "
            f"{_count(self.n_images, self.kind)}.\n"
            f"Trained stages: {_count(self.n_steps, self.kind)}, over all epochs of "
            f"all fits.{augmented if self.n_augmented else ''}{self._time()}"
        )

    def _time(self) -> str:
        if self.seconds is None:
            return ""
        unit, size = "seconds", 1
        if self.seconds >= 120:
            unit, size = ("hours", 3600) if self.seconds >= 7200 else ("minutes", 60)
        times = [_rounded(one / size) for one in (self.min_seconds, self.seconds)]
        span = " to ".join(dict.fromkeys(times))
        return f"\nTime: about {span} {unit}, in one process."


def _rounded(number) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def _count(number, one, many=None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def search_cost(search, X, y=None, groups=None, *, n_timed=None):
    """Predict what a search over a pretrained network will compute, without running it.

    The search and the random generators stay as they are, so that a search that is run
    afterwards draws the same candidates.

    Parameters
    ----------
    search : GridSearchCV, RandomizedSearchCV or a halving search
        The search, over an estimator that contains one `FineTuneClassifier`,
        `FineTuneRegressor` or `PretrainedFeatureExtractor`.
    X : sequence of samples, or array-like of shape (n_samples, n_pixels)
        The samples to search with. None of them is read unless `n_timed` is set.
    y : array-like, optional
        The targets, for splitters that need them.
    groups : array-like, optional
        The group labels of the samples, for splitters that need them.
    n_timed : int or None, default=None
        The number of samples by which to estimate how many seconds the search takes,
        such as 64. It is rounded up to whole batches. Clones of the candidates are
        fitted to these samples and predict them. The cache of the search is neither
        read nor filled. If None, nothing is fitted.

    Returns
    -------
    SearchCost
        The numbers, which ``print`` shows in words.

    Raises
    ------
    ValueError
        If the search is of another kind, does not contain exactly one such estimator,
        or its ``cv`` is an iterator, which can be consumed only once; or if `n_timed`
        is not a positive int.

    Notes
    -----
    The seconds are an estimate. It assumes one process, an empty cache, and a machine
    that is as busy then as now. Passes of the source network, which are what a second
    fit saves, are taken to last in proportion to the distinct samples; the rest of a
    fit in proportion to its training samples, besides a constant if `n_timed` is more
    than a batch; and predictions in proportion to theirs. A head that is solved is
    taken to last as long as for the few samples: the more it has, the fewer folds it
    needs to choose its penalty. With ``early_stopping``, fits to many samples may have
    more or fewer epochs than those to a few. Two to three fits to `n_timed` samples are
    made for each candidate.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sktransfer import FineTuneClassifier, search_cost
    >>> X, y = load_digits(return_X_y=True)
    >>> search = GridSearchCV(FineTuneClassifier(), {"freeze": [-2, "all"]}, cv=3)
    >>> print(search_cost(search, X[:90], y[:90]))
    7 fits: 2 candidates in 3 folds, and the best once more, counted as the costliest.
    Source network: 1 pass over 90 images. Trained stages: 2,700 images, over all
    epochs of all fits.
    >>> search_cost(search, X[:90], y[:90], n_timed=32).seconds > 0
    True
    """
    _check(search)
    generator = check_random_state(None)
    before = generator.get_state()
    try:
        rungs = _rungs(search, X, y, groups)
        least = most = None
        if n_timed is not None:
            _time(rungs, X, y, n_timed)
            least, most = search_seconds(rungs, len(X), search)
    finally:
        # random_state=None stands for the global generator of NumPy, which drawing the
        # candidates and folds has advanced.
        generator.set_state(before)
    first, last = rungs[0], rungs[-1]
    n_splits, refit = len(first.train_sizes), bool(search.refit)
    own = sum(rung.total("own") for rung in rungs)
    return SearchCost(
        n_candidates=len(first.works),
        n_splits=n_splits,
        n_fits=sum(rung.count for rung in rungs) * n_splits + refit,
        n_images=len(X),
        # The refit is not scored, so that it makes at most one pass of its own.
        n_passes=_n_shared(first.works) + own * n_splits + refit * (own > 0),
        n_steps=sum(rung.total("epochs") * sum(rung.train_sizes) for rung in rungs)
        + refit * last.most("epochs") * len(X),
        n_augmented=sum(rung.total("augmented") for rung in rungs) * n_splits
        + refit * last.most("augmented"),
        kind=first.works[0].kind,
        n_iterations=len(rungs),
        refit=refit,
        min_seconds=least,
        seconds=most,
    )


@dataclass
class _Work:
    """What each fit of a candidate computes.

    `needs` are the outputs of source networks that all fits share, and `gives` are
    those that are known once these have been computed. `own` is the number of passes
    that each fit makes for itself, including those for its scores. `kind` is what the
    samples are, and `estimator` the candidate, not fitted.
    """

    needs: set
    gives: set
    epochs: int = 0
    augmented: bool = False
    own: int = 0
    kind: str = "image"
    estimator: BaseEstimator | None = None


@dataclass
class _Rung:
    """An iteration of a search: what its candidates compute, in each of the folds.

    `count` of the candidates are in this iteration. Of the samples, `n_seen` are in any
    of the folds. `seconds` are what the candidates were measured to take.
    """

    count: int
    train_sizes: list[int]
    test_sizes: list[int]
    n_seen: int
    works: list[_Work] = field(default_factory=list)
    seconds: list[Seconds] = field(default_factory=list)

    @classmethod
    def of(cls, folds, count: int) -> "_Rung":
        train_sizes, test_sizes = (
            [len(rows) for rows in one] for one in zip(*folds, strict=True)
        )
        seen = np.unique(np.concatenate([rows for fold in folds for rows in fold]))
        return cls(count, train_sizes, test_sizes, len(seen))

    def reduced(self, count: int, share: float) -> "_Rung":
        """Return the iteration of fewer candidates on a share of the samples."""
        train_sizes, test_sizes = (
            [int(share * size) for size in sizes]
            for sizes in (self.train_sizes, self.test_sizes)
        )
        # Each sample is in each of the folds, and may be drawn for any of them.
        n_seen = round(self.n_seen * (1 - (1 - share) ** len(train_sizes)))
        sizes = {"train_sizes": train_sizes, "test_sizes": test_sizes}
        return replace(self, count=count, n_seen=n_seen, **sizes)

    def total(self, name: str) -> int:
        """Return the sum of an attribute, over the candidates that have most of it."""
        return sum(sorted(getattr(work, name) for work in self.works)[-self.count :])

    def most(self, name: str) -> int:
        return max(getattr(work, name) for work in self.works)


def _work_of(search, parameters) -> _Work:
    """Return what each fit with some parameters computes."""
    # Copies, as in the search: setting the parameters of a part must not change a part
    # that is itself a value of the grid.
    estimator = clone(search.estimator).set_params(**copy.deepcopy(parameters))
    _, part = find_source(estimator)
    tunes = isinstance(part, BaseFineTune)
    backbone = part._load_backbone(part.random_state)
    backbone = backbone.cut(part.freeze if tunes else part.stage)
    whole = backbone.cause(len(backbone.stages), part.precision)
    key = whole, backbone.reader, part.precision, part.device
    if tunes:
        work, again = _tuning(part, backbone, key)
    else:
        used = backbone.cause(backbone.depth(part.stage), part.precision)
        found = {(*key, used, part.pooling)}
        work, again = _Work(found, found), True
    work.kind, work.estimator = backbone.reader.kind, estimator
    if part.cache is None or (part.weights is None and part.random_state is None):
        # Without a cache, the training images are embedded once more for their scores.
        again = again and part.cache is None and search.return_train_score
        work.own = bool(work.needs) + bool(again)
        work.needs = work.gives = set()
    return work


def _tuning(part, backbone, key) -> tuple[_Work, bool]:
    """Return what fits of an estimator compute, and whether scoring needs a pass."""
    depth = backbone.freeze_depth(part.freeze)
    all_frozen, augmented = depth == len(backbone.stages), part.augment is not None
    embeddings, frozen = (*key, "embeddings"), (*key, "frozen")
    # The embeddings are for the first head, and the outputs of the frozen stages for
    # training or prediction.
    needs = {embeddings} if all_frozen or part.weights is not None else set()
    needs |= {frozen} if depth and not all_frozen else set()
    # Images that are not augmented pass the frozen stages on the way to the embeddings,
    # so that one pass gives both.
    gives = needs if augmented else {embeddings, frozen}
    epochs = 0 if part._solves_head(all_frozen) else part.max_epochs
    # If no stage is frozen, augmentation makes nothing run more often.
    return _Work(needs, gives, epochs, augmented and depth > 0), depth > 0


def _n_shared(works) -> int:
    """Return the number of passes shared by all fits, in the candidates' order."""
    known, count = set(), 0
    for work in works:
        missing = work.needs - known
        count += len(missing) if work.augmented else bool(missing)
        known |= work.gives if missing else set()
    return count


def _rungs(search, X, y, groups) -> list[_Rung]:
    """Return the iterations of a search, which is one unless it is a halving search."""
    # All are copied together, since they may share a generator. As in the search, the
    # candidates are drawn first.
    random_state, cv = copy.deepcopy((getattr(search, "random_state", None), search.cv))
    cv = check_cv(cv, y, classifier=is_classifier(search.estimator))
    halves = isinstance(search, BaseSuccessiveHalving)
    resources = None
    if halves:
        n_splits = cv.get_n_splits(X, y, groups)
        resources = resources_of(search, y, len(X), n_splits)
    candidates = list(_candidates(search, random_state, resources))
    whole = _Rung.of(list(cv.split(X, y, groups)), len(candidates))

    def works(**given):
        return [_work_of(search, parameters | given) for parameters in candidates]

    if not halves:
        return [replace(whole, works=works())]
    iterations = iterations_of(search, len(candidates), *resources)
    if search.resource != "n_samples":
        return [
            replace(whole, count=count, works=works(**{search.resource: amount}))
            for count, amount in iterations
        ]
    whole.works = works()
    return [whole.reduced(count, amount / len(X)) for count, amount in iterations]


def _time(rungs, X, y, n_timed) -> None:
    """Time the candidates of each iteration, in which they may differ."""
    n_train = max(rungs[-1].train_sizes)
    every = {id(work): work for rung in rungs for work in rung.works}
    found = time_candidates(list(every.values()), X, y, n_timed, n_train)
    seconds = dict(zip(every, found, strict=True))
    for rung in rungs:
        rung.seconds = [seconds[id(work)] for work in rung.works]


def _candidates(search, random_state, resources):
    """Return the candidates of the first iteration."""
    if isinstance(search, GridSearchCV | HalvingGridSearchCV):
        return ParameterGrid(search.param_grid)
    if isinstance(search, RandomizedSearchCV):
        number = search.n_iter
    elif search.n_candidates == "exhaust":
        least, most = resources
        number = most // least
    else:
        number = search.n_candidates
    return ParameterSampler(
        search.param_distributions, number, random_state=random_state
    )


def _check(search) -> None:
    known = GridSearchCV | RandomizedSearchCV | BaseSuccessiveHalving
    if not isinstance(search, known):
        raise ValueError(
            f"The cost of a {type(search).__name__} is not known beforehand: expected "
            "a GridSearchCV, RandomizedSearchCV, HalvingGridSearchCV or "
            "HalvingRandomSearchCV."
        )
    if isinstance(search.cv, Iterator):
        raise ValueError(
            f"Invalid cv, a {type(search.cv).__name__} that can be consumed only once: "
            "nothing of it would be left for the search. Pass a list to the search, "
            "cv=list(...)."
        )
