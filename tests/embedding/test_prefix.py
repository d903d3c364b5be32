import joblib
import numpy as np
import PIL
import pytest
import torch
from torch import nn

from sktransfer import (
    Backbone,
    EmbeddingCache,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
)
from sktransfer.embedding import _prefix
from sktransfer.embedding._embed import StageOutputs
from sktransfer.embedding._embed import embed as embed_samples
from sktransfer.embedding._prefix import Prefix
from sktransfer.embedding._reading import sample_digests
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Samples
from tests.small_network import greedy

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def embed(backbone, batch_size):
    settings = {"batch_size": batch_size, "cache": None, "device": "cpu"}
    return PretrainedFeatureExtractor(backbone, **settings).transform(IMAGES)


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_a_batch_that_does_not_fit_is_halved_and_the_work_goes_on(most):
    fits = {1: 1, 2: 2, 3: 2, 4: 4}[most]
    with pytest.warns(UserWarning, match=f"8 images .*; {fits} do. Set batch_size"):
        found = embed(greedy(most), 8)
    np.testing.assert_array_equal(found, embed(greedy(8), fits))


@pytest.mark.filterwarnings("ignore:Batches of")
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_what_halved_batches_gave_is_not_kept_for_whole_ones(n_jobs):
    cache = EmbeddingCache()
    settings = {"batch_size": 4, "cache": cache, "device": "cpu", "n_jobs": n_jobs}
    extractor = PretrainedFeatureExtractor(greedy(2), **settings)
    with joblib.parallel_config(backend="threading"):
        extractor.transform(IMAGES)
    assert cache.info().rows == 0
    extractor.set_params(batch_size=2).transform(IMAGES)
    assert cache.info().rows == len(IMAGES)


@pytest.mark.filterwarnings("ignore:Batches of")
@pytest.mark.parametrize(("size", "kept"), [(4, 0), (2, len(IMAGES))])
def test_nor_is_it_kept_of_rows_that_come_from_another_stage(size, kept):
    cache, prefix = EmbeddingCache(), Prefix(greedy(2), 2, batch_size=size)
    reader = prefix.backbone.reader
    rows = StageOutputs(torch.stack([reader.read(image) for image in IMAGES]))
    known = sample_digests(Samples(list(IMAGES), reader))
    embed_samples(rows, [prefix], cache=cache, digests=known)
    assert cache.info().rows == kept


@pytest.mark.parametrize(
    ("side", "kernel", "size"),
    [(32, 3, 32), (224, 3, 8), (384, 3, 2), (900, 3, 1), (288, 1, 16), (384, 1, 2)],
)
def test_batches_on_a_cpu_are_smaller_for_larger_images(side, kernel, size):
    stages = nn.Sequential(nn.Conv2d(3, 4, kernel), nn.AdaptiveAvgPool2d(1))
    backbone = Backbone(stages, ImageReader(resize=side, crop=side))
    assert Prefix(backbone, 1).size == size
    assert Prefix(backbone, 1, batch_size=5).size == 5
    assert Prefix(backbone, 1, device="cuda").size == 128


def test_a_stage_that_computes_in_place_does_not_change_the_one_before():
    stages = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten())
    backbone = Backbone(stages, ImageReader(resize=8, crop=8))
    wanted = [(1, "none"), (2, "none")]
    _, found = Prefix(backbone, 2).run_within_memory(torch.rand(2, 3, 8, 8), 0, wanted)
    assert found[1, "none"].min() < 0 <= found[2, "none"].min()


@pytest.mark.parametrize("module", [torch, PIL], ids=["torch", "Pillow"])
def test_keys_tell_the_versions_that_compute_and_decode(module, monkeypatch):
    prefix = Prefix(greedy(8), 1)
    before = prefix.keys([b"image"])
    monkeypatch.setattr(module, "__version__", "0.1")
    assert prefix.keys([b"image"]) != before


def test_keys_tell_the_type_of_the_device_but_not_its_number():
    # None of them is used, and of the last two torch has no switches of its own.
    keys = {
        device: Prefix(greedy(8), 1, batch_size=4, device=device).keys([b"image"])[0]
        for device in ["cpu", "cuda", "mps", "xpu", "cuda:1"]
    }
    assert keys.pop("cuda:1") == keys["cuda"]
    assert len(set(keys.values())) == len(keys)


def test_keys_tell_what_torch_may_compute_float32_in():
    prefix = Prefix(greedy(8), 1)
    before = prefix.keys([b"image"])
    try:
        torch.set_float32_matmul_precision("medium")
        assert prefix.keys([b"image"]) != before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert prefix.keys([b"image"]) == before


@pytest.mark.filterwarnings("ignore:Batches of")
def test_an_image_that_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(RuntimeError, match="One image of 16 pixels .* image_size"):
        embed(greedy(0), 4)


@pytest.mark.filterwarnings("ignore:Batches of")
def test_a_fit_that_does_not_fit_names_the_batch_size():
    model = FineTuneClassifier(greedy(2), batch_size=4, random_state=0, device="cpu")
    with pytest.raises(RuntimeError, match=r"'cpu' with batch_size=4 \(Tried to alloc"):
        model.fit(IMAGES, np.arange(5) % 2)
    assert not hasattr(model, "backbone_")
    model.set_params(batch_size=2, max_epochs=1).fit(IMAGES, np.arange(5) % 2)


def test_a_device_without_views_in_inference_mode_computes_in_another(monkeypatch):
    class NoViews:
        def __getitem__(self, place):
            if torch.is_inference_mode_enabled():
                raise RuntimeError("Cannot set version_counter for inference tensor")

    assert _prefix._without_gradients("cpu") is torch.inference_mode
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: NoViews())
    assert _prefix._without_gradients("cpu:0") is torch.no_grad


@pytest.mark.parametrize(("kind", "has"), [("xpu", True), ("mps", False)])
def test_other_devices_have_bfloat16_if_torch_casts_to_it(monkeypatch, kind, has):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: True)
    assert _prefix._has_bfloat16(torch.device(kind)) is has
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: False)
    assert not _prefix._has_bfloat16(torch.device(kind))
