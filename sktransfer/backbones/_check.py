"""check_backbone: whether a network fulfils what estimators rely on."""

import copy
import functools
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sktransfer.backbones._fingerprint import behaviour_digest
from sktransfer.backbones._load import load_backbone
from sktransfer.backbones._names import name_of
from sktransfer.backbones._weights import module_digest
from sktransfer.inputs._reader import PADDING, pad_outputs, unpadded

# Outputs that differ by less than this fraction of the largest value are equal: batches
# of other sizes, and other layouts in memory, lead to other orders of summation.
_ROUNDING = 1e-3
_N_ROWS = 3


def check_backbone(
    backbone,
    *,
    weights="default",
    image_size=None,
    max_length=None,
    sampling_rate=None,
    random_state=0,
    reference=None,
):
    """Check that a network fulfils what estimators rely on.

    This is meant for tests of your own networks, and of functions that you register
    with `split_stages` or `register_backbone`. The stages are run on random inputs, on
    the CPU, and have to

    - return tensors of float32 in the shapes that `Backbone.shapes` declares, which
      are finite;
    - return the same when they are run again, from a copy of what the stage before
      returned, as it comes from a cache, and with batch norms folded into convolutions;
    - compute each row independently of the other rows of the batch, and of padding;
    - leave inputs, buffers, modes, hooks, attributes and the state of random number
      generators as they were;
    - share no parameter, so that each can be frozen or trained by itself;
    - hand gradients on to their parameters and to the stage before;
    - be the same after pickling.

    Parameters
    ----------
    backbone : str, callable, torch.nn.Module, Backbone or fitted estimator
        The network; see `load_backbone` for the accepted values.
    weights, image_size, max_length, sampling_rate : optional
        The parameters of the same name of `load_backbone`.
    random_state : int, RandomState instance or None, default=0
        The seed of the random initialisation when ``weights=None``.
    reference : callable, optional
        A function of a batch of normalised inputs that computes the embeddings in
        another way, such as the network without its classifier. The stages in a row
        have to return the same.

    Raises
    ------
    ValueError
        If the network fails a check. The message lists each check that fails, with the
        first stage that fails it, and what to do.

    See Also
    --------
    load_backbone : Loads a network; its errors are raised here as well.

    Examples
    --------
    >>> from torch import nn
    >>> from sktransfer import check_backbone
    >>> stages = [nn.Conv2d(3, 8, 16, stride=16), nn.ReLU(inplace=True)]
    >>> pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> check_backbone(nn.Sequential(nn.Sequential(*stages), pool))
    >>> check_backbone(nn.Sequential(*stages, pool))
    Traceback (most recent call last):
    ...
    ValueError: Backbone 'Sequential' fails 1 of 8 checks.
    - Stage '1' changes its input in place, which is the output of the stage before ...
    """
    loaded = load_backbone(
        backbone,
        weights=weights,
        image_size=image_size,
        max_length=max_length,
        sampling_rate=sampling_rate,
        random_state=random_state,
    )
    # A network that cannot be run at all has an error of its own.
    _ = loaded.shapes
    checks = [*_CHECKS]
    if reference is not None:
        checks.append(functools.partial(_as_reference, reference))
    failures = [text for check in checks if (text := _failure(check, loaded))]
    if failures:
        raise ValueError(
            f"Backbone {loaded.name!r} fails {len(failures)} of {len(checks)} checks.\n"
            + "\n".join(f"- {text}" for text in failures)
        )


class _FailedError(Exception):
    """A stage that cannot be run. The message says which, and why."""


def _failure(check, backbone) -> str | None:
    """Return what the first stage that fails a check does wrong."""
    try:
        return next(check(backbone), None)
    except _FailedError as error:
        return str(error)


@dataclass
class _Step:
    """A stage of a copy of a backbone, and a batch of its inputs."""

    name: str
    stage: nn.Module
    given: torch.Tensor

    def run(self, given=None, stage=None) -> torch.Tensor:
        """Return the output for a copy of the inputs, or of others."""
        given = self.given if given is None else given
        return _run(self.stage if stage is None else stage, self.name, given.clone())


def _run(stage, name, given) -> torch.Tensor:
    # As `Prefix` lays out what it starts from.
    if given.dim() == 4:
        given = given.contiguous(memory_format=torch.channels_last)
    # Code of the user's can raise anything.
    try:
        return stage(given)
    except Exception as error:
        raise _FailedError(
            f"Stage {name!r} cannot be run on inputs of shape {tuple(given.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _steps(backbone) -> Iterator[_Step]:
    """Yield the stages of a copy in a row, each with the output of the one before."""
    reader = backbone.reader
    x = reader.normalise(reader.example(_N_ROWS))
    for key, stage in copy.deepcopy(backbone.stages)._modules.items():
        step = _Step(name_of(key), stage, x)
        yield step
        with torch.no_grad():
            x = step.run()


def _same(one, other) -> bool:
    """Whether tensors are equal up to rounding; NaN is equal to itself."""
    if one.shape != other.shape or not torch.equal(one.isnan(), other.isnan()):
        return False
    one, other = one.nan_to_num(), other.nan_to_num()
    if not other.numel():
        return True
    return bool((one - other).abs().max() <= _ROUNDING * other.abs().max())


@torch.no_grad()
def _outputs(backbone) -> Iterator[str]:
    for step, shape in zip(_steps(backbone), backbone.shapes, strict=True):
        given = step.given.clone()
        output = _run(step.stage, step.name, given)
        expected = (_N_ROWS, *shape)
        if output.dtype != torch.float32 or tuple(output.shape) != expected:
            yield (
                f"Stage {step.name!r} returns {output.dtype} of shape "
                f"{tuple(output.shape)}: expected torch.float32 of shape {expected}, "
                "as for a single row."
            )
        if not output.isfinite().all():
            yield (
                f"Stage {step.name!r} returns NaN or infinite values for random "
                "inputs, without padding."
            )
        if not torch.equal(given.nan_to_num(), step.given.nan_to_num()):
            yield (
                f"Stage {step.name!r} changes its input in place, which is the output "
                "of the stage before it: begin it with an operation that is not in "
                "place, such as nn.ReLU(inplace=False), or cut elsewhere."
            )


@torch.no_grad()
def _repeats(backbone) -> Iterator[str]:
    for step in _steps(backbone):
        if not _same(step.run(step.given.contiguous()), step.run()):
            yield (
                f"Stage {step.name!r} does not return the same again for the same "
                "input: it may only depend on its input and its parameters, and not "
                "draw random numbers in evaluation mode."
            )


@torch.no_grad()
def _rows(backbone) -> Iterator[str]:
    reader, rows = backbone.reader, _rows_of(backbone.reader)
    for number, step in enumerate(_steps(backbone)):
        alone = [step.run(_stacked(reader, [row], number))[0] for row in rows]
        batch = step.run(_stacked(reader, rows[::-1], number))
        varied = reader.padding is not None and batch.dim() == 3
        found = unpadded(batch, PADDING) if varied else list(batch)
        if not all(map(_same, found[::-1], alone)):
            yield (
                f"The output of stage {step.name!r} for a row depends on other rows of "
                "the batch, on their padding, or on what another stage has computed "
                "before: a stage may only be given something by its input, a row by "
                "itself."
            )
        rows = alone


def _rows_of(reader) -> list[torch.Tensor]:
    """Return inputs, of different lengths if they may share a batch."""
    rows = list(reader.example(_N_ROWS))
    if reader.padding is None or reader.exact:
        return rows
    return [row[: max(1, len(row) // n)] for n, row in enumerate(rows, start=1)]


def _stacked(reader, rows, number) -> torch.Tensor:
    """Return a batch of the inputs of the network, or of one of its later stages."""
    if not number:
        return reader.normalise(reader.stack(rows))
    varied = reader.padding is not None and rows[0].dim() == 2
    return pad_outputs(rows) if varied else torch.stack(rows)


@torch.no_grad()
def _traces(backbone) -> Iterator[str]:
    for step in _steps(backbone):
        tensors, before = _tensors(step.stage), _state(step.stage)
        described = behaviour_digest(step.stage)
        # What cannot be described gets another digest each time.
        known = described == behaviour_digest(step.stage)
        drawn = _generators()
        step.run()
        changed = [
            name
            for name, value in _tensors(step.stage).items()
            if name not in tensors or not _equal(tensors[name], value)
        ]
        after = _state(step.stage)
        changed += [
            key
            for key in after.keys() | before.keys()
            if after.get(key) != before.get(key)
        ]
        if known and not changed and behaviour_digest(step.stage) != described:
            changed = ["an attribute"]
        if _generators() != drawn:
            changed.append("the state of a random number generator")
        if changed:
            yield (
                f"Stage {step.name!r} changes something when it is run: "
                f"{', '.join(sorted(changed)[:5])}. In evaluation mode it has to leave "
                "everything as it was; keep intermediate results in local variables."
            )


def _tensors(module) -> dict[str, torch.Tensor]:
    own = [*module.named_parameters(), *module.named_buffers()]
    return {f"tensor {name!r}": value.detach().clone() for name, value in own}


def _equal(one, other) -> bool:
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and torch.equal(one.nan_to_num(), other.nan_to_num())


def _state(module) -> dict:
    """Return the modes, the number of hooks and the attributes of all modules."""
    state = {}
    for path, part in module.named_modules():
        where = f" of {path!r}" if path else ""
        hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks
        state[f"the mode{where}"] = part.training
        state[f"the hooks{where}"] = sum(map(len, hooks))
        for name, value in vars(part).items():
            # Private attributes of torch's own modules change with use.
            if not name.startswith("_") and name != "training":
                plain = isinstance(value, bool | int | float | str | None)
                state[f"attribute {name!r}{where}"] = value if plain else id(value)
    return state


def _generators() -> tuple:
    _, keys, *rest = np.random.get_state()  # noqa: NPY002
    own = torch.get_rng_state().numpy().tobytes()
    return own, keys.tobytes(), rest, random.getstate()


def _parameters(backbone) -> Iterator[str]:
    owners = {}
    for name, stage in zip(backbone.stage_names, backbone.stages, strict=True):
        for path, parameter in stage.named_parameters():
            owner = owners.setdefault(id(parameter), (name, path))
            if owner[0] != name:
                yield (
                    f"Stage {name!r} shares its parameter {path!r} with stage "
                    f"{owner[0]!r} (there {owner[1]!r}), so that one of them cannot be "
                    "frozen while the other is trained: put both into one stage."
                )


@torch.enable_grad()
def _gradients(backbone) -> Iterator[str]:
    for number, step in enumerate(_steps(backbone)):
        own = [p for p in step.stage.parameters() if p.is_floating_point()]
        given = step.given.clone()
        wanted = [p.requires_grad_() for p in own]
        before = given.is_floating_point() and number > 0
        if before:
            wanted.append(given.requires_grad_())
        if not wanted:
            continue
        # A copy, as a stage must not change a leaf in place.
        output = _run(step.stage, step.name, given.clone())
        found = [None] * len(wanted)
        if output.requires_grad:
            found = torch.autograd.grad(output.sum(), wanted, allow_unused=True)
        if own and all(grad is None for grad in found[: len(own)]):
            yield (
                f"Stage {step.name!r} hands no gradient on to its parameters, so that "
                "it cannot be trained: it must not use torch.no_grad or detach."
            )
        if before and found[-1] is None:
            yield (
                f"Stage {step.name!r} hands no gradient on to the stage before, so "
                "that this cannot be trained: it must not use torch.no_grad or detach."
            )


@torch.no_grad()
def _pickles(backbone) -> Iterator[str]:
    try:
        again = pickle.loads(pickle.dumps(backbone))
    # Pickle raises errors of many types, and so does code of the user's.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        yield (
            f"{_unpickled(backbone)} cannot be pickled ({reason}). Define classes and "
            "functions at the top of a module that can be imported."
        )
        return
    pairs = zip(backbone.stages, again.stages, strict=True)
    for name, (stage, other) in zip(backbone.stage_names, pairs, strict=True):
        if module_digest(stage) != module_digest(other):
            yield f"Stage {name!r} has other tensors after pickling."
    for step, stage in zip(_steps(backbone), again.stages, strict=True):
        if not _same(step.run(stage=stage), step.run()):
            yield f"Stage {step.name!r} returns something else after pickling."


def _unpickled(backbone) -> str:
    """Name the first stage that cannot be pickled."""
    for name, stage in zip(backbone.stage_names, backbone.stages, strict=True):
        try:
            pickle.loads(pickle.dumps(stage))
        except Exception:
            return f"Stage {name!r}"
    return "It"


@torch.no_grad()
def _fast(backbone) -> Iterator[str]:
    for step, stage in zip(_steps(backbone), backbone.inference_stages(), strict=True):
        if not _same(step.run(stage=copy.deepcopy(stage)), step.run()):
            yield (
                f"Stage {step.name!r} returns something else when the batch norms in "
                "its rows of modules are folded into the convolutions before them."
            )


@torch.no_grad()
def _as_reference(reference: Callable, backbone) -> Iterator[str]:
    *_, last = _steps(backbone)
    reader, found = backbone.reader, last.run()
    expected = reference(reader.normalise(reader.example(_N_ROWS)))
    if expected.shape != found.shape:
        yield (
            f"The stages in a row return shape {tuple(found.shape)}, and the reference "
            f"{tuple(expected.shape)}."
        )
    elif not _same(found, expected):
        furthest = (found - expected).abs().max() / expected.abs().max()
        yield (
            "The stages in a row do not compute what the reference does: they differ "
            f"by up to {furthest:.2g} of its largest value."
        )


_CHECKS = (
    _outputs,
    _repeats,
    _rows,
    _traces,
    _parameters,
    _gradients,
    _pickles,
    _fast,
)
