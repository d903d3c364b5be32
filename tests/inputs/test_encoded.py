"""Files in all forms: paths, open files, and the objects and dicts that hold them."""

import base64
import io
import os
import pickle
import tarfile
import tempfile
import threading
import time
import weakref
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import fsspec
import numpy as np
import pandas as pd
import PIL.Image
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy.io import wavfile
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline

from sktransfer import PretrainedFeatureExtractor
from sktransfer.inputs import _encoded
from sktransfer.inputs._containers import image_samples
from sktransfer.inputs._content import image_content
from sktransfer.inputs._encoded import encoded_bytes, file_name
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Samples
from sktransfer.inputs._sound import WaveReader
from sktransfer.inputs._sound_content import sound_content, sound_samples
from tests.small_network import small_backbone


class CloudPath:
    """A path of cloudpathlib: path-like, but asking it for a path is a download."""

    def __init__(self, key, data):
        self.key, self.data = key, data

    def __fspath__(self):
        raise OSError("downloaded")

    def __str__(self):
        return f"s3://{self.key}"

    def read_bytes(self):
        return self.data


@pytest.fixture
def path(tmp_path, picture):
    path = tmp_path / "a.png"
    PIL.Image.fromarray(picture).save(path)
    return path


def extractor(**parameters):
    return PretrainedFeatureExtractor(small_backbone(), device="cpu", **parameters)


@pytest.fixture
def zipped(path):
    archive = path.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        file.write(path, "deep/a.png")
    with zipfile.ZipFile(archive) as file:
        yield zipfile.Path(file, "deep/a.png")


@pytest.fixture
def forms(path, zipped):
    """The same file in all forms."""
    data = path.read_bytes()
    with ExitStack() as stack:
        files = [
            path.open("rb"),
            path.open("rb", buffering=0),
            tempfile.NamedTemporaryFile(),  # noqa: SIM115
            zipped.open("rb"),
            fsspec.filesystem("file").open(str(path)),
        ]
        for file in files:
            stack.enter_context(file)
        files[2].write(data)
        yield [
            path,
            data,
            bytearray(data),
            memoryview(data),
            *files,
            io.BytesIO(data),
            zipped,
            fsspec.open(str(path)),
            CloudPath("bucket/a.png", data),
            {"bytes": data, "path": None},
            {"bytes": data, "path": "elsewhere.png"},
            {"bytes": None, "path": str(path)},
            {"path": str(path)},
        ]


def test_a_file_has_the_same_bytes_in_every_form(path, forms):
    data = path.read_bytes()
    for form in forms:
        # Twice, as content is hashed first and decoded later.
        for _ in range(2):
            assert encoded_bytes(form, "image") == data
            assert image_content(form) == data
            assert sound_content(form, None) == data


def test_an_embedding_is_found_whatever_the_form(path, forms, monkeypatch):
    expected = extractor(cache=None).transform([path])
    extractor().transform([path])
    monkeypatch.setattr(ImageReader, "read", None)
    found = extractor().transform(forms)
    np.testing.assert_array_equal(found, expected.repeat(len(found), 0))


def test_an_open_file_is_read_whole_and_left_at_its_position(path):
    with path.open("rb") as file:
        for position in (7, 0, path.stat().st_size):
            file.seek(position)
            assert image_content(file) == path.read_bytes()
            assert file.tell() == position


def test_members_of_an_archive_are_read_one_at_a_time(tmp_path):
    """They share one open file and its position."""

    class Member(tarfile.ExFileObject):
        def seek(self, *place):
            self.archive.position = self.data
            # Long enough for another thread.
            time.sleep(0.01)

        def read(self, most):
            return self.archive.position

    with (
        tarfile.open(tmp_path / "a.tar", "w") as archive,
        ThreadPoolExecutor(4) as pool,
    ):
        for name in "abcd":
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(name.encode()))
        files = [Member(archive, member) for member in archive.getmembers()]
        for file, name in zip(files, "abcd", strict=True):
            file.archive, file.data = archive, name.encode()
        assert list(pool.map(image_content, files)) == [b"a", b"b", b"c", b"d"]
        with pytest.raises(ValueError, match="it is of type TarFile"):
            image_content(archive)


class Opener:
    """What fsspec.open returns: it opens a file, keeps it, and closes that one."""

    path = "a.png"

    def __init__(self, opened, both):
        self.opened, self.both = opened, both

    open = None

    def __enter__(self):
        self.file = io.BytesIO(b"data")
        self.opened.append(self.file)
        self.both.wait(timeout=60)
        return self.file

    def __exit__(self, *error):
        self.file.close()


def test_what_opens_a_file_may_be_in_several_rows():
    opened, both = [], threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(image_content, [Opener(opened, both)] * 2))
    assert found == [b"data"] * 2
    assert [file.closed for file in opened] == [True, True]


def test_a_stream_that_can_be_read_once_is_refused_and_not_touched():
    end, start = os.pipe()
    os.write(start, b"all of it")
    os.close(start)
    with open(end, "rb") as stream:
        with pytest.raises(ValueError, match=r"only once.*\(pass file.read\(\)\)"):
            image_content(stream)
        assert stream.read() == b"all of it"


class Unread:
    """Something that is read, but not to bytes."""

    def __init__(self, data):
        self.data = data

    def read_bytes(self):
        return self.data


@pytest.mark.parametrize(
    ("sample", "why"),
    [
        ({"bytes": None, "path": None}, "it is missing: a dict without"),
        ({"image": 1, "label": 2}, r"keys \['image', 'label'\], and without 'bytes'"),
        ({"bytes": None, "path": "gone.png"}, "No such file"),
        (Unread("text"), "reading it gave str instead of bytes"),
        (Unread(bytes(101)), "it has more than 100 bytes"),
        (io.BytesIO(bytes(101)), "it has more than 100 bytes"),
        (io.StringIO("text"), "opened as text .open it in mode 'rb'"),
        (object(), "it is of type object"),
    ],
)
def test_what_gives_no_bytes_is_refused(sample, why, monkeypatch):
    monkeypatch.setattr(_encoded, "MAX_FILE_BYTES", 100)
    with pytest.raises(ValueError, match=why):
        image_content(sample)


def test_errors_name_the_file_of_a_row(path, zipped):
    with path.open() as closed:
        pass
    for sample, name in [
        (closed, r"a\.png'\): it is a file that was opened as text"),
        (closed.buffer, r"a\.png'\): .* closed file"),
        (io.StringIO(), r"\(StringIO\): it is a file that was opened as text"),
        (zipped.parent / "gone.png", r"a\.zip/deep/gone\.png'\)"),
        (CloudPath("bucket/b.png", b""), r"\('s3://bucket/b\.png'\): it is empty"),
        ({"bytes": b"", "path": "c.png"}, r"\('c\.png'\): it is empty"),
        ({"bytes": b"", "path": None}, r"\(dict\): it is empty"),
        (fsspec.open("gone.png"), r"gone\.png'\)"),
    ]:
        with pytest.raises(ValueError, match=rf"in row 1 .*{name}"):
            extractor().transform([path, sample])


@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
@pytest.mark.parametrize("in_a_dict", [False, True])
def test_base64_is_not_printed(start, in_a_dict, path):
    text = start + base64.b64encode(path.read_bytes()).decode()
    sample = {"bytes": text, "path": None} if in_a_dict else text
    with pytest.raises(ValueError, match="row 1 .*b64decode") as caught:
        extractor().transform([path, sample])
    data = text.removeprefix(start)
    assert data[:20] not in str(caught.value)
    assert data[-20:] not in str(caught.value)


def test_a_single_file_has_to_be_in_a_list(forms):
    for form in forms:
        for samples, kind in [(image_samples, "image"), (sound_samples, "sound")]:
            with pytest.raises(ValueError, match=rf"single {kind}.*\[{kind}\]"):
                samples(form)


def columns_of(dicts):
    arrow = pa.array(dicts)
    extended = pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([arrow])))
    return [
        dicts,
        tuple(dicts),
        np.array(dicts),
        np.array(dicts)[:, None],
        pd.Series(dicts),
        pd.DataFrame({"image": dicts}),
        extended,
        extended.to_frame(),
        pl.Series(dicts),
        pl.DataFrame({"image": dicts}),
        arrow,
        pa.chunked_array([arrow]),
        pa.table({"image": arrow}),
    ]


def test_dicts_may_be_in_any_column(path):
    dicts = [
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)},
    ]
    for X in columns_of(dicts):
        assert list(image_samples(X)) == dicts
        assert list(sound_samples(X)) == dicts


def test_scikit_learn_splits_all_forms(pictures, tmp_path):
    paths = [tmp_path / f"{row}.png" for row in range(6)]
    for path, picture in zip(paths, pictures, strict=True):
        PIL.Image.fromarray(picture).save(path)
    model, y = make_pipeline(extractor(), LogisticRegression()), [0, 1] * 3
    dicts = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    files = np.array([io.BytesIO(path.read_bytes()) for path in paths], dtype=object)
    expected = cross_val_predict(model, paths, y, cv=3, method="predict_proba")
    # Arrow's own arrays cannot be indexed by lists.
    for X in [*columns_of(dicts)[:10], files, list(files), pd.Series(files)]:
        found = cross_val_predict(model, X, y, cv=3, method="predict_proba")
        np.testing.assert_array_equal(found, expected)


def test_workers_are_sent_what_can_be_pickled(path):
    data = path.read_bytes()
    X = [io.BytesIO(data), {"bytes": data, "path": None}, fsspec.open(str(path)), path]
    sent = pickle.loads(pickle.dumps(Samples(X, ImageReader()).take([3, 2, 1, 0])))
    assert list(sent) == [data] * 4


def test_a_frame_of_dicts_and_labels_is_told_its_column(path):
    dicts = [{"bytes": None, "path": "1.png"}] * 2
    frame = {"label": ["aeroplane"] * 2, "image": dicts}
    for X in [pd.DataFrame(frame), pl.DataFrame(frame)]:
        with pytest.raises(ValueError, match="2 columns.*seems to be 'image'"):
            image_samples(X)
    # A frame has its columns as attributes.
    assert list(image_samples(pd.DataFrame({"read": [path]}))) == [path]


class Column(Sequence):
    """A column that loads an image when it is accessed, as datasets has them."""

    def __init__(self):
        self.loaded, self.most = [], 0

    def __len__(self):
        return 50

    def __getitem__(self, row):
        if row == 49:
            raise OSError("it is broken")
        image = PIL.Image.new("L", (8, 8), row)
        self.loaded.append(weakref.ref(image))
        self.most = max(self.most, sum(each() is not None for each in self.loaded))
        return image


def test_images_of_a_lazy_column_are_not_all_held():
    column = Column()
    with pytest.warns(UserWarning, match=r"rows \[49\]. row 49 .*: it is broken"):
        extractor(on_error="nan", cache=None).transform(column)
    assert 1 <= column.most < 10


def test_sounds_of_datasets_have_bytes_or_arrays(tmp_path):
    path, rate = tmp_path / "a.wav", 8000
    values = (3000 * np.sin(np.arange(900))).astype(np.int16)
    wavfile.write(path, rate, values)
    floats = values / 32768
    reader = WaveReader()
    arrays = {"array": floats, "sampling_rate": rate, "path": "gone.wav"}
    X = [
        arrays,
        arrays | {"array": floats.tolist(), "bytes": None},
        {"bytes": path.read_bytes(), "path": "gone.wav"},
        {"bytes": None, "path": str(path)},
        {"bytes": path.read_bytes(), "path": None, "array": None},
    ]
    expected = reader.draft(reader.content(path))
    for x in [*X, *sound_samples(pa.array(X[:2])), *sound_samples(pl.Series(X[2:4]))]:
        assert torch.equal(reader.draft(reader.content(x)), expected)
    assert Samples(X, reader).describe(2) == "row 2 ('gone.wav')"


def test_names_of_what_has_no_file():
    for sample in [None, 3, b"", io.BytesIO(), np.zeros(3), pd.Series([1], name="x")]:
        assert file_name(sample) is None
    assert file_name({"bytes": b"", "path": None}) is None
    end, start = os.pipe()
    os.close(start)
    with open(end, "rb") as stream:
        assert file_name(stream) is None
    assert file_name(Unread(b"")) is None
