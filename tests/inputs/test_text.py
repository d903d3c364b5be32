"""Texts, in any container, become the tokens of a model's own tokenizer."""

import pickle
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import StandardScaler

from sktransfer import (
    EmbeddingCache,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    WeightsMismatchError,
)
from sktransfer.backbones import _load
from sktransfer.backbones._load import load_backbone, register_backbone
from sktransfer.embedding._reading import Refusals
from sktransfer.inputs import _text
from sktransfer.inputs._reader import Samples
from sktransfer.inputs._text import TextReader
from sktransfer.saving._file import load, save
from tests.small_network import (
    WORDS,
    small_backbone,
    text_backbone,
    tokenizer_json,
)
from tests.small_tasks import make_texts

tokenizers = pytest.importorskip("tokenizers")
TEXTS = ["a bad day", "Good", "so good a day", "", "what?"]


@pytest.fixture(scope="module")
def reader():
    return TextReader(tokenizer_json(), 12)


def tokens(reader, text):
    return reader.read(reader.content(text)).tolist()


def test_texts_are_tokenised_as_by_the_tokenizer_alone(reader):
    alone = tokenizers.Tokenizer.from_str(reader.tokenizer)
    for text in TEXTS:
        assert tokens(reader, text) == alone.encode(text).ids
        content = reader.content(text)
        assert reader.draft(content) == text
        assert torch.equal(reader.finish(text), reader.read(content))
        assert reader.size_of(content) == (len(alone.encode(text).ids),)
        assert not reader.is_cut(content)
    assert tokens(reader, "") == [1, 2]
    assert reader.read(b"bad").dtype == torch.int64


def test_long_texts_are_cut_but_keep_the_tokens_at_both_ends(reader):
    short = reader.resized_to(4)
    assert tokens(reader, "a bad day so") == [1, 6, 4, 5, 7, 2]
    assert tokens(short, "a bad day so") == [1, 6, 4, 2]
    assert short.size_of(b"a bad day so") == (4,)
    assert short.is_cut(b"a bad day")
    assert not short.is_cut(b"a bad")
    assert str(short) == "4 tokens"
    # Truncation and padding that the file itself asks for are those of another use.
    other = tokenizers.Tokenizer.from_str(reader.tokenizer)
    other.enable_truncation(3)
    other.enable_padding(length=9)
    for text in ["a bad day so", "a"]:
        found = tokens(TextReader(other.to_str(), 12), text)
        assert found == tokens(reader, text)


def test_a_text_without_tokens_becomes_one_token():
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<end>": 1}))
    assert tokens(TextReader(bare.to_str(), 5), "") == [0]
    bare.add_special_tokens(["<end>"])
    assert tokens(TextReader(bare.to_str(), 5), "") == [1]


def test_a_text_is_tokenised_once_while_it_is_remembered(monkeypatch):
    reader = TextReader(tokenizer_json([*WORDS, "once"]), 12)
    calls = []
    whole = _text._Tokenizer._tokenise

    def counted(self, key, text):
        calls.append(text)
        return whole(self, key, text)

    monkeypatch.setattr(_text._Tokenizer, "_tokenise", counted)
    for _ in range(2):
        for text in TEXTS:
            reader.size_of(text.encode())
            reader.read(text.encode()).zero_()
            assert tokens(reader, text)[0] == 1
    assert calls == TEXTS
    monkeypatch.setattr(_text, "_REMEMBERED", 0)
    for text in [*TEXTS, "new", *TEXTS]:
        assert tokens(reader, text)[0] == 1
    assert calls == [*TEXTS, "new", *TEXTS]


def test_threads_share_a_tokenizer(reader):
    texts = [" ".join(WORDS[: i % 9]) for i in range(400)]
    fresh = TextReader(tokenizer_json([*WORDS, "threads"]), 12)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: tokens(fresh, text), texts))
    assert found == [tokens(reader, text) for text in texts]


def test_readers_are_compared_by_the_digest_of_a_tokenizer(reader):
    same = pickle.loads(pickle.dumps(reader))
    assert same == reader
    assert hash(same) == hash(reader)
    assert reader != reader.resized_to(11)
    other = TextReader(tokenizer_json(WORDS[:-1]), 12)
    assert other != reader
    assert reader.tokenizer not in repr(reader)
    assert len({each.cause() for each in [reader, reader.resized_to(11), other]}) == 3
    assert tokenizers.__version__ in reader.cause()
    # A tokenizer of many languages has 17 MB.
    large = TextReader(reader.tokenizer + " " * 2**25, 12)
    start = time.perf_counter()
    for _ in range(1000):
        assert hash(large) == hash(large)
        assert large.resized_to(3) != large
    assert time.perf_counter() - start < 2


def test_the_length_is_one_that_network_and_tokenizer_take(reader):
    assert reader.longest == 12
    backbone = text_backbone(12)
    assert backbone.at_size(20).reader == backbone.reader.resized_to(20)
    for size in [2, 21]:
        with pytest.raises(ValueError, match="from 3, the 2 that .* to 20, the most"):
            backbone.at_size(size)
    for size in [0, 1.5, True, "3"]:
        with pytest.raises(ValueError, match=r"Invalid max_length=.*positive integer"):
            backbone.at_size(size)
    with pytest.raises(ValueError, match=r"image_size=32.*samples are texts.*max_len"):
        load_backbone(backbone, image_size=32)


def test_examples_are_ordinary_tokens_of_the_vocabulary(reader):
    example = reader.example(50)
    assert example.shape == (50, 12)
    assert example.dtype == torch.int64
    assert {*example.unique().tolist()} == {0, *range(3, 3 + len(WORDS))}
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert torch.equal(reader.example(50), example)
    assert torch.equal(torch.random.get_rng_state(), before)


def containers(texts):
    yield from [texts, tuple(texts), np.array(texts), np.array(texts, dtype=object)]
    yield np.array(texts)[:, None]
    yield from [pd.Series(texts, index=range(9, 9 + len(texts))), pd.Series(texts)]
    yield from [pd.Series(texts, dtype="string"), pd.DataFrame({"text": texts})]
    yield list(map(np.str_, texts))
    if hasattr(np.dtypes, "StringDType"):
        yield np.array(texts, dtype=np.dtypes.StringDType())


def test_texts_in_any_container(reader):
    for X in containers(TEXTS):
        found = [reader.content(sample) for sample in reader.samples(X)]
        assert found == [text.encode() for text in TEXTS], type(X)


@pytest.mark.parametrize("package", ["polars", "pyarrow"])
def test_texts_in_columns_of_other_packages(package, reader):
    module = pytest.importorskip(package)
    if package == "polars":
        given = [module.Series(TEXTS), module.DataFrame({"text": TEXTS})]
    else:
        given = [module.array(TEXTS), module.table({"text": TEXTS})]
    for X in given:
        assert list(reader.samples(X)) == TEXTS


@pytest.mark.parametrize(
    ("X", "reason"),
    [
        ("a day", r"single one \(str\).*Wrap it in a list: \[text\]"),
        (b"a day", r"single one \(bytes\)"),
        ([], "Found 0 texts"),
        (np.array([], dtype=object), "Found 0 texts"),
        ({"a", "b"}, "of type set: expected a list, .*one-column frame of texts"),
        (np.eye(3), r"a list of texts, but it is a table of numbers of shape \(3, 3\)"),
        ([[1, 2], [3]], r"table of numbers of shape \(2,\)"),
        ([1, 2], r"table of numbers of shape \(2,\)"),
        (np.arange(3), r"table of numbers of shape \(3,\)"),
        (pd.Series([1.0, np.nan]), r"table of numbers of shape \(2,\)"),
        (pd.DataFrame({"a": [1, 2], "b": [3, 4]}), r"numbers of shape \(2, 2\)"),
        (scipy.sparse.eye(3), r"table of numbers of shape \(3, 3\)"),
        (torch.zeros(2, 3, 4), r"table of numbers of shape \(2, 3, 4\)"),
    ],
)
def test_what_holds_no_texts_is_refused(X, reason, reader):
    with pytest.raises(ValueError, match=reason):
        reader.samples(X)
    extractor = PretrainedFeatureExtractor(text_backbone(), device="cpu")
    with pytest.raises(ValueError, match=reason):
        extractor.transform(X)


def test_texts_are_one_column():
    frame = pd.DataFrame({"label": ["no", "yes"], "review": ["a bad day", "good"]})
    extractor = PretrainedFeatureExtractor(text_backbone(), device="cpu")
    with pytest.raises(ValueError, match=r"single column of texts.*'review'.*X\[\["):
        extractor.fit(frame)
    with pytest.raises(ValueError, match=r"step for texts: \(\.\.\., \[1\]\)"):
        extractor.fit(frame.to_numpy())


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (None, "it is missing: None instead of a text; an empty one is ''"),
        (float("nan"), "it is missing: nan"),
        (pd.NA, "it is missing: <NA>"),
        (b"good", "it is bytes, not a text: decode them"),
        (Path("day.txt"), r"it is a path.*pass path\.read_text\(\)"),
        (3, "it is of type int"),
        ("a \ud800", r"character 2, '\\ud800', is half of a surrogate pair"),
    ],
)
def test_what_is_no_text_is_refused_by_its_row(sample, reason):
    extractor = PretrainedFeatureExtractor(text_backbone(), device="cpu")
    for row, X in enumerate([[sample, "good"], np.array(["good", sample], object)]):
        with pytest.raises(ValueError, match=f"the text in row {row}\\b.*{reason}"):
            extractor.set_params(on_error="raise").transform(X)
        extractor.set_params(on_error="nan")
        with pytest.warns(UserWarning, match="1 of 2 texts cannot be read"):
            rows = extractor.transform(X)
        assert np.isnan(rows[row]).all()
        assert np.isfinite(rows[1 - row]).all()


def test_paths_of_files_are_texts_but_hardly_meant(tmp_path, reader, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ["good", "bad"]:
        Path(name).write_text("a day")
    message = r"paths of existing files.*not opened: pass .*read_text\(\)"
    with pytest.warns(UserWarning, match=message) as told:
        reader.samples(["good", "bad"])
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match=message):
        reader.samples(pd.Series([str(tmp_path / "good")] * 2000))
    for texts in [["good", "day"], ["good", None], ["good"] * 3 + [""]]:
        assert list(reader.samples(texts)) == texts


def test_texts_for_a_backbone_of_images_are_recognised():
    extractor = PretrainedFeatureExtractor(small_backbone(), device="cpu")
    review = "This is by far the worst film that I have seen."
    for text in [review, review * 100]:
        with pytest.raises(ValueError, match="a text, as it seems, needs a backbone"):
            extractor.transform([text])
    with pytest.raises(ValueError, match="No such file") as told:
        extractor.transform(["photos of us/day 1.png"])
    assert "backbone of texts" not in str(told.value)


def louder(text):
    return text + "!"


def test_augmentation_is_a_function_of_a_text(reader):
    assert reader.augmentation(None) is None
    augment = pickle.loads(pickle.dumps(reader.augmentation(louder)))
    assert augment("good") == "good!"
    with pytest.raises(ValueError, match="augment='mild'.* a callable .* a text, a st"):
        reader.augmentation("mild")
    with pytest.raises(ValueError, match=r"takes one text, a str, .* \(a, b\)"):
        reader.augmentation(lambda a, b: a)
    for wrong, reason in [(str.encode, "it is bytes"), (len, "of type int")]:
        with pytest.raises(ValueError, match=f"augment={wrong.__name__}: .*{reason}"):
            reader.augmentation(wrong)("good")
    with pytest.raises(ValueError, match="Invalid augment=<lambda>: .*it is missing"):
        reader.augmentation(lambda text: None)("good")


def test_texts_that_were_cut_are_counted_by_one_warning():
    reader = TextReader(tokenizer_json(), 4)
    samples = Samples(["a bad day", "good", "a good day", "so", "a bad day"], reader)
    refusals = Refusals(samples, strict=True)
    for row in [0, 1]:
        assert len(refusals.read_input(row, reader)) <= 4
    # As a worker does, for a chunk of the rows.
    others = Refusals(samples.take([2, 3]), strict=True)
    for row in [0, 1]:
        others.read_input(row, reader)
    refusals.include(others.found(), [2, 3])
    refusals.spread({0: [0, 4], 1: [1]})
    message = "3 of 5 texts are longer than 4 tokens and were cut. Set max_length to"
    with pytest.warns(UserWarning, match=message) as told:
        refusals.report([])
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        others = Refusals(samples, strict=True)
        others.read_input(1, reader)
        others.report([])


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_texts_that_were_cut_are_warned_of_once(n_jobs):
    extractor = PretrainedFeatureExtractor(
        text_backbone(), max_length=4, device="cpu", n_jobs=n_jobs
    )
    extractor.set_params(cache=EmbeddingCache())
    texts = ["a bad day", "good", "a good day", "so", "a bad day"]
    message = "3 of 5 texts are longer than 4 tokens and were cut"
    with pytest.warns(UserWarning, match=message) as told:
        extractor.transform(texts)
    assert [w.filename for w in told] == [__file__]
    # They are known, and nothing is cut.
    extractor.transform(texts)
    with pytest.warns(UserWarning, match=r"1 of 1 texts \(5 others were read before\)"):
        extractor.transform([*texts, "so bad a day"])


def test_what_a_report_compares_with_is_given_the_words(reader):
    name, words = reader.plain()
    assert name == "TF-IDF"
    expected = words.fit_transform(TEXTS).toarray()
    assert {"bad", "bad day"} <= {*words[-1].get_feature_names_out()}
    for X in containers(TEXTS):
        np.testing.assert_array_equal(words.fit_transform(X).toarray(), expected)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(_load, "_registered", {})
    register_backbone("small-text", text_backbone)
    yield
    _load._load_named.cache_clear()


def test_a_saved_model_demands_its_tokenizer(registered, tmp_path, monkeypatch):
    texts, y = make_texts()
    model = FineTuneClassifier("small-text", freeze="all", max_length=9, device="cpu")
    model.set_params(random_state=0).fit(texts, y)
    path = tmp_path / "model.sktransfer"
    save(model, path)
    assert b"[CLS]" not in path.read_bytes()
    loaded = load(path)
    assert loaded.backbone_.reader == model.backbone_.reader
    np.testing.assert_array_equal(
        loaded.predict_proba(texts), model.predict_proba(texts)
    )
    words = [*WORDS[1:], WORDS[0]]
    monkeypatch.setattr(
        "tests.small_network.tokenizer_json", lambda: tokenizer_json(words)
    )
    _load._load_named.cache_clear()
    with pytest.raises(
        WeightsMismatchError, match=r"^The tokenizer .*Nothing was load"
    ):
        load(path)


def test_a_text_column_beside_numbers():
    texts, _ = make_texts(12)
    frame = pd.DataFrame({"review": texts, "stars": np.arange(12.0)})
    extractor = PretrainedFeatureExtractor(text_backbone(), device="cpu")
    for columns in ["review", ["review"]]:
        steps = [
            ("text", extractor, columns),
            ("numbers", StandardScaler(), ["stars"]),
        ]
        found = ColumnTransformer(steps).fit_transform(frame)
        assert found.shape == (12, 9)
        np.testing.assert_array_equal(found[:, :8], extractor.transform(texts))


def test_without_the_package_tokenizers_it_is_said_what_to_install(monkeypatch):
    reader = TextReader(tokenizer_json([*WORDS, "missing"]), 5)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'sktransfer\[hf\]'"):
        reader.read(b"good")
