"""Examples of a fit, and how they become inputs of the stages that are trained."""

import copy
import functools
import sys

import numpy as np
import torch

from sktransfer.embedding._embed import StageOutputs, embed
from sktransfer.embedding._prefix import Prefix
from sktransfer.embedding._reading import Refusals, read_samples, sample_digests
from sktransfer.embedding._tasks import Task
from sktransfer.finetuning._network import Network
from sktransfer.finetuning._train import Rows
from sktransfer.inputs._reader import PADDING, Reader, Samples, unpadded

# The number of samples whose feature maps `predict` holds in memory at the same time.
_CHUNK = 1024
# The bytes of drafts, or of outputs of frozen stages, that a fit keeps in memory.
_MAX_BYTES = 2**32


class Examples:
    """The distinct training examples, (sample, target), in an order of their content.

    Rows of weight 0 are dropped, and the weights of equal rows are summed. Thereby a
    weight of k is equivalent to k copies, and any order of the rows to any other, to
    the last digit.

    Parameters
    ----------
    samples : Samples of length n_samples
        The samples. Those that are kept have their original rows in ``samples.rows``.
    targets : ndarray of shape (n_samples, n_columns)
        The encoded targets.
    weights : ndarray of shape (n_samples,)
        The sample weights.
    groups : ndarray of int of shape (n_samples,), optional
        The groups that are not split between training and validation.
    """

    def __init__(self, samples: Samples, targets, weights, groups=None):
        positive = np.flatnonzero(weights > 0)
        samples = samples.take(positive)
        targets = np.asarray(targets, dtype=np.float64)[positive]
        # Equal samples with different targets are different examples.
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
            # Copies may be in several groups. The least one does not depend on their
            # order.
            self.groups = np.array([groups[positive[rows]].min() for rows in equal])
        self.seen = self.weights.sum(), len(self.weights)
        self.mean_weight = None

    def __len__(self):
        return len(self.weights)

    def take(self, rows) -> "Examples":
        """Return the examples at these rows, in the given order."""
        taken = copy.copy(self)
        taken.samples = self.samples.take(rows)
        taken.digests = [self.digests[row] for row in rows]
        taken.targets, taken.weights = self.targets[rows], self.weights[rows]
        taken.groups = None if self.groups is None else self.groups[rows]
        return taken

    def go_on_from(self, weight: float, count: int) -> None:
        """Weight these examples relative to those of earlier calls.

        Otherwise a call with examples of a single class would have as much weight as
        any other call, whatever the weight of that class.
        """
        self.seen = self.seen[0] + weight, self.seen[1] + count
        self.mean_weight = self.seen[0] / self.seen[1]

    def rows(self, read, chosen, training: bool = False) -> Rows:
        """Return chosen examples for training; `read` turns indices into inputs."""
        chosen = np.asarray(chosen)
        targets, weights = self.targets[chosen], self.weights[chosen]
        # Not a lambda, since spawned workers receive a pickle of this.
        read = functools.partial(_read_chosen, read, chosen)
        return Rows(read, targets, weights, training, self.mean_weight)


def _read_chosen(read, chosen, rows):
    return read(chosen[rows])


class Inputs:
    """Inputs of the trained stages, for the examples of a fit.

    Without augmentation, the frozen stages run once for each sample, before the first
    epoch. Outputs that do not fit in memory are read in each step from a cache on disk,
    if it has room for them. With augmentation, or without room, the frozen stages run
    in each step, by the same function with the same batch size, which gives
    bit-identical outputs.

    Parameters
    ----------
    prefix : Prefix
        The frozen stages.
    cache : EmbeddingCache or None
        The cache of the outputs of frozen stages.
    examples : Examples
        The examples of the fit.
    augment : callable or None
        A function that takes and returns a draft.
    task : Task
        The task of the fit, of which embedding the examples is a part.
    """

    def __init__(self, prefix: Prefix, cache, examples, augment, task: Task):
        self.prefix = prefix
        self.cache = cache
        self.examples = examples
        self.augment = augment
        self.task = task
        self.reader = prefix.backbone.reader
        self._drafts = _Drafts(examples.samples, self.reader)
        self.all_frozen = prefix.depth == len(prefix.backbone.stages)
        # The size of all outputs, which are float32, in bytes.
        size = 4 * len(examples) * int(np.prod(prefix.shape))
        fits = size <= _MAX_BYTES
        self._stored = not fits and _has_room(cache, size)
        once = prefix.depth and augment is None and (fits or self._stored)
        self._in_step = not once
        self._features = None

    def network(
        self, head, precision: str, fixed_norms: bool, train_only: str
    ) -> Network:
        """Make the network to train: a copy of the stages not frozen, and a head."""
        suffix = copy.deepcopy(self.prefix.backbone.stages[self.prefix.depth :])
        prefix = None
        if self._in_step:
            prefix = functools.partial(_frozen, self.prefix)
        padded = self.prefix.varies
        return Network(suffix, head, prefix, precision, fixed_norms, padded, train_only)

    def rows(self, chosen, training: bool = False) -> Rows:
        read = self._inputs if self._in_step else self._frozen_outputs
        if self.augment is not None and training:
            read = self._augmented
        return self.examples.rows(read, chosen, training)

    def embeddings(self) -> np.ndarray:
        """Return the embeddings by the whole network, before training."""
        if self._in_step:
            # The outputs of stages on the way are kept, as other depths of a search
            # start from them. Augmentation would not use them.
            taps = [] if self.augment else self._taps(self.prefix.whole())
            return self._embed([self.prefix.whole()], taps)[0]
        if self._stored:
            return self._embed([self.prefix.whole()], [self.prefix])[0]
        frozen, embeddings = self._embed(
            [self.prefix, self.prefix.whole()], self._taps(self.prefix)
        )
        self._features = torch.from_numpy(frozen)
        return embeddings

    def _embed(self, prefixes, taps, examples=None) -> list[np.ndarray]:
        # Some of the examples are read in a step of the training, whose task it is.
        task = self.task if examples is None else None
        examples = examples or self.examples
        return embed(
            examples.samples,
            prefixes,
            cache=self.cache,
            digests=examples.digests,
            taps=taps,
            task=task,
        )

    def _taps(self, prefix) -> list[Prefix]:
        return taps_of(prefix, len(self.examples), self.cache)

    def _frozen_outputs(self, rows) -> torch.Tensor:
        if self._stored:
            (found,) = self._embed([self.prefix], [], self.examples.take(rows))
            return _trimmed(torch.from_numpy(found), self.reader)
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
    """Samples as augmentation takes them, decoded only once if they fit in memory."""

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
            # What does not fit is read again in each epoch.
            if self._bytes < _MAX_BYTES:
                self._known[row] = draft
                self._bytes += getattr(draft, "nbytes", sys.getsizeof(draft))
        return drafts


def taps_of(prefix: Prefix, n_samples: int, cache) -> list[Prefix]:
    """Return the prefixes of lower depths, to be cached for other fits, if they fit."""
    # The states of texts and sounds are so large that only those of the depths that
    # are asked for are kept.
    if prefix.varies:
        return []
    # At most half of the cache, so that they do not displace everything else.
    numbers = sum(np.prod(shape) for shape in prefix.backbone.shapes[: prefix.depth])
    if cache is None or 4 * n_samples * numbers > cache.max_bytes / 2:
        return []
    return [prefix.at(depth) for depth in range(1, prefix.depth)]


def _has_room(cache, n_bytes: int) -> bool:
    """Whether values of so many bytes stay on disk, beside as many others."""
    on_disk = cache is not None and cache.location is not None
    return on_disk and 2 * n_bytes <= cache.max_bytes


def _trimmed(batch: torch.Tensor, reader: Reader) -> torch.Tensor:
    """Remove the padding that no row of a batch of stage outputs needs."""
    if reader.padding is None or batch.ndim < 3:
        return batch
    return batch[:, : max(map(len, unpadded(batch, PADDING)))]


def _frozen(prefix: Prefix, inputs: torch.Tensor) -> torch.Tensor:
    """Run stacked inputs through the frozen stages, inside a training step."""
    reader = prefix.backbone.reader
    # Without frozen stages, inputs need only be normalised for the first trained one.
    if not prefix.depth:
        return reader.normalise(inputs)
    (outputs,) = embed(_outputs(inputs.cpu(), 0, reader.padding), [prefix])
    return torch.from_numpy(outputs).to(inputs.device)


def _outputs(batch: torch.Tensor, depth: int, padding) -> StageOutputs:
    """Return rows of a batch without the padding that their neighbours require."""
    return StageOutputs(batch if padding is None else unpadded(batch, padding), depth)


def embed_tuned(
    refusals: Refusals, whole: Prefix, depth: int, cache, on_device: bool
) -> torch.Tensor:
    """Embed samples with a tuned network, whose frozen stages may be cached.

    The samples are those of `refusals`, and the rows that these refuse are NaN. The
    embeddings are on the host, or `on_device`, on the device that computed them.
    """
    samples, embeddings = refusals.samples, []
    for first in range(0, len(samples), _CHUNK):
        rows = range(first, min(first + _CHUNK, len(samples)))
        chunk = Refusals(samples.take(rows), refusals.strict)
        if 0 < depth < whole.depth:
            rest = _embed_from(chunk, whole, depth, cache, on_device)
        else:
            # Outputs of tuned stages, which only this model has, are not cached.
            kept = cache if depth else None
            taps = taps_of(whole, len(chunk.samples), kept)
            (rest,) = embed(
                chunk.samples,
                [whole],
                cache=kept,
                taps=taps,
                refusals=chunk,
                on_device=on_device,
            )
        embeddings.append(torch.as_tensor(rest))
        refusals.include(chunk.found(), rows)
    return torch.cat(embeddings)


def _embed_from(chunk: Refusals, whole: Prefix, depth: int, cache, on_device: bool):
    """Embed a chunk of samples, by way of the outputs of the frozen stages."""
    frozen, samples = whole.at(depth), chunk.samples
    taps = taps_of(frozen, len(samples), cache)
    (outputs,) = embed(samples, [frozen], cache=cache, taps=taps, refusals=chunk)
    outputs = torch.from_numpy(outputs)
    # Pooled outputs have two dimensions, and no length that could vary.
    padding = PADDING if whole.varies and outputs.ndim == 3 else None
    if not chunk.rows:
        return embed(_outputs(outputs, depth, padding), [whole], on_device=on_device)[0]
    device = whole.device if on_device else "cpu"
    embeddings = torch.full((len(samples), *whole.shape), torch.nan, device=device)
    there = [row for row in range(len(samples)) if row not in chunk.rows]
    if there:
        given = _outputs(outputs[there], depth, padding)
        (found,) = embed(given, [whole], on_device=on_device)
        embeddings[there] = torch.as_tensor(found)
    return embeddings
