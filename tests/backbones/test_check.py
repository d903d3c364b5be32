import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from sktransfer import Backbone, ImageReader, check_backbone, register_backbone
from sktransfer.backbones import _load
from tests.small_network import (
    Block,
    backbone_of_blocks,
    make_net,
    small_backbone,
    text_backbone,
)

READER = ImageReader(resize=18, crop=16)


def with_stage(stage, **others):
    """A network whose third stage is given."""
    torch.manual_seed(0)
    stages = OrderedDict(a=Block("a", 3, 8), b=Block("b", 8, 8), c=stage)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone(nn.Sequential(OrderedDict(**stages, **others, pool=pool)), READER)


@pytest.mark.parametrize(
    "given",
    [
        "tiny",
        small_backbone,
        make_net(),
        backbone_of_blocks(),
        backbone_of_blocks().cut("b.1"),
        text_backbone(),
        with_stage(nn.Conv2d(8, 8, 1)),
    ],
)
def test_networks_that_fulfil_all(given):
    assert check_backbone(given) is None


class InPlace(nn.Module):
    def forward(self, x):
        return x.clamp_(min=0.1)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class AlwaysTraining(nn.Module):
    def forward(self, x):
        return nn.functional.batch_norm(x, None, None, training=True)


class Dropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class Drawing(nn.Module):
    """Draws numbers that it does not use."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        self.draw()
        return x * 2


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x * 2


class Listing(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return x * 2


class Remembering(nn.Module):
    def forward(self, x):
        self.last = x
        return x * 2


class Switching(nn.Module):
    def forward(self, x):
        self.train()
        return x * 2


class Hooked(nn.Module):
    def forward(self, x):
        self.register_forward_hook(keep)
        return x * 2


def keep(module, given, output):
    return output


class Detached(nn.Conv2d):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Blocking(nn.Module):
    def forward(self, x):
        return x.detach() * 2


class Double(nn.Module):
    def forward(self, x):
        return x.double()


class Infinite(nn.Module):
    def forward(self, x):
        return x / 0


class Jump(nn.Module):
    """Adds what another stage has been given."""

    def __init__(self, start):
        super().__init__()
        self.start = [start]

    def forward(self, x):
        return x + self.start[0].last


class Start(nn.Module):
    def forward(self, x):
        # The object of before, so that it is found by what follows alone.
        self.last = x.clone()
        return x * 2


BROKEN = {
    "in place": (InPlace(), "Stage 'c' changes its input in place"),
    "centred": (Centred(), "stage 'c' for a row depends on other rows"),
    "norm": (AlwaysTraining(), "stage 'c' for a row depends on other rows"),
    "dropout": (Dropping(), "Stage 'c' does not return the same again"),
    "torch": (Drawing(lambda: torch.rand(1)), "state of a random number generator"),
    "numpy": (Drawing(lambda: np.random.rand()), "state of a random number gen"),  # noqa: NPY002
    "python": (Drawing(random.random), "Stage 'c' changes something .* the state of a"),
    "buffer": (
        Counting(),
        "Stage 'c' changes something when it is run: tensor 'count'",
    ),
    "list": (Listing(), "Stage 'c' changes something when it is run: an attribute"),
    "attribute": (Remembering(), "Stage 'c' changes something .*attribute 'last'"),
    "mode": (Switching(), "Stage 'c' changes something when it is run: the mode"),
    "hooks": (Hooked(), "Stage 'c' changes something when it is run: the hooks"),
    "detached": (Detached(8, 8, 1), "Stage 'c' hands no gradient on to its parameters"),
    "blocking": (Blocking(), "Stage 'c' hands no gradient on to the stage before"),
    "double": (Double(), r"Stage 'c' returns torch.float64 of shape \(3, 8, 4, 4\)"),
    "infinite": (Infinite(), "Stage 'c' returns NaN or infinite values"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named_with_its_stage(name):
    stage, message = BROKEN[name]
    with pytest.raises(ValueError, match=message) as caught:
        check_backbone(with_stage(stage))
    lines = str(caught.value).split("\n")
    assert lines[0].startswith(f"Backbone 'custom' fails {len(lines) - 1} of 8 checks")
    # No stage but the one that is wrong, and what cannot take what it returns.
    assert all("stage 'a'" not in line and "stage 'b'" not in line for line in lines)


def test_a_stage_that_takes_what_another_one_remembers():
    start = Start()
    network = with_stage(start, d=Jump(start))
    with pytest.raises(ValueError, match="The output of stage 'd' for a row depends"):
        check_backbone(network)


def test_parameters_of_two_stages():
    shared = nn.Conv2d(8, 8, 1)
    network = with_stage(shared, d=nn.Sequential(nn.ReLU(), shared))
    message = r"Stage 'd' shares its parameter '1.weight' with stage 'c' \(there 'weig"
    with pytest.raises(ValueError, match=message):
        check_backbone(network)


def test_a_class_that_cannot_be_imported():
    class Local(nn.Module):
        def forward(self, x):
            return x * 2

    with pytest.raises(ValueError, match="Stage 'c' cannot be pickled .*Local"):
        check_backbone(with_stage(Local()))


class Forgetful(nn.Conv2d):
    def __setstate__(self, state):
        super().__setstate__(state)
        nn.init.zeros_(self.weight)


class Restored(nn.Module):
    """Computes something else once it was pickled."""

    factor = 3

    def __init__(self):
        super().__init__()
        self.factor = 2

    def forward(self, x):
        return x * self.factor

    def __deepcopy__(self, memo):
        return self

    def __getstate__(self):
        return {k: value for k, value in vars(self).items() if k != "factor"}


def test_a_stage_that_is_another_after_pickling():
    network = with_stage(Forgetful(8, 8, 1))
    # A copy is made by the same method.
    nn.init.ones_(network.stages.c.weight)
    with pytest.raises(ValueError, match="Stage 'c' has other tensors after pickling"):
        check_backbone(network)
    message = "Stage 'c' returns something else after pickling"
    with pytest.raises(ValueError, match=message):
        check_backbone(with_stage(Restored()))


class WrongPadding(nn.Module):
    """Counts padding as tokens."""

    def forward(self, x):
        return x.nan_to_num().mean(1)


def test_padding_is_no_part_of_a_text():
    given = text_backbone()
    given.stages.pool = WrongPadding()
    with pytest.raises(ValueError, match="stage 'pool' for a row depends on other"):
        check_backbone(Backbone(given.stages, given.reader))


def test_a_reference():
    net = make_net().eval()
    check_backbone(Backbone(net, READER), reference=net)
    wrong = nn.Sequential(*list(net)[:2], net[3])
    with pytest.raises(ValueError, match=r"return shape \(3, 16\), and the reference"):
        check_backbone(Backbone(net, READER), reference=wrong)
    with pytest.raises(ValueError, match="1 of 9 checks.\n.*differ by up to 0.5 of"):
        check_backbone(Backbone(net, READER), reference=lambda x: 2 * net(x))


def test_what_cannot_be_loaded_or_run_has_its_own_error():
    with pytest.raises(ValueError, match="Did you mean"):
        check_backbone("resnet19")
    with pytest.raises(ValueError, match="cannot be run"):
        check_backbone(nn.Sequential(nn.Conv2d(5, 1, 1)))


def test_registered_names_and_their_weights(monkeypatch):
    monkeypatch.setattr(_load, "_registered", {})
    register_backbone("small-registered", make_net)
    check_backbone("small-registered", weights=None, image_size=32)


def test_nothing_given_is_changed():
    net = make_net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    check_backbone(net, image_size=32)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
