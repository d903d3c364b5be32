import pytest
import torch
from torchvision import models
from torchvision.models import ResNet18_Weights

from sktransfer import load_backbone
from sktransfer.backbones._torchvision import download_weights, find_entry


def test_entries_are_found_by_all_their_names():
    entry = ResNet18_Weights.IMAGENET1K_V1
    for weights in [
        "default",
        "IMAGENET1K_V1",
        "ResNet18_Weights.IMAGENET1K_V1",
        entry,
    ]:
        assert find_entry(ResNet18_Weights, weights) is entry
    with pytest.raises(ValueError, match="Did you mean 'IMAGENET1K_V1'"):
        find_entry(ResNet18_Weights, "imagenet1k_v2")
    with pytest.raises(ValueError, match="Invalid weights=3"):
        find_entry(ResNet18_Weights, 3)


def test_no_network_is_an_error_with_the_way_out(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.hub.set_dir(str(tmp_path))
    with pytest.raises(
        OSError, match=r"could not be downloaded.*https://.*place it at"
    ):
        download_weights(ResNet18_Weights.DEFAULT)
    assert not list(tmp_path.rglob("*.pth"))


def test_a_file_with_a_known_name_gets_its_entrys_recipe(tmp_path):
    entry = models.MobileNet_V2_Weights.IMAGENET1K_V2
    path = tmp_path / entry.url.rpartition("/")[2]
    torch.save(models.mobilenet_v2().state_dict(), path)
    assert load_backbone("mobilenet_v2", weights=path).reader.resize == 232
    other = path.rename(tmp_path / "mine.pth")
    assert load_backbone("mobilenet_v2", weights=other).reader.resize == 256
