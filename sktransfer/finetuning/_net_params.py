"""What ``net_params`` may have: arguments of a net that the estimator does not set."""

import inspect

from skorch import NeuralNet
from skorch.hf import AccelerateMixin
from torch.utils.data import DataLoader

# What is a parameter of the estimator, which does more with it.
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
# What the parts of a net are given by the training itself.
_GIVEN = {"params", "lr", "dataset", "reduction"}


def check_net_params(net_params: dict, optimizer, loss) -> None:
    """Refuse what the estimator sets, and what no part of a net takes.

    Parameters
    ----------
    net_params : dict
    optimizer, loss : callable
        Those of the estimator; `net_params` may have another loss.
    """
    takers = {"optimizer": optimizer, "criterion": loss}
    takers |= {"iterator_train": DataLoader, "iterator_valid": DataLoader}
    arguments = {*_names(NeuralNet), *_names(AccelerateMixin)}
    for name in net_params:
        if name in _NOT_HERE:
            raise ValueError(
                f"net_params has {name!r}, which is set by the estimator. Use its own "
                f"parameter, {_NOT_HERE[name]}, and leave it out of net_params."
            )
        part, _, option = name.partition("__")
        if part not in arguments:
            _refuse(name, "skorch.NeuralNet", part, arguments - _NOT_HERE.keys())
        taker = net_params.get(part, takers.get(part))
        if option and part in takers and not _takes_any(taker):
            options = set(_names(taker)) - _GIVEN
            if option not in options:
                _refuse(name, getattr(taker, "__name__", taker), option, options)


def _refuse(name, taker, argument, accepted) -> None:
    raise ValueError(
        f"net_params has {name!r}, and {taker} takes no {argument!r} here. Accepted "
        f"are {sorted(accepted)}. Nothing was trained. Correct or drop the name."
    )


def _names(taker) -> list[str]:
    parameters = inspect.signature(taker).parameters.values()
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [p.name for p in parameters if p.kind not in several and "__" not in p.name]


def _takes_any(taker) -> bool:
    parameters = inspect.signature(taker).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)
