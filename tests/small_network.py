"""A network that takes a millisecond, where what is tested is not the network."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from sktransfer import Backbone
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._text import TextReader

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


WORDS = ["good", "bad", "day", "a", "so", "too", "very", "film"]


def tokenizer_json(words=WORDS):
    """The text of a tokenizer.json for a few words, with a token at either end."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ends = ["[CLS]", "[SEP]"]
    vocabulary = {w: i for i, w in enumerate(["[UNK]", *ends, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(ends)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(end, vocabulary[end]) for end in ends]
    )
    return tokenizer.to_str()


class Tokens(nn.Module):
    """Tokens -> (n, length, channels), NaN where there is padding."""

    def __init__(self, n_tokens, n_out):
        super().__init__()
        self.table = nn.Embedding(n_tokens, n_out)

    def forward(self, x):
        there = (x >= 0)[..., None]
        if x.device.type != "meta":
            counts["tokens"] = counts.get("tokens", 0) + len(x)
        return self.table(x.clamp(min=0)).masked_fill(~there, float("nan"))


class Mixing(nn.Module):
    """Each token together with the mean of all; `Pooling` gives that mean alone."""

    def __init__(self, n):
        super().__init__()
        self.own, self.all = nn.Linear(n, n), nn.Linear(n, n)

    def forward(self, x):
        mean = x.nanmean(1, keepdim=True)
        there = ~x[..., :1].isnan()
        h = torch.tanh(self.own(x.masked_fill(~there, 0.0)) + self.all(mean))
        return h.masked_fill(~there, float("nan"))


class Pooling(nn.Module):
    def forward(self, x):
        return x.nanmean(1)


def text_backbone(max_length=12):
    """A backbone of texts with stages as those of transformers: stem, layers, pool."""
    torch.manual_seed(0)
    stages = {"stem": Tokens(len(WORDS) + 3, 8), "layer1": Mixing(8)}
    stages |= {"layer2": Mixing(8), "pool": Pooling()}
    reader = TextReader(tokenizer_json(), max_length, longest=20)
    return Backbone(nn.Sequential(OrderedDict(stages)), reader, name="small-text")
