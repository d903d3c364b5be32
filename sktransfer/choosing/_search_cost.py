"""What a search will compute, known before it starts."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

from sklearn.base import clone, is_classifier
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
            f"all fits.{augmented if self.n_augmented else ''}"
        )


def _count(number, one, many=None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def search_cost(search, X, y=None, groups=None):
    """Predict what a search over a pretrained network will compute, without running it.

    The search and the random generators stay as they are, so that a search that is run
    afterwards draws the same candidates.

    Parameters
    ----------
    search : GridSearchCV, RandomizedSearchCV or a halving search
        The search, over an estimator that contains one `FineTuneClassifier`,
        `FineTuneRegressor` or `PretrainedFeatureExtractor`.
    X : sequence of samples, or array-like of shape (n_samples, n_pixels)
        The samples to search with. None of them is read.
    y : array-like, optional
        The targets, for splitters that need them.
    groups : array-like, optional
        The group labels of the samples, for splitters that need them.

    Returns
    -------
    SearchCost
        The numbers, which ``print`` shows in words.

    Raises
    ------
    ValueError
        If the search is of another kind, does not contain exactly one such estimator,
        or its ``cv`` is an iterator, which can be consumed only once.

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
    """
    _check(search)
    generator = check_random_state(None)
    before = generator.get_state()
    try:
        rungs = _rungs(search, X, y, groups)
    finally:
        # random_state=None stands for the global generator of NumPy, which drawing the
        # candidates and folds has advanced.
        generator.set_state(before)
    first, last = rungs[0], rungs[-1]
    n_splits, refit = len(first.sizes), bool(search.refit)
    own = sum(rung.total("own") for rung in rungs)
    return SearchCost(
        n_candidates=len(first.works),
        n_splits=n_splits,
        n_fits=sum(rung.count for rung in rungs) * n_splits + refit,
        n_images=len(X),
        # The refit is not scored, so that it makes at most one pass of its own.
        n_passes=_n_shared(first.works) + own * n_splits + refit * (own > 0),
        n_steps=sum(rung.total("epochs") * sum(rung.sizes) for rung in rungs)
        + refit * last.most("epochs") * len(X),
        n_augmented=sum(rung.total("augmented") for rung in rungs) * n_splits
        + refit * last.most("augmented"),
        kind=first.works[0].kind,
        n_iterations=len(rungs),
        refit=refit,
    )


@dataclass
class _Work:
    """What each fit of a candidate computes.

    `needs` are the outputs of source networks that all fits share, and `gives` are
    those that are known once these have been computed. `own` is the number of passes
    that each fit makes for itself, including those for its scores. `kind` is what the
    samples are.
    """

    needs: set
    gives: set
    epochs: int = 0
    augmented: bool = False
    own: int = 0
    kind: str = "image"


@dataclass
class _Rung:
    """An iteration of a search: what its candidates compute, in each of the folds.

    `count` of the candidates are in this iteration, and `sizes` are the numbers of
    training samples of the folds.
    """

    works: list[_Work]
    count: int
    sizes: list[int]

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
    work.kind = backbone.reader.kind
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
    sizes = [len(train) for train, _ in cv.split(X, y, groups)]
    if not halves:
        works = [_work_of(search, parameters) for parameters in candidates]
        return [_Rung(works, len(works), sizes)]
    rungs = []
    for count, amount in iterations_of(search, len(candidates), *resources):
        given, kept = {search.resource: amount}, sizes
        if search.resource == "n_samples":
            given, kept = {}, [int(amount / len(X) * size) for size in sizes]
        works = [_work_of(search, parameters | given) for parameters in candidates]
        rungs.append(_Rung(works, count, kept))
    return rungs


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
