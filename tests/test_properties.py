"""What holds for any image, any cache, any freeze depth: found counterexamples fail."""

import io
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from sktransfer import EmbeddingCache, FineTuneClassifier, PretrainedFeatureExtractor
from sktransfer.inputs._content import image_content as read
from sktransfer.inputs._decoding import as_tensor, decode
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import content_digest as digest
from sktransfer.saving._codec import Decoder, Encoder
from tests.small_network import small_backbone

# The same examples in every run, however long one takes.
steady = settings(
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
sides = st.integers(1, 12)
shapes = st.tuples(sides, sides) | st.tuples(sides, sides, st.sampled_from([1, 3, 4]))
pictures = shapes.flatmap(lambda shape: arrays.arrays(np.uint8, shape))


def encoded(array, kind="PNG"):
    file = io.BytesIO()
    PIL.Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else array).save(
        file, kind
    )
    return file.getvalue()


@given(pictures)
@settings(steady, max_examples=60)
def test_a_picture_is_the_same_in_every_form(picture):
    expected = as_tensor(decode(read(picture)))
    assert expected.shape == (3, *picture.shape[:2])
    assert expected.dtype == torch.uint8
    forms = [
        encoded(picture),
        encoded(picture, "TIFF"),
        torch.from_numpy(picture),
        picture.astype(np.uint16) * 257,
        picture / np.float64(255),
        picture.astype(np.float32) / np.float32(255),
        np.asfortranarray(picture),
    ]
    if (
        picture.ndim == 3
        and picture.shape[2] == 3
        and picture.shape[1] not in (1, 3, 4)
    ):
        forms.append(np.moveaxis(picture, 2, 0))
    for form in forms:
        if picture.shape[2:] == (4,) and form is not forms[0]:
            assume(isinstance(form, bytes) or np.asarray(form).dtype == np.uint8)
        assert torch.equal(as_tensor(decode(read(form))), expected)


@given(pictures, st.integers(1, 8))
@settings(steady, max_examples=40)
def test_orientation_tag_and_turned_pixels_are_the_same(picture, orientation):
    image = PIL.Image.open(io.BytesIO(encoded(picture)))
    exif = image.getexif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    turned = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(file.getvalue())))
    assert torch.equal(
        as_tensor(decode(file.getvalue())), as_tensor(decode(read(turned)))
    )


image_readers = st.builds(
    ImageReader,
    resize=st.integers(1, 30),
    crop=st.integers(1, 30),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)


@given(pictures, image_readers)
@settings(steady, max_examples=200)
def test_the_square_is_the_middle_of_the_resized_picture(picture, reader):
    content = read(picture)
    picture = as_tensor(decode(content))
    expected = F.center_crop(
        F.pil_to_tensor(
            F.resize(
                F.to_pil_image(picture),
                [reader.resize],
                interpolation=InterpolationMode(reader.interpolation),
            )
        ),
        [reader.crop, reader.crop],
    )
    assert torch.equal(reader.read(content), expected)
    assert torch.equal(reader.finish(reader.draft(content)), expected)
    if reader.interpolation == "bilinear":
        # Pillow rounds after each direction.
        floats = reader.cut(reader._resized(picture / 255)) * 255
        torch.testing.assert_close(floats, expected.float(), atol=1.01, rtol=0)


@given(pictures, pictures)
@settings(steady, max_examples=40)
def test_digests_are_equal_where_the_content_is(one, other):
    same = one.shape == other.shape and np.array_equal(one, other)
    assert (digest(one) == digest(other)) == same
    assert digest(one) == digest(one.copy(order="F"))


@given(st.lists(pictures, min_size=1, max_size=9), st.randoms(use_true_random=False))
@settings(steady, max_examples=12)
def test_an_embedding_depends_on_its_image_alone(images, random):
    extractor = PretrainedFeatureExtractor(
        small_backbone(), cache=None, batch_size=4, device="cpu"
    )
    expected = extractor.transform(images)
    order = list(range(len(images)))
    random.shuffle(order)
    found = extractor.transform([images[row] for row in order])
    np.testing.assert_array_equal(found, expected[order])
    cached = extractor.set_params(cache=EmbeddingCache())
    for _ in range(2):
        np.testing.assert_array_equal(cached.transform(images), expected)


keys = st.integers(0, 9)
actions = st.one_of(
    st.tuples(st.just("put"), st.lists(keys, max_size=4)),
    st.tuples(st.just("get"), st.lists(keys, max_size=4)),
    st.tuples(st.sampled_from(["reopen", "clear", "spoil", "cut", "remove"]), keys),
)


def row(key):
    return np.arange(key + 3, dtype=np.float32) * (key + 1)


@pytest.mark.parametrize("on_disk", [False, True])
@given(st.lists(actions, max_size=20), st.sampled_from([300, 3000, 2**20]))
@settings(steady, max_examples=40)
def test_a_cache_gives_what_was_put_or_nothing(on_disk, tmp_path, steps, max_bytes):
    folder = tmp_path / "cache"
    shutil.rmtree(folder, ignore_errors=True)
    location = folder if on_disk else None
    cache = EmbeddingCache(location, max_bytes=max_bytes)
    names = {key: digest(row(key)) for key in range(10)}
    for action, about in steps:
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if on_disk else []
        if action == "put":
            cache.put_many({names[key]: row(key) for key in about})
        elif action == "get":
            found = cache.get_many([names[key] for key in about])
            for key in about:
                if names[key] in found:
                    np.testing.assert_array_equal(found[names[key]], row(key))
        elif action == "clear":
            cache.clear()
            assert not cache.get_many(names.values())
        elif action == "reopen" and on_disk:
            cache = EmbeddingCache(location, max_bytes=max_bytes)
        elif files:
            target = files[about % len(files)]
            content = target.read_bytes()
            if action == "spoil" and content:
                place = (about * 7919) % len(content)
                changed = bytes([content[place] ^ 1])
                content = content[:place] + changed + content[place + 1 :]
                target.write_bytes(content)
            elif action == "cut":
                target.write_bytes(content[: len(content) * about // 10])
            elif action == "remove":
                target.unlink()
        assert cache.info().bytes <= max_bytes


plans = st.fixed_dictionaries(
    {
        "freeze": st.sampled_from([0, 1, 2, 3, "all", -1, -3]),
        "augment": st.sampled_from([None, "light"]),
        "optimizer": st.sampled_from(["adamw", "sgd", torch.optim.RMSprop]),
        "lr_schedule": st.sampled_from(["cosine", "one-cycle", "constant"]),
        "head_epochs": st.integers(0, 1),
        "max_epochs": st.integers(1, 2),
        "unfreeze_every": st.integers(0, 1),
        "hidden_layer_sizes": st.sampled_from([(), (4,)]),
        "dropout": st.sampled_from([0.0, 0.5]),
        "l2_sp": st.sampled_from([0.0, 0.1]),
        "layer_decay": st.sampled_from([1.0, 0.5]),
        "early_stopping": st.booleans(),
        "batch_size": st.sampled_from([1, 5, 64]),
        "weights": st.sampled_from(["default", None]),
        "class_weight": st.sampled_from([None, "balanced"]),
    }
)
X = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
Y = np.array(["a", "b", "c"])[np.arange(12) % 3]


@pytest.mark.slow
@given(st.booleans(), plans)
@settings(steady, max_examples=12)
def test_whatever_is_set_frozen_stages_stay_and_predictions_are_right(norm, plan):
    if plan["early_stopping"]:
        plan["validation_fraction"] = 0.25
    source = small_backbone(norm)
    options = {"device": "cpu", "lr": 0.01, "random_state": 3, "cache": None}
    model = FineTuneClassifier(source, **plan, **options).fit(X, Y)
    again = FineTuneClassifier(source, **plan, **options).fit(X, Y)
    proba = model.predict_proba(X)
    np.testing.assert_array_equal(again.predict_proba(X), proba)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert len(model.history_) <= plan["head_epochs"] + plan["max_epochs"]
    depth = model.freeze_depth_
    if plan["weights"] is None:
        source = model.backbone_.origin.source
    assert model.backbone_.cause(depth) == source.cause(depth)
    if depth == len(source.stages):
        assert model.backbone_.digest == source.digest


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
numbers = arrays.arrays(
    arrays.integer_dtypes() | arrays.floating_dtypes(sizes=(16, 32, 64)),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
values = st.recursive(
    plain | numbers,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
@settings(steady, max_examples=150)
def test_saved_values_come_back(value):
    encoder = Encoder()
    record = encoder.encode(value, "value")
    found = Decoder(encoder.arrays, None).decode(record)
    assert type(found) is type(value)
    np.testing.assert_equal(found, value)
