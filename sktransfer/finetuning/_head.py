"""Linear heads on frozen embeddings: convex problems, solved to their optimum."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from joblib import parallel_config
from scipy.linalg import qr
from scipy.special import log_softmax, logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold
from torch import nn

from sktransfer.embedding._threads import thread_libraries

# The values of C, as exponents of half powers of ten. On embeddings of some hundred
# samples, 0.01 to 1 is best for most tasks, so the search starts there, at 0.1.
_FIRST, _LAST, _START = -8, 6, -2
_ALPHAS = np.logspace(-2, 7, 37)
# Without data to choose by, alpha is about what small tasks choose.
_DEFAULT_ALPHA = 1000.0
_N_FOLDS = 5
# With fewer than 300 examples, the choice by a single run of five folds depends on
# chance, so it is repeated up to five times. For large tasks, about 1,000 held-out
# examples are enough to choose by.
_TOO_FEW, _MOST_REPEATS, _ENOUGH = 300, 5, 1000


@dataclass
class Solution:
    """The coefficients of the output layer, and their penalty.

    Parameters
    ----------
    coef : ndarray of shape (n_outputs, n_features)
        The weights of the layer.
    intercept : ndarray of shape (n_outputs,)
        The biases of the layer.
    penalty : float, or ndarray of shape (n_outputs,)
        The value of C, or alpha, that was given or chosen.
    """

    coef: np.ndarray
    intercept: np.ndarray
    penalty: float | np.ndarray

    def scores(self, Z) -> np.ndarray:
        return Z @ self.coef.T + self.intercept


def class_priors(codes, weights, n_classes: int) -> np.ndarray:
    """Return scores that predict the weighted class frequencies for any sample.

    A class without any example counts as half an example, so that it can still be
    learnt later.
    """
    shares = np.bincount(codes, weights=weights, minlength=n_classes) / weights.sum()
    return np.log(np.maximum(shares, 0.5 / len(weights)))


def solve_head(targets, head: nn.Sequential, embeddings, examples, penalty=None):
    """Set the output layer of a linear head to the optimum of its penalised loss.

    Parameters
    ----------
    targets : Targets
        The targets, which choose the problem: multinomial logistic regression for
        classes, a logistic regression for each label, or ridge regression for values.
    head : nn.Sequential
        The head: a Standardise, and a Linear, whose coefficients are set.
    embeddings : ndarray of shape (n_examples, n_features)
        The embeddings of the examples.
    examples : Examples
        The encoded targets, weights and groups, in the order of the embeddings.
    penalty : float or None
        C as in scikit-learn, or alpha for ridge regression. If None, it is chosen by
        cross-validation.

    Returns
    -------
    penalty : float or ndarray of shape (n_outputs,)
        The penalty that was given or chosen.
    loss : float
        The weighted mean loss of the examples, without the penalty.
    """
    # The order of the embeddings does not depend on how a sample was passed, whereas
    # that of the examples does.
    order = sorted(range(len(embeddings)), key=lambda row: embeddings[row].tobytes())
    embeddings, examples = embeddings[order], examples.take(order)
    standardise, output = head[0], head[-1]
    # The threads of OpenMP would go on spinning beside those of BLAS, which come next.
    with torch.inference_mode(), thread_libraries().limit(limits=1, user_api="openmp"):
        Z = standardise(torch.from_numpy(embeddings).double()).numpy()
    rotated, back = _fewer_columns(Z)
    # Older versions of scikit-learn send each fit to the workers of a surrounding
    # search and wait for them, on a cluster forever. The threads of BLAS, which
    # alternate with those of OpenMP, get in their way: on 500 samples, two of each took
    # 15 times as long as one.
    with (
        parallel_config(backend="sequential"),
        thread_libraries().limit(limits=1, user_api="blas"),
    ):
        found = targets.solve(rotated, examples, penalty)
    losses = targets.row_losses(found.scores(rotated), examples.targets)
    with torch.no_grad():
        output.weight.copy_(torch.from_numpy(back(found.coef)))
        output.bias.copy_(torch.from_numpy(found.intercept))
    return found.penalty, float(np.average(losses, weights=examples.weights))


def _fewer_columns(Z: np.ndarray):
    """Rotate Z to as many columns as it has rows, if it has more columns.

    The optimum of a loss with an L2 penalty lies in the span of the rows, and neither
    the loss nor the penalty changes with a rotation.
    """
    if len(Z) >= Z.shape[1]:
        return Z, lambda coef: coef
    q, r = qr(Z.T, mode="economic", check_finite=False)
    return np.ascontiguousarray(r.T), lambda coef: coef @ q.T


def solve_classes(Z, examples, n_classes, C) -> Solution:
    codes = examples.targets[:, 0].astype(int)
    return _logistic(Z, codes, examples.weights, examples.groups, n_classes, C)


def solve_labels(Z, examples, C, factors=None) -> Solution:
    """Solve a logistic regression for each label.

    `factors`, of shape (2, n_labels), multiply the weights of the examples without and
    with a label.
    """
    if factors is None:
        factors = np.ones((2, examples.targets.shape[1]))

    def solve(codes, factors):
        weights, groups = examples.weights * factors[codes], examples.groups
        rows = slice(None) if weights.all() else weights > 0
        groups = groups if groups is None else groups[rows]
        # The logit of a label is that of class 1 minus that of class 0.
        two = _logistic(Z[rows], codes[rows], weights[rows], groups, 2, C)
        return np.diff(two.coef, axis=0)[0], np.diff(two.intercept)[0], two.penalty

    labels = examples.targets.astype(int).T
    solved = map(solve, labels, factors.T)
    coef, intercept, penalty = zip(*solved, strict=True)
    return Solution(np.array(coef), np.array(intercept), np.array(penalty))


def _logistic(Z, codes, weights, groups, n_classes, C) -> Solution:
    """Solve a multinomial logistic regression; absent classes remain improbable."""
    coef, there = np.zeros((n_classes, Z.shape[1])), np.unique(codes)
    intercept = class_priors(codes, weights, n_classes)
    # Scikit-learn sums the weighted losses, so that the scale of the weights acts like
    # that of C. The chosen C is the one for weights with a mean of 1.
    scale = 1 / weights.mean()
    if len(there) < 2:
        return Solution(coef, intercept, C or scale * _as_C(_START))
    if C is None:
        C = scale * _choose_C(Z, codes, weights / weights.mean(), groups)
    # Stricter than scikit-learn's defaults, since this is to be the optimum.
    model = LogisticRegression(C=C, tol=1e-6, max_iter=2000).fit(Z, codes, weights)
    coef[there], offsets = _of_each_class(model.coef_, model.intercept_)
    # The prior of an absent class is a log-probability. It is shifted to the level of
    # the scores of the others.
    level = logsumexp(Z @ coef[there].T + offsets, axis=1).mean()
    intercept += level
    intercept[there] = offsets
    return Solution(coef, intercept, float(C))


def _of_each_class(coef, intercept) -> tuple:
    """Return coefficients for each class, also where there are only two classes."""
    # For two classes, scikit-learn has coefficients of the difference of the logits,
    # which halves with opposite signs have, too.
    if len(coef) > 1:
        return coef, intercept
    return np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2


def _as_C(half_power: int) -> float:
    return 10.0 ** (half_power / 2)


def _choose_C(Z, codes, weights, groups) -> float:
    """Find the C with the lowest cross-validated log loss, walking downhill.

    The loss over C has a single valley. Walking outwards from the middle, each fit
    starting from the previous one, avoids the large values, which take the most
    iterations.
    """
    # Float32 takes half the time, and is exact enough for a choice.
    Z = Z.astype(np.float32)
    folds = [_Fold(Z, codes, weights, *rows) for rows in _folds(Z, codes, groups)]
    if not folds:
        return _as_C(_START)
    losses, seen = {}, sum(fold.test[2].sum() for fold in folds)

    def loss(half_power):
        if half_power not in losses:
            found = sum(fold.loss(_as_C(half_power)) for fold in folds) / seen
            # A prior over powers of ten. Few examples say little about C, and chance
            # could lead to the ends of the range.
            losses[half_power] = len(Z) * found + ((half_power - _START) / 2) ** 2
        return losses[half_power]

    best = _START
    for step in (1, -1):
        while _FIRST <= best + step <= _LAST and loss(best) > loss(best + step):
            best += step
    return _as_C(best)


def _folds(Z, codes, groups) -> list:
    """Return the folds to choose C by, except those that train on a single class."""
    if groups is None:
        splitter, most = StratifiedKFold, np.bincount(codes).max()
    else:
        splitter, most = StratifiedGroupKFold, len(np.unique(groups))
    if most < 2:
        return []
    folds = []
    for repeat in range(min(_MOST_REPEATS, -(-_TOO_FEW // len(codes)))):
        split = splitter(min(_N_FOLDS, most), shuffle=True, random_state=repeat)
        with warnings.catch_warnings():
            # scikit-learn warns of classes with fewer samples than there are folds.
            warnings.simplefilter("ignore", UserWarning)
            folds += split.split(Z, codes, groups)
    folds = [rows for rows in folds if len(np.unique(codes[rows[0]])) > 1]
    return folds[: -(-_N_FOLDS * _ENOUGH // len(codes))]


class _Fold:
    """A fold: a part of the examples that is held out to choose C by."""

    def __init__(self, Z, codes, weights, train, test):
        self.train = Z[train], codes[train], weights[train]
        self.test = Z[test], codes[test], weights[test]
        self.model = LogisticRegression(max_iter=500, warm_start=True)

    def loss(self, C: float) -> float:
        """Return the weighted sum of the log losses of the held-out examples."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # With a weak penalty, the gradient is small long before the optimum, so the
            # tolerance has to be stricter.
            tol = 2e-3 * min(1, _as_C(_START) / C) ** 0.5
            self.model.set_params(C=C, tol=tol).fit(*self.train)
        Z, codes, weights = self.test
        coef, intercept = _of_each_class(self.model.coef_, self.model.intercept_)
        log_proba = log_softmax((Z @ coef.T + intercept).astype(float), axis=1)
        # Classes that this fold was not trained on are lost for every C alike.
        known = np.isin(codes, self.model.classes_)
        columns = np.searchsorted(self.model.classes_, codes[known])
        rows = log_proba[np.flatnonzero(known), columns]
        return -float(rows @ weights[known])


def solve_values(Z, examples, alpha) -> Solution:
    y, weights, groups = examples.targets, examples.weights, examples.groups
    n_outputs = y.shape[1]
    # Unlike C, alpha grows with the scale of the weights.
    alphas = _ALPHAS * weights.mean()
    if alpha is not None:
        alpha = np.full(n_outputs, float(alpha))
    # With fewer examples or groups, too little is left to choose by.
    elif len(Z) < 3 or (groups is not None and len(np.unique(groups)) < 2):
        alpha = np.full(n_outputs, _DEFAULT_ALPHA * weights.mean())
    elif groups is not None:
        alpha = alphas[_group_losses(Z, y, weights, groups, alphas).argmin(axis=0)]
    else:
        chosen = RidgeCV(alphas, alpha_per_target=True).fit(Z, y, weights)
        alpha = np.reshape(chosen.alpha_, n_outputs)
    model = Ridge(alpha).fit(Z, y, weights)
    coef = np.reshape(model.coef_, (n_outputs, -1))
    intercept = np.reshape(model.intercept_, n_outputs)
    return Solution(coef, intercept, alpha if n_outputs > 1 else float(alpha[0]))


def _group_losses(Z, y, weights, groups, alphas) -> np.ndarray:
    """Return the squared errors on held-out groups, for each alpha and target."""
    folds = GroupKFold(min(_N_FOLDS, len(np.unique(groups)))).split(Z, y, groups)
    losses = np.zeros((len(alphas), y.shape[1]))
    for train, test in folds:
        for i, alpha in enumerate(alphas):
            model = Ridge(alpha).fit(Z[train], y[train], weights[train])
            errors = y[test] - np.reshape(model.predict(Z[test]), (len(test), -1))
            losses[i] += weights[test] @ errors**2
    return losses
