"""Files made to break a decoder: each is read or refused, soon and by name.

What pictures of good will become is in test_images.
"""

import contextlib
import io
import multiprocessing
import os
import re
import resource
import struct
import sys
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from sktransfer import PretrainedFeatureExtractor
from sktransfer.embedding._reading import UnreadableError
from sktransfer.inputs import _decoding, _files
from sktransfer.inputs._images import ImageReader
from tests.small_network import small_backbone

N_MUTATIONS = int(os.environ.get("SKTRANSFER_TEST_MUTATIONS", "1500"))
# A hang would take for ever; a slow machine may take its time.
MOST_SECONDS, MOST_BYTES = 60, 1.5e9

# Format, modes and options of what is encoded and then spoiled.
KINDS = [
    ("AVIF", ["RGB"], {}),
    ("BLP", ["P"], {}),
    ("BMP", ["1", "L", "P", "RGB"], {}),
    ("DDS", ["RGB", "RGBA"], {}),
    ("DIB", ["RGB"], {}),
    ("GIF", ["L", "P"], {}),
    ("ICNS", ["RGBA"], {}),
    ("ICO", ["RGBA"], {}),
    ("IM", ["RGB"], {}),
    ("JPEG", ["L", "RGB", "CMYK"], {}),
    ("JPEG", ["RGB"], {"progressive": True}),
    ("JPEG2000", ["L", "RGB"], {}),
    ("MSP", ["1"], {}),
    ("PCX", ["L", "P", "RGB"], {}),
    ("PNG", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], {}),
    ("PPM", ["1", "L", "RGB"], {}),
    ("QOI", ["RGB", "RGBA"], {}),
    ("SGI", ["L", "RGB"], {}),
    ("SPIDER", ["F"], {}),
    ("TGA", ["L", "RGB", "RGBA"], {"compression": "tga_rle"}),
    ("TIFF", ["1", "L", "RGB", "I;16", "F"], {}),
    ("TIFF", ["RGB"], {"compression": "tiff_lzw"}),
    ("TIFF", ["RGB"], {"compression": "tiff_adobe_deflate"}),
    ("TIFF", ["1"], {"compression": "group4"}),
    ("TIFF", ["RGB"], {"compression": "jpeg"}),
    ("WEBP", ["RGB", "RGBA"], {}),
    ("XBM", ["1"], {}),
]


@pytest.fixture(scope="module")
def encodings():
    rng = np.random.default_rng(0)
    small = PIL.Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    picture, found = small.resize((29, 23), PIL.Image.BICUBIC), []
    for kind, modes, options in KINDS:
        for mode in modes:
            image = picture.convert("L" if mode == "I;16" else mode)
            if mode == "I;16":
                image = PIL.Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
            file = io.BytesIO()
            # Pillow may have been built without a codec, or be about to drop it.
            with contextlib.suppress(KeyError, OSError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.save(file, kind, **options)
                found.append(file.getvalue())
    assert len(found) > 30
    return found


def mutated(encodings, seed):
    """An encoding with some bytes changed, cut, doubled, or put to extremes."""
    rng = np.random.default_rng(seed)
    data = bytearray(encodings[rng.integers(len(encodings))])
    # Headers are short, and where most harm is done.
    near = rng.random() < 0.7
    for _ in range(rng.integers(1, 6)):
        reach = min(len(data), 80) if near else len(data)
        place, how = int(rng.integers(max(reach, 1))), rng.integers(6)
        if how == 0:
            data[place : place + 1] = rng.bytes(1)
        elif how == 1:
            extreme = [b"\0", b"\xff", b"\x7f"][rng.integers(3)]
            data[place : place + 4] = extreme * int(rng.integers(1, 5))
        elif how == 2:
            del data[place + int(rng.integers(40)) :]
        elif how == 3:
            data[place:place] = data[place : place + int(rng.integers(200))]
        elif how == 4:
            other = encodings[rng.integers(len(encodings))]
            data[place:] = other[place:]
        else:
            data[place : place + 8] = rng.bytes(8)
    return bytes(data)


@pytest.fixture
def pillow_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peak_bytes():
    """Return the most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage's, which Linux hands down from the process that started this.
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def read_spoiled(encodings):
    """Count what is read and refused; return also this process's peak memory."""
    reader, read, refused = ImageReader(resize=18, crop=16), 0, 0
    warnings.simplefilter("ignore")  # Pillow warns of what it then refuses
    for seed in range(N_MUTATIONS):
        data, start = mutated(encodings, seed), time.process_time()
        try:
            square = reader.read(data)
        except Exception:
            refused += 1
        else:
            read += 1
            assert square.shape == (3, 16, 16)
            assert square.isfinite().all()
        assert time.process_time() - start < MOST_SECONDS, f"seed {seed}"
    return read, refused, peak_bytes()


@pytest.mark.slow
def test_spoiled_files_are_read_or_refused_in_bounded_time_and_memory(encodings):
    # A process of its own, whose peak is not that of the tests before this one.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        read, refused, peak = processes.submit(read_spoiled, encodings).result()
    assert peak < MOST_BYTES
    assert min(read, refused) > N_MUTATIONS / 20


@pytest.mark.usefixtures("pillow_warns")
def test_each_refused_file_is_named_and_the_others_are_embedded(encodings, tmp_path):
    paths = []
    for seed in range(60):
        paths.append(tmp_path / f"{seed}.jpg")
        paths[-1].write_bytes(mutated(encodings, seed))
    extractor = PretrainedFeatureExtractor(
        small_backbone(), on_error="nan", cache=None, device="cpu"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", "[0-9]+ of 60 images cannot be read")
        found = extractor.transform(paths)
    bad = np.flatnonzero(np.isnan(found).any(axis=1))
    assert 3 < len(bad) < 57
    (warning,) = caught
    assert f"rows {bad[:20].tolist()}"[:-1] in str(warning.message)
    assert all(f"{paths[row]}" in str(warning.message) for row in bad[:5])
    good = np.flatnonzero(~np.isnan(found).any(axis=1))
    again = extractor.transform([paths[row] for row in good])
    np.testing.assert_array_equal(again, found[good])
    strict = PretrainedFeatureExtractor(small_backbone(), cache=None, device="cpu")
    with pytest.raises(UnreadableError, match=r"\(.*\.jpg'\)"):
        strict.transform(paths)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}])
def test_the_size_of_a_webp_is_known_before_it_is_opened(options, monkeypatch):
    file = io.BytesIO()
    PIL.Image.new("RGB", (29, 23)).save(file, "WEBP", **options)
    assert _decoding._webp_size(file.getvalue()) == (29, 23)
    assert _decoding._webp_size(file.getvalue()[:25])[0] < 2**14
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 2 * 29 * 23 - 1)
    with pytest.raises(ValueError, match="29 x 23 pixels, more than the limit of 666"):
        _decoding.decode(file.getvalue())


@pytest.mark.parametrize(("kind", "share"), [("AVIF", 2), ("JPEG2000", 2), ("PNG", 1)])
def test_decoders_that_hold_a_picture_twice_get_half_the_pixels(
    kind, share, monkeypatch
):
    file = io.BytesIO()
    try:
        PIL.Image.new("RGB", (29, 23)).save(file, kind)
    except (KeyError, OSError):
        pytest.skip(f"Pillow has been built without {kind}")
    loaded = []
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", share * 29 * 23)
    assert _decoding.decode(file.getvalue()).size == (29, 23)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", share * 29 * 23 - 1)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", loaded.append)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        with pytest.raises(ValueError, match="29 x 23 pixels, more than the limit"):
            _decoding.decode(file.getvalue())
    assert not loaded


def dds(width, height, data=b""):
    """Encode as DXT1: four by four pixels in eight bytes."""
    head = struct.pack("<7I44x", 124, 0x1007, height, width, 0, 0, 0)
    kind = struct.pack("<2I4s40x", 32, 4, b"DXT1")
    return b"DDS " + head + kind + data


@pytest.mark.parametrize("size", [(1, 2**26), (2**26, 1), (2**20 + 1, 1)])
def test_a_picture_of_more_rows_than_any_has_is_refused_unloaded(size, monkeypatch):
    """Pillow keeps a pointer for each row: 600 MB for a header of 128 bytes."""
    assert _decoding.decode(dds(8, 4, bytes(16))).size == (8, 4)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(ValueError, match=f"{size[0]} x .* no side may be longer"):
        _decoding.decode(dds(*size))


def icon(kind):
    """Make a file that claims 16 x 16 pixels and holds a picture of 29 x 23."""
    file = io.BytesIO()
    PIL.Image.new("RGB" if kind == "BLP" else "RGBA", (29, 23)).save(
        file, "JPEG" if kind == "BLP" else "PNG"
    )
    inner = file.getvalue()
    if kind == "ICO":
        entry = struct.pack("<4B2H2I", 16, 16, 0, 0, 1, 32, len(inner), 22)
        return struct.pack("<3H", 0, 1, 1) + entry + inner
    if kind == "ICNS":
        chunk = struct.pack(">4sI", b"ic08", 8 + len(inner)) + inner
        return struct.pack(">4sI", b"icns", 8 + len(chunk)) + chunk
    places = struct.pack("<16I", 160, *[0] * 15) + struct.pack(
        "<16I", len(inner), *[0] * 15
    )
    return struct.pack("<4s6I", b"BLP1", 0, 0, 16, 16, 5, 0) + places + bytes(4) + inner


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "BLP"])
def test_a_picture_within_a_file_is_held_to_the_limit_too(kind, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 29 * 23 - 1)
    with pytest.raises(ValueError, match="29 x 23 pixels, more than the limit of 666"):
        _decoding.decode(icon(kind))


def test_a_picture_is_the_same_in_whatever_bands_it_is_converted(monkeypatch):
    rng = np.random.default_rng(0)
    bytes_ = rng.integers(0, 256, (23, 29, 4), dtype=np.uint8)
    words = rng.integers(0, 65536, (23, 29), dtype=np.uint16)
    mixed = np.where(
        np.arange(23)[:, None] < 20, bytes_[..., 0] * np.uint16(257), words
    )
    arrays = [bytes_, bytes_ / 255, words, words / 65535, mixed, bytes_[..., 0] > 99]
    whole = [_decoding.as_tensor(_decoding.decode(array)) for array in arrays]
    monkeypatch.setattr(_decoding, "_BAND", 60)
    for array, expected in zip(arrays, whole, strict=True):
        found = _decoding.as_tensor(_decoding.decode(array))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert whole[4].dtype == whole[2].dtype == torch.float32


# Tags of EXIF, of which the first says that the picture lies on its side.
_TURNED = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)


@pytest.mark.parametrize(
    "odd",
    [
        struct.pack("<HHI4s", 0x0100, 2, 4, b"abc\0"),
        struct.pack("<HHIi", 0x0100, 9, 1, -5),
        struct.pack("<HHIhH", 0x0102, 8, 1, -5, 0),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_is_turned_whatever_other_tags_it_has(kind, odd):
    # A width in words and negative numbers can be read, but not written again.
    tags = b"II*\0" + struct.pack("<IH", 8, 2) + odd + _TURNED + bytes(4)
    picture, file = PIL.Image.new("RGB", (6, 4)), io.BytesIO()
    picture.save(file, kind, exif=b"Exif\0\0" + tags)
    assert _decoding.decode(file.getvalue()).size == (4, 6)
    assert _decoding.pil_array(PIL.Image.open(file)).shape == (6, 4, 3)


def bytes_per_pixel():
    """Return what a pixel of a picture with alpha takes at most, of 25 million."""
    ImageReader().read(dds(400, 400, bytes(80_000)))
    data, before = dds(5000, 5000, bytes(12_500_000)), peak_bytes()
    ImageReader().read(data)
    return (peak_bytes() - before) / 5000**2


@pytest.mark.slow
def test_a_large_picture_takes_a_few_times_its_pixels():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        assert processes.submit(bytes_per_pixel).result() < 16


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch, encodings):
    monkeypatch.setattr(_decoding, "_LARGE", 29 * 23 - 1)
    running, most, plain = [0], [0], _decoding._loaded_image

    def watched(image):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.01)
        running[0] -= 1
        return plain(image)

    def run():
        threads = [
            threading.Thread(target=_decoding.decode, args=(encodings[2],))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return most[0]

    monkeypatch.setattr(_decoding, "_loaded_image", watched)
    assert run() == 1
    monkeypatch.setattr(_decoding, "_LARGE", 29 * 23)
    assert run() > 1


def loop(folder):
    (folder / "one").symlink_to(folder / "two")
    (folder / "two").symlink_to(folder / "one")
    return folder / "one"


def sparse(folder):
    path = folder / "sparse.png"
    with open(path, "wb") as file:
        file.truncate(_files.MAX_FILE_BYTES + 1)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and devices")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (loop, "symbolic links"),
        (sparse, "more than 536,870,912"),
        (lambda folder: "/dev/zero", "not a regular file"),
        (lambda folder: "/dev/stdin", "not a regular file|No such|cannot identify"),
        (lambda folder: "/proc/self/mem", "cannot identify|Input/output"),
        (lambda folder: "nul\0byte.png", "null (byte|character)"),
        (lambda folder: "x" * 5000, "name too long"),
    ],
)
def test_paths_that_lead_nowhere_good(make, reason, tmp_path):
    path = make(tmp_path)
    extractor = PretrainedFeatureExtractor(small_backbone(), device="cpu")
    with pytest.raises(UnreadableError, match=f"row 0.*({reason})"):
        extractor.transform([path])


def test_no_other_program_is_run(monkeypatch, tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(PIL.UnidentifiedImageError):
        _decoding.decode(eps)
