"""Random numbers of torch: seeded for a while, and as the parameters of a module."""

import contextlib
import threading

import torch
from torch import nn

_generators = threading.RLock()


@contextlib.contextmanager
def seeded(seed, device="cpu"):
    """Run with torch's generators seeded, and leave them as they were.

    One thread at a time: the generators are those of the whole process.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with _generators, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def initialise(module: nn.Module) -> None:
    """Give a module random parameters, by torch's own generator.

    Each part does so by its ``reset_parameters``, or ``_reset_parameters`` (attention
    of torch). A parameter that this leaves as it was is drawn from the normal
    distribution with its own mean and standard deviation, so that these two numbers
    are all that it keeps: constants, such as zeros, stay what they are.
    """
    parts = list(module.modules())
    before = [(p, p._version, p.detach().clone()) for p in module.parameters()]
    for part in parts:
        getattr(part, "reset_parameters", _nothing)()
    # As in their constructors, those that set parameters of their parts come last.
    for part in reversed(parts):
        getattr(part, "_reset_parameters", _nothing)()
    with torch.no_grad():
        for parameter, version, value in before:
            # What was set, to the same value even, has another version; but for ways
            # around that counter (``.data``), which the value shows.
            left = parameter._version == version and torch.equal(parameter, value)
            if left and value.is_floating_point():
                parameter.copy_(_like(value))


def _nothing() -> None:
    pass


def _like(value: torch.Tensor) -> torch.Tensor:
    """Random numbers with the mean and standard deviation of a tensor."""
    if value.numel() == 0 or value.min() == value.max():
        return value
    std, mean = torch.std_mean(value.float(), correction=0)
    return torch.randn(value.shape) * std + mean
