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

# Of the squared norm of the targets: what a perfect fit leaves for the noise.
_LEAST_NOISE = 1e-10
# Of the largest squared singular value: ratios of precisions to search through.
_RATIOS = np.logspace(-12, 12, 97)
# Of cosine similarities: those no further apart are equal.
_ROUNDING = 1e-12
# Similarities in memory at a time.
_BLOCK = 2**23


def is_classes(y) -> bool:
    """Whether targets are class labels, rather than numbers to regress on."""
    return type_of_target(y) in ("binary", "multiclass")


def logme_score(features, y) -> float:
    """Log of maximum evidence of a linear model on embeddings.

    A Bayesian linear regression of the target on the features, whose evidence is
    maximised over the precisions of weights and noise, divided by the number of
    samples; for classes, the mean over their indicators [1]_. Higher is better.

    Parameters
    ----------
    features : array-like of shape (n_samples, n_features)
        The embeddings.
    y : array-like of shape (n_samples,) or, for regression, (n_samples, n_targets)
        Labels (strings, integers, booleans), or numbers.

    Returns
    -------
    float
        Comparable only between features of the same samples.

    Notes
    -----
    With ``F`` the features and ``A = alpha I + beta F'F``, ``m = beta A^-1 F'y``, the
    score is the maximum over ``alpha`` and ``beta`` of ``1/n`` times ::

        n/2 log(beta) + D/2 log(alpha) - n/2 log(2 pi)
            - beta/2 |F m - y|^2 - alpha/2 |m|^2 - 1/2 log|A|

    With one singular value decomposition of ``F``, and ``beta`` at its best for a given
    ``alpha / beta``, that is a search over one number for each target, which finds the
    maximum also where the usual fixed point [2]_ converges slowly.

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
    targets = _indicators(y) if is_classes(y) else y.astype(float).reshape(len(y), -1)
    return float(np.mean(_evidence(*_spectrum(features, targets), targets)))


def _spectrum(features, targets) -> tuple[np.ndarray, np.ndarray]:
    """Squares of the singular values, and of the targets along the left vectors.

    By the smaller Gram matrix, which takes a fraction of the time of the singular value
    decomposition. Directions lost in its rounding are left out: there, features explain
    nothing.
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
    """Maximum log evidence per sample of each target.

    `squares` are those of the singular values, `along` those of the targets along the
    left singular vectors.
    """
    norms = (targets**2).sum(axis=0)
    across = np.maximum(norms - along.sum(axis=0), _LEAST_NOISE * norms)
    across = np.maximum(across, np.finfo(float).tiny)
    squares = squares[:, None] / max(squares.max(initial=0), np.finfo(float).tiny)

    def evidence(ratio):
        rest = ((ratio / (ratio + squares)) * along).sum(axis=0) + across
        log_det = np.log1p(squares / ratio).sum(axis=0)
        n = len(targets)
        return -0.5 * (np.log(2 * np.pi * rest / n) + 1 + log_det / n)

    coarse = np.array([evidence(ratio) for ratio in _RATIOS])
    best = np.clip(coarse.argmax(axis=0), 1, len(_RATIOS) - 2)
    low, high = np.log(_RATIOS[best - 1]), np.log(_RATIOS[best + 1])
    # Golden sections, for all targets at once.
    share = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        inner, outer = high - share * (high - low), low + share * (high - low)
        rises = evidence(np.exp(inner)) < evidence(np.exp(outer))
        low, high = np.where(rises, inner, low), np.where(rises, high, outer)
    return np.maximum(evidence(np.exp((low + high) / 2)), coarse.max(axis=0))


def h_score(features, y) -> float:
    """H-score of embeddings for classes, with a shrunk covariance.

    How much of the variation of the features lies between the classes [1]_,
    ``trace(S^-1 (1 - a) B)``, with ``B`` the covariance of the class means and ``S``
    the covariance of the features, shrunk by Ledoit and Wolf's intensity ``a``, which
    makes the score usable with more features than samples [2]_. Higher is better.
    Both covariances are sums over the ``n`` samples divided by ``n``, not ``n - 1``.

    Parameters
    ----------
    features : array-like of shape (n_samples, n_features)
        The embeddings.
    y : array-like of shape (n_samples,)
        Labels.

    Returns
    -------
    float
        At most the number of classes less one.

    Raises
    ------
    ValueError
        If `y` are numbers to regress on.

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
    if not np.trace(shrunk) > 0:
        return 0.0
    solved = linalg.lstsq(shrunk, means.T, check_finite=False)[0]
    between = (shares * (means.T * solved).sum(axis=0)).sum()
    return float((1 - covariance.shrinkage_) * between)


def knn_score(features, y, n_neighbors=5) -> float:
    """Leave-one-out score of nearest neighbours among embeddings.

    By cosine similarity; the accuracy for classes, R2 for numbers [1]_. Higher is
    better.

    Parameters
    ----------
    features : array-like of shape (n_samples, n_features)
        The embeddings.
    y : array-like of shape (n_samples,) or, for regression, (n_samples, n_targets)
        Labels (strings, integers, booleans), or numbers.
    n_neighbors : int, default=5
        At most as many as there are other samples are counted.

    Returns
    -------
    float
        The same for any order of the samples.

    Notes
    -----
    What is as near as the last neighbour is counted, too: if, say, three samples are
    equally near and two of them are still to be counted, each counts for two thirds.
    Where ``m`` classes have the most votes and the right one is among them, that is
    ``1 / m`` of a hit, as if one of them were drawn.

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
            f"n_neighbors={n_neighbors!r} is no number of neighbours. Accepted are "
            "positive integers. No score was computed. Pass a number such as 5."
        )
    classes = is_classes(y)
    targets = _indicators(y) if classes else y.astype(float).reshape(len(y), -1)
    order = _order_by_content(np.hstack([features, targets]))
    targets = targets[order]
    found = _neighbour_means(normalize(features[order]), targets, n_neighbors)
    if not classes:
        return float(r2_score(targets, found))
    most = found == found.max(axis=1, keepdims=True)
    return float((most / most.sum(axis=1, keepdims=True))[targets == 1].mean())


def _order_by_content(rows) -> np.ndarray:
    """Numbers of the rows in an order that does not depend on the one they are in.

    The last bits of sums and products do depend on the order of what is computed.
    """
    # A zero may have a sign, but that makes no other row of it.
    whole = np.ascontiguousarray(rows + 0.0)
    return np.argsort(whole.view(f"V{whole.itemsize * whole.shape[1]}").ravel())


def _neighbour_means(units, targets, n_neighbors) -> np.ndarray:
    """Mean target of the nearest neighbours of each row, itself left out.

    For indicators, they are whole numbers but for one division by the same: equal
    ones are equal to the last bit.
    """
    n = len(units)
    k, step = min(n_neighbors, n - 1), max(1, _BLOCK // n)
    means = []
    for first in range(0, n, step):
        near = units[first : first + step] @ units.T
        rows = np.arange(len(near))
        near[rows, first + rows] = -np.inf
        last = np.partition(near, n - k, axis=1)[:, n - k, None]
        row, column = np.nonzero(near >= last - _ROUNDING)
        nearer = near[row, column] > last[row, 0] + _ROUNDING
        n_nearer, n_near = (np.bincount(row, w, len(near)) for w in (nearer, None))
        # Nearer ones count in full; those as near as the last share what is left.
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


def _indicators(y) -> np.ndarray:
    """Class labels as a matrix of 0 and 1, (n_samples, n_classes) float64."""
    return (np.asarray(y).reshape(-1, 1) == np.unique(y)).astype(np.float64)
