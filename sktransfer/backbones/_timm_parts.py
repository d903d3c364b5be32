"""Modules that stand in a stage for what the code of a network of timm does itself."""

import copy
import enum
import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from sktransfer.backbones._timm_trace import first


class Of(enum.Enum):
    """What a block takes besides the state, worked out from the number of tokens."""

    GRID = "height and width of the grid of tokens"
    ROTATIONS = "rotary position embeddings"


class Begin(nn.Module):
    """What a network does before its first block, some of it in no part.

    Class tokens and positions are added in the code of ``forward_features`` alone. It
    is run up to the first block, in the place of which there is a `Reached`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.model.forward_features(x)
        except _AtBlock as here:
            return here.state


class Reached(nn.Module):
    """What ends the run of a `Begin`."""

    def forward(self, x, *args, **options):
        raise _AtBlock(x)


class _AtBlock(Exception):
    def __init__(self, state):
        super().__init__()
        self.state = state


class Head(nn.Module):
    """What a network does with its features: a pool, a norm."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_head(x)


class Called(nn.Module):
    """A block that takes more than the state, or gives more."""

    def __init__(self, block, args, options, n_prefix, rope):
        super().__init__()
        self.block, self.args, self.options = block, args, options
        self.n_prefix, self.rope = n_prefix, rope

    def forward(self, x: Tensor) -> Tensor:
        # Images are square, and so are their grids of patches.
        side = math.isqrt(max(x.shape[1] - self.n_prefix, 0))
        args = [self._at(side, value) for value in self.args]
        options = {name: self._at(side, v) for name, v in self.options.items()}
        return first(self.block(x, *args, **options))

    def _at(self, side, value):
        if value is Of.GRID:
            return side, side
        return rotations(self.rope, side) if value is Of.ROTATIONS else value


def rotations(rope: nn.Module, side: int) -> Tensor:
    return rope.get_embed(shape=[side, side])


def shell(
    model: nn.Module, replaced: Mapping[str, nn.Module], without: Iterable[str] = ()
) -> nn.Module:
    """Return a network that shares its parts with another one, but for some of them."""
    other = _shared(model)
    for name in without:
        del other._modules[name]
    for path, new in replaced.items():
        *owners, last = path.split(".")
        here = other
        for name in owners:
            here._modules[name] = here = _shared(here._modules[name])
        here._modules[last] = new
    return other


def head_shell(model: nn.Module, parts: Iterable[str]) -> nn.Module:
    """Return a network that shares only some of its parts with another one."""
    other = copy.copy(model)
    # An absent part is None.
    other._modules = {
        name: part
        for name, part in model._modules.items()
        if name in parts or part is None
    }
    other._parameters, other._buffers = {}, {}
    return other


def _shared(module: nn.Module) -> nn.Module:
    other = copy.copy(module)
    other._modules = dict(module._modules)
    return other
