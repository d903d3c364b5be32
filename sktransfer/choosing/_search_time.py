"""How long a search takes, from fits to a few of its samples."""

import contextlib
import time
import warnings
from dataclasses import dataclass
from math import ceil
from numbers import Integral

import numpy as np
from sklearn.base import clone
from sklearn.utils import _safe_indexing

from sktransfer.embedding._cache import EmbeddingCache
from sktransfer.embedding._prefix import resolve_cache
from sktransfer.finetuning._base import BaseFineTune
from sktransfer.finetuning._parts import find_source
from sktransfer.inputs._validate import on_host

# How often, and for how many seconds, a call is repeated at most.
_TRIES, _SHORT = 3, 0.1


@dataclass(frozen=True)
class Seconds:
    """What a candidate takes.

    Parameters
    ----------
    shared : float
        The seconds for each distinct sample of the search that go into passes of the
        source network. All fits share them, and the first one makes them.
    fixed : float
        The seconds for each fit, however many samples it has.
    fit, predict : float
        The seconds for each sample of a fit, and of a prediction.
    """

    shared: float
    fixed: float
    fit: float
    predict: float


def time_candidates(works, X, y, n_timed, n_train: int) -> list[Seconds]:
    """Fit a clone of each candidate to a few samples and let it predict them.

    Parameters
    ----------
    works : list
        What each candidate computes, in the order of the search: its `estimator`, and
        as `own` whether each of its fits makes passes for itself.
    X, y : sequence of samples, array-like or None
        The samples and targets of the search.
    n_timed : int
        The number of samples to use, which is rounded up to whole batches.
    n_train : int
        The number of training samples of the largest fold.
    """
    # A bool is an int, too, but never a number of samples.
    is_int = isinstance(n_timed, Integral) and not isinstance(n_timed, bool)
    if not is_int or n_timed < 1:
        raise ValueError(
            f"Invalid n_timed={n_timed!r}: expected a positive int, the number of "
            "samples to time fits with, such as 64, or None, which times nothing."
        )
    batch_size = max(_batch_size(work) for work in works)
    many = _some_of(X, y, batch_size * ceil(n_timed / batch_size))
    with warnings.catch_warnings():
        # The fits of the search will issue them.
        warnings.simplefilter("ignore")
        _warm_up(works[0].estimator, *many)
        clock = _Clock(*many, batch_size, len(many[0]) / n_train)
        return [clock.seconds(work) for work in works]


def _batch_size(work) -> int:
    """Return the number of samples in a batch of the training or of a pass."""
    _, part = find_source(work.estimator)
    if not isinstance(part, BaseFineTune):
        return part._prefix().size
    prefix = part._prefix(part._load_backbone(part.random_state), 0)
    return max(prefix.size, part.batch_size)


def _some_of(X, y, count: int):
    """Return some samples, with the classes, or large and small values, of all."""
    rows, count = np.arange(len(X)), min(count, len(X))
    if y is not None:
        _, codes = np.unique(np.asarray(on_host(y)), axis=0, return_inverse=True)
        rows = np.argsort(codes.ravel(), kind="stable")
    rows = np.sort(rows[np.linspace(0, len(X) - 1, count).astype(int)])
    return _safe_indexing(X, rows), None if y is None else _safe_indexing(y, rows)


def _warm_up(estimator, X, y) -> None:
    """Fit once without timing: the first fit of a process also imports modules."""
    model = clone(estimator)
    _, part = find_source(model)
    part.set_params(cache=None)
    if isinstance(part, BaseFineTune):
        part.set_params(max_epochs=min(1, part.max_epochs))
    _predict(model.fit(X, y), X)


class _Clock:
    """Times candidates on samples, which are the part `share` of those of a fit."""

    def __init__(self, X, y, batch_size: int, share: float):
        self.X, self.y = X, y
        self.batch_size = batch_size
        self.share = share
        self.caches = {}

    def seconds(self, work) -> Seconds:
        model = clone(work.estimator)
        _, part = find_source(model)
        cache = None if work.own else self._cache(part)
        part.set_params(cache=cache)
        once, fit = _timed(lambda: model.fit(self.X, self.y), cache)
        # The more samples, the fewer folds does a solved head need to choose its
        # penalty, which takes about as long for any number of them.
        solving = _solving(model)
        also, predict = _timed(lambda: _predict(model, self.X), cache)
        fixed, fit = self._line(model, fit - solving, cache)
        n = len(self.X)
        return Seconds((once + also) / n, solving + fixed, fit, predict / n)

    def _cache(self, part) -> EmbeddingCache | None:
        """Return what the candidates share in place of the cache of the search.

        It is smaller by as much as the samples are fewer, so that what fits in one fits
        in the other.
        """
        if part.cache is None:
            return None
        size = max(1, int(self.share * resolve_cache(part.cache).max_bytes))
        return self.caches.setdefault(size, EmbeddingCache(max_bytes=size))

    def _line(self, model, seconds: float, cache) -> tuple[float, float]:
        """Return the seconds of each fit, and of each of its samples, but for solving.

        `seconds` are those of a fit to all samples.
        """
        n, m = len(self.X), self.batch_size
        slope = seconds / n
        # Part of a batch would take as many steps as a whole one.
        if m < n:
            few = _some_of(self.X, self.y, m)
            # A fit may refuse so few samples, and is then taken as proportional.
            with contextlib.suppress(ValueError):
                _, less = _timed(lambda: model.fit(*few), cache)
                slope = (seconds - less + _solving(model)) / (n - m)
        slope = min(max(0.0, slope), seconds / n)
        return seconds - n * slope, slope


def _solving(model) -> float:
    # Pipelines fit their last step itself, and not a clone of it.
    history = getattr(find_source(model)[1], "history_", [])
    return sum(row["seconds"] for row in history if row["phase"] == "solve")


def _timed(call, cache) -> tuple[float, float]:
    """Return the seconds that only the first call takes, and those of each."""
    before = cache and cache.info().misses
    first = _elapsed(call)
    cold = cache is not None and cache.info().misses > before
    times = [] if cold else [first]
    # What takes milliseconds is repeated, since it is at the mercy of the machine.
    while not times or (len(times) < _TRIES and sum(times) < _SHORT):
        times.append(_elapsed(call))
    each = float(np.median(times))
    return max(0.0, first - each) if cold else 0.0, each


def _elapsed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _predict(model, X):
    return model.predict(X) if hasattr(model, "predict") else model.transform(X)


def search_seconds(rungs, n_images: int, search) -> tuple[float, float]:
    """Return how long a search takes if the cheapest, or costliest, are the best.

    Parameters
    ----------
    rungs : list
        The iterations of the search: the `seconds` of its candidates, of which `count`
        take part, `train_sizes` and `test_sizes` of the folds, and as `n_seen` how many
        different samples these contain.
    n_images : int
        The number of samples of the search.
    search : GridSearchCV or other search
    """
    least = most = 0.0
    n_seen = 0
    for rung in rungs:
        n_trained, n_predicted = sum(rung.train_sizes), sum(rung.test_sizes)
        n_predicted += n_trained * search.return_train_score
        n_fits, found = len(rung.train_sizes), rung.seconds
        fits = sorted(
            n_fits * one.fixed + n_trained * one.fit + n_predicted * one.predict
            for one in found
        )
        shared = sum(sorted(one.shared for one in found)[-rung.count :])
        shared *= rung.n_seen - n_seen
        least += shared + sum(fits[: rung.count])
        most += shared + sum(fits[-rung.count :])
        n_seen = rung.n_seen
    if search.refit:
        fits = [one.fixed + n_images * one.fit for one in found]
        shared = max(one.shared for one in found) * (n_images - n_seen)
        least, most = least + shared + min(fits), most + shared + max(fits)
    return least, most
