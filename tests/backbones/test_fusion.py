"""Folding batch norm into convolutions."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision import models

from sktransfer.backbones._fusion import fold_weight_norms, fuse


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


def test_weight_norms_are_folded_so_that_a_network_is_pickled():
    normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=2)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    network = nn.Sequential(normed, nn.Flatten(), spectral).eval()
    x = torch.randn(2, 4, 3)
    expected = network(x)
    folded = copy.deepcopy(network)
    fold_weight_norms(folded)
    assert type(folded[0]) is nn.Conv1d
    assert torch.equal(folded(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(folded[0]))(x), normed(x))
    # What it was copied from, and other ways to compute a weight, are as they were.
    assert torch.equal(network(x), expected)
    assert nn.utils.parametrize.is_parametrized(folded[2])
