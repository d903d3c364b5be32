"""Seeded random numbers of torch, and random parameters of any module."""

import contextlib
import threading

import torch
from torch import nn

_generators = threading.RLock()


@contextlib.contextmanager
def seeded(seed, device="cpu"):
    """Seed torch's generators within the block, and leave them as they were.

    One thread at a time, as the generators belong to the whole process. A thread may
    come here again: a factory that is called with a seed may load a backbone itself.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with _generators, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def initialise(module: nn.Module) -> None:
    """Give a module random parameters from torch's own generator.

    Each part has a ``reset_parameters``, or a ``_reset_parameters`` (attention of
    torch). A parameter that they leave as it was is drawn from the normal distribution
    with its own mean and standard deviation, so that it keeps these two numbers and
    nothing else of the source task: constants, such as zeros, stay what they are.
    """
    parts = list(module.modules())
    before = [(p, p._version, p.detach().clone()) for p in module.parameters()]
    for part in parts:
        getattr(part, "reset_parameters", _nothing)()
    # As in constructors, a module that sets the parameters of its parts comes last.
    for part in reversed(parts):
        getattr(part, "_reset_parameters", _nothing)()
    with torch.no_grad():
        for parameter, version, value in before:
            # A parameter that was set, even to the same value, has another version.
            # Only ``.data`` goes around that counter, and then the value differs.
            left = parameter._version == version and torch.equal(parameter, value)
            if left and value.is_floating_point():
                parameter.copy_(_like(value))


def _nothing() -> None:
    pass


def _like(value: torch.Tensor) -> torch.Tensor:
    """Draw random numbers with the mean and standard deviation of a tensor."""
    if value.numel() == 0 or value.min() == value.max():
        return value
    std, mean = torch.std_mean(value.float(), correction=0)
    return torch.randn(value.shape) * std + mean
