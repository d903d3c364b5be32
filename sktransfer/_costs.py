"""What a search is going to compute, told before it starts."""

from dataclasses import dataclass

from sklearn.base import clone, is_classifier
from sklearn.model_selection import (
    GridSearchCV,
    ParameterGrid,
    ParameterSampler,
    RandomizedSearchCV,
    check_cv,
)

from sktransfer._finetune import BaseFineTune
from sktransfer._loading import load_backbone
from sktransfer._sources import find_source


@dataclass(frozen=True)
class SearchCost:
    """What a search computes; `str` says it in words.

    Attributes
    ----------
    n_candidates, n_splits, n_fits : int
        Combinations of parameters, folds, and fits in all, the refit included.
    n_images : int
    n_passes : int
        How often the source network runs over all images, for the frozen stages and
        for the first head: once for each network, since depths, folds, candidates and
        epochs share what it gives, as long as the cache holds it.
    n_steps : int
        Images that pass the trained stages forwards and backwards, over all epochs.
        Where frozen stages cannot run beforehand (``augment``), they run in each.
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
        lines = [
            f"{_count(self.n_fits, 'fit')}: {_count(self.n_candidates, 'candidate')} "
            f"in {self.n_splits} folds{', and the best once more' * refit}.",
            f"Source network: {_count(self.n_passes, 'pass', 'passes')} over "
            f"{_count(self.n_images, 'image')}.",
            f"Trained stages: {_count(self.n_steps, 'image')}, over all epochs of all "
            "fits.",
        ]
        if self.n_augmented:
            lines.append(
                f"{self.n_augmented} fits augment their images, so that frozen stages "
                "run in each of their epochs."
            )
        return "\n".join(lines)


def _count(number, one, many=None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def search_cost(search, X, y=None, groups=None):
    """Tell what a search over a pretrained network will compute, without running it.

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

    Raises
    ------
    ValueError
        If the search is of another kind, or has no or several such estimators.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sktransfer import FineTuneClassifier, search_cost
    >>> X, y = load_digits(return_X_y=True)
    >>> search = GridSearchCV(FineTuneClassifier(), {"freeze": [-2, "all"]}, cv=3)
    >>> print(search_cost(search, X[:90], y[:90]))
    7 fits: 2 candidates in 3 folds, and the best once more.
    Source network: 1 pass over 90 images.
    Trained stages: 4,500 images, over all epochs of all fits.
    """
    candidates = _candidates(search)
    classes = is_classifier(search.estimator)
    splitter = check_cv(search.cv, y, classifier=classes)
    sizes = [len(train) for train, _ in splitter.split(X, y, groups)]
    sources, n_steps, augmented = set(), 0, 0
    for parameters in candidates:
        _, part = find_source(clone(search.estimator).set_params(**parameters))
        backbone = load_backbone(
            part.backbone,
            weights=part.weights,
            image_size=part.image_size,
            random_state=part.random_state,
        )
        key = backbone.digest, backbone.recipe, part.precision, part.device
        if not isinstance(part, BaseFineTune):
            sources.add((*key, backbone.depth(part.stage), part.pooling))
            continue
        n_steps += part.max_epochs * sum(sizes)
        augmented += len(sizes) if part.augment is not None else 0
        depth = backbone.depth(part.freeze, parameter="freeze")
        if part.weights is not None or (depth and part.augment is None):
            sources.add(key)
    n_steps += _refit_steps(search, len(X))
    return SearchCost(
        n_candidates=len(candidates),
        n_splits=len(sizes),
        n_fits=len(candidates) * len(sizes) + bool(search.refit),
        n_images=len(X),
        n_passes=len(sources),
        n_steps=n_steps,
        n_augmented=augmented,
    )


def _candidates(search) -> list[dict]:
    if isinstance(search, GridSearchCV):
        return list(ParameterGrid(search.param_grid))
    if isinstance(search, RandomizedSearchCV):
        return list(
            ParameterSampler(
                search.param_distributions,
                search.n_iter,
                random_state=search.random_state,
            )
        )
    raise ValueError(
        f"The cost of a {type(search).__name__} is not known beforehand. Accepted are "
        "GridSearchCV and RandomizedSearchCV."
    )


def _refit_steps(search, n_images) -> int:
    if not search.refit:
        return 0
    _, part = find_source(search.estimator)
    return getattr(part, "max_epochs", 0) * n_images
