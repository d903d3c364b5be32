import io

import numpy as np
import PIL.Image
import pytest

from sktransfer import PretrainedFeatureExtractor
from sktransfer.datasets import check_images
from tests.small_network import small_backbone


@pytest.fixture
def images(tmp_path, picture):
    cut_off = tmp_path / "cut_off.jpg"
    PIL.Image.fromarray(picture).save(cut_off)
    cut_off.write_bytes(cut_off.read_bytes()[:300])
    return [
        picture,
        str(cut_off),
        None,
        PIL.Image.fromarray(picture),
        {"bytes": b"GIF89a", "path": "d.gif"},
        io.BytesIO(b"%PDF-1.7"),
        picture.astype(float),
    ]


def test_what_cannot_be_read_is_listed_with_its_reason(images):
    table = check_images(images)
    assert table.columns == ["row", "file", "reason"]
    assert [row["row"] for row in table] == [1, 2, 4, 5, 6]
    assert [row["file"] for row in table] == [images[1], None, "d.gif", None, None]
    reasons = [row["reason"] for row in table]
    for reason, part in zip(
        reasons, ["runcated", "missing", "", "PDF", "[0, 1]"], strict=True
    ):
        assert part in reason
    assert "a PDF document" in repr(table)


def test_they_are_those_that_cannot_be_embedded(images):
    X = np.empty(len(images), dtype=object)
    X[:] = images
    extractor = PretrainedFeatureExtractor(
        small_backbone(), on_error="nan", device="cpu"
    )
    with pytest.warns(UserWarning, match="5 of 7 images cannot be read"):
        embedded = extractor.transform(X)
    bad = [row["row"] for row in check_images(X)]
    assert np.flatnonzero(np.isnan(embedded).any(axis=1)).tolist() == bad
    assert check_images(np.delete(X, bad)) == []


def test_progress_goes_to_standard_error(images, capsys):
    check_images(images)
    assert capsys.readouterr() == ("", "")
    check_images(images, verbose=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "check_images: 100%" in err
    assert "7/7" in err
    assert "unreadable=5" in err


def test_a_table_of_numbers_is_refused():
    with pytest.raises(ValueError, match="table of numbers"):
        check_images(np.zeros((3, 64)))
