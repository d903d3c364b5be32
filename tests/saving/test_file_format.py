"""That docs/file_format.rst tells what files contain. Its code is run as a page."""

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from sktransfer import FineTuneClassifier, load, save
from sktransfer.embedding import _key_index, _shards
from sktransfer.saving import _codec, _file, _names
from sktransfer.saving._simple import SIMPLE

PAGE = Path(__file__).parents[2].joinpath("docs", "file_format.rst").read_text("utf-8")
_RULE = re.compile(r"=+(  +=+)+")


def tables():
    """The tables of the page, by their header: for each row, its cells."""
    found, lines = {}, PAGE.splitlines()
    rules = [number for number, line in enumerate(lines) if _RULE.fullmatch(line)]
    for top, middle, bottom in zip(*[iter(rules)] * 3, strict=True):
        starts = [match.start() for match in re.finditer("=+", lines[top])]
        ends = [*starts[1:], None]
        cut = [
            [line[a:b].strip() for a, b in zip(starts, ends, strict=True)]
            for line in lines[top + 1 : bottom]
        ]
        header, rows = cut[0], cut[middle - top :]
        # A line without a first cell goes on with the row above.
        key = " ".join(header) + " " * sum(
            h.rstrip() == " ".join(header) for h in found
        )
        found[key] = [[cell.strip("`") for cell in row] for row in rows if row[0]]
    return found


METADATA, DOCUMENT = "entry content", "entry content "


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model"
    save(FineTuneClassifier(), path)
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def test_the_entries_of_a_file_are_those_of_the_page(metadata):
    assert {row[0] for row in tables()[METADATA]} == metadata.keys()
    document = json.loads(metadata["document"])
    assert {row[0] for row in tables()[DOCUMENT]} == document.keys()
    assert metadata["format"] == _file._FORMAT == tables()[METADATA][0][1]
    assert {*document["versions"]} == {"scikit-learn", "torch", "torchvision", "numpy"}


def test_the_tags_are_those_of_the_page():
    rows = tables()["tag numbered content"]
    tags = [row[0] for row in rows]
    assert len(tags) == len({*tags})
    assert {*tags} == {*SIMPLE, *_codec._DECODERS}
    assert {row[0] for row in rows if row[1] == "yes"} == _codec._NUMBERED


def test_the_versions_are_those_of_the_page(metadata):
    rows = tables()["version what is new"]
    assert [int(row[0]) for row in rows] == list(range(1, _file._VERSION + 1))
    assert metadata["version"] == str(_file._VERSION)


def test_each_version_of_the_format_has_a_file_that_is_loaded():
    # The one of today is written by the other tests.
    earlier = {
        int(path.stem.removeprefix("format_"))
        for path in Path(__file__).parent.glob("format_*.sktransfer")
    }
    assert earlier == set(range(1, _file._VERSION))
    for version in earlier:
        with safe_open(
            Path(__file__).with_name(f"format_{version}.sktransfer"), "numpy"
        ) as file:
            assert file.metadata()["version"] == str(version)


def test_what_the_page_says_that_files_can_name():
    assert len(_names._HOLDERS) == 2
    assert {*_codec._LAYERS, "Standardise"} == {
        "Standardise",
        "Linear",
        "ReLU",
        "Dropout",
    }
    for name in [*_codec._LAYERS, "Standardise"]:
        assert f"``{name}``" in PAGE


def test_files_of_a_later_format_are_refused_as_said(tmp_path, monkeypatch):
    monkeypatch.setattr(_file, "_VERSION", _file._VERSION + 1)
    save(FineTuneClassifier(), tmp_path / "model")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="later version of sktransfer"):
        load(tmp_path / "model")


def test_the_parts_of_a_file_of_a_cache_are_those_of_the_page():
    sizes = [row[0] for row in tables()["bytes content"]]
    assert sizes == ["8", "4", "8", "any", "32 *n*", "8 *n*", "16", "any"]
    assert _shards._HEAD.size == 8 + 4 + 8
    assert (_key_index.KEY_BYTES, _shards._SUM_BYTES, _shards._DIGEST_BYTES) == (
        32,
        8,
        16,
    )
    assert _shards._MAGIC == b"sktrows\x01"
    for dtype in _shards.DTYPES:
        assert f"``{dtype}``" in PAGE
