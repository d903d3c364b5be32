"""What a search is going to compute, told before it starts."""

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
from sklearn.utils import check_random_state

from sktransfer.backbones._load import load_backbone
from sktransfer.finetuning._base import BaseFineTune
from sktransfer.finetuning._parts import find_source

_REFIT = ", and the best once more, counted as the costliest"


@dataclass(frozen=True)
class SearchCost:
    """What a search computes; `str` says it in words.

    Which candidate is the best, and fitted once more, is not known beforehand. Where
    candidates differ, that fit counts as the costliest of them.

    Parameters
    ----------
    n_candidates, n_splits, n_fits : int
        Combinations of parameters, folds, and fits in all, the refit included.
    n_images : int
        Number of images that the search is given.
    n_passes : int
        How often the source network runs over all images, for the frozen stages and
        for the first head. It is the most: parts of a pass count as a whole one.
        Depths, folds, candidates and epochs share what it gives, so that there is one
        for each network (a second one where images are augmented and only some stages
        are frozen), as long as the cache holds it; one in memory is that of a single
        process. With ``cache=None``, or random weights of no seed
        (``weights=None, random_state=None``), each fit has passes of its own. Of
        stages that only some candidates freeze, a second run is not counted.
    n_steps : int
        Images that pass the trained stages forwards and backwards, over all epochs.
        Where frozen stages cannot run beforehand (``augment``), they run in each. With
        ``early_stopping`` it is the most: some are held out, and epochs left out.
    n_augmented : int
        Fits of which that is true.
    """

    n_candidates: int
    n_splits: int
    n_fits: int
    n_images: int
    n_passes: int
    n_steps: int
    n_augmented: int

    def __str__(self):
        refit = self.n_fits > self.n_candidates * self.n_splits
        augmented = (
            f"\n{self.n_augmented} fits augment their images, so that frozen stages "
            "run in each of their epochs."
        )
        return (
            f"{_count(self.n_fits, 'fit')}: {_count(self.n_candidates, 'candidate')} "
            f"in {self.n_splits} folds{_REFIT * refit}.\n"
            f"Source network: {_count(self.n_passes, 'pass', 'passes')} over "
            f"{_count(self.n_images, 'image')}.\n"
            f"Trained stages: {_count(self.n_steps, 'image')}, over all epochs of all "
            f"fits.{augmented if self.n_augmented else ''}"
        )


def _count(number, one, many=None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def search_cost(search, X, y=None, groups=None):
    """Tell what a search over a pretrained network will compute, without running it.

    The search and the random generators stay as they are, so that a search that is
    run next draws the candidates that were told.

    Parameters
    ----------
    search : GridSearchCV or RandomizedSearchCV
        Over an estimator with one `FineTuneClassifier`, `FineTuneRegressor` or
        `PretrainedFeatureExtractor`.
    X : sequence of images, or array-like of shape (n_samples, n_pixels)
        None of them is read.
    y : array-like, optional
        For splitters that need it.
    groups : array-like, optional
        For splitters that need them.

    Returns
    -------
    SearchCost
        The numbers; ``print`` shows them in words.

    Raises
    ------
    ValueError
        If the search is of another kind, has no or several such estimators, or its
        ``cv`` is an iterator, which can be gone through only once.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sktransfer import FineTuneClassifier, search_cost
    >>> X, y = load_digits(return_X_y=True)
    >>> search = GridSearchCV(FineTuneClassifier(), {"freeze": [-2, "all"]}, cv=3)
    >>> print(search_cost(search, X[:90], y[:90]))
    7 fits: 2 candidates in 3 folds, and the best once more, counted as the costliest.
    Source network: 1 pass over 90 images.
    Trained stages: 2,700 images, over all epochs of all fits.
    """
    _check(search)
    generator = check_random_state(None)
    before = generator.get_state()
    try:
        candidates, sizes = _plan(search, X, y, groups)
        works = [_work_of(search, parameters) for parameters in candidates]
    finally:
        # NumPy's global one, which stands for every random_state=None.
        generator.set_state(before)
    n_splits, refit = len(sizes), bool(search.refit)
    epochs = [work.epochs for work in works]
    augmented = [work.augmented for work in works]
    own = [work.own for work in works]
    return SearchCost(
        n_candidates=len(candidates),
        n_splits=n_splits,
        n_fits=len(candidates) * n_splits + refit,
        n_images=len(X),
        # The refit is not scored.
        n_passes=_n_shared(works) + sum(own) * n_splits + refit * any(own),
        n_steps=sum(epochs) * sum(sizes) + refit * max(epochs) * len(X),
        n_augmented=sum(augmented) * n_splits + refit * max(augmented),
    )


@dataclass
class _Work:
    """What each fit of a candidate computes.

    `needs` are the outputs of source networks that all fits share, `gives` what is
    known once they have been computed. `own` is how many passes each fit makes for
    itself, its scores included.
    """

    needs: set
    gives: set
    epochs: int = 0
    augmented: bool = False
    own: int = 0


def _work_of(search, parameters) -> _Work:
    # Copies, as in the search: a parameter of a part is not to be set on a part that
    # is itself a value of the grid.
    estimator = clone(search.estimator).set_params(**copy.deepcopy(parameters))
    _, part = find_source(estimator)
    names = ("weights", "image_size", "random_state")
    backbone = load_backbone(part.backbone, **{n: getattr(part, n) for n in names})
    whole = backbone.cause(len(backbone.stages))
    key = whole, backbone.reader, part.precision, part.device
    if isinstance(part, BaseFineTune):
        work, again = _tuning(part, backbone, key)
    else:
        found = {(*key, backbone.depth(part.stage), part.pooling)}
        work, again = _Work(found, found), True
    if part.cache is None or (part.weights is None and part.random_state is None):
        # Training images are run once more for their scores, where nothing is kept.
        again = again and part.cache is None and search.return_train_score
        work.own = bool(work.needs) + bool(again)
        work.needs = work.gives = set()
    return work


def _tuning(part, backbone, key) -> tuple[_Work, bool]:
    """What fits of an estimator compute, and whether its scores take frozen stages."""
    depth = backbone.freeze_depth(part.freeze)
    all_frozen, augmented = depth == len(backbone.stages), part.augment is not None
    embeddings, frozen = (*key, "embeddings"), (*key, "frozen")
    # For the first head; and of the frozen stages, for training or for prediction.
    needs = {embeddings} if all_frozen or part.weights is not None else set()
    needs |= {frozen} if depth and not all_frozen else set()
    # Pictures as they are leave, on the way to the embeddings, what stages give.
    gives = needs if augmented else {embeddings, frozen}
    epochs = 0 if part._solves_head(all_frozen) else part.max_epochs
    return _Work(needs, gives, epochs, augmented), depth > 0


def _n_shared(works) -> int:
    """Number of passes that are shared by all fits, in the order of the candidates."""
    known, count = set(), 0
    for work in works:
        missing = work.needs - known
        count += len(missing) if work.augmented else bool(missing)
        known |= work.gives if missing else set()
    return count


def _plan(search, X, y, groups) -> tuple[list[dict], list[int]]:
    """Candidates of a search, and the number of images that each fold trains on."""
    # Together, since they may share a generator: the search draws candidates first.
    random_state, cv = copy.deepcopy((getattr(search, "random_state", None), search.cv))
    if isinstance(search, GridSearchCV):
        candidates = ParameterGrid(search.param_grid)
    else:
        drawn = search.param_distributions, search.n_iter
        candidates = ParameterSampler(*drawn, random_state=random_state)
    candidates = list(candidates)
    splitter = check_cv(cv, y, classifier=is_classifier(search.estimator))
    return candidates, [len(train) for train, _ in splitter.split(X, y, groups)]


def _check(search) -> None:
    if not isinstance(search, GridSearchCV | RandomizedSearchCV):
        raise ValueError(
            f"The cost of a {type(search).__name__} is not known beforehand. Accepted "
            "are GridSearchCV and RandomizedSearchCV."
        )
    if isinstance(search.cv, Iterator):
        raise ValueError(
            f"cv is a {type(search.cv).__name__}, which can be gone through only once, "
            "so that nothing would be left of it for the search. Give the search a "
            "list, cv=list(...)."
        )
