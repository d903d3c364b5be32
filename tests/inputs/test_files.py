"""Files are read whole, whatever their size is said to be."""

import os
from pathlib import Path

import pytest

from sktransfer.inputs._files import _read_all, read_file

DATA = bytes(range(256)) * 5


@pytest.mark.parametrize("expected", [0, 1, 1279, 1280, 1281, 5000])
@pytest.mark.parametrize("part", [7, 2**20])
def test_a_file_may_have_another_size_than_it_had(
    expected, part, tmp_path, monkeypatch
):
    monkeypatch.setattr("sktransfer.inputs._files._PART", part)
    path = tmp_path / "image"
    path.write_bytes(DATA)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        assert _read_all(descriptor, expected) == DATA
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, 2**20 + 1])
def test_files_are_read_whole(size, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(os.urandom(size))
    assert read_file(path, "image") == path.read_bytes()


def test_files_that_do_not_tell_their_size():
    path = Path("/proc/version")
    if not path.exists():
        pytest.skip("needs the files of /proc, which Linux makes when they are read")
    assert path.stat().st_size == 0
    assert read_file(path, "image") == path.read_bytes()
