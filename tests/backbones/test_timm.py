import copy
import os
import pickle
import subprocess
import sys
import time
import urllib.error

import pytest
import torch
from torch import nn

from sktransfer import (
    WeightsMismatchError,
    list_backbones,
    load_backbone,
    split_stages,
)
from sktransfer.backbones import _timm
from sktransfer.backbones._fusion import fuse
from sktransfer.backbones._load import weights_licence
from sktransfer.backbones._weights import module_digest

timm = pytest.importorskip("timm")

BLOCKS = " ".join(f"block{i}" for i in range(1, 7))
STAGES = "stem stage1 stage2 stage3 stage4"
# The stages of one small network per family.
SMALL = {
    "test_resnet": "stem layer1 layer2 layer3 layer4 pool",
    "test_vit": f"stem {BLOCKS} pool",
    "test_vit4": f"stem {BLOCKS} block7 block8 block9 pool",
    "test_convnext": f"{STAGES} pool",
    "test_byobnet": f"{STAGES} pool",
    "test_nfnet": f"{STAGES} last_conv pool",
    "test_mambaout": f"{STAGES} pool",
    "test_maxvit": f"{STAGES} pool",
    "test_efficientnet": "stem block1 block2 block3 block4 block5 last_conv pool",
    "mobilenetv3_small_050": f"stem {BLOCKS} pool",
    "regnetx_002": "stem s1 s2 s3 s4 pool",
    "dla46x_c": "stem level0 level1 level2 level3 level4 level5 pool",
    "starnet_s050": f"{STAGES} pool",
    "edgenext_xx_small": f"{STAGES} pool",
    "resnet10t": "stem layer1 layer2 layer3 layer4 pool",
}

SHORT = {"depth": 2, "embed_dim": 96, "num_heads": 3}


def build(name):
    """A model in which no scale of zero hides what a block computes."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.min() == parameter.max():
                parameter.uniform_(0.5, 1)
    return model.eval()


def without_classifier(model):
    other = copy.deepcopy(model)
    other.reset_classifier(0)
    return other


def inputs_of(model, n=3):
    return torch.randn(n, *model.pretrained_cfg["input_size"])


@pytest.mark.parametrize("name", SMALL)
def test_stages_in_a_row_are_the_model(name):
    model = build(name)
    digest, mode = module_digest(model), model.training
    seed = torch.random.get_rng_state()
    stages = split_stages(model)
    assert torch.equal(seed, torch.random.get_rng_state())
    assert module_digest(model) == digest
    assert model.training == mode
    assert " ".join(stages._modules) == SMALL[name]
    x = inputs_of(model)
    with torch.no_grad():
        whole, states = without_classifier(model)(x), [x]
        for stage in stages:
            states.append(stage(states[-1]))
        copies = [state.clone() for state in states]
        assert (states[-1] - whole).abs().max() <= 1e-6 * whole.abs().max()
        for depth, state in enumerate(states):
            assert torch.equal(stages[depth:](state), states[-1])
        # A suffix leaves the output of its prefix, which is stored, as it is.
        for state, before in zip(states, copies, strict=True):
            assert torch.equal(state, before)
    own = [id(p) for stage in stages for p in stage.parameters()]
    assert len(own) == len(set(own))
    classifier = {id(p) for p in model.get_classifier().parameters()}
    assert {*own} == {id(p) for p in model.parameters()} - classifier


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_byobnet"])
def test_stages_are_copied_pickled_fused_and_run_on_the_meta_device(name):
    model = build(name)
    stages = split_stages(model)
    x = inputs_of(model, n=2)
    with torch.no_grad():
        expected = stages(x)
        for other in (copy.deepcopy(stages), pickle.loads(pickle.dumps(stages))):
            assert torch.equal(other(x), expected)
        torch.testing.assert_close(fuse(stages)(x), expected, rtol=1e-3, atol=1e-4)
        last = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(stages(last), expected, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert stages(x).shape == expected.shape
    assert load_backbone(model).n_features == expected.shape[1]


def test_tokens_are_handed_from_block_to_block():
    backbone = load_backbone(build("test_vit"))
    assert backbone.shapes[:-1] == [(101, 64)] * 7
    assert backbone.shapes[-1] == (64,)


# Their blocks take the size of the grid, or rotary positions, besides the tokens.
@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("mvitv2_tiny", {}, 128),
        ("twins_svt_small", {"depths": (1, 1, 1, 2)}, 128),
        ("vit_small_patch16_dinov3", SHORT, 64),
    ],
)
def test_blocks_that_take_more_are_cut_for_other_sizes_too(name, options, side):
    model = timm.create_model(name, **options).eval()
    stages = split_stages(model)
    assert len(stages) > 3
    for x in (inputs_of(model, 1), torch.randn(2, 3, side, side)):
        with torch.no_grad():
            assert torch.equal(stages(x), without_classifier(model)(x))


def test_image_size():
    sized = load_backbone(build("test_resnet"), image_size=64)
    assert sized.shapes[-2][1:] == (2, 2)
    with pytest.raises(ValueError, match="cannot take image_size=64: .*leave image"):
        load_backbone(timm.create_model("vit_tiny_patch16_224", **SHORT), image_size=64)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        # Class attention after the blocks, and positions that all blocks share.
        ("cait_xxs24_224", {"depth": 1}, "more than call its parts, before and after"),
        (
            "vit_srelpos_small_patch16_224",
            SHORT,
            "blocks.0 takes more than",
        ),
    ],
)
def test_a_model_that_cannot_be_cut_is_one_stage(name, options, why):
    model = timm.create_model(name, **options).eval()
    message = f"one stage, 'all', as .*{why}.*classifier is left out"
    with pytest.warns(UserWarning, match=message):
        backbone = load_backbone(model)
    assert backbone.stage_names == ("all",)
    x = inputs_of(model, 1)
    with torch.no_grad():
        assert torch.equal(backbone.stages(x), without_classifier(model)(x))


def test_a_state_that_is_used_elsewhere_too_is_noticed():
    class Skipping(timm.models.ResNet):
        def forward_features(self, x):
            x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
            early = self.layer1(x)
            x = self.layer4(self.layer3(self.layer2(early)))
            # The parts are in a row all the same.
            return x.add_(early.mean())

    block = timm.models.resnet.BasicBlock
    model = Skipping(block, (1, 1, 1, 1), channels=(8, 8, 8, 8))
    with pytest.warns(UserWarning, match="in a row give something else"):
        assert len(split_stages(model)) == 1


def test_a_block_that_changes_its_input_in_place_is_noticed():
    model = build("test_resnet")
    model.layer3 = nn.Sequential(nn.Hardtanh(0, 0.1, inplace=True), model.layer3)
    with pytest.warns(UserWarning, match="change in place what they are given"):
        assert len(split_stages(model)) == 1


def test_a_model_without_the_two_halves_is_one_stage():
    class Own(timm.models.ResNet):
        forward_head = property()

    model = Own(timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8))
    with pytest.warns(UserWarning, match="as it has no forward_features"):
        assert len(split_stages(model)) == 1


# A classifier may be a layer of the network, or one of a part of it.
@pytest.mark.parametrize("timm_name", ["resnet10t", "test_convnext", "test_vit"])
def test_a_module_of_timm_is_what_its_name_is(timm_name, tmp_path):
    model = timm.create_model(timm_name, pretrained=False)
    # A whole checkpoint, with its classifier, and one that was saved without.
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    torch.save(without_classifier(model).state_dict(), tmp_path / "bare.pth")
    state = module_digest(model)
    given = load_backbone(model)
    assert module_digest(model) == state
    assert len(given.stages) > 5
    x = torch.rand(2, 3, given.reader.crop, given.reader.crop)
    with torch.no_grad():
        assert torch.equal(given.stages(x), without_classifier(model).eval()(x))
    for file in ("whole.pth", "bare.pth"):
        named = load_backbone(f"timm/{timm_name}", weights=tmp_path / file)
        assert named.digest == given.digest
        assert named.cause(2) == given.cause(2)
        assert named.reader == given.reader
    other = timm.create_model(timm_name, pretrained=False)
    again = load_backbone(other, weights=tmp_path / "whole.pth")
    assert again.digest == given.digest


def test_digests_are_those_of_another_process():
    code = (
        "from sktransfer import load_backbone\n"
        "for name in ('test_vit', 'test_resnet'):\n"
        "    b = load_backbone(f'timm/{name}', weights=None, random_state=0)\n"
        "    print(b.cause(len(b.stages)))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert len(found[0].split()) == 2


def test_a_file_of_another_model_of_timm_is_refused(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsMismatchError, match="it lacks .*it has unknown"):
        load_backbone("timm/mobilenetv3_small_050", weights=tmp_path / "w.pth")


def no_network(*args, **options):
    raise urllib.error.URLError("no network")


@pytest.fixture
def empty_store(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(_timm.urllib.request, "urlopen", no_network)
    return tmp_path


def test_without_a_network_one_error_says_what_to_do_soon(empty_store):
    start = time.monotonic()
    with pytest.raises(
        OSError,
        match="'timm/test_resnet' are not in HF_HOME .*huggingface.co/timm/test_resnet"
        ".*no network.*pass weights='<path to model.safetensors>'",
    ):
        load_backbone("timm/test_resnet")
    assert time.monotonic() - start < 10


def test_the_hub_is_not_asked_if_it_is_said_to_be_offline(empty_store, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        load_backbone("timm/test_resnet")


@pytest.mark.parametrize("name", ["test_resnet", "resnet18.tv_in1k"])
def test_stored_weights_are_loaded_without_a_network(name, empty_store):
    from safetensors.torch import save_file

    model = build(name)
    repository = timm.get_pretrained_cfg(name).hf_hub_id.replace("/", "--")
    folder = empty_store / f"models--{repository}"
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1")
    save_file(model.state_dict(), folder / "snapshots" / "1" / "model.safetensors")
    backbone = load_backbone(f"timm/{name}")
    given = load_backbone(model)
    assert backbone.digest == given.digest
    assert backbone.reader == given.reader
    # Where they were found decides nothing.
    assert backbone.cause(3) == given.cause(3)


def test_a_tag_chooses_among_the_recipes_of_a_model():
    sizes = {"resnet18": 236, "resnet18.a1_in1k": 236, "resnet18.tv_in1k": 256}
    backbones = [load_backbone(f"timm/{name}", weights=None) for name in sizes]
    assert [b.reader.resize for b in backbones] == [*sizes.values()]
    assert backbones[2].name == "timm/resnet18.tv_in1k"
    licences = [weights_licence(b.name, "default") for b in backbones]
    assert licences == ["apache-2.0", "apache-2.0", "bsd-3-clause"]


@pytest.mark.parametrize(
    ("name", "close"),
    [("resnet81", "'resnet18'"), ("resnet18.a1_in2k", "'resnet18.a1_in1k'")],
)
def test_unknown_names_and_tags_name_close_ones(name, close):
    with pytest.raises(ValueError, match=f"'timm/{name}': .*Did you mean .*{close}"):
        load_backbone(f"timm/{name}", weights=None)


def test_names_are_listed_if_a_pattern_asks_for_them(monkeypatch):
    listed = list_backbones("timm/resnet1*")
    assert {"timm/resnet18", "timm/resnet101"} <= {*listed}
    assert len(list_backbones("timm/*")) == len(timm.list_models())
    assert not any(name.startswith("timm/") for name in list_backbones())
    monkeypatch.setitem(sys.modules, "timm", None)
    assert list_backbones("timm/*") == []


def test_a_model_without_weights_says_so():
    without = next(n for n in timm.list_models("resnet*") if not _has_weights(n))
    with pytest.raises(ValueError, match="timm has no weights of it"):
        load_backbone(f"timm/{without}")


def _has_weights(name):
    config = timm.get_pretrained_cfg(name)
    return bool(config.hf_hub_id or config.url)
