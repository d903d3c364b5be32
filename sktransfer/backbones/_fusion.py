"""Batch norm is folded into the convolution before it, for inference."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.densenet import _DenseLayer
from torchvision.models.googlenet import BasicConv2d as GoogLeNetConv
from torchvision.models.inception import BasicConv2d as InceptionConv
from torchvision.models.resnet import BasicBlock, Bottleneck

# Blocks that are no `nn.Sequential`, with the convolutions that feed one norm each and
# nothing else. A block that is missing here is computed as well, but slower.
_PAIRS = {
    BasicBlock: [("conv1", "bn1"), ("conv2", "bn2")],
    Bottleneck: [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")],
    GoogLeNetConv: [("conv", "bn")],
    InceptionConv: [("conv", "bn")],
    _DenseLayer: [("conv1", "norm2")],
}


def fuse(stage: nn.Module) -> nn.Module:
    """Copy a stage, and fold in the batch norms whose input is known.

    It is known in an `nn.Sequential` (or a subclass with its `forward`), where each
    child feeds only the next one, and in the blocks listed above. Tracing the network
    would find more, but `torch.fx` replaces ``nn.Module.__call__`` meanwhile, for all
    threads.
    """
    stage = copy.deepcopy(stage)
    for module in stage.modules():
        pairs = _PAIRS.get(type(module), [])
        if getattr(type(module), "forward", None) is nn.Sequential.forward:
            names = list(module._modules)
            pairs = zip(names, names[1:], strict=False)
        for conv, norm in pairs:
            _fuse_pair(module, conv, norm)
    return stage


def _fuse_pair(module: nn.Module, conv: str, norm: str) -> None:
    first, second = module._modules[conv], module._modules[norm]
    if (
        type(first) is nn.Conv2d
        and type(second) is nn.BatchNorm2d
        and second.track_running_stats
        and not (has_hooks(first) or has_hooks(second))
    ):
        module._modules[conv] = fuse_conv_bn_eval(first, second)
        module._modules[norm] = nn.Identity()


def has_hooks(module: nn.Module) -> bool:
    """Whether a call does more than `forward`, as with `nn.utils.spectral_norm`."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def fold_weight_norms(module: nn.Module) -> None:
    """Replace weights that are computed in each call by what is computed.

    Such modules, as in wav2vec 2.0, cannot be pickled. Other parametrisations stay, as
    they need not be constant.
    """
    for part in list(module.modules()):
        computed = part._modules.get("parametrizations", {})
        for name, steps in list(computed.items()):
            if {type(step).__name__ for step in steps} == {"_WeightNorm"}:
                weight = nn.Parameter(getattr(part, name).detach(), requires_grad=False)
                # What torch has for it also changes the class, which copies share.
                part.__class__ = type(part).__bases__[0]
                del part._modules["parametrizations"]
                part.register_parameter(name, weight)
                # Only for files with weight norms, and part of it is a local function.
                part._load_state_dict_pre_hooks.clear()
