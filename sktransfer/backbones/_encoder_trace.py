"""What a transformer encoder does around its layers, found out by running it once."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# Masks that layers are given, by the functions of transformers that make them, and two
# that older models make themselves: of tokens, and of what is added to the scores.
_MASKS = (
    "create_bidirectional_mask",
    "create_bidirectional_sliding_window_mask",
    "create_causal_mask",
    "create_sliding_window_causal_mask",
    "tokens",
    "additive",
)


class CannotSplit(Exception):
    """The reason why an encoder is left in one piece."""


def hidden(output) -> Tensor:
    """Return the state of the tokens in what a model or a layer returns."""
    if isinstance(output, Tensor):
        return output
    state = getattr(output, "last_hidden_state", None)
    return output[0] if state is None else state


class State(nn.Module):
    """The state of the tokens."""

    def forward(self, h: Tensor, there: Tensor | None):
        return h


class Positions(nn.Module):
    """The numbers of the tokens: 0, 1, 2, ..."""

    def forward(self, h: Tensor, there: Tensor | None):
        return torch.arange(h.shape[1], device=h.device)[None]


class Value(nn.Module):
    """A value that is always the same, for states of one shape if it is a size."""

    def __init__(self, value, shape: Sequence[int] | None = None):
        super().__init__()
        self.value, self.shape = value, shape

    def forward(self, h: Tensor, there: Tensor | None):
        if self.shape is not None and h.shape[1:] != self.shape:
            raise ValueError(
                f"this layer takes a state of shape {tuple(self.shape)}, got "
                f"{tuple(h.shape[1:])}"
            )
        return self.value


class Mask(nn.Module):
    """Which tokens a token attends to, in the form that the layer takes."""

    def __init__(self, form: str, config):
        super().__init__()
        self.form, self.config = form, config

    def forward(self, h: Tensor, there: Tensor | None):
        if self.form == "tokens":
            return there.long()
        if self.form == "additive":
            return (1.0 - there[:, None, None].to(h.dtype)) * torch.finfo(h.dtype).min
        from transformers import masking_utils

        options = {"cache": None}
        if "bidirectional" in self.form:
            # A mask that is left out where nothing is padded means another kernel, and
            # other last bits.
            options = {"allow_is_bidirectional_skip": False}
        make = getattr(masking_utils, self.form)
        return make(self.config, h, attention_mask=there.long(), **options)


class Blank(nn.Module):
    """An image without content, of the size that belongs to the number of tokens."""

    def __init__(self, patch: int, others: int):
        super().__init__()
        self.patch, self.others = patch, others

    def forward(self, h: Tensor, there: Tensor | None):
        side = self.patch * math.isqrt(h.shape[1] - self.others)
        return h.new_zeros(1, 3, side, side)


class Made(nn.Module):
    """What a module without parameters, such as that of rotary positions, returns."""

    def __init__(self, module: nn.Module, given: list, named: dict):
        super().__init__()
        self.module = module
        self.given, self.named = nn.ModuleList(given), nn.ModuleDict(named)

    def forward(self, h: Tensor, there: Tensor | None):
        given = [source(h, there) for source in self.given]
        named = {name: source(h, there) for name, source in self.named.items()}
        return self.module(*given, **named)


@dataclass
class Trace:
    """One run of an encoder: what its layers were given, and what followed them."""

    path: str
    layers: nn.ModuleList
    # Of each layer, its arguments by name; the first is the state.
    calls: list[dict] = field(default_factory=list)
    # Modules that ran before or around the layers, and calls of those after them.
    before: list[nn.Module] = field(default_factory=list)
    made: list[tuple] = field(default_factory=list)
    after: list[tuple] = field(default_factory=list)
    # The state after the last layer, and the last state of all.
    last: Tensor | None = None
    output: Tensor | None = None


def trace(model: nn.Module, inputs: dict) -> Trace:
    """Run a model, and note what its layers are given and what follows them."""
    path, layers = _layers(model)
    found, hooks = Trace(path, layers), []
    inner = {id(module) for module in layers.modules()}

    def enter(layer, args, kwargs):
        found.calls.append(_named(layer.forward, args, kwargs))

    def leave(layer, args, output):
        found.last = hidden(output)

    def start(module, args):
        if found.last is None:
            found.before.append(module)

    def end(module, args, kwargs, output):
        if found.last is None:
            found.made.append((output, module, args, kwargs))
        elif args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            found.after.append((args[0], module, output))

    for layer in layers:
        hooks.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
    hooks.append(layers[-1].register_forward_hook(leave))
    for module in model.modules():
        if id(module) not in inner:
            hooks.append(module.register_forward_pre_hook(start))
            hooks.append(module.register_forward_hook(end, with_kwargs=True))
    try:
        with torch.no_grad():
            found.output = hidden(model(**inputs))
    finally:
        for hook in hooks:
            hook.remove()
    if len(found.calls) != len(layers):
        raise CannotSplit(f"its layers {path!r} do not run once each")
    return found


def _layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the list of modules that has most of the parameters, and its path."""
    sizes = {
        path: sum(p.numel() for p in module.parameters())
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    if not any(sizes.values()):
        raise CannotSplit("it has no list of layers")
    path = max(sizes, key=sizes.get)
    return path, model.get_submodule(path)


def _named(forward: Callable, args: tuple, kwargs: dict) -> dict:
    """Return the arguments of a call by their names."""
    signature = inspect.signature(forward)
    bound = signature.bind(*args, **kwargs).arguments
    kinds = {name: signature.parameters[name].kind for name in bound}
    named = {}
    for name, value in bound.items():
        if kinds[name] is inspect.Parameter.VAR_POSITIONAL:
            raise CannotSplit("its layers take arguments without names")
        named |= (
            value if kinds[name] is inspect.Parameter.VAR_KEYWORD else {name: value}
        )
    return named


class Sources:
    """Where the values come from that layers are given beside the state.

    Parameters
    ----------
    config : PreTrainedConfig
        The configuration of the encoder.
    run : Trace
        A run of the encoder.
    there : Tensor or None
        Which tokens of the first state are no padding.
    images : Tensor or None
        The input, if it is a batch of images.
    """

    def __init__(self, config, run: Trace, there, images):
        self.config, self.run, self.there, self.images = config, run, there, images
        self.first = next(iter(run.calls[0].values()))
        # Of the state that the layer is given.
        self.shape = self.first.shape[1:]

    def of(self, value) -> nn.Module:
        """Return the module that makes a value again from the state."""
        if _equal(self.first, value):
            return State()
        for output, module, args, kwargs in self.run.made:
            learned = any(True for _ in module.parameters())
            # Dropout returns what it is given.
            same = any(one is value for one in args)
            if not learned and not same and _same_object(value, output):
                named = {name: self.of(one) for name, one in kwargs.items()}
                return Made(module, [self.of(one) for one in args], named)
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if _is_plain(value):
            sized = isinstance(value, list | tuple)
            return Value(value, self.shape if sized else None)
        raise CannotSplit(f"its layers are given a {type(value).__name__}")

    def _of_tensor(self, value: Tensor) -> nn.Module:
        if value is self.images:
            patch = _side(self.config.patch_size)
            others = self.first.shape[1] - (value.shape[-1] // patch) ** 2
            return Blank(patch, others)
        if not value.is_floating_point() and _equal(
            value, Positions()(self.first, None)
        ):
            return Positions()
        for form in _MASKS if self.there is not None else ():
            mask = Mask(form, self.config)
            if _equal(value, _or_none(mask, self.first, self.there)):
                return mask
        raise CannotSplit(
            f"its layers are given a tensor of shape {tuple(value.shape)} that is no "
            "mask and no positions"
        )


def _side(size) -> int:
    return size if isinstance(size, int) else size[0]


def _or_none(mask: Mask, h: Tensor, there: Tensor) -> Tensor | None:
    try:
        return mask(h, there)
    except Exception:
        # Many configurations lack what this one of the masks needs.
        return None


def _equal(one: Tensor, other) -> bool:
    return (
        isinstance(other, Tensor)
        and one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one, other)
    )


def _same_object(one, other) -> bool:
    """Whether two values are the same tensor, or the same tensors in a row."""
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) > 0 and all(map(_same_object, one, other))
    return isinstance(one, Tensor) and one is other


def _is_plain(value) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def tail_of(run: Trace) -> list[nn.Module]:
    """Return the modules that lead from the last layer to the last state."""
    state, tail = run.last, []
    while not _equal(state, run.output):
        step = next((s for s in run.after if _equal(s[0], state)), None)
        if step is None or len(tail) > len(run.after):
            raise CannotSplit("what follows its last layer is not a row of modules")
        tail.append(step[1])
        state = step[2]
    if any(module is one for module in tail for one in run.before):
        raise CannotSplit("what follows its last layer is used before the layers, too")
    return tail
