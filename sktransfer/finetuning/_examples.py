"""Examples of a fit, and how they become the inputs of the stages that are trained."""

import copy
import functools

import numpy as np
import torch

from sktransfer.embedding._embed import (
    embed,
    image_digests,
    read_images,
    run_on,
    stack_squares,
)
from sktransfer.embedding._prefix import Pass
from sktransfer.finetuning._network import Network
from sktransfer.finetuning._train import Rows
from sktransfer.inputs._augment import name_of
from sktransfer.inputs._decoding import decode
from sktransfer.inputs._images import Images

# Images whose feature maps are in memory at the same time in predict.
_CHUNK = 1024
# Decoded pictures, or outputs of frozen stages, kept in memory during a fit.
_MAX_BYTES = 2**32


class Examples:
    """Training examples, each (image, target) once, in an order of their content.

    Rows of weight 0 are dropped, and the weights of equal rows summed: then a weight
    of k is the same as k copies to the last digit, and so is any order of the rows.

    Parameters
    ----------
    images : Images of length n
        Of those that are kept, ``images.rows`` tells where they were.
    targets : ndarray of shape (n, n_columns)
    weights : ndarray of shape (n,)
    groups : ndarray of int of shape (n,), optional
        What is not to be divided between training and validation.
    """

    def __init__(self, images: Images, targets, weights, groups=None):
        positive = np.flatnonzero(weights > 0)
        images = images.take(positive)
        targets = np.asarray(targets, dtype=np.float64)[positive]
        digests, copies = image_digests(images), {}
        for row, image in enumerate(digests):
            copies.setdefault(image + targets[row].tobytes(), []).append(row)
        equal = [copies[key] for key in sorted(copies)]
        order = [rows[0] for rows in equal]
        self.images = images.take(order)
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
        taken.images = self.images.take(rows)
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

    Without augmentation, the frozen stages have run once for each image, before the
    first epoch. With it, or where their outputs would not fit in memory, they run in
    each step, by the same function at the same batch size: to the last bit the same.

    Parameters
    ----------
    way : Pass
        Through the frozen stages.
    cache : EmbeddingCache or None
    examples : Examples
    augment : callable or None
    """

    def __init__(self, way: Pass, cache, examples, augment):
        self.way = way
        self.cache = cache
        self.examples = examples
        self.augment = augment
        self._pictures = _Pictures(examples.images, way)
        self.all_frozen = way.depth == len(way.backbone.stages)
        size = 4 * len(examples) * int(np.prod(way.shape))
        self._in_step = way.depth == 0 or augment is not None or size > _MAX_BYTES

    def network(self, head, precision: str, fixed_norms: bool) -> Network:
        """Make what is trained: a copy of the stages not frozen, and a head."""
        suffix = copy.deepcopy(self.way.backbone.stages[self.way.depth :])
        prefix = None
        if self._in_step:
            prefix = functools.partial(_frozen, self.way)
        suffix.requires_grad_(True)
        return Network(suffix, head, prefix, precision, fixed_norms)

    def rows(self, chosen, training: bool = False) -> Rows:
        read = self._squares if self._in_step else self.features.__getitem__
        if self.augment is not None and training:
            read = self._augmented
        return self.examples.rows(read, chosen, training)

    @functools.cached_property
    def features(self) -> torch.Tensor:
        """Outputs of the frozen stages."""
        examples = self.examples
        return torch.from_numpy(
            embed(
                examples.images,
                self.way,
                cache=self.cache,
                digests=examples.digests,
                taps=True,
            )
        )

    def embeddings(self) -> np.ndarray:
        """Embeddings by the whole network as it is before training."""
        whole, known = self.way.whole(), self.examples.digests
        if self._in_step:
            # What the stages give on the way, other depths of a search start from.
            taps = self.augment is None
            images = self.examples.images
            return embed(images, whole, cache=self.cache, digests=known, taps=taps)
        start, cache = self.way.depth, self.cache
        return run_on(self.features, whole, start, cache=cache, digests=known).numpy()

    def _squares(self, rows) -> torch.Tensor:
        recipe = self.way.backbone.recipe
        return stack_squares(recipe.cut(x) for x in self._pictures.get(rows))

    def _augmented(self, rows) -> torch.Tensor:
        recipe, squares = self.way.backbone.recipe, []
        for picture in self._pictures.get(rows):
            # A copy: what augments may do so in place.
            x = _checked_augmented(self.augment(picture.clone()), self.augment)
            squares.append(x if x.shape[1:] == (recipe.crop,) * 2 else recipe.square(x))
        return stack_squares(squares)


def _checked_augmented(x, augment) -> torch.Tensor:
    if isinstance(x, torch.Tensor) and x.ndim == 3 and x.shape[0] == 3:
        return x
    shape = f" and shape {tuple(x.shape)}" if hasattr(x, "shape") else ""
    raise ValueError(
        f"augment={name_of(augment)} returned a value of type {type(x).__name__}"
        f"{shape}. Accepted is a picture, a tensor of shape (3, H, W). Nothing was "
        "fitted. A function that changes its picture in place has to return it, too."
    )


class _Pictures:
    """Training pictures at the size of the recipe, decoded once where they fit."""

    def __init__(self, images: Images, way: Pass):
        self._images = images
        self._way = way
        self._known = {}
        self._bytes = 0

    def get(self, rows) -> list[torch.Tensor]:
        missing = [row for row in rows if row not in self._known]
        recipe = self._way.backbone.recipe
        read = read_images(
            self._images, missing, lambda source: recipe.resized(decode(source))
        )
        found = dict(zip(missing, read, strict=True))
        pictures = [self._known.get(row, found.get(row)) for row in rows]
        for row, picture in found.items():
            if self._bytes < _MAX_BYTES:
                self._known[row] = picture
                self._bytes += picture.nbytes
        return pictures


def _frozen(way: Pass, squares: torch.Tensor) -> torch.Tensor:
    """Run squares of pixels through the frozen stages, inside a training step."""
    if not way.depth:
        return way.backbone.recipe.normalise(squares)
    return run_on(squares.cpu(), way).to(squares.device)


def embed_tuned(images: Images, way: Pass, depth: int, cache) -> torch.Tensor:
    """Embed images with a tuned network whose first stages, frozen, may be cached."""
    rows = []
    for first in range(0, len(images), _CHUNK):
        chunk = images.take(range(first, min(first + _CHUNK, len(images))))
        if depth:
            frozen = embed(chunk, way.at(depth), cache=cache, taps=True)
            rows.append(run_on(torch.from_numpy(frozen), way, depth))
        else:
            rows.append(torch.from_numpy(embed(chunk, way, cache=None)))
    return torch.cat(rows)
