import json

import numpy as np
import PIL.Image
import pytest
import torch

from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._processor import ProcessorReader

NORM = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


def pictures():
    """Of many proportions, so that what is left over by a crop is odd and even."""
    made = []
    for height, width in [(90, 131), (57, 80), (64, 64), (200, 99), (41, 38), (8, 100)]:
        rows, columns = np.mgrid[:height, :width]
        waves = [np.sin(rows / 7), np.cos(columns / 9), np.sin((rows + columns) / 5)]
        noise = np.random.default_rng(0).normal(0, 20, (height, width, 3))
        pixels = 127 + 90 * np.stack(waves, axis=-1) + noise
        made.append(pixels.clip(0, 255).astype(np.uint8))
    return made


def pixels(reader, image):
    return reader.normalise(reader.read(image)[None])[0]


CASES = {
    "ViT": {"size": {"height": 48, "width": 48}},
    "DeiT": {"size": {"height": 56, "width": 56}, "crop_size": 48, "resample": 3},
    "Siglip": {"size": {"height": 48, "width": 48}, "resample": 3},
    "CLIP": {"size": {"shortest_edge": 48}, "crop_size": 48, "resample": 3},
    "Bit": {"size": {"shortest_edge": 55}, "crop_size": {"height": 48, "width": 48}},
    "Beit": {"size": {"height": 51, "width": 51}, "crop_size": 48, "resample": 1},
    "ConvNext": {"size": {"shortest_edge": 48}, "crop_pct": 0.9},
    "MobileNetV2": {"size": {"shortest_edge": 60}, "crop_size": 48, "resample": 0},
    "Levit": {"size": {"shortest_edge": 48}, "crop_size": 48},
    "EfficientNet": {
        "size": {"height": 48, "width": 48},
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "include_top": True,
    },
    "DINOv3ViT": {"size": {"height": 48, "width": 48}, "resample": 2},
}


@pytest.mark.parametrize("family", CASES)
def test_images_are_those_of_the_processor(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    own = {**CASES[family], **NORM}
    getattr(transformers, f"{family}ImageProcessor")(**own).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    reader = ProcessorReader.of_processor(config, 48)
    # DINOv3's is written for torch only, which rounds in another way.
    backend = "torchvision" if family == "DINOv3ViT" else "pil"
    processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path, backend=backend
    )
    for image in pictures():
        theirs = processor(PIL.Image.fromarray(image), return_tensors="pt")
        gap = (pixels(reader, image) - theirs["pixel_values"][0]).abs().amax((1, 2))
        steps = (gap * torch.tensor(reader.std) * 255).max()
        assert steps <= (1.01 if backend == "torchvision" else 1e-3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # As written before sizes were dicts.
        ({"size": 30}, (30, 30, True)),
        ({"size": 30, "crop_size": 24, "do_center_crop": False}, (30, 30, True)),
        ({"size": 30, "crop_size": 24}, (30, 24, True)),
        (
            {"size": 30, "crop_size": 24, "feature_extractor_type": "CLIPFeature"},
            (30, 24, False),
        ),
        ({"size": 448, "feature_extractor_type": "ConvNext"}, (448, 448, True)),
        ({"size": 224, "feature_extractor_type": "ConvNext"}, (256, 224, False)),
        ({"size": {"shortest_edge": 30}}, (30, 30, False)),
        ({}, (40, 40, True)),
    ],
)
def test_sizes(config, expected):
    reader = ProcessorReader.of_processor({**config, **NORM}, 40)
    assert (reader.resize, reader.crop, reader.squash) == expected


def test_what_is_switched_off():
    image = pictures()[2]
    plain = {"size": 64, "do_normalize": False}
    reader = ProcessorReader.of_processor(plain, 64)
    expected = torch.from_numpy(image).permute(2, 0, 1).float()
    torch.testing.assert_close(pixels(reader, image), expected / 255)
    reader = ProcessorReader.of_processor({**plain, "do_rescale": False}, 64)
    torch.testing.assert_close(pixels(reader, image), expected)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"do_resize": False, **NORM}, "Invalid do_resize=False"),
        ({"size": {"height": 20, "width": 30}, **NORM}, "expected a square"),
        ({"size": 30}, "Invalid image_mean=None"),
        ({"size": 30, "image_mean": [0.5], "image_std": [0.5]}, "three numbers"),
    ],
)
def test_what_no_reader_can_do_is_refused(config, match):
    with pytest.raises(ValueError, match=match) as caught:
        ProcessorReader.of_processor(config, 40)
    assert "Backbone(split_stages(model), reader)" in str(caught.value)


def test_a_draft_of_any_size_is_finished():
    reader = ProcessorReader(resize=40, crop=32, squash=True)
    image = pictures()[0]
    draft = reader.draft(image)
    assert draft.shape == (3, 40, 40)
    assert torch.equal(reader.finish(draft), reader.read(image))
    # As an augmentation may return it.
    assert reader.finish(draft[:, :36]).shape == (3, 32, 32)
    assert reader.finish(draft.float() / 255).dtype == torch.float32
    other = reader.resized_to(16)
    assert (other.resize, other.crop, other.squash) == (20, 16, True)


def test_float_images_are_resized_by_a_filter_that_torch_has():
    image = pictures()[0].astype(np.float32) / 255
    for name in ProcessorReader.interpolations:
        reader = ProcessorReader(resize=32, crop=32, interpolation=name)
        assert reader.read(image).shape == (3, 32, 32)


def test_readers_are_restored_from_their_record():
    reader = ProcessorReader(resize=40, crop=32, interpolation="lanczos", squash=True)
    record = json.loads(json.dumps(reader.to_record()))
    assert reader.from_record(record) == reader
    assert reader.cause() != ProcessorReader(resize=40, crop=32).cause()


def test_readers_of_before_are_what_they_were():
    reader = ImageReader(resize=40, crop=32)
    assert repr(reader) == (
        "ImageReader(resize=40, crop=32, mean=(0.485, 0.456, 0.406), std=(0.229, "
        "0.224, 0.225), interpolation='bilinear')"
    )
    fields = ["resize", "crop", "mean", "std", "interpolation", "decoding"]
    assert [*reader.to_record()] == fields
    with pytest.raises(ValueError, match="expected 'bilinear' or 'bicubic'"):
        ImageReader(interpolation="lanczos")
