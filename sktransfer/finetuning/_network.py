"""What is trained: the stages that are not frozen, and a head on them."""

import contextlib

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# Of float32, with a margin: what varies less than this share of its size is constant.
_ROUNDING = 1e-6


class Standardise(nn.Module):
    """Centre and scale embeddings by fixed numbers, as a StandardScaler does."""

    def __init__(self, mean: np.ndarray, scale: np.ndarray):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "Standardise":
        """Standardise as these embeddings need it, each of which counts once.

        Were they weighted, a class of a high weight would be moved to the centre, where
        a head that begins at zero gives it the score of the others.
        """
        mean = embeddings.mean(axis=0, dtype=float)
        scale = embeddings.std(axis=0, dtype=float)
        # A feature that hardly varies is left alone rather than blown up to noise.
        floor = _ROUNDING * np.maximum(np.abs(mean), scale.max())
        return cls(mean, np.where(scale > floor, scale, 1.0))

    @classmethod
    def nothing(cls, n_features: int) -> "Standardise":
        """Leave embeddings as they are."""
        return cls(np.zeros(n_features), np.ones(n_features))

    def forward(self, x):
        return (x - self.mean) / self.scale


def make_head(
    standardise: Standardise, hidden_layer_sizes: tuple, dropout: float, scores
) -> nn.Sequential:
    """Make the layers that stand on the embedding.

    `scores`, of shape (n_outputs,), are what they put out at first for any image.
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
    # The same for all images at first: no random gradient reaches the backbone.
    nn.init.zeros_(output.weight)
    with torch.no_grad():
        output.bias.copy_(torch.as_tensor(scores))
    # As the backbones, whatever torch's default is.
    return nn.Sequential(*layers, output).float()


def restandardise(head: nn.Sequential, embeddings: np.ndarray, n_before: int) -> None:
    """Standardise by these embeddings, too; the head computes what it did before.

    Parameters
    ----------
    head : nn.Sequential
        A Standardise, and linear layers.
    embeddings : ndarray of shape (n, n_features)
    n_before : int
        How many embeddings its standardisation stands on.
    """
    old, new = head[0], Standardise.of(embeddings)
    share = len(embeddings) / (len(embeddings) + n_before)
    away = new.mean - old.mean
    mean = old.mean + share * away
    variance = share * new.scale**2 + (1 - share) * old.scale**2
    scale = (variance + share * (1 - share) * away**2).sqrt()
    first = next(layer for layer in head if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.bias.add_(first.weight @ ((mean - old.mean) / old.scale))
        first.weight.mul_(scale / old.scale)
        old.mean.copy_(mean)
        old.scale.copy_(scale)


class Network(nn.Module):
    """What is trained: the stages after the frozen ones, and the head.

    Parameters
    ----------
    suffix : nn.Sequential
        Named stages.
    head : nn.Module
    prefix : callable or None
        What happens to the input first, without gradient: the frozen stages where
        they cannot be computed beforehand, or the normalisation of pixels.
    precision : str
    fixed_norms : bool
        Whether batch norms keep the statistics of the source. Small batches of few
        images estimate them badly, and a network whose norms were folded into its
        convolutions would lose its scales.
    """

    def __init__(
        self, suffix, head, prefix=None, precision="float32", fixed_norms=False
    ):
        super().__init__()
        self.fixed_norms = fixed_norms
        self.suffix = suffix
        self.head = head
        self.prefix = prefix
        self.precision = precision
        self.n_resting = 0
        self._largest = [_largest_convolution(stage) for stage in suffix]

    def forward(self, x):
        if self.prefix is not None:
            with torch.no_grad():
                x = self.prefix(x)
        kind, low = x.device.type, self.precision == "bfloat16"
        exempt = _DepthwiseInFloat32() if low and kind == "cpu" else _NOTHING
        with torch.autocast(kind, torch.bfloat16, enabled=low), exempt:
            for stage, size in zip(self.suffix, self._largest, strict=True):
                x = stage(_laid_out(x, size))
            x = self.head(x)
        return x.float()

    def rest(self, count: int) -> None:
        """Keep the first stages of the suffix as they are, for now."""
        self.n_resting = count
        for i, stage in enumerate(self.suffix):
            stage.requires_grad_(i >= count)
        self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        for stage in self.suffix[: self.n_resting]:
            stage.eval()
        for module in self.suffix.modules() if self.fixed_norms else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


_NOTHING = contextlib.nullcontext()


def _laid_out(x: torch.Tensor, size: int) -> torch.Tensor:
    """Lay feature maps out in memory as the stage trains fastest on a CPU.

    Channels last, as long as there are at least as many numbers in them as in the
    stage's largest convolution: beyond that it is cheaper to reorder the feature maps
    in each layer than the weights. The weights stay as they are, for the optimizer.
    """
    if x.ndim != 4 or x.device.type != "cpu":
        return x
    last = x.numel() >= size
    layout = torch.channels_last if last else torch.contiguous_format
    return x.contiguous(memory_format=layout)


def _largest_convolution(stage: nn.Module) -> int:
    """Count the weights of the largest convolution that is more than a product."""
    sizes = [
        module.weight.numel()
        for module in stage.modules()
        if isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.kernel_size != (1, 1)
    ]
    return max(sizes, default=0)


class _DepthwiseInFloat32(TorchFunctionMode):
    """Keep depthwise convolutions out of autocast.

    On a CPU their backward pass is so slow in bfloat16 that MobileNets and
    EfficientNets would train slower than in float32.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.conv2d and len(args) > 1:
            x, weight, *rest = args
            if weight.shape[1] == 1 < x.shape[1]:
                with torch.autocast("cpu", enabled=False):
                    return function(x.float(), weight, *rest, **(kwargs or {}))
        return function(*args, **(kwargs or {}))
