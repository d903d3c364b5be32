"""find_duplicates: groups of samples that are copies of each other."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.random_projection import SparseRandomProjection

from sktransfer.embedding._embed import embed
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.embedding._prefix import resolve_cache
from sktransfer.embedding._reading import Refusals, advising, sample_digests
from sktransfer.inputs._validate import as_samples, check_samples

# The least cosine of whitened embeddings of near copies. By "tiny", at most 2 % of some
# hundred photographs have another one that is as similar. How many copies are is told
# by benchmarks/quality/duplicates.py.
NEAR = 0.6
# The number of similarities that are computed at once.
_BLOCK = 2**22
# Wider embeddings, such as pixels, are projected to this width: their covariance would
# not fit in memory.
_WIDEST = 4096


def find_duplicates(
    X,
    backbone="tiny",
    *,
    threshold=NEAR,
    weights="default",
    image_shape=None,
    image_size=None,
    max_length=None,
    sampling_rate=None,
    on_error="raise",
    device="auto",
    cache="auto",
    verbose=0,
):
    """Find groups of samples that are copies of each other, exactly or nearly.

    Copies on both sides of a split make a test score too high. The groups can be
    passed as ``groups=`` to `sklearn.model_selection.cross_validate` and others, with
    a splitter such as `sklearn.model_selection.StratifiedGroupKFold`, which keeps the
    samples of a group together.

    Samples are exact copies if they have the same content: the same bytes of a file,
    or equal arrays or texts. They are near copies if their embeddings are similar, as
    those of an image and of itself compressed, resized or slightly cropped.

    Parameters
    ----------
    X : sequence of samples, or array-like of shape (n_samples, n_pixels)
        The samples to compare.
    backbone : str, callable, torch.nn.Module, Backbone, fitted estimator or \
            PretrainedFeatureExtractor, default="tiny"
        The network whose embeddings are compared; see `load_backbone`. Texts and
        sounds need an encoder of texts or sounds. An extractor has settings of its
        own, and the other parameters below are then not used, except `threshold`.
    threshold : float or None, default=0.6
        The similarity from which samples are near copies: the cosine of their whitened
        embeddings, between -1 and 1. If None, only exact copies are found, and nothing
        is embedded.
    weights, image_shape, image_size, max_length, sampling_rate : optional
        The parameters of the same name of `PretrainedFeatureExtractor`.
    on_error, device, cache, verbose : optional
        The parameters of the same name of `PretrainedFeatureExtractor`. A sample that
        cannot be read, with ``on_error="nan"``, is a group of its own.

    Returns
    -------
    ndarray of shape (n_samples,), int64
        The group of each sample. Groups are numbered from 0 by their first sample, and
        a sample without a copy is a group of its own.

    Raises
    ------
    ValueError
        If a sample cannot be read and ``on_error="raise"``, or `threshold` is not
        between 0 and 1.

    See Also
    --------
    transfer_report : Says which test samples have a copy in their training set.

    Notes
    -----
    The embeddings of all images of one kind are similar. To compare what distinguishes
    these, they are standardised and whitened: divided by the square root of their
    covariance matrix, to which ``1 + n_features / n_samples`` times the identity is
    added, as few samples determine it badly. A dozen samples are too few for that, and
    fewer near copies are found then.

    A network finds what it does not tell apart: many find mirrored or very small images
    badly. Images with little in them, such as digits, look like copies; a higher
    `threshold` separates these.

    The group of a near copy contains its own near copies. Similarities are computed in
    blocks, in time proportional to the square of the number of samples, and not stored.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_sample_images
    >>> from sktransfer.datasets import find_duplicates
    >>> china, flower = load_sample_images().images
    >>> tiles = [image[i : i + 200, j : j + 200] for image in (china, flower)
    ...          for i in (0, 200) for j in (0, 200, 400)]
    >>> cut, darker = tiles[2][4:, 4:], (tiles[7] * 0.8).astype(np.uint8)
    >>> X = [*tiles, tiles[0].copy(), cut, darker]
    >>> find_duplicates(X)
    array([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11,  0,  2,  7])
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(
            f"Invalid threshold={threshold!r}: expected a cosine greater than 0 and at "
            "most 1, or None for exact copies only. Nothing was read."
        )
    extractor = backbone
    if not isinstance(backbone, PretrainedFeatureExtractor):
        extractor = PretrainedFeatureExtractor(
            backbone,
            weights=weights,
            image_shape=image_shape,
            image_size=image_size,
            max_length=max_length,
            sampling_rate=sampling_rate,
            on_error=on_error,
            device=device,
            cache=cache,
            verbose=verbose,
        )
    extractor._validate_params()
    copies = Copies.of(extractor, X, embedded=threshold is not None)
    copies.refusals.warn_of_cut()
    copies.refusals.warn_of_refused("they were compared with nothing")
    return copies.groups(threshold)


class Copies:
    """What is needed to find the copies of samples.

    Parameters
    ----------
    digests : list of bytes
        The digest of the content of each sample; empty if it cannot be read.
    refusals : Refusals
        What cannot be read.
    directions : ndarray of shape (n_samples, n_features), float32, or None
        The whitened embeddings, of unit length. They are zero for a sample that cannot
        be read.
    device : str, default="cpu"
        The device that computes similarities.
    """

    def __init__(self, digests, refusals, directions=None, device="cpu"):
        self.digests = digests
        self.refusals = refusals
        self.directions = directions
        self.device = device

    @classmethod
    def of(cls, extractor, X, embedded=True) -> "Copies":
        """Read, and embed, samples as an extractor does."""
        prefix = extractor._prefix()
        reader = prefix.backbone.reader
        checked = check_samples(extractor, X, reader=reader, reset=False)
        samples = as_samples(reader, checked, extractor.image_shape)
        refusals = Refusals(samples, strict=extractor.on_error == "raise")
        with advising("on_error='nan' leaves it out of the comparison."):
            digests = sample_digests(samples, refusals)
            if not embedded:
                return cls(digests, refusals)
            (embeddings,) = embed(
                samples,
                [prefix],
                cache=resolve_cache(extractor.cache),
                digests=list(digests),
                n_jobs=extractor.n_jobs,
                refusals=refusals,
                verbose=extractor.verbose,
            )
        for row in refusals.rows:
            digests[row] = b""
        directions = _directions(embeddings, digests)
        return cls(digests, refusals, directions, prefix.device)

    def groups(self, threshold) -> np.ndarray:
        """Return the number of the group of each sample, by its first sample."""
        firsts = _firsts(self.digests)
        labels = np.array(
            [firsts.get(digest, row) for row, digest in enumerate(self.digests)],
            dtype=np.int64,
        )
        if threshold is not None:
            # Exact copies of another sample have the similarities that it has.
            first = np.array(list(firsts.values()), dtype=np.int64)
            for rows, similar in self._blocks(first, first):
                pairs = np.nonzero(similar >= threshold)
                labels = _joined(labels, rows[pairs[0]], first[pairs[1]])
        _, starts, groups = np.unique(labels, return_index=True, return_inverse=True)
        # In the order of the first samples.
        order = np.empty(len(starts), dtype=np.int64)
        order[np.argsort(starts)] = np.arange(len(starts))
        return order[groups]

    def nearest(self, rows, others) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each row, the most similar of the others, and how similar."""
        found = [
            (others[similar.argmax(axis=1)], similar.max(axis=1))
            for _, similar in self._blocks(rows, others)
        ]
        nothing = np.array([], dtype=np.int64), np.array([], dtype=np.float32)
        nearest, similarities = zip(*found, strict=True) if found else ([], [])
        return (
            np.concatenate([nothing[0], *nearest]),
            np.concatenate([nothing[1], *similarities]),
        )

    def _blocks(self, rows, others) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield some of the rows, and their similarities with all the others."""
        if not len(rows) or not len(others):
            return
        known = torch.from_numpy(self.directions[others]).to(self.device).T
        size = max(1, _BLOCK // len(others))
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            ours = torch.from_numpy(self.directions[block]).to(self.device)
            yield block, (ours @ known).cpu().numpy()


def _directions(embeddings: np.ndarray, digests: list[bytes]) -> np.ndarray:
    """Return whitened embeddings of unit length."""
    there = np.array([bool(digest) for digest in digests], dtype=bool)
    out = np.zeros_like(embeddings)
    # Copies would count several times in the mean and the covariance.
    distinct = np.array(list(_firsts(digests).values()), dtype=np.int64)
    if len(distinct):
        found = _whitened(embeddings[there], embeddings[distinct])
        out = np.zeros((len(embeddings), found.shape[1]), dtype=np.float32)
        out[there] = found
    return out


def _firsts(digests) -> dict[bytes, int]:
    """Return the first row with each digest."""
    firsts = {}
    for row, digest in enumerate(digests):
        if digest:
            firsts.setdefault(digest, row)
    return firsts


def _whitened(embeddings, distinct) -> np.ndarray:
    """Return unit vectors of embeddings, whitened by the covariance of `distinct`."""
    n_samples, n_features = distinct.shape
    if n_features > _WIDEST:
        project = SparseRandomProjection(_WIDEST, random_state=0).fit(distinct[:1])
        return _whitened(project.transform(embeddings), project.transform(distinct))
    mean, deviation = distinct.mean(axis=0), distinct.std(axis=0)
    # Zero for what is the same in all samples.
    scale = np.divide(1, deviation, out=np.zeros_like(mean), where=deviation > 0)
    scaled = torch.from_numpy((distinct - mean) * scale)
    covariance = scaled.T @ scaled / n_samples
    covariance += (1 + n_features / n_samples) * torch.eye(n_features)
    # Cosines are the same for each square root of the inverse.
    root = torch.linalg.cholesky(covariance)
    scaled = torch.from_numpy((embeddings - mean) * scale)
    white = torch.linalg.solve_triangular(root, scaled.T, upper=False).T
    return torch.nn.functional.normalize(white).numpy()


def _joined(labels, rows, others) -> np.ndarray:
    """Join the groups of pairs of rows; the label of a group is its first label."""
    pairs = np.stack([labels[rows], labels[others]])
    graph = coo_array((np.ones(pairs.shape[1], bool), pairs), shape=(len(labels),) * 2)
    _, parts = connected_components(graph, directed=False)
    _, firsts = np.unique(parts, return_index=True)
    return firsts[parts][labels]
