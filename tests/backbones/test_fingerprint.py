import collections
import copy
import dataclasses
import functools
import importlib
import logging
import pickle
import re
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import Permute

from sktransfer import Backbone, EmbeddingCache, PretrainedFeatureExtractor
from sktransfer.backbones._fingerprint import behaviour_digest
from tests.small_network import Block

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


class Power(nn.Module):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, x):
        return (x.abs() ** self.power).mean((2, 3))


class Unsaved(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", torch.tensor(value), persistent=False)

    def forward(self, x):
        return x * self.value


def attention(heads):
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, heads, 16, batch_first=True)


def hooked(factor):
    module = nn.Identity()
    module.register_forward_hook(lambda module, args, output: output * factor)
    return module


def made_by(code):
    """Run the definition of a class anew, as a notebook does."""
    space = {"nn": nn}
    exec(code, space)
    return space["Made"]()


def changed(factor):
    """A module whose forward was replaced by hand, as one does in a notebook."""
    module = nn.Identity()
    module.forward = types.MethodType(lambda self, x: x * factor, module)
    return module


def with_changed_class(method):
    kind = type("Power", (Power,), {})
    kind.forward = [None, lambda self, x: x, lambda self, x: -x][method]
    return kind(1)


def keeping(thing):
    module = nn.Identity()
    module.kept = thing
    return module


MADE = (
    "class Made(nn.Module):\n    def forward(self, x):\n        return x.{}((2, 3))\n"
)
# The helper is called like a module of the standard library.
HELPED = "def copy(x):\n    return x.{}((2, 3))\n" + MADE.replace(
    "x.{}((2, 3))", "copy(x)"
)
PAIRS = {
    "an attribute": (lambda n: Power(n)),
    "heads": (lambda n: attention(2 * n)),
    "an unsaved buffer": (lambda n: Unsaved(float(n))),
    "dims of torchvision's": (lambda n: Permute([0, n, 3 - n, 3])),
    "a hook's closure": (lambda n: hooked(n)),
    "code": (lambda n: made_by(MADE.format(["", "mean", "amax"][n]))),
    "a forward of its own": (lambda n: changed(n)),
    "a method that was replaced": (lambda n: with_changed_class(n)),
    "what is missing": (
        lambda n: keeping(collections.defaultdict(functools.partial(int, n)))
    ),
    "a set": (lambda n: keeping({"a", "b", n})),
    "code of a function": (lambda n: made_by(HELPED.format(["", "mean", "amax"][n]))),
}


@pytest.mark.parametrize("case", PAIRS)
def test_what_computes_otherwise_has_another_digest(case):
    make = PAIRS[case]
    one, other = make(1), make(2)
    assert behaviour_digest(one) != behaviour_digest(other)
    assert behaviour_digest(one) == behaviour_digest(make(1))
    assert behaviour_digest(one) == behaviour_digest(copy.deepcopy(one))


def test_networks_of_one_state_do_not_share_embeddings():
    cache = EmbeddingCache()
    for power in (1, 2):
        rows = [
            PretrainedFeatureExtractor(
                Backbone(nn.Sequential(Power(power))), cache=store
            ).transform(IMAGES)
            for store in (None, cache)
        ]
        np.testing.assert_array_equal(*rows)


def test_what_cannot_be_described_is_shared_by_none():
    module = Power(1)
    module.anything = iter(())
    assert behaviour_digest(module) != behaviour_digest(module)
    # Of one backbone it is one, all the same.
    backbone = Backbone(nn.Sequential(module))
    assert backbone.cause(1) == backbone.cause(1)


@dataclasses.dataclass
class Config:
    width: int = 4


class Slots:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate


class Bare:
    pass


class Ordinary(Power):
    """What modules of users have, in ways that are the same whenever it is made."""

    def __init__(self, rate=1, dims=(2, 3), layers=[1, 2]):  # noqa: B006
        super().__init__(1)
        self.config, self.slots, self.bare = Config(), Slots(rate), Bare()
        self.dims, self.kernel, self.layers = dims, (3, 3), layers
        self.log = logging.getLogger("ordinary")
        self.reduce = functools.partial(torch.mean, dim=(2, 3))
        self.mask = torch.eye(3).to_sparse()
        self.words, self.largest = re.compile("a+"), np.maximum
        self.parent, self.code = [self], Bare()

    @functools.cached_property
    def costly(self):
        return 1


def test_equal_modules_have_one_digest_however_they_were_made():
    one = Ordinary()
    digest = behaviour_digest(one)
    for same in [Ordinary(), copy.deepcopy(one), pickle.loads(pickle.dumps(one))]:
        assert behaviour_digest(same) == digest
    assert behaviour_digest(Ordinary(rate=2)) != digest
    for name, value in {
        "lock": threading.Lock(),
        "nowhere": torch.empty(3, device="meta"),
    }.items():
        setattr(one, name, value)
        assert behaviour_digest(one) == behaviour_digest(one) != digest


def test_traced_graphs_have_one_digest():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    other = nn.Sequential(net[0], nn.Sigmoid())
    one, same, another = map(torch.fx.symbolic_trace, [net, net, other])
    assert behaviour_digest(one) == behaviour_digest(same) != behaviour_digest(another)


HELPERS = """
import functools
def scale(x): return x * 1.0
def _half(x, by): return x / by
half = functools.partial(_half, by=2.0)
@functools.lru_cache
def kept(): return 3.0
RATES = (4.0, 5.0)
"""
USER = """
class Made(nn.Module):
    def forward(self, x):
        return h.scale(h.half(x)) * h.kept() * h.RATES[0]
"""


@pytest.mark.parametrize("number", ["1.0", "2.0", "3.0", "4.0"])
def test_code_in_modules_of_ones_own_counts(number):
    """A helper that is edited between two runs."""
    digests = []
    for text in [HELPERS, HELPERS.replace(number, "9.0")]:
        helpers = types.ModuleType("own_helpers")
        exec(text, vars(helpers))
        space = {"nn": nn, "h": helpers}
        exec(USER, space)
        digests.append(behaviour_digest(space["Made"]()))
    assert digests[0] != digests[1]


def test_code_counts_as_it_was_imported(tmp_path, monkeypatch):
    """An edited file says nothing of what this process computes, until a reload."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / "own_package"
    folder.mkdir()
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "import own_package.steps\n"
        "from own_package import steps\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x): return own_package.steps.step(x)\n"
    )
    step = "def step(x): return x * {}\n"
    (folder / "steps.py").write_text(step.format(1))
    net = importlib.import_module("own_package.net")
    digest = behaviour_digest(net.Net())
    (folder / "steps.py").write_text(step.format(22))
    assert behaviour_digest(net.Net()) == digest
    importlib.reload(net.steps)
    assert behaviour_digest(net.Net()) != digest
    (folder / "steps.py").write_text("# A comment.\n\n" + step.format(1))
    importlib.reload(net.steps)
    assert behaviour_digest(net.Net()) == digest


def test_circles_end():
    module = Power(1)
    module.friends = [module, {"me": module}]
    assert behaviour_digest(module) == behaviour_digest(copy.deepcopy(module))


def test_another_process_finds_the_same():
    code = (
        "from tests.small_network import Block\n"
        "from sktransfer.backbones._fingerprint import behaviour_digest\n"
        "print(behaviour_digest(Block('a', 3, 4)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == behaviour_digest(Block("a", 3, 4))
