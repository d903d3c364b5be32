import copy

import numpy as np
import pytest
import torch
from torch import nn

from sktransfer import Backbone, FineTuneClassifier
from sktransfer.finetuning import _network
from sktransfer.finetuning._network import Network, Standardise, make_head
from sktransfer.inputs._images import ImageReader
from tests.small_tasks import make_task

PICTURES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def make_network(*stages, precision="float32"):
    torch.manual_seed(0)
    head = make_head(Standardise.nothing(8), (), 0.0, np.zeros(2))
    nn.init.normal_(head[-1].weight)
    stages = [*stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())]
    return Network(nn.Sequential(*stages), head, precision=precision)


def wide():
    """Its weights are more numbers than its input; the 1 x 1 convolution's matter not.

    A matrix product needs no reordered weights.
    """
    return nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.Conv2d(64, 8, 1))


def narrow():
    """Its weights are fewer numbers than its input."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 1))


def gradients(network, x):
    network.zero_grad()
    network(x).square().sum().backward()
    return [parameter.grad.numpy() for parameter in network.parameters()]


def test_feature_maps_are_laid_out_as_each_stage_is_fastest():
    network, layouts = make_network(narrow(), wide()), []
    for stage in network.suffix[:2]:
        stage.register_forward_pre_hook(
            lambda stage, inputs: layouts.append(inputs[0].is_contiguous())
        )
    network(PICTURES)
    assert layouts == [False, True]
    # For more images, the weights are fewer than the feature maps.
    network(PICTURES.repeat(8, 1, 1, 1))
    assert layouts[2:] == [False, False]


def test_the_layout_changes_what_is_learnt_by_rounding_only():
    network = make_network(narrow(), wide())
    found = gradients(network, PICTURES)
    network._fewest = [10**9] * 3
    for ours, plain in zip(found, gradients(network, PICTURES), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)
    assert all(parameter.is_contiguous() for parameter in network.parameters())


def grouped():
    """Its norm, the first layer that is trained, has inputs without a gradient."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))


def test_group_norms_on_frozen_layers_do_not_end_the_process():
    torch.manual_seed(0)
    head = make_head(Standardise.nothing(8), (), 0.0, np.zeros(2))
    suffix = nn.Sequential(grouped(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Network(suffix, head, train_only="norms")
    network(PICTURES.repeat(8, 1, 1, 1)).square().sum().backward()
    assert network.suffix[0][0].weight.grad is None
    assert network.suffix[0][1].weight.grad is not None


@pytest.mark.parametrize(
    ("never", "contiguous"), [((), False), ((nn.GroupNorm,), True)]
)
def test_group_norms_have_no_channels_last_where_torch_fails_in_it(
    monkeypatch, never, contiguous
):
    monkeypatch.setattr(_network, "_NEVER_CHANNELS_LAST", never)
    network, layouts = make_network(grouped()), []
    network.suffix[0][1].register_forward_pre_hook(
        lambda norm, inputs: layouts.append(inputs[0].is_contiguous())
    )
    network(PICTURES)
    assert layouts == [contiguous]


def test_tokens_have_no_layout():
    torch.manual_seed(0)
    network = Network(
        nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.Flatten(), nn.Linear(20, 8))),
        make_head(Standardise.nothing(8), (), 0.0, np.zeros(2)),
    )
    x = torch.randn(3, 4, 5)
    assert torch.equal(network(x), network.head(network.suffix(x)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_depthwise_convolutions_compute_in_float32(precision):
    dense, depthwise = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
    grouped = nn.Conv2d(8, 8, 3, groups=2)
    network = make_network(dense, depthwise, grouped, precision=precision)
    dtypes = []
    for stage in network.suffix[:3]:
        stage.register_forward_hook(lambda stage, x, y: dtypes.append(y.dtype))
    assert network(PICTURES).dtype == torch.float32
    low = getattr(torch, precision)
    assert dtypes == [low, torch.float32, low]
    found = gradients(network, PICTURES)
    assert {gradient.dtype for gradient in found} == {np.dtype("float32")}
    exact = copy.deepcopy(network)
    exact.precision = "float32"
    for ours, plain in zip(found, gradients(exact, PICTURES), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0.1, atol=0.05 * abs(plain).max())


def test_a_feature_that_varies_by_rounding_alone_is_left_as_it_is():
    rng = np.random.default_rng(0)
    usual = rng.normal(size=20)
    # One that is the same but for the last bits, and one that is next to nothing.
    rounded = np.float32(1000) + np.float32(1e-4) * (np.arange(20) % 2)
    nothing = 1e-9 * rng.normal(size=20)
    embeddings = np.column_stack([usual, rounded, nothing]).astype(np.float32)
    found = Standardise.of(embeddings)
    assert found.scale[0] == pytest.approx(embeddings[:, 0].std(), rel=1e-5)
    assert found.scale[1:].tolist() == [1.0, 1.0]


def test_a_last_stage_that_is_not_flat_is_pooled_as_in_prediction():
    torch.manual_seed(0)
    maps = Backbone(nn.Sequential(nn.Conv2d(3, 4, 3)), ImageReader(10, 8))
    flat = nn.Sequential(*maps.stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    X, y = make_task()
    for freeze in (0, "all"):
        found = [
            FineTuneClassifier(one, freeze=freeze, max_epochs=2, random_state=0)
            .fit(X, y)
            .predict_proba(X)
            for one in (maps, Backbone(flat, maps.reader))
        ]
        np.testing.assert_allclose(*found, rtol=1e-5)
