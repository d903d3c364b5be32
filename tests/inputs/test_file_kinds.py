import io
import zipfile

import numpy as np
import PIL.Image
import pytest

from sktransfer.inputs._decoding import decode
from sktransfer.inputs._file_kinds import file_kind, shortened, text_kind


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "")
    return file.getvalue()


def saved():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


KINDS = {
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "MP4": b"\0\0\0 ftypisom\0\0\2\0isomiso2avc1mp41",
    "QuickTime": b"\0\0\0\x14ftypqt  \0\0\2\0qt  ",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "Matroska": b"\x1aE\xdf\xa3\x9fB\x86\x81\1",
    "AVI": b"RIFF\x24\0\0\0AVI LIST",
    "sound": b"RIFF\x24\0\0\0WAVEfmt ",
    "zip": zipped(),
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0",
    "NumPy": saved(),
    "DICOM": bytes(128) + b"DICM",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
    "HTML": b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>",
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "empty": b"",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_image_is_told_by_its_kind(kind):
    with pytest.raises(PIL.UnidentifiedImageError, match=f"it (seems|is).*{kind}"):
        decode(KINDS[kind])


def test_of_an_unknown_file_the_beginning_is_shown():
    assert "b'\\x01\\x02\\x03'" in file_kind(b"\1\2\3")


@pytest.mark.parametrize(
    "path", ["a.png", "/data/a.png", "C:/a.png", "c:\\a.png", "x/9j/4AAQSkZJRgABAQ", ""]
)
def test_a_path_may_be_one(path):
    assert text_kind(path) == ""


def test_a_long_text_is_shortened_to_its_ends():
    assert shortened("a.png") == "a.png"
    short = shortened("start" + 500 * "x" + "end.png")
    assert len(short) == 120
    assert short.startswith("start")
    assert short.endswith("end.png")
