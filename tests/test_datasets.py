import PIL.Image
import pytest

from sktransfer.datasets import load_image_folder


def test_a_folder_of_class_folders(tmp_path):
    for name in [
        "wasp/1.jpg",
        "ant/b.PNG",
        "ant/deep/a.png",
        "ant/notes.txt",
        ".x/1.png",
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "ant" / "._b.png").write_text("")
    photos = load_image_folder(tmp_path)
    names = [path.removeprefix(str(tmp_path)) for path in photos.data]
    assert names == ["/ant/b.PNG", "/ant/deep/a.png", "/wasp/1.jpg"]
    assert photos.target.tolist() == [0, 0, 1]
    assert photos.target_names.tolist() == ["ant", "wasp"]
    X, y = load_image_folder(str(tmp_path), return_X_y=True)
    assert (photos.data == X).all()
    assert (y == photos.target).all()


def test_what_is_no_such_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        load_image_folder(tmp_path / "no")
    PIL.Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"no class folder.*\.png"):
        load_image_folder(tmp_path)
