import pytest
import torch

from sktransfer import WeightsMismatchError, load_backbone
from sktransfer.backbones._weights import module_digest

timm = pytest.importorskip("timm")


def test_timm_models_are_one_stage():
    backbone = load_backbone("timm/resnet10t", weights=None, random_state=0)
    assert len(backbone.stages) == 1
    assert backbone.n_features == 512


# A classifier may be a layer of the network, or one of a part of it.
@pytest.mark.parametrize(
    "timm_name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_a_module_of_timm_is_what_its_name_is(timm_name, tmp_path):
    model = timm.create_model(timm_name, pretrained=False)
    # A whole checkpoint, with its classifier, and one that was saved without.
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    bare = timm.create_model(timm_name, pretrained=False, num_classes=0)
    bare.load_state_dict(model.state_dict(), strict=False)
    torch.save(bare.state_dict(), tmp_path / "bare.pth")
    state = module_digest(model)
    with pytest.warns(UserWarning, match="one stage, 'all'.* classifier is left out"):
        given = load_backbone(model)
    assert module_digest(model) == state
    x = torch.rand(2, 3, given.reader.crop, given.reader.crop)
    with torch.no_grad():
        assert torch.equal(given.stages(x), bare.eval()(x))
    for file in ("whole.pth", "bare.pth"):
        named = load_backbone(f"timm/{timm_name}", weights=tmp_path / file)
        assert named.digest == given.digest
        assert named.reader == given.reader
    other = timm.create_model(timm_name, pretrained=False)
    with pytest.warns(UserWarning, match="classifier is left out"):
        again = load_backbone(other, weights=tmp_path / "whole.pth")
    assert again.digest == given.digest


def test_a_file_of_another_model_of_timm_is_refused(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsMismatchError, match="it lacks .*it has unknown"):
        load_backbone("timm/mobilenetv3_small_050", weights=tmp_path / "w.pth")
