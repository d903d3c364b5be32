"""Decoding of encoded bytes, PIL images and arrays in bounded time and memory."""

import contextlib
import io
import math
import re
import struct
import threading

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from sktransfer.inputs._file_kinds import file_kind
from sktransfer.inputs._resizing import Reduced

# Images with more pixels than this are decoded one at a time. The lock is reentrant, as
# `decode` takes it for the size in the header and again for the size after opening.
_LARGE = 2**24
_large_one = threading.RLock()
# The number of pixels of an array that are converted at a time.
_BAND = 2**20
# Beyond this length, the bookkeeping for each row takes more memory than the pixels.
_LONGEST_SIDE = 2**20
# These locks guard PIL images while they are loaded: each image is assigned one.
_loading = [threading.Lock() for _ in range(1021)]
# The width and height in the header of a PNG, and the height and width in the frame
# header of a JPEG with 8 bits and one, three or four channels.
_PNG_SIZE = re.compile(rb"(?s)IHDR(.{8})")
_JPEG_SIZE = re.compile(rb"(?s)\xff[\xc0-\xc2]\0[\x0b\x11\x14]\x08(.{4})[\1\3\4]")
_EXIF_ORIENTATION = 0x0112
# The EXIF orientations whose rows are columns of the upright image, and the axes of the
# upright image that run backwards.
_TRANSPOSED = (5, 6, 7, 8)
_FLIPPED = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
# Formats whose decoders hold an image in memory once or twice more, and by what the
# limit of pixels is divided for them.
_SHARES = {"WEBP": 2, "AVIF": 2, "JPEG2000": 2}
# Pillow would run Ghostscript, another program, to read an EPS file. Of the others it
# recognises the header but cannot decode the image.
_NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


def decode(
    content: bytes | np.ndarray, least: int | None = None
) -> PIL.Image.Image | torch.Tensor | Reduced:
    """Decode content into an upright RGB image.

    Parameters
    ----------
    content : bytes or ndarray
        The encoded image, or its pixels.
    least : int, optional
        The length that both sides have to have. A decoder that can leave out details,
        as that of JPEG can, may then return an image of half, a quarter or an eighth of
        the size. If None, all images are decoded to their full size.

    Returns
    -------
    PIL.Image.Image, or torch.Tensor of shape (3, H, W)
        A float32 tensor in [0, 1] if the image has more than 8 bits. An image of 8 bits
        is returned as a PIL image: Pillow also resizes it, and its pixels need not be
        copied in between. If it was decoded to less than its size, it is a `Reduced`.

    Raises
    ------
    Exception
        Any exception raised by the decoder; the caller adds which image it was.
    """
    if isinstance(content, np.ndarray):
        return _array_image(content)
    # Checked before the file is opened, which may allocate all of the image already.
    canvas, inner = _webp_size(content), _inner_size(content)
    _refuse_huge(*canvas, _SHARES["WEBP"])
    _refuse_huge(*inner)
    with _turn(*max(canvas, inner)), _opened(content) as opened:
        # The limit applies to the size of the file, whatever it is decoded to.
        _refuse_huge(*opened.size, _SHARES.get(opened.format, 1))
        size = opened.size
        part = opened.draft(None, (least, least)) if least else None
        reduced = opened.size != size
        with _turn(*opened.size):
            image = _rgb_image(_loaded_image(opened))
        return _reduced(image, size, part[1], opened) if reduced else image


def _opened(content: bytes) -> PIL.Image.Image:
    try:
        return PIL.Image.open(io.BytesIO(content), formats=readable_formats())
    except PIL.UnidentifiedImageError as error:
        raise PIL.UnidentifiedImageError(file_kind(content)) from error


def _rgb_image(loaded: PIL.Image.Image | np.ndarray) -> PIL.Image.Image | torch.Tensor:
    if isinstance(loaded, PIL.Image.Image) and loaded.mode == "RGB":
        return loaded
    return _array_image(np.asarray(loaded))


def as_tensor(image: PIL.Image.Image | torch.Tensor) -> torch.Tensor:
    """Return an image as a tensor of shape (3, H, W), uint8 if it is a PIL image."""
    return image if isinstance(image, torch.Tensor) else pil_to_tensor(image)


def _turn(width: int, height: int):
    """Return a context that is entered by one large image at a time."""
    return _large_one if width * height > _LARGE else contextlib.nullcontext()


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return the width and height in the header of a WebP file, or 0 for other files.

    Pillow allocates memory for a WebP when it opens it, before its size is known.
    """
    # An extended, a lossless and a lossy file store their size differently.
    kind, head = data[8:16], data[20:30].ljust(10, b"\0")
    if kind == b"WEBPVP8X":
        sides = head[4:7], head[7:10]
        return tuple(1 + int.from_bytes(side, "little") for side in sides)
    if kind == b"WEBPVP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"WEBPVP8 ":
        sides = head[6:8], head[8:10]
        return tuple(int.from_bytes(side, "little") & 0x3FFF for side in sides)
    return 0, 0


def _inner_size(data: bytes) -> tuple[int, int]:
    """Return the width and height of the largest image in an icon or BLP file.

    These contain PNG or JPEG files, which Pillow decodes regardless of the size in the
    outer header.
    """
    sizes = [(0, 0)]
    if data.startswith((b"\0\0\1\0", b"\0\0\2\0", b"icns")):
        sizes += [struct.unpack(">2I", head) for head in _PNG_SIZE.findall(data)]
    elif data.startswith(b"BLP1"):
        sizes += [struct.unpack(">2H", head)[::-1] for head in _JPEG_SIZE.findall(data)]
    return max(sizes, key=math.prod)


def readable_formats() -> list[str]:
    """Return the formats that Pillow can decode without running other programs."""
    PIL.Image.init()
    return [name for name in PIL.Image.ID if name not in _NOT_READ]


def readable_suffixes() -> set[str]:
    """Suffixes of files in these formats, such as ".jpg"."""
    readable = readable_formats()
    extensions = PIL.Image.registered_extensions()
    return {suffix for suffix, kind in extensions.items() if kind in readable}


def _refuse_huge(width: int, height: int, share: int = 1) -> None:
    if max(width, height) > _LONGEST_SIDE:
        raise ValueError(
            f"it has {width} x {height} pixels, and no side may be longer than "
            f"{_LONGEST_SIDE:,} (cut it into pieces)"
        )
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit // share:
        raise ValueError(
            f"it has {width} x {height} pixels, more than the limit of "
            f"{limit // share:,} (raise PIL.Image.MAX_IMAGE_PIXELS if you trust the "
            "file)"
        )


def pil_array(image: PIL.Image.Image) -> np.ndarray:
    """Return a PIL image as an upright array, with any alpha channel."""
    # If the same image is passed twice, two threads may need it, but only one may load
    # it. The lock is chosen by the image's address. CPython aligns addresses to 16
    # bytes, and the number of locks is prime, so that images are spread over all locks.
    with _loading[id(image) // 16 % len(_loading)]:
        return np.asarray(_loaded_image(image))


def _loaded_image(image: PIL.Image.Image) -> PIL.Image.Image | np.ndarray:
    """Load an image and make it upright.

    The result is an RGB or RGBA image, or an array if the image had to be turned or has
    more than 8 bits.
    """
    _refuse_huge(*image.size, _SHARES.get(image.format, 1))
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        loaded = checked_array(_deep_array(image))
    else:
        mode = "RGBA" if image.has_transparency_data else "RGB"
        loaded = image if image.mode == mode else image.convert(mode)
    # The orientation is read last: Pillow itself turns TIFF and AVIF images when it
    # loads them, and removes their tag.
    orientation = _orientation(image)
    return loaded if orientation == 1 else _upright(np.asarray(loaded), orientation)


def _deep_array(image: PIL.Image.Image) -> np.ndarray:
    """Return a loaded image of more than 8 bits as an array of uint16 or float."""
    array = np.asarray(image)
    # These formats have at most 16 bits, which some versions of Pillow store in 32.
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return array.astype(np.uint16)
    if image.mode == "I":
        raise ValueError(
            f"it has 32-bit integers, here from {array.min()} to {array.max()}, which "
            "do not say what white is (convert it to a uint8 or uint16 array, or to a "
            "float array divided by the value of white)"
        )
    # 16 bits, possibly in the byte order of another machine.
    return array.astype(np.uint16) if array.dtype.kind == "u" else array


def _orientation(image: PIL.Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        # Broken metadata is not a reason to refuse an image that can be read.
        return 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation from 1 to 8; other values are treated as 1."""
    # PIL.ImageOps.exif_transpose would copy images that need not be turned, and fail if
    # any other tag of the image cannot be written again.
    if orientation in _TRANSPOSED:
        array = array.swapaxes(0, 1)
    flips = _FLIPPED.get(orientation, ())
    return np.flip(array, flips) if flips else array


def _reduced(image, size, box, opened) -> Reduced:
    """Return a loaded image with its size and its edges before it was reduced."""
    orientation = _orientation(opened)
    # The decoder rounds sides up, and adds what is missing at the right and at the end.
    edges = [[0, box[3], opened.height], [0, box[2], opened.width]]
    size = size[::-1]
    if orientation in _TRANSPOSED:
        edges, size = edges[::-1], size[::-1]
    for axis in _FLIPPED.get(orientation, ()):
        start, end, length = edges[axis]
        edges[axis] = [length - end, length - start, length]
    (upper, lower, _), (left, right, _) = edges
    return Reduced(image, size, (left, upper, right, lower))


def _array_image(array: np.ndarray) -> PIL.Image.Image | torch.Tensor:
    if array.ndim == 2:
        array = array[:, :, None]
    # Channels may also come first, as in torch.
    if array.shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    height, width = array.shape[:2]
    # Converted in bands of rows, as the intermediate arrays of a whole image would need
    # many times its memory.
    step = max(1, _BAND // width)
    bands = [slice(row, row + step) for row in range(0, height, step)]
    if all(_eight_bits(array[band]) is not None for band in bands):
        image = PIL.Image.new("RGB", (width, height))
        for band in bands:
            part = _colours(_eight_bits(array[band]))
            image.paste(PIL.Image.fromarray(part), (0, band.start))
        return image
    pixels = np.empty((height, width, 3), dtype=np.float32)
    for band in bands:
        pixels[band] = _colours(_floats(array[band]))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _eight_bits(array: np.ndarray) -> np.ndarray | None:
    """Return the array as uint8 if that loses nothing, else None.

    A float or 16-bit image whose values are k / 255 is an 8-bit image, and must have
    the same embedding to the last bit.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    scaled = _floats(array) * np.float32(255)
    rounded = np.rint(scaled)
    # The tolerance exceeds the rounding errors of float32 (2e-5) and is well below the
    # difference of two 16-bit values (4e-3).
    exact = np.abs(scaled - rounded).max() < 1e-4
    within = rounded.min() >= 0 and rounded.max() <= 255
    return rounded.astype(np.uint8) if exact and within else None


def _floats(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint16:
        array = array / np.float32(65535)
    return array.astype(np.float32)


def _colours(array: np.ndarray) -> np.ndarray:
    """Convert one, three or four channels to three."""
    if array.shape[2] == 4:
        array = _on_white(array)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _on_white(array: np.ndarray) -> np.ndarray:
    colour, alpha = array[:, :, :3], array[:, :, 3:]
    if array.dtype == np.uint8:
        # Rounded to the nearest integer; no intermediate value exceeds 16 bits.
        mixed = colour.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))
        return ((mixed + 127) // 255).astype(np.uint8)
    return colour * alpha + (1 - alpha)


def checked_array(array: np.ndarray) -> np.ndarray:
    """Return an array unchanged if it can be an image, else raise an error."""
    if array.size == 0:
        raise ValueError(f"it is an empty array of shape {array.shape}")
    if array.ndim not in (2, 3) or (
        array.ndim == 3
        and array.shape[2] not in (1, 3, 4)
        and array.shape[0] not in (1, 3)
    ):
        raise ValueError(f"it is an array of shape {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("it is a float array with NaN or infinite values")
        if array.min() < 0 or array.max() > 1:
            advice = "divide by the value of white"
            if array.min() < 0:
                advice = "pass (x - black) / (white - black)"
            raise ValueError(
                f"it is a float array with values from {array.min():.4g} to "
                f"{array.max():.4g}, outside [0, 1] ({advice})"
            )
    elif array.dtype.kind == "c":
        raise ValueError(
            "it is an array of complex numbers, which cannot be an image (pass their "
            "absolute values, scaled to [0, 1])"
        )
    elif array.dtype != bool and array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"it is an array of dtype {array.dtype} (convert with .astype(np.uint8) if "
            "its values are 0 to 255)"
        )
    return array
