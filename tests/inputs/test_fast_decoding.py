"""Photographs decoded fast, which have nearly the pixels of full resampling."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.base import clone

from sktransfer import (
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    load_backbone,
    rank_backbones,
)
from sktransfer.inputs import _decoding
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._processor import ProcessorReader
from tests.small_network import text_backbone
from tests.small_tasks import make_picture

EXACT = ImageReader(resize=32, crop=24)
FAST = EXACT.decoded("fast")


def photo(kind="JPEG", height=300, width=400, mode="RGB", seed=0, **options):
    """A file of a photo with details as fine as its pixels."""
    grain = np.random.default_rng(seed).normal(0, 20, (height, width, 1))
    smooth = make_picture(seed, height, width)
    pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    return saved(PIL.Image.fromarray(pixels).convert(mode), kind, **options)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(content, fast=FAST, exact=EXACT):
    """The mean distance of the pixels read in both ways, of 255."""
    pixels = [reader.read(content).float() for reader in (fast, exact)]
    return float((pixels[0] - pixels[1]).abs().mean())


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 90}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("MPO", "RGB", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("WEBP", "RGB", {}),
    ],
)
def test_fast_pixels_are_nearly_the_exact_ones(kind, mode, options):
    content = photo(kind, mode=mode, **options)
    # Smaller than three times the input, no way of decoding leaves anything out.
    other = photo(kind, 3 * 32 - 1, 3 * 40, mode=mode, **options)
    assert 0 < distance(content) < 1
    assert distance(other) == 0
    # A photo of something else is far away, so that the bound means something.
    assert (FAST.read(content) - FAST.read(photo(seed=1)).float()).abs().mean() > 20


@pytest.mark.parametrize(
    ("height", "width", "decoded"),
    [(300, 400, (150, 200)), (800, 900, (100, 113)), (769, 1001, (97, 126))],
)
def test_jpegs_are_decoded_to_three_times_the_input_at_least(height, width, decoded):
    reduced = _decoding.decode(photo(height=height, width=width), least=3 * 32)
    assert reduced.size == (height, width)
    assert reduced.image.size[::-1] == decoded
    assert min(decoded) >= 3 * 32
    # A photo of which nothing can be left out is an image like any other.
    small = _decoding.decode(photo(height=180, width=900), least=3 * 32)
    assert small.size == (900, 180)


def ramps(height, width):
    """An image whose first two channels are the row and the column of each pixel."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.zeros((height, width, 3))
    pixels[..., 0], pixels[..., 1] = 255 * rows / height, 255 * columns / width
    return PIL.Image.fromarray(pixels.round().astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(769, 1025), (1025, 769)])
def test_fast_photos_stay_where_they_are(orientation, size):
    # The decoder leaves 97 or 129 pixels, each of eight but for the last, which is of
    # one. Were that one taken for a whole one, the others would move by 1.2 of 255.
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0, "exif": exif}
    content = saved(ramps(*size), "JPEG", **options)
    for exact in (EXACT, ProcessorReader(resize=32, crop=32, squash=True)):
        fast = exact.decoded("fast")
        moved = fast.read(content).float() - exact.read(content).float()
        assert moved.mean((1, 2)).abs().max() < 0.5
        assert moved.abs().max() <= 1


def test_fast_photos_keep_their_orientation():
    upright = photo()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = PIL.Image.open(io.BytesIO(upright)).rotate(90, expand=True)
    turned = saved(image, "JPEG", exif=exif, quality=95)
    pixels = [FAST.read(content).float() for content in (turned, upright)]
    assert (pixels[0] - pixels[1]).abs().mean() < 2


def test_the_ends_of_long_photos_are_cropped_fast():
    content = saved(ramps(776, 13001), "JPEG", quality=98, subsampling=0)
    moved = FAST.draft(content).float() - EXACT.draft(content).float()
    assert moved.shape == (3, 32, 16 * 32)
    assert moved.abs().max() <= 1


def test_images_are_squashed_fast():
    exact = ProcessorReader(resize=32, crop=32, squash=True)
    fast = exact.decoded("fast")
    assert fast.draft(photo()).shape == exact.draft(photo()).shape == (3, 32, 32)
    assert 0 < distance(photo(), fast, exact) < 1


def test_arrays_and_drafts_are_resized_fast():
    array = np.asarray(PIL.Image.open(io.BytesIO(photo("PNG"))))
    assert torch.equal(FAST.read(array), FAST.read(photo("PNG")))
    assert torch.equal(FAST.finish(FAST.draft(array)), FAST.read(array))
    deep = array.astype(np.uint16) * 256
    assert torch.equal(FAST.read(deep), EXACT.read(deep))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_photos_are_refused_as_when_they_are_decoded_exactly(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 300 * 400 - 1)
    for reader in (EXACT, FAST):
        with pytest.raises(ValueError, match="400 x 300 pixels, more than the limit"):
            reader.read(photo())


def test_the_way_of_decoding_is_a_parameter():
    X, y = [photo(height=400, width=480, seed=seed) for seed in range(8)], [0, 1] * 4
    exact = PretrainedFeatureExtractor(image_size=32)
    fast = clone(exact).set_params(decoding="fast")
    embeddings = [model.fit_transform(X) for model in (exact, fast, exact)]
    assert fast._prefix().backbone.reader.decoding == "fast"
    assert np.array_equal(embeddings[0], embeddings[2])
    # Neither is read from what the cache holds of the other, and both are close.
    assert not np.array_equal(embeddings[0], embeddings[1])
    products = (embeddings[0] * embeddings[1]).sum(1)
    norms = [np.linalg.norm(rows, axis=1) for rows in embeddings[:2]]
    assert (products / (norms[0] * norms[1])).min() > 0.99
    model = FineTuneClassifier(freeze="all", image_size=32, decoding="fast").fit(X, y)
    assert model.backbone_.reader.decoding == "fast"
    ranking = rank_backbones(X, y, ["tiny"], cv=None, image_size=32, decoding="fast")
    assert len(ranking) == 1


def test_a_reader_that_decodes_fast_stays_so():
    backbone = load_backbone("tiny", decoding="fast")
    extractor = PretrainedFeatureExtractor(backbone).fit([photo()])
    assert extractor._prefix().backbone.reader.decoding == "fast"
    assert backbone.at_size(32).reader.decoding == "fast"


def test_unknown_ways_of_decoding_are_refused():
    with pytest.raises(ValueError, match="Invalid decoding='quick' of an ImageReader"):
        ImageReader(decoding="quick")
    with pytest.raises(ValueError, match="'decoding' parameter .* must be a str among"):
        PretrainedFeatureExtractor(decoding="quick").fit([photo()])
    with pytest.raises(ValueError, match="expected 'exact', as the samples .* texts"):
        load_backbone(text_backbone(), decoding="fast")
