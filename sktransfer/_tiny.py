"""The network behind the backbone ``"tiny"``."""

from collections import OrderedDict

from torch import nn


def _conv(n_in, n_out, kernel_size=1, stride=1, groups=1):
    """Return a convolution followed by its batch norm, as fusing expects them."""
    padding = kernel_size // 2
    return [
        nn.Conv2d(n_in, n_out, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
    ]


class _InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; add the input where it fits."""

    def __init__(self, n_in, n_out, stride=1, expansion=6):
        super().__init__()
        width = n_in * expansion
        widen = [*_conv(n_in, width), nn.ReLU6(inplace=True)] if expansion > 1 else []
        self.body = nn.Sequential(
            *widen,
            *_conv(width, width, 3, stride, groups=width),
            nn.ReLU6(inplace=True),
            *_conv(width, n_out),
        )
        self.adds = stride == 1 and n_in == n_out

    def forward(self, x):
        return x + self.body(x) if self.adds else self.body(x)


def _layer(n_in, n_out, n_blocks, stride=2):
    """Return the blocks of a stage; the first changes resolution and width."""
    rest = [_InvertedResidual(n_out, n_out) for _ in range(n_blocks - 1)]
    return [_InvertedResidual(n_in, n_out, stride), *rest]


def tiny():
    """Build the network with random weights.

    It is the lower part of a MobileNetV2 for small pictures, 64 x 64 by design and
    any size in practice. At that size it takes 18 million multiply-adds, a
    sixteenth of MobileNetV2 at 224 x 224.

    Returns
    -------
    network : torch.nn.Sequential
        The stages "stem", "layer1" to "layer4" and "pool", from ImageNet-normalised
        images `(n, 3, height, width)` to features `(n, 512)`. No stage changes its
        input in place.
    """
    stem = [
        *_conv(3, 32, 3, 2),
        nn.ReLU6(inplace=True),
        _InvertedResidual(32, 16, 1, 1),
    ]
    widen = [*_conv(96, 512), nn.ReLU6(inplace=True)]
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(*stem),
            layer1=nn.Sequential(*_layer(16, 24, 2)),
            layer2=nn.Sequential(*_layer(24, 32, 3)),
            layer3=nn.Sequential(*_layer(32, 64, 4)),
            layer4=nn.Sequential(*_layer(64, 96, 3, stride=1), *widen),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
    )
