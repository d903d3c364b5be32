"""What a file or text seems to be that is given as an image, and is none."""

import base64
import re

# First bytes (and where they stand) -> what begins so, and what to do with it.
_FILES = [
    (0, b"%PDF-", "a PDF document (render its pages, with pdf2image say)"),
    (0, b"%!PS", "a PostScript or EPS document (convert it to PNG)"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video (extract its frames)"),
    (0, b"\0\0\1\xba", "an MPEG video (extract its frames)"),
    (0, b"\0\0\1\xb3", "an MPEG video (extract its frames)"),
    (8, b"AVI ", "an AVI video (extract its frames)"),
    (8, b"WAVE", "a sound"),
    (0, b"ID3", "a sound"),
    (0, b"fLaC", "a sound"),
    (0, b"OggS", "a sound or video"),
    (0, b"PK\3\4", "a zip archive, or a document that is one (extract its images)"),
    (0, b"\x1f\x8b", "gzip data (decompress it with gzip.decompress)"),
    (0, b"\x89HDF", "an HDF5 file (pass the arrays in it)"),
    (0, b"\x93NUMPY", "a NumPy file (pass numpy.load(path))"),
    (128, b"DICM", "a DICOM file (pass its pixels, scaled to [0, 1])"),
    (0, b"\xff\x0a", "a JPEG XL image (install a Pillow plugin for it)"),
    (4, b"JXL ", "a JPEG XL image (install a Pillow plugin for it)"),
    (0, b"version https://git-lfs", "a Git LFS pointer (run 'git lfs pull')"),
]
# The same of files whose kind is that of a container.
_BRANDS = [
    (b"avi", "an AVIF image, which this Pillow does not read (install a newer one)"),
    (b"hei|hev|mif|msf", "a HEIC photo (install and register pillow-heif, or convert)"),
    (b"qt", "a QuickTime video (extract its frames)"),
    (b"", "an MP4 video (extract its frames)"),
]
_BASE64 = re.compile(r"[A-Za-z0-9+/]{32}")
# Beginnings of what is an image once it is decoded.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_DECODE = "pass base64.b64decode(text)"
_DECODE_URI = "pass base64.b64decode(text.partition(',')[2])"


def file_kind(data: bytes) -> str:
    """Say what bytes seem to be that Pillow does not know."""
    if not data:
        return "it is empty, of 0 bytes"
    kind = next((kind for at, magic, kind in _FILES if data[at:].startswith(magic)), "")
    if data[4:8] == b"ftyp":
        kind = next(kind for brand, kind in _BRANDS if re.match(brand, data[8:12]))
    text = data[:2000].decode("latin-1").lstrip("\xef\xbb\xbf \t\r\n")
    if text.startswith("<"):
        kind = _markup_kind(text)
    if kind:
        return f"it seems to be {kind}"
    return (
        text_kind(text)
        or f"its first bytes, {data[:12]!r}, are those of no image that Pillow reads"
    )


def _markup_kind(text: str) -> str:
    if "<svg" in text:
        return "an SVG drawing (convert it to PNG)"
    if re.match("(?i)<(!doctype )?html", text):
        return "an HTML page (a download that failed?)"
    return "an XML or HTML document"


def text_kind(text: str) -> str:
    """Say what a text is that is no path; "" if it may be one."""
    if re.match("(?i)data:", text):
        return f"it is a data: URI ({_DECODE_URI})"
    if re.match("(?i)file:", text):
        return "it is a file: URI (pass the path behind 'file://')"
    # A Path of it has one stroke left, and C:/ is a drive.
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return (
            "it is a URL, and nothing is fetched from elsewhere (download the file "
            "first, as urllib.request.urlretrieve(url, path) does, and pass its path)"
        )
    if _is_encoded_image(text):
        return f"it seems to be an image as base64 text ({_DECODE})"
    return ""


def _is_encoded_image(text: str) -> bool:
    found = _BASE64.match(text[:64].replace("-", "+").replace("_", "/"))
    return found is not None and base64.b64decode(found[0]).startswith(_IMAGES)


def shortened(text: str, most: int = 120) -> str:
    """The text, or its beginning and end."""
    return text if len(text) <= most else f"{text[: most - 43]}...{text[-40:]}"
