"""Examples of a fit, and how they become the inputs of the stages that are trained."""

import copy
import functools

import numpy as np
import torch

from sktransfer.embedding._embed import StageOutputs, embed
from sktransfer.embedding._prefix import Prefix
from sktransfer.embedding._reading import read_samples, sample_digests
from sktransfer.finetuning._network import Network
from sktransfer.finetuning._train import Rows
from sktransfer.inputs._reader import PADDING, Reader, Samples, unpadded

# Samples whose feature maps are in memory at the same time in predict.
_CHUNK = 1024
# Drafts, or outputs of frozen stages, kept in memory during a fit.
_MAX_BYTES = 2**32


class Examples:
    """Training examples, each (sample, target) once, in an order of their content.

    Rows of weight 0 are dropped, and the weights of equal rows summed: then a weight
    of k is the same as k copies to the last digit, and so is any order of the rows.

    Parameters
    ----------
    samples : Samples of length n
        Of those that are kept, ``samples.rows`` tells where they were.
    targets : ndarray of shape (n, n_columns)
    weights : ndarray of shape (n,)
    groups : ndarray of int of shape (n,), optional
        What is not to be divided between training and validation.
    """

    def __init__(self, samples: Samples, targets, weights, groups=None):
        positive = np.flatnonzero(weights > 0)
        samples = samples.take(positive)
        targets = np.asarray(targets, dtype=np.float64)[positive]
        digests, copies = sample_digests(samples), {}
        for row, digest in enumerate(digests):
            copies.setdefault(digest + targets[row].tobytes(), []).append(row)
        equal = [copies[key] for key in sorted(copies)]
        order = [rows[0] for rows in equal]
        self.samples = samples.take(order)
        self.digests = [digests[row] for row in order]
        self.targets = targets[order]
        self.weights = np.array([weights[positive[rows]].sum() for rows in equal])
        self.groups = None
        if groups is not None:
            # Of copies in several groups, whatever order they come in.
            self.groups = np.array([groups[positive[rows]].min() for rows in equal])
        self.seen = self.weights.sum(), len(self.weights)
        self.mean_weight = None

    def __len__(self):
        return len(self.weights)

    def take(self, rows) -> "Examples":
        """Return the examples at these rows, in this order."""
        taken = copy.copy(self)
        taken.samples = self.samples.take(rows)
        taken.digests = [self.digests[row] for row in rows]
        taken.targets, taken.weights = self.targets[rows], self.weights[rows]
        taken.groups = None if self.groups is None else self.groups[rows]
        return taken

    def go_on_from(self, weight: float, count: int) -> None:
        """Weigh these examples against those of the calls before.

        Else a call with examples of a single class would weigh as much as any other,
        however much that class weighs.
        """
        self.seen = self.seen[0] + weight, self.seen[1] + count
        self.mean_weight = self.seen[0] / self.seen[1]

    def rows(self, read, chosen, training: bool = False) -> Rows:
        """Give chosen examples to training; `read` turns their numbers into inputs."""
        chosen = np.asarray(chosen)
        targets, weights = self.targets[chosen], self.weights[chosen]
        # No lambda: workers that are spawned get a pickle of this.
        read = functools.partial(_read_chosen, read, chosen)
        return Rows(read, targets, weights, training, self.mean_weight)


def _read_chosen(read, chosen, rows):
    return read(chosen[rows])


class Inputs:
    """What the trained stages are given, for the examples of a fit.

    Without augmentation, the frozen stages have run once for each sample, before the
    first epoch. With it, or where their outputs would not fit in memory, they run in
    each step, by the same function at the same batch size: to the last bit the same.

    Parameters
    ----------
    prefix : Prefix
        The frozen stages.
    cache : EmbeddingCache or None
    examples : Examples
    augment : callable or None
        Takes and returns a draft.
    """

    def __init__(self, prefix: Prefix, cache, examples, augment):
        self.prefix = prefix
        self.cache = cache
        self.examples = examples
        self.augment = augment
        self.reader = prefix.backbone.reader
        self._drafts = _Drafts(examples.samples, self.reader)
        self.all_frozen = prefix.depth == len(prefix.backbone.stages)
        size = 4 * len(examples) * int(np.prod(prefix.shape))
        self._in_step = prefix.depth == 0 or augment is not None or size > _MAX_BYTES
        self._features = None

    def network(self, head, precision: str, fixed_norms: bool) -> Network:
        """Make what is trained: a copy of the stages not frozen, and a head."""
        suffix = copy.deepcopy(self.prefix.backbone.stages[self.prefix.depth :])
        prefix = None
        if self._in_step:
            prefix = functools.partial(_frozen, self.prefix)
        suffix.requires_grad_(True)
        return Network(suffix, head, prefix, precision, fixed_norms)

    def rows(self, chosen, training: bool = False) -> Rows:
        read = self._inputs if self._in_step else self._frozen_outputs
        if self.augment is not None and training:
            read = self._augmented
        return self.examples.rows(read, chosen, training)

    def embeddings(self) -> np.ndarray:
        """Embeddings by the whole network as it is before training."""
        if self._in_step:
            # What the stages give on the way, other depths of a search start from.
            taps = [] if self.augment else self._taps(self.prefix.whole())
            return self._embed([self.prefix.whole()], taps)[0]
        frozen, embeddings = self._embed(
            [self.prefix, self.prefix.whole()], self._taps(self.prefix)
        )
        self._features = torch.from_numpy(frozen)
        return embeddings

    def _embed(self, prefixes, taps) -> list[np.ndarray]:
        examples = self.examples
        return embed(
            examples.samples,
            prefixes,
            cache=self.cache,
            digests=examples.digests,
            taps=taps,
        )

    def _taps(self, prefix) -> list[Prefix]:
        return taps_of(prefix, len(self.examples), self.cache)

    def _frozen_outputs(self, rows) -> torch.Tensor:
        if self._features is None:
            (frozen,) = self._embed([self.prefix], self._taps(self.prefix))
            self._features = torch.from_numpy(frozen)
        return _trimmed(self._features[rows], self.reader)

    def _inputs(self, rows) -> torch.Tensor:
        drafts = self._drafts.get(rows)
        return self.reader.stack([self.reader.finish(draft) for draft in drafts])

    def _augmented(self, rows) -> torch.Tensor:
        drafts = [self.augment(draft) for draft in self._drafts.get(rows)]
        return self.reader.stack([self.reader.finish(draft) for draft in drafts])


class _Drafts:
    """Samples as augmentation takes them, decoded once where they fit in memory."""

    def __init__(self, samples: Samples, reader: Reader):
        self._samples = samples
        self._reader = reader
        self._known = {}
        self._bytes = 0

    def get(self, rows) -> list[torch.Tensor]:
        missing = [row for row in rows if row not in self._known]
        read = read_samples(self._samples, missing, self._reader.draft)
        found = dict(zip(missing, read, strict=True))
        drafts = [self._known.get(row, found.get(row)) for row in rows]
        for row, draft in found.items():
            if self._bytes < _MAX_BYTES:
                self._known[row] = draft
                self._bytes += draft.nbytes
        return drafts


def taps_of(prefix: Prefix, n_samples: int, cache) -> list[Prefix]:
    """The depths before a prefix's own, to be kept for other fits, if they fit."""
    numbers = sum(np.prod(shape) for shape in prefix.backbone.shapes[: prefix.depth])
    if cache is None or 4 * n_samples * numbers > cache.max_bytes / 2:
        return []
    return [prefix.at(depth) for depth in range(1, prefix.depth)]


def _trimmed(batch: torch.Tensor, reader: Reader) -> torch.Tensor:
    """Cut off the padding that no row of a batch of stage outputs needs."""
    if reader.padding is None or batch.ndim < 3:
        return batch
    return batch[:, : max(map(len, unpadded(batch, PADDING)))]


def _frozen(prefix: Prefix, inputs: torch.Tensor) -> torch.Tensor:
    """Run stacked inputs through the frozen stages, inside a training step."""
    reader = prefix.backbone.reader
    if not prefix.depth:
        return reader.normalise(inputs)
    (outputs,) = embed(_outputs(inputs.cpu(), 0, reader.padding), [prefix])
    return torch.from_numpy(outputs).to(inputs.device)


def _outputs(batch: torch.Tensor, depth: int, padding) -> StageOutputs:
    """Rows of a batch, which are not computed with the padding of their neighbours."""
    return StageOutputs(batch if padding is None else unpadded(batch, padding), depth)


def embed_tuned(samples: Samples, whole: Prefix, depth: int, cache) -> torch.Tensor:
    """Embed samples with a tuned network whose first stages, frozen, may be cached."""
    rows, varies = [], whole.backbone.reader.padding is not None
    frozen = whole.at(depth)
    for first in range(0, len(samples), _CHUNK):
        chunk = samples.take(range(first, min(first + _CHUNK, len(samples))))
        if depth:
            taps = taps_of(frozen, len(chunk), cache)
            (outputs,) = embed(chunk, [frozen], cache=cache, taps=taps)
            outputs = torch.from_numpy(outputs)
            padding = PADDING if varies and outputs.ndim == 3 else None
            chunk = _outputs(outputs, depth, padding)
        rows += embed(chunk, [whole])
    return torch.from_numpy(np.concatenate(rows))
