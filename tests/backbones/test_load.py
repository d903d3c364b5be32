import functools
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from sktransfer import (
    Backbone,
    WeightsMismatchError,
    list_backbones,
    load_backbone,
    register_backbone,
    split_stages,
)
from sktransfer.backbones._load import _LIBRARIES, _registered, kind_of
from sktransfer.backbones._weights import file_sha256, module_digest


def test_all_of_torchvision_and_tiny_are_listed():
    names = list_backbones()
    assert names == sorted(names)
    assert {"tiny", *models.list_models(module=models)} <= set(names)
    assert list_backbones("resnet*") == sorted(
        name for name in names if name.startswith("resnet")
    )
    assert list_backbones("nothing*") == []


def test_random_weights_are_seeded_and_leave_the_global_seed_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = load_backbone("mobilenet_v3_small", weights=None, random_state=0)
    other = load_backbone("mobilenet_v3_small", weights=None, random_state=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.digest != other.digest
    again = load_backbone("mobilenet_v3_small", weights=None, random_state=0)
    assert again.digest == one.digest


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_is_loaded(tmp_path, suffix):
    model = models.mobilenet_v3_small(num_classes=7)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    backbone = load_backbone("mobilenet_v3_small", weights=path)
    features = dict(backbone.stages.named_parameters())
    kept = {p.shape for p in model.features.parameters()}
    assert kept == {p.shape for p in features.values()}
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval().avgpool(model.features(x)).flatten(1)
        torch.testing.assert_close(backbone.stages(x), expected)
    hashed = load_backbone(
        "mobilenet_v3_small", weights=(path, f"sha256:{file_sha256(path)}")
    )
    assert hashed.digest == backbone.digest
    with pytest.raises(WeightsMismatchError, match="was demanded"):
        load_backbone("mobilenet_v3_small", weights=(path, "sha256:00000000"))


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "w.pth"
    digests = set()
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(models.squeezenet1_1().state_dict(), path)
        digests.add(load_backbone("squeezenet1_1", weights=path).digest)
    assert len(digests) == 2


def test_a_changed_file_of_the_home_folder_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    digests = []
    for seed in range(2):
        source = load_backbone("tiny", weights=None, random_state=seed)
        torch.save(source.stages.state_dict(), tmp_path / "tiny.pth")
        digests.append(load_backbone("tiny", weights="~/tiny.pth").digest)
    assert digests[0] != digests[1]


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        WeightsMismatchError, match=r"w\.pth.*it lacks .*it has unknown"
    ):
        load_backbone("resnet18", weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet81"}, "Did you mean 'resnet18'"),
        ({"backbone": "resnet18", "weights": "V9"}, "Invalid weights='V9'"),
        ({"backbone": 3}, "Invalid backbone=3: expected a name"),
        ({"backbone": "resnet18", "weights": None, "image_size": 0}, "Invalid im"),
        (
            {"backbone": nn.Flatten, "weights": "IMAGENET1K_V1"},
            "for backbone 'Flatten'",
        ),
        ({"backbone": "timm/resnet_none"}, "timm"),
    ],
)
@pytest.mark.filterwarnings("ignore:How to split")
def test_what_is_not_known_is_refused(arguments, message):
    with pytest.raises((ValueError, ImportError), match=message):
        load_backbone(**arguments)


def three_stages():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_modules_and_factories_are_taken(tmp_path):
    torch.manual_seed(0)
    net = three_stages()
    backbone = load_backbone(net)
    assert module_digest(backbone.stages) == module_digest(net.eval())
    assert backbone.stages[0] is not net[0]
    one = load_backbone(three_stages, weights=None, random_state=0)
    assert one.digest == load_backbone(net, weights=None, random_state=0).digest
    assert one.digest != backbone.digest
    torch.save(net.state_dict(), tmp_path / "net.pth")
    again = load_backbone(three_stages, weights=tmp_path / "net.pth")
    assert again.digest == backbone.digest
    given = functools.partial(Backbone, net)
    assert load_backbone(given).digest == backbone.digest
    assert load_backbone(backbone) is backbone


def vit():
    # Its class token and positions have no reset_parameters; those of attention is
    # torch's own _reset_parameters.
    return models.VisionTransformer(16, 8, 1, 2, 8, 16)


def swin():
    # Tables of relative positions are bare, and so are its indices of them.
    return models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2])


def convnext():
    setting = functools.partial(models.convnext.CNBlockConfig, 8)
    return models.ConvNeXt([setting(8, 1), setting(None, 1)], layer_scale=0.5)


@pytest.mark.parametrize("make", [vit, swin, convnext])
def test_any_module_is_initialised_at_random(make):
    given, model = make(), make()
    with torch.no_grad():
        for parameter in given.parameters():
            parameter.add_(torch.rand(parameter.shape))
    before, state = torch.get_rng_state(), module_digest(given)
    one, again = (load_backbone(given, weights=None, random_state=0) for _ in "ab")
    other = load_backbone(given, weights=None, random_state=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert module_digest(given) == state
    assert one.digest == again.digest != other.digest
    model.load_state_dict(given.state_dict())
    assert load_backbone(model, weights=None, random_state=0).digest == one.digest
    trained = dict(split_stages(given).named_parameters())
    for name, parameter in one.stages.named_parameters():
        assert not torch.isclose(parameter, trained[name]).all(), name
    for name, buffer in split_stages(given).named_buffers():
        assert torch.equal(one.stages.get_buffer(name), buffer)


def test_a_library_is_one_module_and_its_prefix(monkeypatch):
    recipe = load_backbone("tiny").reader.resized_to(20)
    library = types.SimpleNamespace(
        load=lambda name, weights: ({"net": three_stages}[name](), recipe),
        reader_of=lambda model: recipe,
        kind_of=lambda model: "sound",
        stamp_of=lambda name: (),
        PACKAGE="own_library",
    )
    monkeypatch.setitem(_LIBRARIES, "own_library", library)
    named = load_backbone("own_library/net", weights=None, random_state=0)
    assert named.name == "own_library/net"
    assert named.reader == recipe
    kind = type("Net", (nn.Sequential,), {"__module__": "own_library.nets"})
    given = load_backbone(kind(*three_stages()), weights=None, random_state=0)
    assert given.reader == recipe
    assert kind_of("own_library/net") == kind_of(kind()) == "sound"
    assert kind_of("tiny") == kind_of(nn.Sequential()) == kind_of(given) == "image"
    for unknown in ("own_library", "no_library/net"):
        with pytest.raises(ValueError, match="expected .* 'own_library/<name>'"):
            load_backbone(unknown)


def test_names_can_be_registered():
    try:
        register_backbone("mine", three_stages)
        assert "mine" in list_backbones("m*")
        assert load_backbone("mine").name == "mine"
        assert load_backbone("mine", image_size=32).shapes[0] == (4, 30, 30)
    finally:
        del _registered["mine"]
    with pytest.raises(ValueError, match="expected a str and a callable"):
        register_backbone("mine", 3)


@pytest.mark.parametrize("name", [3, three_stages])
def test_a_name_to_register_is_a_string(name):
    with pytest.raises(ValueError, match="expected a str and .*in @register_backbone"):
        register_backbone(name)
