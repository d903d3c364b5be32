"""Decoding of images and sounds: files of all formats, and how they are changed."""

import binascii
import contextlib
import io
import struct

import numpy as np
from fuzz_target import Target

# Pixels of the largest image that is decoded, so that a minute has thousands of files.
PIXELS = 2**22
# Format, modes and options of images.
IMAGES = [
    ("AVIF", "RGB RGBA", {}),
    ("BLP", "P", {}),
    ("BMP", "1 L P RGB", {}),
    ("DDS", "RGB RGBA", {}),
    ("GIF", "L P", {}),
    ("ICNS", "RGBA", {}),
    ("ICO", "RGBA", {}),
    ("IM", "RGB", {}),
    ("JPEG", "L RGB CMYK", {}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "RGB", {"exif": 6}),
    ("JPEG2000", "L RGB", {}),
    ("MSP", "1", {}),
    ("PCX", "L P RGB", {}),
    ("PNG", "1 L LA P RGB RGBA I;16", {}),
    ("PNG", "RGB", {"exif": 5}),
    ("PPM", "1 L RGB", {}),
    ("QOI", "RGB RGBA", {}),
    ("SGI", "L RGB", {}),
    ("SPIDER", "F", {}),
    ("TGA", "L RGB RGBA", {"compression": "tga_rle"}),
    ("TIFF", "1 L RGB CMYK I;16 F", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("WEBP", "RGB RGBA", {}),
    ("WEBP", "RGB", {"lossless": True, "exif": 8}),
    ("XBM", "1", {}),
]
SOUNDS = [
    *(("WAV", form) for form in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "IMA_ADPCM")),
    *(("WAV", form) for form in ("ULAW", "MS_ADPCM", "GSM610")),
    *(("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS")),
    *(
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("CAF", "ALAC_16"),
    ),
    *(("W64", "PCM_16"), ("RF64", "PCM_16"), ("VOC", "PCM_16"), ("SVX", "PCM_16")),
    *(("NIST", "PCM_16"), ("PAF", "PCM_16"), ("IRCAM", "PCM_16"), ("MAT5", "PCM_16")),
]


class DecodeTarget(Target):
    """A reader of images, and where that refuses, readers of sounds."""

    def prepare(self) -> None:
        import atheris

        with atheris.instrument_imports(include=["sktransfer", "PIL", "soundfile"]):
            import PIL.Image

            PIL.Image.init()
            from sktransfer.embedding._reading import Refusals, UnreadableError
            from sktransfer.inputs._images import ImageReader
            from sktransfer.inputs._reader import Samples
            from sktransfer.inputs._sound import SpectrogramReader, WaveReader

        PIL.Image.MAX_IMAGE_PIXELS = PIXELS
        self.refusals, self.samples = Refusals, Samples
        self.documented = (UnreadableError,)
        # Decoded to less than their size, if they are JPEGs.
        fast = ImageReader(resize=3, crop=3, decoding="fast")
        self.images = [ImageReader(resize=18, crop=16), fast]
        short = {"sampling_rate": 8000, "max_length": 0.5}
        spectrograms = SpectrogramReader(**short, bands=20)
        self.sounds = [WaveReader(**short), spectrograms]
        # What is imported when it is needed first is imported now.
        self.seeds = [*image_files(), *sound_files()]
        for seed in self.seeds:
            for reader in (*self.images, *self.sounds):
                with contextlib.suppress(UnreadableError):
                    self.read(seed, reader)

    def prepared(self, data: bytes):
        def run():
            try:
                self.check(data, self.images)
            except self.documented:
                self.check(data, self.sounds)

        return run

    def check(self, data: bytes, readers) -> None:
        for reader in readers:
            row = self.read(data, reader)
            if not row.numel() or not row.isfinite().all():
                raise AssertionError(f"{reader} gives {row}")

    def read(self, data: bytes, reader):
        refusals = self.refusals(self.samples([data], reader), strict=True)
        return refusals.read_input(0, reader)

    def changed(self, data: bytes, most: int, rng) -> bytes:
        """Change bytes, and repair checksums, without which nothing is decoded."""
        import atheris

        if rng.random() < 0.1:
            # The head of one file, and the rest of another.
            other = rng.choice(self.seeds)
            data = (
                data[: rng.randrange(len(data) + 1)]
                + other[rng.randrange(len(other)) :]
            )
        for _ in range(rng.choice([1, 1, 2, 4])):
            data = (
                self.spoilt(data, rng)
                if rng.random() < 0.4
                else atheris.Mutate(data, most)
            )
        return repaired(data) if rng.random() < 0.7 else data

    def spoilt(self, data: bytes, rng) -> bytes:
        """Put an extreme number somewhere, more often where headers are."""
        place = rng.randrange(max(1, min(len(data), rng.choice([16, 80, 10**9]))))
        length, order = rng.choice([1, 2, 4, 8]), rng.choice(["big", "little"])
        top = 2 ** (8 * length)
        number = rng.choice([0, 1, top - 1, top // 2, top // 2 - 1, rng.randrange(top)])
        return data[:place] + number.to_bytes(length, order) + data[place + length :]


def image_files() -> list[bytes]:
    import PIL.Image

    noise = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(noise).resize((29, 23), PIL.Image.BICUBIC)
    found = []
    for kind, modes, options in IMAGES:
        for mode in modes.split():
            image = picture.convert("L" if mode == "I;16" else mode)
            if mode == "I;16":
                image = PIL.Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
            if "exif" in options:
                exif = PIL.Image.Exif()
                exif[0x0112] = options["exif"]
                options = options | {"exif": exif}
            file = io.BytesIO()
            # Pillow may have been built without a codec.
            with contextlib.suppress(KeyError, OSError):
                image.save(file, kind, **options)
                found.append(file.getvalue())
    frames, file = [picture, picture.rotate(90, expand=True)], io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return [*found, file.getvalue()]


def sound_files() -> list[bytes]:
    import soundfile

    rng, found = np.random.default_rng(0), []
    for channels in (1, 2):
        wave = rng.uniform(-0.5, 0.5, (1500, channels)).astype(np.float32)
        for container, form in SOUNDS:
            file = io.BytesIO()
            # Not each build of libsndfile writes each of them.
            with contextlib.suppress(soundfile.LibsndfileError, ValueError):
                soundfile.write(file, wave, 8000, form, format=container)
                found.append(file.getvalue())
    return found


def repaired(data: bytes) -> bytes:
    """Return a PNG or Ogg file with checksums that are right."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return repaired_png(data)
    return repaired_ogg(data) if data.startswith(b"OggS") else data


def repaired_png(data: bytes) -> bytes:
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        body = data[place + 4 : end]
        parts += [
            data[place : place + 4],
            body,
            struct.pack(">I", binascii.crc32(body)),
        ]
        place = end + 4
    return b"".join([*parts, data[place:]])


def _ogg_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
        table.append(value)
    return table


OGG_TABLE = _ogg_table()


def repaired_ogg(data: bytes) -> bytes:
    pages = data.split(b"OggS")
    for i, page in enumerate(pages[1:], 1):
        if len(page) < 23:
            continue
        whole, value = b"OggS" + page[:18] + bytes(4) + page[22:], 0
        for byte in whole:
            value = (value << 8 ^ OGG_TABLE[(value >> 24) ^ byte]) & 0xFFFFFFFF
        pages[i] = page[:18] + struct.pack("<I", value) + page[22:]
    return b"OggS".join(pages)
