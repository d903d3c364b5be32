"""A network that takes a millisecond, where what is tested is not the network."""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from sktransfer import Backbone
from sktransfer.inputs._images import ImageReader

counts = {}


class Block(nn.Module):
    """A stage with batch norm that counts the rows that it computes."""

    def __init__(self, name, n_in, n_out, norm=True):
        super().__init__()
        self.name = name
        self.conv = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(n_out) if norm else nn.Identity()

    def forward(self, x):
        if x.device.type != "meta" and not torch.compiler.is_compiling():
            counts[self.name] = counts.get(self.name, 0) + len(x)
        return torch.relu(self.norm(self.conv(x)))


def make_net(norm=True):
    torch.manual_seed(0)
    return nn.Sequential(
        Block("a", 3, 8, norm),
        Block("b", 8, 12, norm),
        Block("c", 12, 16, norm),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def small_backbone(norm=True):
    return Backbone(make_net(norm), ImageReader(resize=18, crop=16), name="small")


def backbone_of_blocks(norm=True):
    """A network whose second stage can be cut after its blocks."""
    torch.manual_seed(0)
    blocks = [Block(f"b{i}", n, 12, norm) for i, n in enumerate([8, 12, 12])]
    stages = OrderedDict(
        a=Block("a", 3, 8, norm),
        b=nn.Sequential(*blocks),
        c=Block("c", 12, 16, norm),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    reader = ImageReader(resize=36, crop=32)
    return Backbone(nn.Sequential(stages), reader, name="blocks")


def colour_backbone():
    stages = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Backbone(stages, ImageReader(resize=18, crop=16), name="colour")


class Blind(nn.Module):
    def forward(self, x):
        return (x - x.mean((2, 3), keepdim=True))[:, :, 3, 3]


def blind_backbone():
    stages = nn.Sequential(nn.Identity(), Blind())
    return Backbone(stages, ImageReader(resize=18, crop=16), name="blind")


def wide_only(features, y):
    return 1.0 if features.shape[1] == 16 else np.nan


class Greedy(Block):
    """A stage that needs more memory than there is for more images than a few."""

    most = 2

    def forward(self, x):
        if x.device.type != "meta" and len(x) > self.most:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        return super().forward(x)


def greedy(most):
    torch.manual_seed(0)
    stage = Greedy("greedy", 3, 8)
    stage.most = most
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone(nn.Sequential(stage, pool), ImageReader(resize=18, crop=16))
