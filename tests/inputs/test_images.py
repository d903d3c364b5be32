import base64
import io
import os
import pathlib
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import PIL.Image
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.compose import ColumnTransformer

from sktransfer import PretrainedFeatureExtractor
from sktransfer.inputs._containers import image_samples
from sktransfer.inputs._content import image_content as read
from sktransfer.inputs._decoding import as_tensor, decode
from sktransfer.inputs._image_tables import table_images
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Samples
from sktransfer.inputs._reader import content_digest as digest
from tests.small_network import small_backbone
from tests.small_tasks import make_picture


def encoded(array, kind="PNG", **options):
    return saved(PIL.Image.fromarray(array), kind, **options)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content):
    return as_tensor(decode(content)).numpy()


def pixels(sample):
    return decoded(read(sample))


def test_the_same_picture_in_every_form_has_the_same_pixels(picture, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture))
    floats = picture / np.float32(255)
    expected = np.moveaxis(picture, 2, 0)
    forms = [
        path,
        str(path),
        encoded(picture),
        bytearray(encoded(picture)),
        PIL.Image.fromarray(picture),
        PIL.Image.open(path),
        picture,
        np.moveaxis(picture, 2, 0),
        picture.astype(np.uint16) * 257,
        floats,
        floats.astype(np.float64),
        torch.from_numpy(expected.copy()),
        torch.from_numpy(expected / np.float32(255)),
        picture[:, :, ::-1][:, :, ::-1],
        np.asfortranarray(picture),
    ]
    for form in forms:
        np.testing.assert_array_equal(pixels(form), expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_decoded_as_pillow_does(mode, options, picture):
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture).convert(mode).save(buffer, "JPEG", **options)
    by_pillow = np.asarray(PIL.Image.open(buffer).convert("RGB"))
    np.testing.assert_array_equal(
        pixels(buffer.getvalue()), np.moveaxis(by_pillow, 2, 0)
    )


def test_sixteen_bit_grey_is_scaled_by_its_range(picture):
    grey = picture[:, :, 0]
    expected = pixels(encoded(grey))
    np.testing.assert_array_equal(
        pixels(encoded(grey.astype(np.uint16) * 257)), expected
    )
    between = pixels(encoded(grey.astype(np.uint16) * 256))
    assert between.dtype == np.float32
    np.testing.assert_allclose(between, expected / 255, atol=1 / 255)


def test_float_pil_modes_are_fractions_of_white(picture):
    grey = picture[:, :, 0]
    as_float = PIL.Image.fromarray(grey / np.float32(255))
    np.testing.assert_array_equal(pixels(as_float), pixels(grey))
    np.testing.assert_array_equal(pixels(saved(as_float, "TIFF")), pixels(grey))
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        pixels(PIL.Image.fromarray(grey.astype(np.float32) + 2))


@pytest.mark.parametrize("factor", [1, 16, 257, 1000])
def test_integers_that_do_not_say_what_white_is_are_refused(factor, picture):
    image = PIL.Image.fromarray(picture[:, :, 0].astype(np.int32) * factor)
    assert image.mode == "I"
    highest = factor * int(picture[:, :, 0].max())
    for sample in [image, saved(image, "TIFF")]:
        with pytest.raises(ValueError, match=f"to {highest}, .* what white is"):
            pixels(sample)


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("factor", [256, 257])
def test_sixteen_bits_are_scaled_alike_in_every_format(kind, factor, picture):
    array = picture[:, :, 0].astype(np.uint16) * factor
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    if kind == "PPM":
        # Older versions of Pillow read these, and do not write them.
        head = f"P5 {array.shape[1]} {array.shape[0]} 65535\n".encode()
        encoded = head + array.astype(">u2").tobytes()
    else:
        encoded = saved(PIL.Image.fromarray(array), kind, **options)
    np.testing.assert_array_equal(pixels(encoded), pixels(array))


def test_a_sixteen_bit_png_may_be_opened_in_32_bits(picture):
    """As the versions of Pillow that have no mode for it do."""
    array = picture[:, :, 0].astype(np.uint16) * 256
    image = PIL.Image.fromarray(array.astype(np.int32))
    image.format = "PNG"
    np.testing.assert_array_equal(pixels(image), pixels(array))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind, picture):
    # What a camera stores so that the viewer sees `picture`.
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    stored = PIL.Image.fromarray(picture)
    exif = stored.getexif()
    exif[0x0112] = undo
    turned = PIL.ImageOps.exif_transpose(with_exif(stored, exif))
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    buffer = io.BytesIO()
    turned.save(buffer, kind, exif=exif, **options)
    plain = io.BytesIO()
    turned.save(plain, kind, **options)
    upright = PIL.Image.open(io.BytesIO(plain.getvalue())).convert("RGB")
    upright = PIL.ImageOps.exif_transpose(with_exif(upright, exif))
    found = pixels(buffer.getvalue())
    assert found.shape == (3, *picture.shape[:2])
    np.testing.assert_array_equal(found, np.moveaxis(np.asarray(upright), 2, 0))
    np.testing.assert_array_equal(pixels(PIL.Image.open(buffer)), found)


def with_exif(image, exif):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    return PIL.Image.open(buffer)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_reason_to_refuse(picture):
    data = encoded(picture, "JPEG", exif=b"Exif\x00\x00MM\x00*garbage")
    assert pixels(data).shape == (3, *picture.shape[:2])


def test_alpha_is_composed_on_white(picture):
    alpha = np.zeros((*picture.shape[:2], 1), np.uint8)
    rgba = np.concatenate([picture, alpha], axis=2)
    assert (pixels(rgba) == 255).all()
    assert (pixels(encoded(rgba)) == 255).all()
    rgba[:, :, 3] = 128
    np.testing.assert_array_equal(pixels(rgba), pixels(PIL.Image.fromarray(rgba)))
    halved = 255 - (255 - picture.astype(float)) * 128 / 255
    np.testing.assert_allclose(pixels(rgba), np.moveaxis(halved, 2, 0), atol=0.51)
    np.testing.assert_allclose(pixels(rgba / 255), np.moveaxis(halved, 2, 0), atol=0.51)
    # Of floats that are no 8 bits.
    deep = np.broadcast_to(np.float32([0.1234, 0.3, 0.7, 0.5]), rgba.shape)
    expected = np.float32([0.5617, 0.65, 0.85])
    np.testing.assert_allclose(pixels(deep)[:, 0, 0], expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_all_modes_become_rgb(mode, picture):
    image = PIL.Image.fromarray(picture).convert(mode)
    found = pixels(image)
    assert found.dtype == np.uint8
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(found, np.moveaxis(expected, 2, 0))


def test_the_first_frame_of_an_animation_is_taken(pictures):
    frames = [PIL.Image.fromarray(frame) for frame in pictures]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(
        pixels(buffer.getvalue()), np.moveaxis(pictures[0], 2, 0)
    )


def test_the_users_image_is_left_as_it_was(picture):
    image = PIL.Image.fromarray(picture)
    before = image.tobytes()
    array = picture.copy()
    array.flags.writeable = False
    pixels(image)
    pixels(array)
    assert image.tobytes() == before
    assert image.mode == "RGB"


BAD = {
    "text file": (lambda tmp: write(tmp, b"not an image"), "first bytes, b'not an im"),
    "missing file": (lambda tmp: tmp / "no.jpg", "No such file"),
    "folder": (lambda tmp: tmp, r"it is a folder \(list its images"),
    "truncated JPEG": (lambda tmp: truncated("JPEG"), "truncated"),
    "truncated PNG": (lambda tmp: truncated("PNG"), "truncated"),
    "empty bytes": (lambda tmp: b"", r"it is empty \(0 bytes\)"),
    "zero-size": (lambda tmp: np.zeros((0, 5, 3), np.uint8), "empty array"),
    "NaN": (lambda tmp: np.full((4, 4), np.nan), "NaN"),
    "range": (lambda tmp: np.full((4, 4), 9.0), r"outside \[0, 1\] \(divide by"),
    "channels": (lambda tmp: np.zeros((5, 5, 7), np.uint8), r"shape \(5, 5, 7\)"),
    "dtype": (lambda tmp: np.zeros((5, 5), np.int64), "int64"),
    "negative": (
        lambda tmp: np.full((4, 4), -1.0),
        r"\(pass \(x - black\) / \(white - black",
    ),
    "complex": (lambda tmp: np.ones((4, 4), complex), "complex numbers, .*absolute"),
    "object": (lambda tmp: {1}, "it is of type set"),
    "empty path": (lambda tmp: "", "the path is empty"),
    "None": (lambda tmp: None, "missing: None instead of an image"),
    "NaN of a column": (lambda tmp: float("nan"), "missing: nan instead of an image"),
    "NA": (lambda tmp: pd.NA, "missing: <NA> instead of an image"),
    "relative": (lambda tmp: "no.jpg", "No such file.*working folder"),
    "URL": (lambda tmp: "https://x.org/a.jpg", "it is a URL, .*download"),
    "URL as path": (lambda tmp: pathlib.Path("https://x.org/a.jpg"), "it is a URL"),
    "file URI": (lambda tmp: "file:///a.jpg", r"it is a file: URI \("),
    "data URI": (lambda tmp: "data:image/png;base64,iVBO", r"data: URI.*b64decode\("),
    "base64": (lambda tmp: in_base64(), r"base64 text.*pass base64.b64decode\(text\)"),
    "URL-safe base64": (lambda tmp: in_base64(b"-_"), "base64 text"),
    "base64 as bytes": (lambda tmp: in_base64().encode(), r"base64 text \(pass"),
    "base64 in a file": (lambda tmp: write(tmp, in_base64().encode()), "base64 text"),
}


def in_base64(altchars=None):
    data = encoded(make_picture(0, 200, 200), "JPEG")
    return base64.b64encode(data, altchars=altchars).decode()


def write(folder, data):
    path = folder / "bad.jpg"
    path.write_bytes(data)
    return path


def truncated(kind):
    data = encoded(make_picture(0, 200, 200), kind)
    return data[: len(data) // 2]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused(name, tmp_path):
    make, reason = BAD[name]
    with pytest.raises(Exception, match=reason):  # noqa: B017, PT011
        pixels(make(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="not a regular file"):
        read(tmp_path / "pipe.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_picture_is_refused_from_its_header(monkeypatch, picture):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ValueError, match="more than the limit of 2,000"):
        pixels(encoded(picture))


def containers(items):
    column = np.empty(len(items), dtype=object)
    column[:] = items
    return [
        list(items),
        tuple(items),
        column,
        column[:, None],
        pd.Series(items),
        pd.DataFrame({"image": items}),
    ]


def test_every_container_gives_its_samples(tmp_path, pictures):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for X in [
        *containers(paths),
        np.array(paths),
        pl.Series(paths),
        pl.DataFrame({"image": paths}),
        pa.chunked_array([paths]),
        pd.Series(paths, dtype="string"),
    ]:
        assert list(image_samples(X)) == paths
    for X in [*containers([encoded(p) for p in pictures])]:
        assert list(image_samples(X)) == [encoded(p) for p in pictures]
    for items in [pictures, [PIL.Image.fromarray(p) for p in pictures]]:
        for X in [items, pd.Series(items)]:
            found = [pixels(sample) for sample in image_samples(X)]
            np.testing.assert_array_equal(found, [pixels(p) for p in pictures])
    stacks = [np.stack(pictures), torch.from_numpy(np.stack(pictures))]
    for X in [*stacks, list(pictures), tuple(pictures)]:
        found = [pixels(sample) for sample in image_samples(X)]
        np.testing.assert_array_equal(found, [pixels(p) for p in pictures])


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((3, 4)),
        [[1, 2], [3, 4]],
        pd.DataFrame({"a": [1, 2], "b": [3, 4]}),
        pd.DataFrame({"a": [1, 2]}),
        np.zeros(4),
        [1.0, 2.0],
        np.zeros((0, 4)),
        np.array([[1, 2], [3, 4]], dtype=object),
        torch.zeros(3, 4),
    ],
)
def test_tables_are_left_to_scikit_learn(X):
    assert image_samples(X) is None


@pytest.mark.parametrize(
    "X",
    [np.zeros(64), [1, 2], pd.Series([1.0, 2.0]), torch.zeros(4), [3, np.eye(8)]],
)
def test_single_numbers_are_no_images(X):
    with pytest.raises(
        ValueError, match="a list or a stack of images.* single numbers"
    ):
        PretrainedFeatureExtractor(small_backbone()).transform(X)


@pytest.mark.parametrize(
    ("X", "reason"),
    [
        ("a.png", "single image"),
        (pathlib.Path("a.png"), "single image"),
        (PIL.Image.new("L", (3, 3)), "single image"),
        (np.zeros((8, 8, 3), np.uint8), r"single image \(array of shape \(8, 8, 3\)\)"),
        (os.path.dirname(__file__), "X=.* it is a folder.*list_images"),
        ([], "0 images"),
        (np.array([], dtype=object), "0 images"),
        ({"a.png"}, "of type set: expected"),
        (np.zeros((2, 2, 2, 2, 2)), "of shape .* a stack of images"),
    ],
)
def test_what_holds_no_images_is_refused(X, reason):
    with pytest.raises(ValueError, match=reason):
        image_samples(X)


@pytest.mark.parametrize("hole", [None, float("nan")])
def test_a_missing_first_image_does_not_make_a_table(hole, pictures):
    paths = [hole, "a.png", "b.png"]
    for X in [paths, pd.Series(paths), pd.DataFrame({"image": paths})]:
        assert list(image_samples(X))[1:] == paths[1:]
    assert image_samples([hole, pictures[0]])[1] is pictures[0]
    assert image_samples([float("nan"), 1.0]) is None


def test_images_are_one_column():
    paths = ["a.png", "b.png"]
    for second in [paths, [1, 2], [None, None]]:
        frame = pd.DataFrame({"b": second, "a": paths})
        seen = "b" if second is paths else "a"
        for X, name in [(frame, f"'{seen}'"), (frame.to_numpy(), r"\d")]:
            with pytest.raises(ValueError, match=f"2 columns.*a single column.*{name}"):
                image_samples(X)
        step = ("image", PretrainedFeatureExtractor(small_backbone()), ["a", "b"])
        with pytest.raises(ValueError, match=r"in a ColumnTransformer, select only"):
            ColumnTransformer([step]).fit(frame)
    labelled = pd.DataFrame({"label": ["cat", "dog"], "path": ["cats/1.png", "2.png"]})
    with pytest.raises(ValueError, match="seems to be 'path'"):
        image_samples(labelled)
    assert image_samples(pd.DataFrame({"a": ["1", "2"], "b": ["3", "4"]})) is None
    assert image_samples(pd.DataFrame({"a": paths, "b": paths})[:0]) is None


def test_a_numberless_dtype_of_torch_is_read(pictures):
    floats = torch.rand(2, 3, 8, 8).bfloat16()
    for X in [floats, list(floats)]:
        found = [pixels(sample) for sample in image_samples(X)]
        np.testing.assert_array_equal(found, floats.float().numpy())


def test_an_image_may_be_given_twice(tmp_path, pictures):
    """Opened, and loaded by whichever thread comes first."""
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, pictures, strict=False):
        PIL.Image.fromarray(picture.repeat(20, 0).repeat(20, 1)).save(path)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            twice = [image for path in paths for image in [PIL.Image.open(path)] * 8]
            found = list(pool.map(read, twice))
            for first in range(0, 24, 8):
                for row in found[first : first + 8]:
                    np.testing.assert_array_equal(row, found[first])


def test_errors_name_row_and_file(tmp_path):
    images = Samples(["x.png", b"", None], ImageReader()).take([2, 0, 1])
    assert images.describe(0) == "row 2"
    assert images.describe(1) == "row 0 ('x.png')"
    assert images.describe(2) == "row 1 (bytes)"
    long = "/photos/" + 300 * "x" + "/the_end.png"
    assert images.take([0]).describe(0) == "row 2"
    names = Samples(np.array(["x.png"]), ImageReader())
    assert names.describe(0) == "row 0 ('x.png')"
    assert re.fullmatch(
        r"row 0 \('/photos/x+\.\.\.x+/the_end\.png'\)",
        Samples([long], ImageReader()).describe(0),
    )


@pytest.mark.parametrize("altchars", [None, b"-_"])
def test_an_error_does_not_quote_an_image_in_whole(altchars):
    extractor = PretrainedFeatureExtractor(small_backbone(), device="cpu")
    for sample in [in_base64(altchars), "data:image/jpeg;base64," + in_base64()]:
        assert len(sample) > 3000
        with pytest.raises(ValueError, match="b64decode") as caught:
            extractor.transform([sample])
        assert len(str(caught.value)) < 700
        data = base64.b64decode(in_base64())
        assert extractor.transform([data]).shape == (1, 16)


def table_content(X, shape=None, value_range=None):
    images, content = table_images(X, shape, value_range)
    return [content(image) for image in images]


def test_a_flattened_picture_is_that_picture(pictures):
    stack = np.stack([p[:48, :48] for p in pictures])
    for X, shape in [
        (stack.reshape(6, -1), None),
        (stack.reshape(6, -1), (48, 48, 3)),
        (stack.reshape(6, -1), (-1, 48, 3)),
        (stack.astype(float).reshape(6, -1) / 255, None),
    ]:
        found = [decoded(content) for content in table_content(X, shape)]
        np.testing.assert_array_equal(found, [pixels(p) for p in stack])


def test_numbers_beyond_one_are_stretched_row_by_row():
    X = np.array([[0, 8, 16, 16], [0.0, 0.5, 1.0, 1.0], [-1, 0, 1, 1], [7, 7, 7, 7]])
    rows = [
        decoded(content)[0].flatten().tolist() for content in table_content(X, (2, 2))
    ]
    half = [0, 0.5, 1, 1]
    for row in rows[:3]:
        scale = 255 if max(row) > 1 else 1
        np.testing.assert_allclose(np.array(row) / scale, half, atol=1e-6)
    assert rows[3] == [0, 0, 0, 0]
    (first,) = table_content(X[:1], (2, 2), value_range=(0, 32))
    np.testing.assert_allclose(decoded(first)[0].flatten(), [0, 0.25, 0.5, 0.5])


def test_a_row_that_is_no_square_is_one_row_of_pixels():
    with pytest.warns(UserWarning, match="not square.*1 x 5.*set image_shape"):
        images = table_content(np.eye(5))
    np.testing.assert_array_equal(
        decoded(images[0])[0], np.repeat(np.eye(5)[:1] * 255, 5, axis=0)
    )


@pytest.mark.parametrize(
    "shape", [(3, 3), (2, 2, 2), (-1, -1), 4, (4,), (0, -1), ("a", 1)]
)
def test_an_image_shape_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match="Invalid image_shape=.* columns of X, 8"):
        table_images(np.zeros((2, 8)), shape)


def test_a_digest_tells_content_apart(picture):
    data = encoded(picture)
    assert digest(read(data)) == digest(read(bytearray(data)))
    assert digest(read(picture)) == digest(read(PIL.Image.fromarray(picture)))
    others = [picture[::-1], picture.reshape(-1, 48, 3), picture.astype(np.uint16)]
    assert len({digest(read(other)) for other in [picture, *others]}) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": 0}, "Invalid resize=0 of an ImageReader: .*positive int"),
        ({"crop": "a"}, "Invalid crop='a'"),
        ({"resize": 36.5}, "Invalid resize=36.5"),
        ({"mean": (1.0,)}, r"Invalid mean=\(1.0,\).*three numbers"),
        ({"mean": 0.5}, "Invalid mean=0.5"),
        ({"std": (0.0, 1.0, 1.0)}, "Invalid std=.*positive"),
        ({"interpolation": "cubic"}, "expected 'bilinear' or 'bicubic'"),
    ],
)
def test_a_reader_that_cannot_read_is_refused_when_it_is_made(fields, message):
    with pytest.raises(ValueError, match=message):
        ImageReader(**fields)
