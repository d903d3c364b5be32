import pytest

from sktransfer.saving._atomic import whole_file


def test_a_file_is_replaced_once_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path, error):
    with whole_file(path) as partial:
        partial.write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_old_one_is_there_and_nothing_else(error, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error):
        write_half(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with whole_file("~/file") as partial:
        partial.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="no folder .*nowhere.*Create the"),
        whole_file(tmp_path / "nowhere" / "file"),
    ):
        pass


def test_a_folder_is_no_file(tmp_path):
    message = "is a folder.*Add a file name"
    with pytest.raises(IsADirectoryError, match=message), whole_file(tmp_path):
        raise AssertionError("it was let to be written")
    assert list(tmp_path.iterdir()) == []
