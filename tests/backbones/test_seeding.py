import torch
from torch import nn

from sktransfer.backbones._seeding import initialise


class Scaled(nn.Linear):
    """A layer whose scale its reset_parameters does not know."""

    def __init__(self):
        super().__init__(30, 20)
        self.scale = nn.Parameter(2 + 3 * torch.randn(2000))
        self.constant = nn.Parameter(torch.full((9,), 1e-6))
        self.one = nn.Parameter(torch.tensor(0.3))
        self.none = nn.Parameter(torch.zeros(0, 2))
        self.short = nn.Parameter(torch.arange(4.0).half())
        self.register_buffer("index", torch.arange(3.0))


def test_of_a_parameter_alone_two_moments_are_kept():
    layer = Scaled()
    before = {name: t.detach().clone() for name, t in layer.state_dict().items()}
    initialise(layer)
    after = layer.state_dict()
    for name in ("weight", "bias", "scale", "short"):
        assert not torch.isclose(after[name], before[name]).all()
    for name in ("constant", "one", "none", "index"):
        assert torch.equal(after[name], before[name])
    scales = torch.stack([after["scale"], before["scale"]])
    torch.testing.assert_close(scales[0].mean(), scales[1].mean(), rtol=0, atol=0.3)
    torch.testing.assert_close(scales[0].std(), scales[1].std(), rtol=0.1, atol=0)
    assert abs(torch.corrcoef(scales)[0, 1]) < 0.1
    assert after["short"].dtype == torch.float16
    assert layer.scale.requires_grad


def test_a_shared_parameter_is_drawn_once():
    layer = Scaled()
    both = nn.Sequential(layer, nn.Sequential(layer))
    torch.manual_seed(0)
    initialise(both)
    assert both[1][0].scale is layer.scale
    assert layer.scale.std() > 1


def test_attention_is_initialised_as_it_is_made():
    layer = nn.MultiheadAttention(8, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(7)
    initialise(layer)
    assert layer.in_proj_weight.abs().max() < 1
    assert not layer.in_proj_bias.any()
    assert not layer.out_proj.bias.any()


def test_weights_behind_a_parametrization_are_drawn_anew():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(30, 20))
    before = layer.weight.detach().flatten()
    initialise(layer)
    both = torch.stack([before, layer.weight.detach().flatten()])
    assert abs(torch.corrcoef(both)[0, 1]) < 0.2


class Filled(nn.Module):
    """Sets what is within it, as it does in its constructor."""

    def __init__(self, number, within):
        super().__init__()
        self.number, self.within = number, within

    def _reset_parameters(self):
        nn.init.constant_(next(self.parameters()), self.number)


def test_the_outer_module_has_the_last_word():
    module = Filled(1.0, Filled(2.0, nn.Linear(3, 2)))
    initialise(module)
    assert (next(module.parameters()) == 1).all()
