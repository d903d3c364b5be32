"""Encoded bytes, PIL images and arrays -> pixels, within bounds of time and memory."""

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

# Of pictures with more pixels than this, one is decoded at a time.
_LARGE = 2**24
_large_one = threading.RLock()
# Pixels of an array that are converted at a time.
_BAND = 2**20
# Beyond it, what is kept for each row weighs more than the pixels.
_LONGEST_SIDE = 2**20
# Of images that are given opened, each has one of these locks.
_loading = [threading.Lock() for _ in range(1021)]
# Where the size stands in a PNG, and height and width in a JPEG.
_PNG_SIZE = re.compile(rb"(?s)IHDR(.{8})")
_JPEG_SIZE = re.compile(rb"(?s)\xff[\xc0-\xc2]\0[\x0b\x11\x14]\x08(.{4})[\1\3\4]")
_EXIF_ORIENTATION = 0x0112
# Formats whose decoders hold a picture once or twice more: they may have that part of
# the pixels that others may.
_SHARES = {"WEBP": 2, "AVIF": 2, "JPEG2000": 2}
# Ghostscript would read the first; of the others Pillow knows no more than the header.
_NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


def decode(source: bytes | np.ndarray) -> PIL.Image.Image | torch.Tensor:
    """Decode a source into an upright RGB picture.

    Returns
    -------
    PIL.Image.Image, or torch.Tensor of shape (3, H, W)
        float32 in [0, 1] for a picture that has more than 8 bits. What has 8 is left to
        Pillow, which also resizes it: its pixels need not be copied in between.

    Raises
    ------
    Exception
        Whatever the decoder raises; the caller adds which image it was.
    """
    if isinstance(source, np.ndarray):
        return _array_picture(source)
    canvas, inner = _webp_size(source), _inner_size(source)
    _refuse_huge(*canvas, _SHARES["WEBP"])
    _refuse_huge(*inner)
    with _turn(*max(canvas, inner)), _opened(source) as image, _turn(*image.size):
        picture = _pil_picture(image)
        if isinstance(picture, PIL.Image.Image) and picture.mode == "RGB":
            return picture
        return _array_picture(np.asarray(picture))


def _opened(source: bytes) -> PIL.Image.Image:
    try:
        return PIL.Image.open(io.BytesIO(source), formats=readable_formats())
    except PIL.UnidentifiedImageError as error:
        raise PIL.UnidentifiedImageError(file_kind(source)) from error


def as_pixels(picture: PIL.Image.Image | torch.Tensor) -> torch.Tensor:
    """Pixels of shape (3, H, W) of a picture; uint8 of a PIL image."""
    return picture if isinstance(picture, torch.Tensor) else pil_to_tensor(picture)


def _turn(width: int, height: int):
    """Wait, if a picture is large, until no other large one is in work."""
    return _large_one if width * height > _LARGE else contextlib.nullcontext()


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height that a WebP file claims; 0 of any other file.

    Pillow allocates for a WebP when it opens it, before the size can be asked for.
    """
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
    """Width and height of the largest picture in a file that holds files of others.

    Pillow decodes these whatever the size is that the outer header tells.
    """
    sizes = [(0, 0)]
    if data.startswith((b"\0\0\1\0", b"\0\0\2\0", b"icns")):
        sizes += [struct.unpack(">2I", head) for head in _PNG_SIZE.findall(data)]
    elif data.startswith(b"BLP1"):
        sizes += [struct.unpack(">2H", head)[::-1] for head in _JPEG_SIZE.findall(data)]
    return max(sizes, key=math.prod)


def readable_formats() -> list[str]:
    """Formats that Pillow reads by itself: no other program, and more than a name."""
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
    """Pixels of a PIL image, upright, its alpha kept for `_array_picture`."""
    # Given twice, an image may be needed by two threads, and only one can load it.
    with _loading[id(image) // 16 % len(_loading)]:
        return np.asarray(_pil_picture(image))


def _pil_picture(image: PIL.Image.Image) -> PIL.Image.Image | np.ndarray:
    """Load an image; RGB or RGBA, or an array if it was turned or has over 8 bits."""
    _refuse_huge(*image.size, _SHARES.get(image.format, 1))
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        picture = checked_array(_deep_array(image))
    else:
        mode = "RGBA" if image.has_transparency_data else "RGB"
        picture = image if image.mode == mode else image.convert(mode)
    # TIFF and AVIF are turned, and their tag removed, by Pillow's own load.
    orientation = _orientation(image)
    return picture if orientation == 1 else _upright(np.asarray(picture), orientation)


def _deep_array(image: PIL.Image.Image) -> np.ndarray:
    """Pixels of a loaded image of more than 8 bits, whose type says what white is."""
    array = np.asarray(image)
    # These have 16 bits at most, which some versions of Pillow put into 32.
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return array.astype(np.uint16)
    if image.mode == "I":
        raise ValueError(
            f"it has 32-bit integers, here from {array.min()} to {array.max()}, which "
            "do not say what white is (convert it to a uint8 or uint16 array, or to a "
            "float array divided by the value of white)"
        )
    # Of another order of bytes, but as many.
    return array.astype(np.uint16) if array.dtype.kind == "u" else array


def _orientation(image: PIL.Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        # Broken metadata is no reason to refuse a picture that can be read.
        return 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (1 to 8; anything else is as good as 1)."""
    # PIL.ImageOps.exif_transpose would copy what needs no turn, and refuse a picture
    # with some other tag that cannot be written again.
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    flips = {2: 1, 3: (0, 1), 4: 0, 6: 1, 7: (0, 1), 8: 0}
    return np.flip(array, flips[orientation]) if orientation in flips else array


def _array_picture(array: np.ndarray) -> PIL.Image.Image | torch.Tensor:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    height, width = array.shape[:2]
    # By bands of rows, as the steps between would be many times the picture.
    step = max(1, _BAND // width)
    bands = [slice(row, row + step) for row in range(0, height, step)]
    if all(_eight_bits(array[band]) is not None for band in bands):
        picture = PIL.Image.new("RGB", (width, height))
        for band in bands:
            part = _colours(_eight_bits(array[band]))
            picture.paste(PIL.Image.fromarray(part), (0, band.start))
        return picture
    pixels = np.empty((height, width, 3), dtype=np.float32)
    for band in bands:
        pixels[band] = _colours(_floats(array[band]))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _eight_bits(array: np.ndarray) -> np.ndarray | None:
    """uint8 where that loses nothing, else None.

    A float or 16-bit picture whose values are k / 255 is an 8-bit picture, and must
    give the same embedding to the last bit.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    scaled = _floats(array) * np.float32(255)
    rounded = np.rint(scaled)
    exact = np.abs(scaled - rounded).max() < 1e-4
    within = rounded.min() >= 0 and rounded.max() <= 255
    return rounded.astype(np.uint8) if exact and within else None


def _floats(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint16:
        array = array / np.float32(65535)
    return array.astype(np.float32)


def _colours(array: np.ndarray) -> np.ndarray:
    """Three channels of one, three or four."""
    if array.shape[2] == 4:
        array = _on_white(array)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _on_white(array: np.ndarray) -> np.ndarray:
    colour, alpha = array[:, :, :3], array[:, :, 3:]
    if array.dtype == np.uint8:
        mixed = colour.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))
        return ((mixed + 127) // 255).astype(np.uint8)
    return colour * alpha + (1 - alpha)


def checked_array(array: np.ndarray) -> np.ndarray:
    """Return an array of pixels as it is, if it is one that can be an image."""
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
            way = "divide by the value of white"
            if array.min() < 0:
                way = "pass (x - low) / (high - low) of the values of black and white"
            raise ValueError(
                f"it is a float array with values from {array.min():.4g} to "
                f"{array.max():.4g}, outside [0, 1] ({way})"
            )
    elif array.dtype.kind == "c":
        raise ValueError(
            "it is an array of complex numbers, which are no pixels (pass their "
            "absolute values, scaled to [0, 1])"
        )
    elif array.dtype != bool and array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"it is an array of dtype {array.dtype} (convert with .astype(np.uint8) if "
            "its values are 0 to 255)"
        )
    return array
