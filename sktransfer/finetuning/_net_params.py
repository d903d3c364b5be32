"""Checks of ``net_params``: arguments of a net that the estimator does not set."""

import inspect

from skorch import NeuralNet
from skorch.hf import AccelerateMixin
from torch.utils.data import DataLoader

# Arguments of a net that the estimator sets, with the parameters to use instead. Passed
# to the net directly, they would contradict these.
_NOT_HERE = {
    "module": "backbone",
    "optimizer": "optimizer",
    "lr": "lr",
    "optimizer__lr": "lr",
    "optimizer__param_groups": "backbone_lr_mult and layer_decay",
    "max_epochs": "max_epochs",
    "device": "device",
    "train_split": "early_stopping and validation_fraction",
    "warm_start": "warm_start",
}
# Arguments that the training itself passes to the parts of a net.
_GIVEN = {"params", "lr", "dataset", "reduction"}


def check_net_params(net_params: dict, optimizer, loss) -> None:
    """Refuse arguments that the estimator sets, and those that no part of a net takes.

    Parameters
    ----------
    net_params : dict
        The arguments that the user has passed.
    optimizer, loss : callable
        The optimizer and the loss of the estimator; `net_params` may replace the loss.
    """
    takers = {"optimizer": optimizer, "criterion": loss}
    takers |= {"iterator_train": DataLoader, "iterator_valid": DataLoader}
    arguments = {*_names(NeuralNet), *_names(AccelerateMixin)}
    for name in net_params:
        if name in _NOT_HERE:
            raise ValueError(
                f"Invalid net_params: {name!r} is set by the estimator. Remove it, and "
                f"use {_NOT_HERE[name]} of the estimator instead."
            )
        part, _, option = name.partition("__")
        if part not in arguments:
            _refuse(name, "skorch.NeuralNet", part, arguments - _NOT_HERE.keys())
        # Functions with ``**kwargs`` do not say what they take.
        taker = net_params.get(part, takers.get(part))
        if option and part in takers and not _takes_any(taker):
            options = set(_names(taker)) - _GIVEN
            if option not in options:
                _refuse(name, getattr(taker, "__name__", taker), option, options)


def _refuse(name, taker, argument, accepted) -> None:
    raise ValueError(
        f"Invalid net_params: {name!r} was passed, but {taker} takes no {argument!r} "
        f"here. Accepted are {sorted(accepted)}. Nothing was trained. Correct the name "
        "or remove it."
    )


def _names(taker) -> list[str]:
    parameters = inspect.signature(taker).parameters.values()
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    # Skorch takes names with "__" for the arguments of its parts.
    return [p.name for p in parameters if p.kind not in several and "__" not in p.name]


def _takes_any(taker) -> bool:
    parameters = inspect.signature(taker).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)
