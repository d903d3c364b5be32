import copy
import pickle
from collections import OrderedDict

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.transforms.v2 import Grayscale

from sktransfer import Backbone, WeightsMismatchError, load_backbone, split_stages
from sktransfer.backbones._load import _load_named
from sktransfer.inputs._images import ImageReader
from tests.small_network import Block, backbone_of_blocks, text_backbone
from tests.small_tasks import make_picture


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def test_a_backbone_owns_a_copy_that_does_not_train():
    net = small_net().train()
    backbone = Backbone(net)
    assert net.training
    assert not backbone.stages.training
    assert not any(p.requires_grad for p in backbone.stages.parameters())
    digest = backbone.digest
    net[0][0].weight.data.zero_()
    assert Backbone(backbone.stages).digest == digest


def test_copies_are_the_backbone_itself():
    backbone = Backbone(small_net())
    assert copy.deepcopy(backbone) is backbone


def test_shapes_and_names():
    backbone = Backbone(small_net(), ImageReader(resize=32, crop=32), name="small")
    assert backbone.stage_names == ("0", "1", "2")
    assert backbone.shapes == [(6, 15, 15), (8, 7, 7), (8,)]
    assert backbone.n_features == 8
    assert repr(backbone) == "<Backbone 'small': 3 stages, 636 parameters, 32 pixels>"


@pytest.mark.parametrize(
    ("stage", "depth"),
    [(None, 3), ("all", 3), (0, 0), (2, 2), (-1, 2), (-3, 0), ("1", 2), (3, 3)],
)
def test_a_depth_is_a_number_a_name_or_all(stage, depth):
    assert Backbone(small_net()).depth(stage) == depth


@pytest.mark.parametrize("stage", ["layer9", 4, -4, -10, True, 1.5, ()])
def test_a_stage_that_does_not_exist_is_refused_as_it_was_given(stage):
    with pytest.raises(ValueError, match=r"expected .*\['0', '1', '2'\]") as caught:
        Backbone(small_net()).depth(stage, parameter="freeze")
    assert str(caught.value).startswith(f"Invalid freeze={stage!r} of backbone")
    assert "register" not in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "meant"),
    [("ALL", "'all'"), ("layer-1", "'Layer1'"), ("x", None), (12, None)],
)
def test_a_name_close_to_one_is_proposed(stage, meant):
    stages = nn.Sequential(OrderedDict({"Layer1": small_net(), "1": nn.Identity()}))
    with pytest.raises(ValueError, match="expected one of the stages") as caught:
        Backbone(stages).depth(stage)
    assert ("Did you mean" in str(caught.value)) == (meant is not None)
    assert meant is None or f"Did you mean {meant}?" in str(caught.value)


def test_a_network_that_was_not_split_says_why_it_has_one_stage():
    stages = nn.Sequential(OrderedDict(all=small_net()))
    with pytest.raises(ValueError, match="this process does not know how to split it"):
        Backbone(stages).depth(2, parameter="freeze")


@pytest.mark.parametrize(
    ("freeze", "depth"), [(0, 0), (1, 1), (2, 3), (3, 3), (-1, 3), ("1", 3), ("all", 3)]
)
def test_nothing_is_left_to_train_in_stages_without_parameters(freeze, depth):
    assert Backbone(small_net()).freeze_depth(freeze) == depth


def test_freeze_depth_names_its_parameter():
    with pytest.raises(ValueError, match="^Invalid freeze=-10 of backbone"):
        Backbone(small_net()).freeze_depth(-10)


def grey_net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("ask", ["shapes", "n_features", "size"])
def test_a_network_for_grey_pictures_says_how_to_convert_them(ask):
    backbone = Backbone(grey_net(), ImageReader(resize=16, crop=16), name="grey")
    with pytest.raises(ValueError, match=r"'grey' cannot .*in_channels=1, .*Grayscale"):
        backbone.at_size(8) if ask == "size" else getattr(backbone, ask)


def test_a_network_for_grey_pictures_runs_as_its_error_advises():
    stages = nn.Sequential(Grayscale(), *split_stages(grey_net()))
    backbone = Backbone(stages, ImageReader(resize=16, crop=16))
    assert backbone.shapes == [(1, 16, 16), (4, 14, 14), (4, 1, 1), (4,)]


def test_a_network_that_cannot_be_run_says_what_it_was_given():
    stages = nn.Sequential(nn.Conv2d(3, 3, 9))
    backbone = Backbone(stages, ImageReader(resize=8, crop=8))
    with pytest.raises(ValueError, match=r"'custom' cannot be run: .*\(n, 3, 8, 8\)"):
        backbone.shapes  # noqa: B018


def test_inference_stages_equal_the_stages():
    loaded = load_backbone("resnet18", weights=None, random_state=0, image_size=64)
    stages = copy.deepcopy(loaded.stages)
    for module in stages.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    backbone = Backbone(stages, loaded.reader)
    with torch.no_grad():
        x = torch.rand(2, 3, 64, 64)
        fused, plain = backbone.inference_stages()(x), backbone.stages(x)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    assert not any(
        isinstance(m, nn.BatchNorm2d) for m in backbone.inference_stages().modules()
    )


class DataDependent(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_stages_that_look_at_their_data_have_shapes_too():
    backbone = Backbone(nn.Sequential(DataDependent()), ImageReader(resize=8, crop=8))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(backbone.inference_stages()(x), x.mean((2, 3)))
    assert backbone.n_features == 3


def test_another_image_size_keeps_the_proportions():
    backbone = load_backbone("resnet18", weights=None, random_state=0)
    half = backbone.at_size(112)
    assert (half.reader.resize, half.reader.crop) == (128, 112)
    assert half.digest == backbone.digest
    assert half.shapes[1] == (64, 28, 28)
    assert backbone.shapes[1] == (64, 56, 56)


@pytest.mark.parametrize(
    ("net", "size"),
    [
        (models.VisionTransformer(32, 16, 1, 1, 8, 8), 40),
        (nn.Sequential(nn.Conv2d(3, 3, 9)), 8),
    ],
)
def test_a_size_that_the_architecture_cannot_take_is_refused(net, size):
    backbone = Backbone(split_stages(net), ImageReader(resize=32, crop=32), name="net")
    assert backbone.n_features
    with pytest.raises(ValueError, match=f"'net' cannot take image_size={size}: .+Its"):
        backbone.at_size(size)


class Taking(nn.Module):
    """Take inputs of one length, as a network with so many positions does."""

    def __init__(self, length, in_channels):
        super().__init__()
        self.length = length
        self.convolution = nn.Conv1d(in_channels, 1, 1)

    def forward(self, x):
        if x.shape[-1] != self.length:
            raise AssertionError(f"{x.shape[-1]} doesn't match {self.length}.")
        return x.flatten(1).float()


def taking(length, kind, in_channels):
    reader = ImageReader(resize=12, crop=12)
    if kind == "text":
        pytest.importorskip("tokenizers")
        reader = text_backbone(12).reader
    return Backbone(nn.Sequential(Taking(length, in_channels)), reader, name="net")


GREY = "Its first layer has in_channels=1, but all images"


@pytest.mark.parametrize(
    ("kind", "in_channels", "advice"),
    [
        ("text", 1, r"Its own size is [^;.]*; leave max_length=None\.$"),
        (
            "image",
            3,
            r"Its own size is 12 pixels; leave image_size=None, or .*small\.$",
        ),
        ("image", 1, GREY),
    ],
)
def test_advice_on_a_size_is_for_samples_of_that_kind(kind, in_channels, advice):
    backbone = taking(12, kind, in_channels)
    assert backbone.shapes
    with pytest.raises(ValueError, match=rf"=8: 8 doesn't match 12\. {advice}"):
        backbone.at_size(8)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("text", r"Set max_length to one it takes\.$"), ("image", GREY)],
)
def test_advice_on_what_cannot_be_run_is_for_samples_of_that_kind(kind, advice):
    backbone = taking(9, kind, in_channels=1)
    reason = r"cannot be run: 12 doesn't match 9\. Its inputs have shape .* computed\."
    with pytest.raises(ValueError, match=f"{reason} {advice}"):
        backbone.shapes  # noqa: B018


def test_a_pickle_refers_to_weights_that_can_be_loaded_again(monkeypatch):
    backbone = load_backbone("resnet18", weights=None, random_state=0)
    data = pickle.dumps(backbone.at_size(64))
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again.digest == backbone.digest
    assert again.reader.crop == 64


def test_a_pickle_is_checked_against_the_weights_of_then(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(models.squeezenet1_1().state_dict(), path)
    data = pickle.dumps(load_backbone("squeezenet1_1", weights=path))
    torch.save(models.squeezenet1_1().state_dict(), path)
    _load_named.cache_clear()
    with pytest.raises(WeightsMismatchError, match="Nothing was loaded"):
        pickle.loads(data)


def test_a_pickle_of_own_modules_holds_them():
    backbone = Backbone(small_net(), ImageReader(resize=20, crop=16), name="mine")
    again = pickle.loads(pickle.dumps(backbone))
    assert (again.digest, again.reader, again.name) == (
        backbone.digest,
        backbone.reader,
        "mine",
    )


def test_a_tuned_backbone_pickles_what_was_tuned():
    source = load_backbone("resnet18", weights=None, random_state=0)
    suffix = copy.deepcopy(source.stages[4:])
    suffix[0][0].conv1.weight.data += 1
    tuned = source.tuned(4, suffix)
    again = pickle.loads(pickle.dumps(tuned))
    assert again.digest == tuned.digest != source.digest
    assert tuned.cause(4) == source.cause(4)
    assert again.stage_names == source.stage_names
    # What is not tuned is shared, and so is all that is known of it.
    assert tuned.stages[3] is source.stages[3]
    assert tuned.inference_stages()[3] is source.inference_stages()[3]
    assert tuned.inference_stages()[4] is not source.inference_stages()[4]
    nothing = source.tuned(len(source.stages), nn.Sequential())
    assert nothing.digest == source.digest
    assert len(pickle.dumps(nothing)) < 3000


@pytest.mark.parametrize("size", [(300, 200), (200, 333), (64, 64), (100, 31)])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "squeezenet1_1"])
def test_the_reader_is_that_of_the_weights(name, size):
    entry = models.get_model_weights(name)["IMAGENET1K_V1"]
    reader = ImageReader.of(entry.transforms())
    picture = make_picture(0, *size)
    ours = reader.normalise(reader.read(picture)[None])[0]
    theirs = entry.transforms()(PIL.Image.fromarray(picture))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_very_long_picture_costs_no_more_than_its_middle():
    line = np.zeros((1, 60_000, 3), dtype=np.uint8)
    line[:, 29_000:31_000] = 255
    assert (ImageReader().read(line) == 255).all()


def test_uint8_and_float_squares_are_normalised_alike():
    reader = ImageReader()
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    np.testing.assert_array_equal(
        reader.normalise(x), reader.normalise(x.float().div_(255))
    )


def test_a_module_that_is_used_twice_is_two_stages():
    torch.manual_seed(0)
    act, x = nn.ReLU(), torch.rand(2, 3, 16, 16)
    parts = nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 5, 3), act, nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(*parts, nn.Flatten()).requires_grad_(False)
    backbone = Backbone(network, ImageReader(18, 16))
    assert backbone.stage_names == ("0", "1", "2", "3", "4", "5")
    tuned = backbone.tuned(2, network[2:])
    for one in (backbone, tuned, pickle.loads(pickle.dumps(tuned))):
        assert torch.equal(one.stages(x), network(x))
        torch.testing.assert_close(one.inference_stages()(x), network(x))


class Grid(nn.Module):
    """A stage that keeps what it has computed once."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.grid = None

    def forward(self, x):
        x = self.conv(x)
        if self.grid is None:
            self.grid = torch.linspace(0, 1, x.shape[3], device=x.device)
        return (x * self.grid).mean((2, 3))


def test_finding_the_shapes_leaves_the_stages_as_they_are():
    backbone = Backbone(nn.Sequential(Grid()), ImageReader(resize=16, crop=16))
    assert backbone.shapes == [(4,)]
    assert backbone.stages[0].grid is None
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        found = backbone.inference_stages()(x)
        torch.testing.assert_close(found, backbone.stages(x))


@pytest.mark.parametrize("output", ["tuple", "vector"])
def test_a_stage_that_gives_no_rows_is_named(output):
    class Wrong(nn.Module):
        def forward(self, x):
            return (x, x) if output == "tuple" else x.mean((1, 2, 3))

    backbone = Backbone(nn.Sequential(nn.Identity(), Wrong()))
    with pytest.raises(ValueError, match="Stage '1' returns .*tensor of shape"):
        backbone.shapes  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_backbone_is_in_float32(dtype):
    backbone = Backbone(nn.Sequential(nn.Conv2d(3, 4, 3).to(dtype), nn.Flatten()))
    assert {p.dtype for p in backbone.stages.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Conv2d(3, 3, 3),), "Invalid stages of type Conv2d: .*split_stages"),
        ((nn.Sequential(),), "Invalid stages of type Sequential: expected a non-empty"),
        (([nn.Flatten()],), "Invalid stages of type list"),
        (
            (nn.Sequential(nn.Flatten()), 224),
            "Invalid reader=224: .*as ImageReader",
        ),
        ((nn.Sequential(nn.Flatten()), ImageReader), "Invalid reader=<class"),
    ],
)
def test_what_is_no_backbone_is_refused_when_it_is_made(arguments, message):
    with pytest.raises(TypeError, match=message):
        Backbone(*arguments)


def test_blocks_have_names():
    backbone = backbone_of_blocks()
    assert backbone.stage_names == ("a", "b", "c", "pool")
    assert backbone.block_names == ("b.0", "b.1", "b.2")


@pytest.mark.parametrize("stage", [None, "all", 2, -1, "b", "b.2", "b.7", "z.0", 1.5])
def test_only_a_block_inside_a_stage_divides_it(stage):
    backbone = backbone_of_blocks()
    assert backbone.cut(stage) is backbone


@pytest.mark.parametrize(
    ("block", "names"),
    [("b.0", "a b.0 b c pool"), ("b.1", "a b.0 b.1 b c pool")],
)
def test_a_name_means_the_same_place_in_a_divided_backbone(block, names):
    backbone = backbone_of_blocks()
    cut = backbone.cut(block)
    assert cut.stage_names == tuple(names.split())
    assert cut.block_names == backbone.block_names
    assert cut.cut(block) is cut
    x = cut.reader.normalise(cut.reader.example(2))
    for stage in [*range(-4, 5), *backbone.stage_names, "all", None, "b.2"]:
        before, after = backbone.depth(stage), cut.depth(stage)
        assert torch.equal(cut.stages[:after](x), backbone.stages[:before](x))
        whole = backbone.inference_stages()[:before](x)
        assert torch.equal(cut.inference_stages()[:after](x), whole)


def test_cuts_add_up_in_any_order():
    backbone = backbone_of_blocks()
    cuts = [backbone.cut("b.1"), backbone.cut("b.0").cut("b.1")]
    cuts += [backbone.cut("b.1").cut("b.0")]
    assert {cut.stage_names for cut in cuts} == {("a", "b.0", "b.1", "b", "c", "pool")}
    assert len({cut.digest for cut in cuts}) == 1


def test_a_cause_does_not_tell_where_it_was_cut_unless_that_rounds():
    backbone = backbone_of_blocks()
    cut = backbone.cut("b.1")
    for name in [*backbone.stage_names, "b.2"]:
        before, after = backbone.depth(name), cut.depth(name)
        assert cut.cause(after) == backbone.cause(before)
        low = [cut.cause(after, "bfloat16"), backbone.cause(before, "bfloat16")]
        assert (low[0] == low[1]) == (name == "a")
    causes = {cut.cause(depth) for depth in range(len(cut.stages) + 1)}
    assert len(causes) == len(cut.stages) + 1


def test_an_unknown_block_says_which_there_are():
    backbone = backbone_of_blocks()
    with pytest.raises(ValueError, match=r"b' has the blocks \['b.0', 'b.1', 'b.2'\]"):
        backbone.depth("b.3")
    with pytest.raises(ValueError, match="Stage 'a' has no blocks to be cut after"):
        backbone.depth("a.0")


class InPlace(Block):
    def forward(self, x):
        return super().forward(x.mul_(2))


class Pair(Block):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([Block("x", 3, 3), InPlace("y", 3, 3)], "after 'body.0', as .* in place"),
        ([Block("x", 3, 3), nn.ReLU(inplace=True), Block("y", 3, 3)], "in place"),
        ([Pair("x", 3, 3), Block("y", 3, 3)], "Stage 'body.0' returns <class 'tuple'>"),
    ],
)
def test_a_cut_that_could_not_start_anew_is_refused(blocks, message):
    stages = nn.Sequential(OrderedDict(body=nn.Sequential(*blocks)))
    backbone = Backbone(stages, ImageReader(resize=18, crop=16))
    with pytest.raises(ValueError, match=message):
        backbone.cut("body.0")


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_a_divided_backbone_pickles_and_is_tuned(depth):
    cut = backbone_of_blocks().cut("b.1")
    suffix = copy.deepcopy(cut.stages[depth:])
    for parameter in suffix.parameters():
        parameter.data += 1
    tuned = cut.tuned(depth, suffix)
    assert tuned.stage_names == cut.stage_names
    for backbone in (cut, tuned, tuned.cut("b.0"), Backbone(tuned.stages)):
        again = pickle.loads(pickle.dumps(backbone))
        assert again.stage_names == backbone.stage_names
        assert again.digest == backbone.digest


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_tuned_backbone_that_is_cut_refers_to_the_source_alone(depth):
    source = backbone_of_blocks()
    suffix = copy.deepcopy(source.stages[depth:])
    for parameter in suffix.parameters():
        parameter.data += 1
    tuned = source.tuned(depth, suffix)
    cut = tuned.cut("b.0")
    assert cut.origin.source is not tuned
    assert cut.origin.source.digest == source.cut("b.0").digest
    again = pickle.loads(pickle.dumps(cut))
    assert again.cause(len(again.stages)) == tuned.cause(len(tuned.stages))
    assert again.stage_names == ("a", "b.0", "b", "c", "pool")
