"""The network behind the backbone ``"tiny"``."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from sktransfer.backbones._weights import apply_file
from sktransfer.inputs._images import ImageReader

WIDTHS = (32, 64, 160, 256)
N_FEATURES = 384
# Made by benchmarks/tiny/pretrain.py.
SHA256 = "7561ba0075de0bcce65ba737ffdc2905bd6b003899c0ee44ffeffd00d81d00ef"
WEIGHTS = (Path(__file__).parents[1] / "data" / "tiny.safetensors", f"sha256:{SHA256}")


def _conv(n_in, n_out, kernel_size=3, stride=1):
    """Return a convolution followed by its batch norm, as fusing expects them."""
    padding = kernel_size // 2
    return [
        nn.Conv2d(n_in, n_out, kernel_size, stride, padding, bias=False),
        nn.BatchNorm2d(n_out),
    ]


class _Residual(nn.Module):
    """Two convolutions with a shortcut around them."""

    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.body = nn.Sequential(
            *_conv(n_in, n_out, 3, stride), nn.ReLU(inplace=True), *_conv(n_out, n_out)
        )
        shrink = [nn.AvgPool2d(stride, ceil_mode=True)] if stride > 1 else []
        widen = _conv(n_in, n_out, 1) if n_in != n_out else []
        self.skip = nn.Sequential(*shrink, *widen)

    def forward(self, x):
        return torch.relu(self.body(x) + self.skip(x))


def tiny() -> nn.Sequential:
    """Build the network with random weights.

    A residual network of plain 3x3 convolutions (He et al. 2016; shortcuts that
    average before they widen: He et al. 2019, "Bag of tricks for image
    classification"). A CPU runs them several times faster than as many
    multiply-adds in depthwise layers. At 64 x 64, for which it is made, it takes 20
    million multiply-adds, a fifteenth of MobileNetV2 at 224 x 224; other sizes work.

    Returns
    -------
    network : torch.nn.Sequential
        The stages "stem", "layer1" to "layer4" and "pool", from ImageNet-normalised
        images `(n, 3, height, width)` to features `(n, 384)`. No stage changes its
        input in place.
    """
    first, second, third, fourth = WIDTHS
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(
                *_conv(3, first // 2, 3, 2),
                nn.ReLU(inplace=True),
                *_conv(first // 2, first, 3, 2),
                nn.ReLU(inplace=True),
            ),
            layer1=_Residual(first, first),
            layer2=_Residual(first, second, 2),
            layer3=_Residual(second, third, 2),
            layer4=nn.Sequential(
                _Residual(third, fourth, 2),
                *_conv(fourth, N_FEATURES, 1),
                nn.ReLU(inplace=True),
            ),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
    )


def load(weights) -> tuple[nn.Sequential, ImageReader]:
    """Load the stages and the reader of "tiny"."""
    stages = tiny()
    if weights is not None:
        apply_file(stages, stages, WEIGHTS if weights == "default" else weights, "tiny")
    return stages, ImageReader.whole(64)
