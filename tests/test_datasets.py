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


def test_what_is_hidden_or_no_image_is_left_out_and_links_are_followed(tmp_path):
    names = ["a/1.png", "a/.thumbnails/1.png", "a/terms.pdf", "a/t.h5", "a/c.mpg"]
    for name in [*names, "b/2.jpg", "more/3.png"]:
        path = tmp_path / "photos" / name
        if name.startswith("more"):
            path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    photos = tmp_path / "photos"
    (photos / "a/linked").symlink_to(tmp_path / "more", target_is_directory=True)
    (photos / "a/back").symlink_to(photos / "a", target_is_directory=True)
    found = load_image_folder(photos)
    names = [path.removeprefix(str(photos)) for path in found.data]
    assert names == ["/a/1.png", "/a/linked/3.png", "/b/2.jpg"]
