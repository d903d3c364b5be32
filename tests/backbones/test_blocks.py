from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import Permute

from sktransfer.backbones._blocks import Stage


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


class Backwards(nn.Sequential):
    def forward(self, x):
        for module in reversed(self):
            x = module(x)
        return x


class Named(nn.Sequential):
    pass


def names(stage):
    return [[*dict(block.module.named_children())] for block in stage.blocks]


def state(module):
    return {name for name, _ in module.named_parameters()}


def test_what_stands_between_blocks_belongs_to_the_next_one():
    steps = [
        nn.ReLU(),
        Block(),
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        Block(),
        nn.MaxPool2d(2),
    ]
    stage = Stage(nn.Sequential(*steps))
    assert names(stage) == [["0", "1"], ["2", "3", "4", "5"]]


def test_rows_in_a_row_are_taken_apart_if_they_have_blocks():
    down = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1))
    rows = nn.Sequential(down, Named(Block(), nn.Sequential(Block()), Block()))
    stage = Stage(rows)
    assert names(stage) == [["0", "1"], ["1"], ["1"]]
    assert stage.blocks[0].module[0] is down
    # By the names that they have in the stage, as `after` has them, too.
    assert set().union(*(state(b.module) for b in stage.blocks)) == state(rows)
    assert state(stage.after(1).module) <= state(rows)


@pytest.mark.parametrize("count", [1, 2])
def test_what_remains_after_some_blocks(count):
    stage = Stage(nn.Sequential(Block(), Block(), Block()))
    rest, x = stage.after(count), torch.rand(1, 4, 5, 5)
    assert stage.after(count) is rest
    assert rest.blocks == stage.blocks[count:]
    for block in stage.blocks[:count]:
        x = block.module(x)
    y = x
    for block in rest.blocks:
        y = block.module(y)
    assert torch.equal(rest.module(x), y)
    assert rest.causes == stage.causes[count:]


def hooked():
    row = nn.Sequential(Block(), Block())
    row.register_forward_hook(lambda module, args, output: 2 * output)
    return row


def patched():
    row = nn.Sequential(Block(), Block())
    row.forward = torch.relu
    return row


shared = Block()


@pytest.mark.parametrize(
    "module",
    [
        Block(),
        nn.Sequential(Block()),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(Block(), nn.Conv2d(4, 4, 1), nn.ReLU()),
        nn.Sequential(Permute([0, 2, 3, 1]), Block(), Block(), Permute([0, 3, 1, 2])),
        nn.Sequential(shared, Block(), shared),
        nn.ModuleList([Block(), Block()]),
        Backwards(Block(), Block()),
        hooked(),
        patched(),
    ],
)
def test_what_is_no_row_of_blocks_is_not_divided(module):
    stage = Stage(module)
    assert stage.blocks == [stage]


def test_a_hook_of_a_block_goes_with_it():
    row = nn.Sequential(OrderedDict(one=Block(), two=Block()))
    plain = Stage(row).causes
    row.two.register_forward_hook(lambda module, args, output: 2 * output)
    hooked = Stage(row).causes
    assert hooked[0] == plain[0]
    assert hooked[1] != plain[1]
