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
from threadpoolctl import threadpool_limits
from torch import nn

# Values of C, in half powers of ten. On embeddings of some hundred images most tasks
# are best between 0.01 and 1, so the search starts in between and goes outwards.
_FIRST, _LAST, _START = -8, 6, -2
_ALPHAS = np.logspace(-2, 7, 37)
# Where there is nothing to choose by: about what small tasks choose.
_DEFAULT_ALPHA = 1000.0
_N_FOLDS = 5
# One run of five folds over fewer examples chooses by chance; of large tasks, so many
# held-out examples are enough to choose by.
_TOO_FEW, _MOST_REPEATS, _ENOUGH = 300, 5, 1000


@dataclass
class Solution:
    """Coefficients of the output layer, and how they came about.

    Parameters
    ----------
    coef : ndarray of shape (n_outputs, n_features)
    intercept : ndarray of shape (n_outputs,)
    penalty : float, or ndarray of shape (n_outputs,)
        The C, or alpha, that was given or chosen.
    """

    coef: np.ndarray
    intercept: np.ndarray
    penalty: float | np.ndarray

    def scores(self, Z) -> np.ndarray:
        return Z @ self.coef.T + self.intercept


def class_priors(codes, weights, n_classes: int) -> np.ndarray:
    """Scores that give each class its weighted frequency, whatever the image.

    A class without an example counts as half an example, so that it can be learnt
    later.
    """
    shares = np.bincount(codes, weights=weights, minlength=n_classes) / weights.sum()
    return np.log(np.maximum(shares, 0.5 / len(weights)))


def solve_head(targets, head: nn.Sequential, embeddings, examples, penalty=None):
    """Set the output layer of a linear head to the optimum of its penalised loss.

    Parameters
    ----------
    targets : Targets
        Multinomial logistic regression of classes, a logistic regression for each
        label, or ridge regression of values.
    head : nn.Sequential
        A Standardise and a Linear, which is set.
    embeddings : ndarray of shape (n_examples, n_features)
    examples : Examples
        The encoded targets, weights and groups, in the order of the embeddings.
    penalty : float or None
        scikit-learn's C, or alpha for ridge; None chooses it by cross-validation.

    Returns
    -------
    penalty : float or ndarray of shape (n_outputs,)
    loss : float
        Weighted mean loss of the examples, without the penalty.
    """
    # In an order of the embeddings, which are the same whatever an image came as.
    order = sorted(range(len(embeddings)), key=lambda row: embeddings[row].tobytes())
    embeddings, examples = embeddings[order], examples.take(order)
    standardise, output = head[0], head[-1]
    with torch.inference_mode():
        Z = standardise(torch.from_numpy(embeddings).double()).numpy()
    rotated, back = _fewer_columns(Z)
    # Older versions of scikit-learn send each fit to the workers that a search around
    # this one may have, and wait for them: on a cluster, for ever. And the threads of
    # BLAS get in the way of those of OpenMP, with which they take turns: two of each
    # took 15 times as long as one on 500 images.
    with (
        parallel_config(backend="sequential"),
        threadpool_limits(1, user_api="blas"),
    ):
        found = targets.solve(rotated, examples, penalty)
    losses = targets.row_losses(found.scores(rotated), examples.targets)
    with torch.no_grad():
        output.weight.copy_(torch.from_numpy(back(found.coef)))
        output.bias.copy_(torch.from_numpy(found.intercept))
    return found.penalty, float(np.average(losses, weights=examples.weights))


def _fewer_columns(Z: np.ndarray):
    """Rotate to as many columns as there are rows, if there are more.

    The optimum of a loss with an L2 penalty lies in the span of the rows, and neither
    changes with a rotation.
    """
    if len(Z) >= Z.shape[1]:
        return Z, lambda coef: coef
    q, r = qr(Z.T, mode="economic", check_finite=False)
    return np.ascontiguousarray(r.T), lambda coef: coef @ q.T


def solve_classes(Z, examples, n_classes, C) -> Solution:
    codes = examples.targets[:, 0].astype(int)
    return _logistic(Z, codes, examples.weights, examples.groups, n_classes, C)


def solve_labels(Z, examples, C) -> Solution:
    def solve(codes):
        two = _logistic(Z, codes, examples.weights, examples.groups, 2, C)
        return np.diff(two.coef, axis=0)[0], np.diff(two.intercept)[0], two.penalty

    labels = examples.targets.astype(int).T
    coef, intercept, penalty = zip(*map(solve, labels), strict=True)
    return Solution(np.array(coef), np.array(intercept), np.array(penalty))


def _logistic(Z, codes, weights, groups, n_classes, C) -> Solution:
    """Multinomial logistic regression; a class that is not there stays improbable."""
    coef, there = np.zeros((n_classes, Z.shape[1])), np.unique(codes)
    intercept = class_priors(codes, weights, n_classes)
    # As where sample weights have a mean of 1, in scikit-learn's units.
    scale = 1 / weights.mean()
    if len(there) < 2:
        return Solution(coef, intercept, C or scale * _as_C(_START))
    if C is None:
        C = scale * _choose_C(Z, codes, weights / weights.mean(), groups)
    model = LogisticRegression(C=C, tol=1e-6, max_iter=2000).fit(Z, codes, weights)
    coef[there], offsets = _of_each_class(model.coef_, model.intercept_)
    level = logsumexp(Z @ coef[there].T + offsets, axis=1).mean()
    intercept += level
    intercept[there] = offsets
    return Solution(coef, intercept, float(C))


def _of_each_class(coef, intercept) -> tuple:
    """Coefficients of a logistic regression, of two classes as of more."""
    if len(coef) > 1:
        return coef, intercept
    return np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2


def _as_C(half_power: int) -> float:
    return 10.0 ** (half_power / 2)


def _choose_C(Z, codes, weights, groups) -> float:
    """Find the C of the least cross-validated log loss, walking downhill.

    The loss has one valley over C. To walk out from the middle, each fit starting from
    the one before, leaves out the large values, which take most of the iterations.
    """
    # Half the time, and exact enough for a choice.
    Z = Z.astype(np.float32)
    folds = [_Fold(Z, codes, weights, *rows) for rows in _folds(Z, codes, groups)]
    if not folds:
        return _as_C(_START)
    losses, seen = {}, sum(fold.test[2].sum() for fold in folds)

    def loss(half_power):
        if half_power not in losses:
            found = sum(fold.loss(_as_C(half_power)) for fold in folds) / seen
            # A prior, in powers of ten: few examples hardly tell, and at the ends of
            # the range they would be overruled by chance.
            losses[half_power] = len(Z) * found + ((half_power - _START) / 2) ** 2
        return losses[half_power]

    best = _START
    for step in (1, -1):
        while _FIRST <= best + step <= _LAST and loss(best) > loss(best + step):
            best += step
    return _as_C(best)


def _folds(Z, codes, groups) -> list:
    """Folds to choose C by; none where each would lack all classes but one."""
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
            # Of classes that are rarer than there are folds.
            warnings.simplefilter("ignore", UserWarning)
            folds += split.split(Z, codes, groups)
    folds = [rows for rows in folds if len(np.unique(codes[rows[0]])) > 1]
    return folds[: -(-_N_FOLDS * _ENOUGH // len(codes))]


class _Fold:
    """A part of the examples, held out to choose C by."""

    def __init__(self, Z, codes, weights, train, test):
        self.train = Z[train], codes[train], weights[train]
        self.test = Z[test], codes[test], weights[test]
        self.model = LogisticRegression(max_iter=500, warm_start=True)

    def loss(self, C: float) -> float:
        """Weighted sum of the log loss of what is held out."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # The weaker the penalty, the longer is the way that has a small gradient.
            tol = 2e-3 * min(1, _as_C(_START) / C) ** 0.5
            self.model.set_params(C=C, tol=tol).fit(*self.train)
        Z, codes, weights = self.test
        coef, intercept = _of_each_class(self.model.coef_, self.model.intercept_)
        log_proba = log_softmax((Z @ coef.T + intercept).astype(float), axis=1)
        # Classes that this fold does not know are lost for any C alike.
        known = np.isin(codes, self.model.classes_)
        columns = np.searchsorted(self.model.classes_, codes[known])
        rows = log_proba[np.flatnonzero(known), columns]
        return -float(rows @ weights[known])


def solve_values(Z, examples, alpha) -> Solution:
    y, weights, groups = examples.targets, examples.weights, examples.groups
    n_outputs = y.shape[1]
    alphas = _ALPHAS * weights.mean()
    if alpha is not None:
        alpha = np.full(n_outputs, float(alpha))
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
    """Squared errors of held-out groups, of each alpha and target."""
    folds = GroupKFold(min(_N_FOLDS, len(np.unique(groups)))).split(Z, y, groups)
    losses = np.zeros((len(alphas), y.shape[1]))
    for train, test in folds:
        for i, alpha in enumerate(alphas):
            model = Ridge(alpha).fit(Z[train], y[train], weights[train])
            errors = y[test] - np.reshape(model.predict(Z[test]), (len(test), -1))
            losses[i] += weights[test] @ errors**2
    return losses
