"""Folding batch norm into convolutions."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models

from sktransfer.backbones._fusion import fuse


def norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("mobilenet_v2", 0),
        ("mobilenet_v3_small", 0),
        ("efficientnet_b0", 0),
        ("mnasnet0_5", 0),
        ("shufflenet_v2_x0_5", 0),
        # Its first is among the attributes of no block, but of the whole network.
        ("resnet18", 1),
    ],
)
def test_the_norms_of_usual_networks_are_folded_in(name, left):
    torch.manual_seed(0)
    network = models.get_model(name, weights=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    before = copy.deepcopy(network.state_dict())
    fused = fuse(network)
    assert norms(network) > left
    assert norms(fused) == left
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), network(x), rtol=1e-3, atol=1e-4)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


class Backwards(nn.Sequential):
    def forward(self, x):
        for module in reversed(self):
            x = module(x)
        return x


def test_what_is_not_known_to_feed_a_norm_stays():
    torch.manual_seed(0)
    loose = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
    )
    for network in (Backwards(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), loose):
        fused = fuse(network.eval())
        assert norms(fused) == 1
        x = torch.rand(2, 3, 4, 4)
        assert torch.equal(fused(x), network(x))


def test_a_convolution_with_a_hook_stays():
    torch.manual_seed(0)
    conv = nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))
    stage = nn.Sequential(conv, nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fuse(stage)(x), stage(x))
