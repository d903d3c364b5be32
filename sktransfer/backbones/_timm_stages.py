"""From a network of timm to its stages, which are found by a run of an example."""

import copy
import inspect
import math
import re
from collections import Counter, OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sktransfer.backbones._seeding import seeded
from sktransfer.backbones._timm_parts import (
    Begin,
    Called,
    Head,
    Of,
    Reached,
    head_shell,
    rotations,
    shell,
)
from sktransfer.backbones._timm_trace import (
    Call,
    Trace,
    n_parameters,
    outermost,
    rows,
    trace,
)

# Where a network takes inputs of any size, one that all of them can halve five times.
_SMALL = 96
# Relative: the stages compute the same things in the same order.
_TOLERANCE = 1e-6


class NotCutError(Exception):
    """A network stays whole; the message says why, in a phrase after "as"."""


def cut(model: nn.Module, config: dict) -> nn.Sequential:
    """Cut a network without a classifier into stages, or say why it stays whole.

    The parts that hand a tensor from one to the next while an example runs are put in
    a row. What they give is compared with what the network gives, for another example.
    `config` is timm's own of the network, which says what inputs it takes.
    """
    if not all(hasattr(model, f"forward_{half}") for half in ("features", "head")):
        raise NotCutError("it has no forward_features and forward_head")
    problem = None
    for size in _sizes(model, config):
        try:
            with seeded(0):
                plan = _checked_plan(_example_of(model), size)
            return _build(plan, model)
        except NotCutError as error:
            problem = error
        except Exception as error:
            # Anything may happen in a part that does not get what it expects.
            text = f"{type(error).__name__}: {error}".strip().split("\n")[0]
            problem = NotCutError(f"its parts do not run in a row ({text})")
    raise problem


def _sizes(model, config):
    """Yield the shapes of inputs to try, small ones first."""
    channels, *native = config.get("input_size") or (3, 224, 224)
    own = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if not config.get("fixed_input_size"):
        least = max(config.get("min_input_size") or [0])
        yield channels, *[min(side, max(_SMALL, least)) for side in native]
    yield channels, *(own or native)


def _example_of(model):
    """Return a copy in evaluation mode whose every block matters.

    A block with a scale of zero, as from an initialisation, would hide what it gets.
    Tensors are shared otherwise; parameters need a gradient, so that it shows in a
    tensor that comes of one.
    """
    memo = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        value = parameter.detach()
        if value.numel() and value.min() == value.max():
            value = 0.5 + torch.rand_like(value) / 2
        memo[id(parameter)] = nn.Parameter(value, value.is_floating_point())
    return copy.deepcopy(model, memo).eval()


def _checked_plan(model, size):
    like = next(model.parameters())
    options = {"device": like.device, "dtype": like.dtype}
    with torch.enable_grad():
        plan = _planned(trace(model, torch.randn(1, *size, **options)), model)
    x = torch.randn(2, *size, **options)
    with torch.no_grad():
        _check(model, _build(plan, model), x)
    return plan


@dataclass
class _Plan:
    """The calls of each stage, those that they were made in, and what is around."""

    stages: dict[str, list[Call]]
    row: list[Call]
    head: set[str]
    arguments: dict[str, tuple]
    begins: bool
    ends: bool


def _planned(traced: Trace, model: nn.Module) -> _Plan:
    row = _row(traced)
    steps = [step for call in row for step in _opened(call, row, traced.calls)]
    if not steps or n_parameters(steps) == 0:
        raise NotCutError("its parts do not hand one tensor from one to the next")
    begins = row[0].takes is not traced.x
    ends = row[-1].gives is not traced.features
    if begins and ends:
        raise NotCutError("it does more than call its parts, before and after blocks")
    stages = _grouped(steps)
    if len(stages) < 3:
        raise NotCutError("most of it is a single part")
    head = {call.path.partition(".")[0] for call in traced.head}
    arguments = {step.path: _arguments(step, model) for step in steps}
    return _Plan(stages, row, head, arguments, begins, ends)


def _row(traced):
    """Return the row of calls with most parameters."""
    row = max(rows(traced.body), key=n_parameters, default=[])
    n_calls = Counter(call.path for call in traced.body)
    # Where a run reaches a part for the first time has to be where the row begins.
    while row and n_calls[row[0].path] > 1:
        row = row[1:]
    return row


def _opened(call, row, calls):
    """Return the parts of a call of a list of blocks, otherwise the call itself."""
    parts = outermost(calls[call.start + 1 : call.end])
    own = [*call.module._parameters, *call.module._buffers]
    if own or len(parts) < 2 or rows(parts) != [parts]:
        return [call]
    if parts[0].takes is not call.takes or parts[-1].gives is not call.output:
        return [call]
    # Lists have a name in the plural: blocks, stages, layers, features.
    if call.path.endswith("s"):
        return parts
    if n_parameters([call]) > 0.9 * n_parameters(row):
        return [step for part in parts for step in _opened(part, parts, calls)]
    return [call]


def _grouped(steps):
    """Name the stages, each of which begins with a block, and give all steps to them.

    The blocks are the steps with like names, several if there are, that have most
    parameters. Steps before them are the stem, those between them belong to the block
    before.
    """
    alike = {}
    for step in steps:
        alike.setdefault(_series(step), []).append(step)
    blocks = max(alike.values(), key=lambda like: (len(like) > 1, n_parameters(like)))
    end = steps.index(blocks[-1]) + 1
    stem, rest = steps[: steps.index(blocks[0])], steps[end:]
    stages = {"stem": stem, **_blocks(steps[:end], blocks)}
    has_conv = any(
        isinstance(part, nn.Conv2d) for step in rest for part in step.module.modules()
    )
    stages |= {"last_conv": rest, "pool": []} if has_conv else {"pool": rest}
    return {name: s for name, s in stages.items() if s or name in ("stem", "pool")}


def _blocks(steps, blocks):
    # A network of plain layers is cut where its resolution falls, as torchvision's are.
    plain = not any(step.module._modules for step in blocks)
    stages, ended = {}, True
    for step in steps:
        begins = any(step is block for block in blocks) and n_parameters([step])
        if begins and (ended or not plain):
            name = _name(step, len(stages) + 1, plain)
            if name in ("stem", "pool", "all", *stages):
                raise NotCutError(f"two of its stages would be called {name!r}")
            stages[name], ended = [], False
        if stages:
            stages[name].append(step)
        ended = ended or step.takes.shape[2:] != step.gives.shape[2:]
    return stages


def _series(step):
    owner, _, name = step.path.rpartition(".")
    return owner, re.match(r"\D*", name)[0].rstrip("_")


def _name(step, number, plain):
    if plain:
        return f"block{number}"
    *owners, name = step.path.split(".")
    if not name.isdigit():
        return name
    owner = next((o for o in reversed(owners) if not o.isdigit()), "block")
    between = "_" if owner[-1].isdigit() else ""
    return f"{owner.removesuffix('s')}{between}{number}"


def _arguments(step, model):
    """Return what a block takes besides the state, as far as it is not the default."""
    parameters = inspect.signature(step.module.forward).parameters
    args = tuple(_argument(value, step, model) for value in step.args[1:])
    options = {
        name: _argument(value, step, model)
        for name, value in step.options.items()
        if name not in parameters or parameters[name].default is not value
    }
    return args, options


def _argument(value, step, model):
    if value is None or isinstance(value, bool | str):
        return value
    shape = step.takes.shape
    side = math.isqrt(max(shape[1] - _n_prefix(model), 0))
    if isinstance(value, tuple | list) and tuple(value) == (side, side):
        return Of.GRID
    rope = getattr(model, "rope", None)
    if (
        isinstance(value, Tensor)
        and not value.requires_grad
        and hasattr(rope, "get_embed")
        and torch.equal(rotations(rope, side), value)
    ):
        return Of.ROTATIONS
    raise NotCutError(f"{step.path} takes more than what the part before it gives")


def _n_prefix(model):
    """Number of tokens that stand for no part of the image."""
    return getattr(model, "num_prefix_tokens", 0)


def _build(plan: _Plan, model: nn.Module) -> nn.Sequential:
    """Put the parts of a network into stages."""
    stages = {
        name: OrderedDict((_key(step), _part(step, plan, model)) for step in steps)
        for name, steps in plan.stages.items()
    }
    if plan.begins:
        # The row is gone, but for its length, which the code may ask for.
        gone = {call.path: nn.Identity() for call in plan.row}
        gone[plan.row[0].path] = Reached()
        begin = Begin(shell(model, gone, without=plan.head))
        stages["stem"] = OrderedDict(begin=begin, **stages["stem"])
    if plan.ends:
        # All that comes before the row is in it: nothing else is left out.
        through = {call.path: nn.Identity() for call in plan.row}
        stages["pool"]["end"] = shell(model, through)
    else:
        stages["pool"]["head"] = Head(head_shell(model, plan.head))
    return nn.Sequential(
        OrderedDict((name, _stage(name, s)) for name, s in stages.items() if s)
    )


def _stage(name, parts):
    # A block stays what it is, so that it can be cut further.
    alone = len(parts) == 1 and name not in ("stem", "pool")
    return next(iter(parts.values())) if alone else nn.Sequential(parts)


def _key(step):
    return step.path.replace(".", "_")


def _part(step, plan, model):
    block = model.get_submodule(step.path)
    args, options = plan.arguments[step.path]
    if not args and not options and step.gives is step.output:
        return block
    rotated = Of.ROTATIONS in (*args, *options.values())
    rope = copy.deepcopy(model.rope) if rotated else None
    return Called(block, args, options, _n_prefix(model), rope)


def _check(model, stages, x):
    """Compare stages with the network that they were made of."""
    whole = model(x)
    states, state = [], x
    for stage in stages:
        state = stage(state)
        if not isinstance(state, Tensor):
            raise NotCutError("its stages hand on more than a tensor")
        states.append((state, state.clone()))
    if not all(torch.equal(state, before) for state, before in states):
        raise NotCutError("its blocks change in place what they are given")
    gap = (state - whole).abs().max() / whole.abs().max()
    if not gap <= _TOLERANCE:
        raise NotCutError(f"its parts in a row give something else ({gap:.0e} away)")
    of_stages = [id(p) for stage in stages for p in stage.parameters()]
    if sorted(of_stages) != sorted(id(p) for p in model.parameters()):
        raise NotCutError("its stages share parameters, or leave some out")
    modules = [id(m) for stage in stages for m in stage.modules()]
    if len(modules) != len(set(modules)):
        raise NotCutError("its stages share parts")
