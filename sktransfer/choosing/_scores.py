"""Transferability scores: how well embeddings suit a task, without training on it."""

from numbers import Integral

import numpy as np
from scipy import linalg
from scipy.sparse import csr_array
from sklearn.covariance import LedoitWolf
from sklearn.metrics import r2_score
from sklearn.preprocessing import normalize
from sklearn.utils import check_X_y
from sklearn.utils.multiclass import check_classification_targets, type_of_target

# The share of the squared norm of the targets that even a perfect fit leaves as noise:
# without noise the evidence would be infinite.
_LEAST_NOISE = 1e-10
# The ratios of precisions to search, relative to the largest squared singular value.
_RATIOS = np.logspace(-12, 12, 97)
# Cosine similarities that differ by no more than this are equal.
_ROUNDING = 1e-12
# The number of similarities that are in memory at a time: 64 MiB of float64.
_BLOCK = 2**23


def is_classes(y) -> bool:
    """Whether targets are class labels, rather than real values to regress on."""
    return type_of_target(y) in ("binary", "multiclass")


def is_labels(y) -> bool:
    """Whether targets are an indicator matrix: several labels for each sample."""
    return type_of_target(y) == "multilabel-indicator"


def logme_score(features, y) -> float:
    """Compute LogME, the log of the maximum evidence of a linear model on embeddings.

    The evidence is that of a Bayesian linear regression of the target on the features.
    Its logarithm is maximised over the precisions of the weights and the noise, and
    divided by the number of samples. For classes, the score is the mean over their
    indicators [1]_; for multilabel targets, it is the mean of the scores of the labels.
    Higher is better.

    Parameters
    ----------
    features : array-like of shape (n_samples, n_features)
        The embeddings.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        The class labels (strings, integers or booleans), an indicator matrix of several
        labels, or the real values. A matrix of zeros and ones is one of labels.

    Returns
    -------
    float
        The score. Scores can be compared only between features of the same samples.

    Notes
    -----
    With ``F`` the features and ``A = alpha I + beta F'F``, ``m = beta A^-1 F'y``, the
    score is the maximum over ``alpha`` and ``beta`` of ``1/n`` times ::

        n/2 log(beta) + D/2 log(alpha) - n/2 log(2 pi)
            - beta/2 |F m - y|^2 - alpha/2 |m|^2 - 1/2 log|A|

    Given a singular value decomposition of ``F``, the optimal ``beta`` for a ratio
    ``alpha / beta`` is known in closed form. What remains is a search over that ratio
    for each target, which finds the maximum even where the usual fixed-point iteration
    [2]_ converges slowly.

    References
    ----------
    .. [1] You, Liu, Wang and Long, "LogME: practical assessment of pre-trained models
       for transfer learning", ICML 2021.
    .. [2] You, Liu, Zhang, Wang, Jordan and Long, "Ranking and tuning pre-trained
       models: a new paradigm for exploiting model hubs", JMLR 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sktransfer import logme_score
    >>> X, y = load_iris(return_X_y=True)
    >>> logme_score(X, y) > logme_score(X[:, :2], y)
    True
    """
    features, y = _checked(features, y)
    classes = is_classes(y) or is_labels(y)
    targets = _indicators(y) if classes else _values(y)
    return float(np.mean(_evidence(*_spectrum(features, targets), targets)))


def _spectrum(features, targets) -> tuple[np.ndarray, np.ndarray]:
    """Return squared singular values, and squared targets along the left vectors.

    They are computed from the smaller Gram matrix, which takes a fraction of the time
    of a singular value decomposition. Directions that are lost in its rounding are left
    out, since the features explain nothing there.
    """
    n, d = features.shape
    if n <= d:
        squares, left = linalg.eigh(features @ features.T, check_finite=False)
        return squares.clip(0), (left.T @ targets) ** 2
    squares, right = linalg.eigh(features.T @ features, check_finite=False)
    along = (right.T @ (features.T @ targets)) ** 2
    kept = squares > d * np.finfo(float).eps * squares.max()
    return squares[kept], along[kept] / squares[kept, None]


def _evidence(squares, along, targets) -> np.ndarray:
    """Return the maximum log evidence per sample of each target.

    `squares` are the squared singular values, and `along` the squares of the targets
    along the left singular vectors.
    """
    norms = (targets**2).sum(axis=0)
    # What the features cannot explain. Its second bound keeps the logarithm finite for
    # a target of zeros.
    across = np.maximum(norms - along.sum(axis=0), _LEAST_NOISE * norms)
    across = np.maximum(across, np.finfo(float).tiny)
    squares = squares[:, None] / max(squares.max(initial=0), np.finfo(float).tiny)

    def evidence(ratio):
        rest = ((ratio / (ratio + squares)) * along).sum(axis=0) + across
        log_det = np.log1p(squares / ratio).sum(axis=0)
        n = len(targets)
        return -0.5 * (np.log(2 * np.pi * rest / n) + 1 + log_det / n)

    # A coarse search brackets the maximum.
    coarse = np.array([evidence(ratio) for ratio in _RATIOS])
    best = np.clip(coarse.argmax(axis=0), 1, len(_RATIOS) - 2)
    low, high = np.log(_RATIOS[best - 1]), np.log(_RATIOS[best + 1])
    # A golden-section search, for all targets at once. Its 40 steps shrink the interval
    # to 4e-9 of its width.
    share = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        inner, outer = high - share * (high - low), low + share * (high - low)
        rises = evidence(np.exp(inner)) < evidence(np.exp(outer))
        low, high = np.where(rises, inner, low), np.where(rises, high, outer)
    return np.maximum(evidence(np.exp((low + high) / 2)), coarse.max(axis=0))


def h_score(features, y) -> float:
    """Compute the H-score of embeddings for classes, with a shrunk covariance.

    The score measures how much of the variance of the features lies between the
    classes [1]_. It is ``trace(S^-1 (1 - a) B)``, where ``B`` is the covariance of the
    class means, and ``S`` is the covariance of the features, shrunk by the Ledoit-Wolf
    intensity ``a`` so that the score is usable with more features than samples [2]_.
    Both covariances are sums over the ``n`` samples divided by ``n``, not ``n - 1``.
    For multilabel targets, the score is the mean of those of the labels. Higher is
    better.

    Parameters
    ----------
    features : array-like of shape (n_samples, n_features)
        The embeddings.
    y : array-like of shape (n_samples,) or (n_samples, n_labels)
        The class labels, or an indicator matrix.

    Returns
    -------
    float
        The score, which is at most the number of classes minus one.

    Raises
    ------
    ValueError
        If `y` is continuous.

    References
    ----------
    .. [1] Bao, Li, Huang, Zhang, Zheng, Zamir and Guibas, "An information-theoretic
       approach to transferability in task transfer learning", ICIP 2019.
    .. [2] Ibrahim, Ponomareva and Mazumder, "Newer is not always better: rethinking
       transferability metrics, their peculiarities, stability and performance",
       ECML PKDD 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sktransfer import h_score
    >>> X, y = load_iris(return_X_y=True)
    >>> h_score(X, y) > h_score(X[:, :2], y)
    True
    """
    features, y = _checked(features, y)
    check_classification_targets(y)
    labels = _indicators(y)
    shares = labels.mean(axis=0)
    means = labels.T @ (features - features.mean(axis=0)) / labels.sum(axis=0)[:, None]
    covariance = LedoitWolf().fit(features)
    shrunk = covariance.covariance_
    # Constant features separate no classes.
    if not np.trace(shrunk) > 0:
        return 0.0
    # Least squares, since the covariance may be singular where it is hardly shrunk.
    solved = linalg.lstsq(shrunk, means.T, check_finite=False)[0]
    between = (shares * (means.T * solved).sum(axis=0)).sum()
    if is_labels(y):
        # Each label is a task of two classes.
        between /= len(shares) / 2
    return float((1 - covariance.shrinkage_) * between)


def knn_score(features, y, n_neighbors=5) -> float:
    """Compute the leave-one-out score of nearest neighbours among embeddings.

    The neighbours are found by cosine similarity. The score is the accuracy for
    classes, the mean of the accuracies of the labels for multilabel targets, and R2 for
    real values [1]_. Higher is better.

    Parameters
    ----------
    features : array-like of shape (n_samples, n_features)
        The embeddings.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        The class labels (strings, integers or booleans), an indicator matrix of several
        labels, or the real values. A matrix of zeros and ones is one of labels.
    n_neighbors : int, default=5
        The number of neighbours, or all other samples if there are fewer of them.

    Returns
    -------
    float
        The score, which does not depend on the order of the samples.

    Notes
    -----
    Samples that are as near as the last neighbour are all counted, with equal weights.
    For example, if three samples are equally near and only two of them are still
    needed, each counts for two thirds. If ``m`` classes tie for the most votes and the
    true class is among them, the sample counts as ``1 / m`` of a hit, the expected
    value of a random choice between them.

    References
    ----------
    .. [1] Puigcerver, Riquelme, Mustafa, Renggli, Susano Pinto, Gelly, Keysers and
       Houlsby, "Scalable transfer learning with expert models", ICLR 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sktransfer import knn_score
    >>> X, y = load_iris(return_X_y=True)
    >>> knn_score(X, y) > 0.9
    True
    """
    features, y = _checked(features, y)
    if not isinstance(n_neighbors, Integral) or n_neighbors < 1:
        raise ValueError(
            f"Invalid n_neighbors={n_neighbors!r}: expected a positive integer. No "
            "score was computed. Pass a number such as 5."
        )
    classes, labels = is_classes(y), is_labels(y)
    targets = _indicators(y) if classes or labels else _values(y)
    order = _order_by_content(np.hstack([features, targets]))
    targets = targets[order]
    found = _neighbour_means(normalize(features[order]), targets, n_neighbors)
    if labels:
        # A tie between presence and absence is half a hit, as for two classes.
        hits = np.where(found == 0.5, 0.5, (found > 0.5) == (targets == 1))
        return float(hits.mean())
    if not classes:
        return float(r2_score(targets, found))
    most = found == found.max(axis=1, keepdims=True)
    return float((most / most.sum(axis=1, keepdims=True))[targets == 1].mean())


def _order_by_content(rows) -> np.ndarray:
    """Return the indices that sort rows by content, whatever order they are in.

    The last bits of sums and products depend on the order of the computation.
    """
    # Adding zero turns -0.0 into 0.0, which has other bytes but is the same value.
    whole = np.ascontiguousarray(rows + 0.0)
    return np.argsort(whole.view(f"V{whole.itemsize * whole.shape[1]}").ravel())


def _neighbour_means(units, targets, n_neighbors) -> np.ndarray:
    """Return the mean target of the nearest neighbours of each row, without itself.

    For indicators, the means are integers divided once by integers, so that equal
    means are equal to the last bit.
    """
    n = len(units)
    k, step = min(n_neighbors, n - 1), max(1, _BLOCK // n)
    means = []
    for first in range(0, n, step):
        near = units[first : first + step] @ units.T
        # No row is its own neighbour.
        rows = np.arange(len(near))
        near[rows, first + rows] = -np.inf
        last = np.partition(near, n - k, axis=1)[:, n - k, None]
        row, column = np.nonzero(near >= last - _ROUNDING)
        nearer = near[row, column] > last[row, 0] + _ROUNDING
        n_nearer, n_near = (np.bincount(row, w, len(near)) for w in (nearer, None))
        # Nearer samples count fully, and those as near as the last share what is left.
        # All is multiplied by n_equal, to stay in whole numbers until the division.
        n_equal, n_left = n_near - n_nearer, k - n_nearer
        counts = np.where(nearer, n_equal[row], n_left[row])
        counts = csr_array((counts, (row, column)), near.shape)
        means.append(counts @ targets / (n_equal * k)[:, None])
    return np.concatenate(means)


SCORES = {"logme": logme_score, "h_score": h_score, "knn": knn_score}


def _checked(features, y):
    return check_X_y(
        features, y, dtype=np.float64, multi_output=True, ensure_min_samples=2
    )


def _values(y) -> np.ndarray:
    """Return real values as columns, (n_samples, n_targets) float64."""
    return y.astype(float).reshape(len(y), -1)


def _indicators(y) -> np.ndarray:
    """Return class labels as a 0-1 matrix, (n_samples, n_classes) float64.

    For multilabel targets, the columns are the absence of each label, then its
    presence.
    """
    if is_labels(y):
        y = np.asarray(y) == 1
        # A label that all samples have, or none, says nothing about the features.
        y = y[:, y.any(axis=0) & ~y.all(axis=0)]
        if not y.shape[1]:
            raise ValueError(
                "Invalid y: expected a label that some samples have and others do not, "
                "got none. No score was computed. Pass more samples or other labels."
            )
        return np.hstack([~y, y]).astype(np.float64)
    return (np.asarray(y).reshape(-1, 1) == np.unique(y)).astype(np.float64)
