"""What happens in a network of timm while an example runs through it."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

# Parts of parts are noted down to this depth; what is deeper is inside a block.
_DEPTH = 3


@dataclass(eq=False)
class Call:
    """A call of a part of a network: the `start`-th of all, before the `end`-th."""

    path: str
    module: nn.Module
    args: tuple
    options: dict
    start: int
    end: int = 0
    output: object = None

    @property
    def takes(self):
        return self.args[0] if self.args else None

    @property
    def gives(self):
        return first(self.output)

    @property
    def is_state(self) -> bool:
        """Whether a tensor is what it takes, and the first that it gives."""
        return isinstance(self.takes, Tensor) and isinstance(self.gives, Tensor)


class Trace(NamedTuple):
    """An example, what came of it, and the calls that were made on the way.

    Those of `body` and `head`, which are the two halves of a forward pass in timm, were
    not made within another one.
    """

    x: Tensor
    features: Tensor
    calls: list[Call]
    body: list[Call]
    head: list[Call]


def trace(model: nn.Module, x: Tensor) -> Trace:
    """Run an example through a network, and note what its parts take and give."""
    calls = []
    hooks = [
        hook
        for path, module in model.named_modules()
        if path and path.count(".") < _DEPTH
        for hook in _hooks(path, module, calls)
    ]
    try:
        features = model.forward_features(x)
        count = len(calls)
        model.forward_head(features)
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(x, features, calls, outermost(calls[:count]), outermost(calls[count:]))


def _hooks(path, module, calls):
    entered = []

    def before(module, args, options):
        entered.append(Call(path, module, args, options, len(calls)))
        calls.append(entered[-1])

    def after(module, args, options, output):
        call = entered.pop()
        call.output, call.end = output, len(calls)

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(after, with_kwargs=True)


def outermost(calls: list[Call]) -> list[Call]:
    """Return the calls that were not made within another one of the list."""
    found = []
    for call in calls:
        if not found or call.start >= found[-1].end:
            found.append(call)
    return found


def rows(calls: list[Call]) -> list[list[Call]]:
    """Return rows of calls, each of which takes the very tensor that the last gave."""
    found = []
    for call in calls:
        if call.is_state:
            row = next((r for r in found if r[-1].gives is call.takes), [])
            if not row:
                found.append(row)
            row.append(call)
    return found


def first(output):
    """Return what is passed on of several things that a part gives."""
    several = isinstance(output, tuple | list) and output
    return output[0] if several else output


def n_parameters(calls: list[Call]) -> int:
    return sum(p.numel() for call in calls for p in call.module.parameters())
