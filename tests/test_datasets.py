import PIL.Image
import pytest

from sktransfer.datasets import list_images, load_image_folder


def make_files(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def test_a_folder_of_class_folders(tmp_path):
    names = ["wasp/1.jpg", "ant/b.PNG", "ant/deep/a.png", "ant/notes.txt"]
    make_files(tmp_path, [*names, ".x/1.png", "ant/._b.png"])
    photos = load_image_folder(tmp_path)
    names = [path.removeprefix(str(tmp_path)) for path in photos.data]
    assert names == ["/ant/b.PNG", "/ant/deep/a.png", "/wasp/1.jpg"]
    assert photos.target.tolist() == [0, 0, 1]
    assert photos.target_names.tolist() == ["ant", "wasp"]
    X, y = load_image_folder(str(tmp_path), return_X_y=True)
    assert (photos.data == X).all()
    assert (y == photos.target).all()


def test_what_is_no_such_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder=.* expected a folder"):
        load_image_folder(tmp_path / "no")
    PIL.Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"no class folder.*\.png") as caught:
        load_image_folder(tmp_path)
    assert f"pass its parent, {str(tmp_path.parent)!r}" in str(caught.value)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"it is empty.*Move the images into one fold"):
        load_image_folder(tmp_path)


def test_what_is_hidden_or_no_image_is_left_out_and_links_are_followed(tmp_path):
    names = ["a/1.png", "a/.thumbnails/1.png", "a/terms.pdf", "a/t.h5", "a/c.mpg"]
    photos = tmp_path / "photos"
    make_files(photos, [*names, "b/2.jpg"])
    make_files(tmp_path, ["more/3.png"])
    (photos / "a/linked").symlink_to(tmp_path / "more", target_is_directory=True)
    (photos / "a/back").symlink_to(photos / "a", target_is_directory=True)
    found = load_image_folder(photos)
    names = [path.removeprefix(str(photos)) for path in found.data]
    assert names == ["/a/1.png", "/a/linked/3.png", "/b/2.jpg"]
    assert list_images(photos).tolist() == found.data.tolist()


def test_the_classes_may_be_given_by_name(tmp_path):
    make_files(tmp_path, ["wasp/1.jpg", "ant/1.jpg", "ant/2.jpg"])
    _, y = load_image_folder(tmp_path, return_X_y=True, as_names=True)
    assert y.tolist() == ["ant", "ant", "wasp"]
    photos = load_image_folder(tmp_path, as_names=True)
    assert photos.target.tolist() == y.tolist()
    assert photos.target_names.tolist() == ["ant", "wasp"]


@pytest.mark.parametrize(
    "parts", [["train", "val"], ["Training", "test_2", "sketches"], ["valid"]]
)
def test_the_parts_of_a_data_set_are_no_classes(parts, tmp_path):
    make_files(tmp_path, [f"{part}/{c}/1.png" for part in parts for c in "ab"])
    make_files(tmp_path, ["readme.txt"])
    with pytest.raises(ValueError, match=f"subsets of a data set.*{parts[0]}'\\)"):
        load_image_folder(tmp_path)
    part = load_image_folder(tmp_path / parts[0])
    assert part.target_names.tolist() == ["a", "b"]


def test_classes_may_bear_the_names_of_parts(tmp_path):
    make_files(tmp_path / "flat", ["test/1.png", "train/1.png"])
    make_files(tmp_path / "deep", ["train/steam/1.png", "trainer/1.png", "bus/1.png"])
    assert load_image_folder(tmp_path / "flat").target_names.tolist() == [
        "test",
        "train",
    ]
    found = load_image_folder(tmp_path / "deep").target_names.tolist()
    assert found == ["bus", "train", "trainer"]


def test_a_class_without_images_is_named(tmp_path):
    make_files(tmp_path, ["ant/1.png", "bee/1.heif2", "bee/deep/2.heif2"])
    (tmp_path / "cow").mkdir()
    (tmp_path / ".git").mkdir()
    with pytest.warns(
        UserWarning, match=r"2 of the folders.*bee.*heif2.*cow"
    ) as caught:
        photos = load_image_folder(tmp_path)
    assert caught[0].filename == __file__
    assert photos.target_names.tolist() == ["ant"]


def test_images_without_a_class_are_listed(tmp_path):
    hidden = tmp_path / ".cache"
    make_files(
        hidden, ["b.jpg", "a.png", "c/d.JPEG", ".e/f.png", "notes.txt", "._b.jpg"]
    )
    names = [path.removeprefix(str(hidden)) for path in list_images(str(hidden))]
    assert names == ["/a.png", "/b.jpg", "/c/d.JPEG"]
    with pytest.raises(ValueError, match="folder=.* expected a folder.*does not exist"):
        list_images(tmp_path / "no")
    with pytest.raises(ValueError, match="folder=.* expected a folder.*is a file"):
        list_images(hidden / "a.png")
    make_files(tmp_path / "texts", ["a/b.txt"])
    with pytest.raises(ValueError, match=r"there is no image.*\.txt"):
        list_images(tmp_path / "texts")
