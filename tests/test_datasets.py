import PIL.Image
import pytest

from sktransfer.datasets import (
    list_images,
    list_sounds,
    load_image_folder,
    load_sound_folder,
    load_text_folder,
)


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
        UserWarning, match=r"Folders in.*no image.*: 2 \(bee.*heif2.*cow"
    ) as caught:
        photos = load_image_folder(tmp_path)
    assert caught[0].filename == __file__
    assert photos.target_names.tolist() == ["ant"]


def test_images_in_no_class_folder_are_named(tmp_path):
    make_files(tmp_path, ["ant/1.png", "7.JPG", "8.png", "._8.png", "readme.txt"])
    with pytest.warns(UserWarning, match=r"not listed: 2 \(7.JPG, 8.png\)") as caught:
        photos = load_image_folder(tmp_path)
    assert caught[0].filename == __file__
    assert len(photos.data) == 1


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


def test_a_folder_of_sounds(tmp_path):
    make_files(tmp_path, ["cat/1.WAV", "cat/a/2.flac", "dog/1.mp3", "dog/1.png"])
    sounds = load_sound_folder(tmp_path)
    names = [path.removeprefix(str(tmp_path)) for path in sounds.data]
    assert names == ["/cat/1.WAV", "/cat/a/2.flac", "/dog/1.mp3"]
    assert sounds.target.tolist() == [0, 0, 1]
    assert list_sounds(tmp_path).tolist() == sounds.data.tolist()
    X, y = load_sound_folder(tmp_path, return_X_y=True, as_names=True)
    assert X.tolist() == sounds.data.tolist()
    assert y.tolist() == ["cat", "cat", "dog"]


def test_messages_speak_of_sounds(tmp_path):
    make_files(tmp_path, ["train/a/1.wav", "val/a/1.wav", "images/1.png"])
    with pytest.raises(ValueError, match=r"<class>/<sound>.*load_sound_folder\("):
        load_sound_folder(tmp_path)
    with pytest.raises(ValueError, match=r"a sound format, such as .wav.*\.png"):
        list_sounds(tmp_path / "images")
    with pytest.raises(ValueError, match=r"with sounds.*list_sounds\(folder\)"):
        load_sound_folder(tmp_path / "images")
    make_files(tmp_path, ["one/a/1.wav", "one/b/1.png"])
    with pytest.warns(UserWarning, match=r"no sound were not.*: 1 \(b: it has files"):
        load_sound_folder(tmp_path / "one")


def test_texts_are_returned_themselves(tmp_path):
    make_files(tmp_path, ["bad/1.txt", "good/1.txt", "good/2.html"])
    (tmp_path / "good/1.txt").write_text("très bien\n", encoding="utf-8")
    films = load_text_folder(tmp_path)
    assert films.data.tolist() == ["", "très bien\n"]
    assert films.filenames.tolist() == [
        str(tmp_path / "bad/1.txt"),
        str(tmp_path / "good/1.txt"),
    ]
    X, y = load_text_folder(tmp_path, return_X_y=True, as_names=True)
    assert X.tolist() == films.data.tolist()
    assert y.tolist() == ["bad", "good"]


def test_a_text_that_cannot_be_decoded_is_named(tmp_path):
    make_files(tmp_path, ["a/1.txt", "b/1.txt"])
    (tmp_path / "b/1.txt").write_bytes("très".encode("latin-1"))
    with pytest.raises(ValueError, match=r"b/1\.txt' with encoding='utf-8'.*0xe8"):
        load_text_folder(tmp_path)
    assert load_text_folder(tmp_path, encoding="latin-1").data.tolist() == ["", "très"]
    found = load_text_folder(tmp_path, errors="ignore").data.tolist()
    assert found == ["", "trs"]
