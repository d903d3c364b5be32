"""Guesses of what a file or text is that was passed as a sample but is not one."""

import base64
import re

# The offset and value of the bytes by which a kind of file is recognised, its name, and
# in parentheses what to do.
_FILES = [
    (0, b"%PDF-", "a PDF document (render its pages, for example with pdf2image)"),
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
# Images, which are no sounds.
_PICTURES = [
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
]
# The same for files in the ISO container format, by a regular expression for its brand.
# The first that matches counts.
_BRANDS = [
    (
        b"avi",
        "an AVIF image, which this Pillow cannot read (install a newer one)",
    ),
    (b"hei|hev|mif|msf", "a HEIC photo (install and register pillow-heif, or convert)"),
    (b"M4A", "a sound in an MP4 file"),
    (b"qt", "a QuickTime video (extract its frames)"),
    (b"", "an MP4 video (extract its frames)"),
]
# 32 characters, a multiple of 4, so that they can be decoded by themselves.
_BASE64 = re.compile(r"[A-Za-z0-9+/]{32}")
# The first bytes of files, by which they are recognised once their text is decoded.
_IN_BASE64 = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*"),
    *(b"fLaC", b"OggS", b"ID3"),
)
_DECODE = "pass base64.b64decode(text)"
_DECODE_URI = "pass base64.b64decode(text.partition(',')[2])"


def file_kind(data: bytes, wanted: str = "image") -> str:
    """Describe what bytes seem to be that are not the image or sound wanted."""
    if not data:
        return "it is empty (0 bytes)"
    table = _FILES if wanted == "image" else [*_PICTURES, *_FILES]
    kind = next((kind for at, magic, kind in table if data[at:].startswith(magic)), "")
    if data[4:8] == b"ftyp":
        kind = next(kind for brand, kind in _BRANDS if re.match(brand, data[8:12]))
    # Latin-1 decodes any bytes. A byte order mark and spaces may precede the text.
    text = data[:2000].decode("latin-1").lstrip("\xef\xbb\xbf \t\r\n")
    if text.startswith("<"):
        kind = _markup_kind(text)
    if kind:
        # What the parentheses advise is a way to get images.
        shown = kind if wanted == "image" else kind.partition(" (")[0]
        return f"it seems to be {shown}"
    return (
        text_kind(text)
        or f"its first bytes, {data[:12]!r}, are not those of any {wanted} format"
    )


def _markup_kind(text: str) -> str:
    if "<svg" in text:
        return "an SVG drawing (convert it to PNG)"
    if re.match("(?i)<(!doctype )?html", text):
        return "an HTML page (a download that failed?)"
    return "an XML or HTML document"


def text_kind(text: str) -> str:
    """Describe what a text is, or return "" if it may be a path."""
    if re.match("(?i)data:", text):
        return f"it is a data: URI ({_DECODE_URI})"
    if re.match("(?i)file:", text):
        return "it is a file: URI (pass the path behind 'file://')"
    # A single slash is enough, as a Path of the URL has only one left. A scheme has at
    # least two letters, since C:/ is a drive.
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return (
            "it is a URL, and URLs are not fetched (download the file first, for "
            "example with urllib.request.urlretrieve(url, path), and pass its path)"
        )
    if is_base64(text):
        return f"it seems to be base64 text ({_DECODE})"
    return ""


def is_base64(text: str) -> bool:
    """Whether a text seems to be a file as base64, or a data: URI."""
    if re.match("(?i)data:", text):
        return True
    # "-" and "_" belong to the variant of base64 that is safe in URLs.
    found = _BASE64.match(text[:64].replace("-", "+").replace("_", "/"))
    data = base64.b64decode(found[0]) if found else b""
    return data.startswith(_IN_BASE64) or data[4:8] == b"ftyp"


def shortened(text: str, most: int = 120) -> str:
    """Return a text, reduced to its beginning and end if it is too long."""
    return text if len(text) <= most else f"{text[: most - 43]}...{text[-40:]}"
