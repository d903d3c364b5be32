"""The network to be trained: the stages that are not frozen, and a head on them."""

import contextlib
import copy
import math

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sktransfer.embedding._prefix import Prefix, pool
from sktransfer.finetuning._trained import trained_parameters

# Features whose relative variation is below this count as constant. It is the rounding
# error of float32, with a margin.
_ROUNDING = 1e-6


class Standardise(nn.Module):
    """A layer that centres and scales embeddings, as a StandardScaler does."""

    def __init__(self, mean: np.ndarray, scale: np.ndarray):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "Standardise":
        """Make the layer that standardises these embeddings, without any weights.

        Weights would move a class of high weight to the centre, where an initial head
        of zeros gives it the same scores as the other classes.
        """
        # Sums of float32 lose digits over many rows.
        mean = embeddings.mean(axis=0, dtype=float)
        scale = embeddings.std(axis=0, dtype=float)
        # A constant feature keeps its scale, since scaling would amplify its noise.
        floor = _ROUNDING * np.maximum(np.abs(mean), scale.max())
        return cls(mean, np.where(scale > floor, scale, 1.0))

    @classmethod
    def nothing(cls, n_features: int) -> "Standardise":
        """Make a layer that does not change embeddings."""
        return cls(np.zeros(n_features), np.ones(n_features))

    def forward(self, x):
        return (x - self.mean) / self.scale


def make_head(
    standardise: Standardise, hidden_layer_sizes: tuple, dropout: float, scores
) -> nn.Sequential:
    """Make the layers that turn an embedding into the outputs.

    The initial head returns `scores`, of shape (n_outputs,), for any sample.
    """
    layers, width = [standardise], len(standardise.mean)
    for size in hidden_layer_sizes:
        layers += [nn.Linear(width, size), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    if dropout and not len(hidden_layer_sizes):
        layers.append(nn.Dropout(dropout))
    output = nn.Linear(width, len(scores))
    # With weights of zero, no random gradient reaches the backbone at first.
    nn.init.zeros_(output.weight)
    with torch.no_grad():
        output.bias.copy_(torch.as_tensor(scores))
    # In float32, like the backbones, whatever the default dtype of torch is.
    return nn.Sequential(*layers, output).float()


def restandardise(head: nn.Sequential, embeddings: np.ndarray, n_before: int) -> None:
    """Include these embeddings in the standardisation, without changing the outputs.

    Parameters
    ----------
    head : nn.Sequential
        The head: a Standardise, and linear layers.
    embeddings : ndarray of shape (n_samples, n_features)
        The further embeddings.
    n_before : int
        The number of embeddings that the standardisation was computed from.
    """
    old, new = head[0], Standardise.of(embeddings)
    share = len(embeddings) / (len(embeddings) + n_before)
    away = new.mean - old.mean
    mean = old.mean + share * away
    variance = share * new.scale**2 + (1 - share) * old.scale**2
    scale = (variance + share * (1 - share) * away**2).sqrt()
    first = next(layer for layer in head if isinstance(layer, nn.Linear))
    with torch.no_grad():
        # The first linear layer compensates for the change, so that the head computes
        # the same function as before.
        first.bias.add_(first.weight @ ((mean - old.mean) / old.scale))
        first.weight.mul_(scale / old.scale)
        old.mean.copy_(mean)
        old.scale.copy_(scale)


class Network(nn.Module):
    """The network to be trained: the stages after the frozen ones, and the head.

    Parameters
    ----------
    suffix : nn.Sequential
        The named stages that are not frozen.
    head : nn.Module
        The layers that take the embedding.
    prefix : callable or None
        A function that is applied to the input first, without gradient: the frozen
        stages, if they cannot be computed beforehand, or the normalisation.
    precision : str
        The precision of the computation, "float32" or "bfloat16".
    fixed_norms : bool
        Whether batch norms keep the statistics of the source. Small batches of few
        samples estimate them badly, and a network whose norms were folded into its
        convolutions would lose its scales.
    padded : bool
        Whether the rows of a batch differ in length and are padded with NaN.
    train_only : {"all", "norms", "biases"}
        Which parameters of the suffix are trained. The head is trained as a whole.
    """

    def __init__(
        self,
        suffix,
        head,
        prefix=None,
        precision="float32",
        fixed_norms=False,
        padded=False,
        train_only="all",
    ):
        super().__init__()
        self.padded = padded
        self.fixed_norms = fixed_norms
        self.suffix = suffix
        self.head = head
        self.prefix = prefix
        self.precision = precision
        self.train_only = train_only
        self._fewest = [_fewest_channels_last(stage) for stage in suffix]
        suffix.requires_grad_(False)
        self.rest(0)

    def forward(self, x):
        if self.prefix is not None:
            with torch.no_grad():
                x = self.prefix(x)
        kind, low = x.device.type, self.precision == "bfloat16"
        exempt = _DepthwiseInFloat32() if low and kind == "cpu" else _NOTHING
        with torch.autocast(kind, torch.bfloat16, enabled=low), exempt:
            for stage, fewest in zip(self.suffix, self._fewest, strict=True):
                x = stage(_laid_out(x, fewest))
            # As in prediction; what is flat already stays as it is.
            x = self.head(pool(x, "avg", self.padded))
        return x.float()

    def trained(self, stage: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of a stage of the suffix that are trained."""
        return trained_parameters(stage, self.train_only)

    def rest(self, count: int) -> None:
        """Keep the first `count` stages of the suffix from being trained, for now."""
        self.n_resting = count
        for i, stage in enumerate(self.suffix):
            for parameter in self.trained(stage):
                parameter.requires_grad_(i >= count)
        # To set the mode of the stages that rest now, or no longer.
        self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        # Statistics of norms would change, and dropout act, even without gradients.
        for stage in self.suffix[: self.n_resting]:
            stage.eval()
        for module in self.suffix.modules() if self.fixed_norms else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def fitted_so_far(known: dict, prefix: Prefix, network: Network, whole=False) -> dict:
    """Return the attributes of an estimator that is fitted as far as its network is.

    They are those that are known otherwise, and those that hold the network. While the
    head is trained alone, its network begins after the `whole` backbone.
    """
    prefix = prefix.whole() if whole else prefix
    return known | {
        "backbone_": prefix.backbone.tuned(prefix.depth, network.suffix),
        # On the CPU, like the backbone, since a pickle must open without a GPU.
        "head_": copy.deepcopy(network.head).cpu(),
        "freeze_depth_": prefix.depth,
        "train_only_": network.train_only,
    }


_NOTHING = contextlib.nullcontext()
# Before torch 2.14, the backward pass of a group norm in channels last ends the process
# if its input needs no gradient, as after frozen layers.
_NEVER_CHANNELS_LAST = (nn.GroupNorm,) if torch.__version__ < (2, 14) else ()


def _laid_out(x: torch.Tensor, fewest: float) -> torch.Tensor:
    """Return feature maps of a CPU in channels last, if they have enough numbers."""
    if x.ndim != 4 or x.device.type != "cpu":
        return x
    last = x.numel() >= fewest
    layout = torch.channels_last if last else torch.contiguous_format
    return x.contiguous(memory_format=layout)


def _fewest_channels_last(stage: nn.Module) -> float:
    """Return the size of feature maps from which channels last is the faster layout.

    It is the number of weights of the largest convolution of the stage. Of smaller
    feature maps, it is cheaper to reorder these in each layer than the weights, which
    keep their layout, as the optimizer needs it. It is infinite if torch fails in
    channels last.
    """
    modules = list(stage.modules())
    if any(isinstance(module, _NEVER_CHANNELS_LAST) for module in modules):
        return math.inf
    # Convolutions of size 1 are matrix products, whose weights need no reordering.
    sizes = [
        module.weight.numel()
        for module in modules
        if isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.kernel_size != (1, 1)
    ]
    return max(sizes, default=0)


class _DepthwiseInFloat32(TorchFunctionMode):
    """A mode that excludes depthwise convolutions from autocast.

    On a CPU, their backward pass is so slow in bfloat16 that MobileNets and
    EfficientNets would train more slowly than in float32.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.conv2d and len(args) > 1:
            # A depthwise convolution has one input channel for each of its groups.
            x, weight, *rest = args
            if weight.shape[1] == 1 < x.shape[1]:
                with torch.autocast("cpu", enabled=False):
                    return function(x.float(), weight, *rest, **(kwargs or {}))
        return function(*args, **(kwargs or {}))
