"""Which parameters of the stages that are not frozen are trained: ``train_only``."""

from torch import nn

from sktransfer.backbones._backbone import Backbone

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, of torch or of another library."""
    if isinstance(module, _NORMS):
        return True
    # Those of timm and transformers have no common base class. A linear layer with
    # normalised weights may be named like them, but has parameters of more dimensions.
    named = any("norm" in kind.__name__.lower() for kind in type(module).__mro__)
    return named and all(p.ndim == 1 for p in module.parameters(recurse=False))


def _is_bias(name: str, parameter: nn.Parameter) -> bool:
    # "in_proj_bias" and "q_bias" are biases. The table "relative_position_bias_table",
    # which has more dimensions, holds the positions of attention.
    return parameter.ndim == 1 and "bias" in name.split("_")


# What may be trained: functions of a module and the name and value of a parameter.
TRAIN_ONLY = {
    "all": lambda module, name, parameter: True,
    "norms": lambda module, name, parameter: _is_norm(module),
    "biases": lambda module, name, parameter: _is_bias(name, parameter),
}


def trained_parameters(stage: nn.Module, train_only: str) -> list[nn.Parameter]:
    """Return the parameters of a stage that are trained if it is not frozen.

    Parameters
    ----------
    stage : nn.Module
        The stage, or several of them.
    train_only : {"all", "norms", "biases"}
        The kind of parameters.

    Returns
    -------
    list of nn.Parameter
        The parameters, each of them once.
    """
    chosen = TRAIN_ONLY[train_only]
    found = {
        id(parameter): parameter
        for module in stage.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if chosen(module, name, parameter)
    }
    return list(found.values())


def check_some_trained(backbone: Backbone, depth: int, train_only: str) -> None:
    """Refuse ``train_only`` if the stages from `depth` on have no such parameters."""
    stages = backbone.stages[depth:]
    # Without any stage to train, it has no meaning, and searches may combine the two.
    if len(stages) and not trained_parameters(stages, train_only):
        names = ", ".join(map(repr, backbone.stage_names[depth:]))
        raise ValueError(
            f"Invalid train_only={train_only!r}: the stages of backbone "
            f"{backbone.name!r} that are not frozen ({names}) have no {train_only}. "
            "Use train_only='all', freeze fewer stages, or choose another backbone."
        )
