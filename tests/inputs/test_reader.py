"""A reader of another kind than images goes through everything that images do."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.utils import get_tags
from torch import nn

from sktransfer import (
    AttributionDisplay,
    Backbone,
    BackboneSelector,
    EmbeddingCache,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    TopLossesDisplay,
    export_onnx,
    load,
    load_backbone,
    model_card,
    rank_backbones,
    register_backbone,
    save,
)
from sktransfer.backbones import _load
from sktransfer.embedding._embed import embed
from sktransfer.embedding._prefix import Prefix
from sktransfer.inputs._reader import Reader, Samples, pad_outputs, unpadded

TEXTS = ["a bad day", "good", "so good a day", "bad", "", "good good good", "too bad"]
WORDS = ["good", "bad", "day", "a", "so", "too", "very", "film"]


@dataclass(frozen=True)
class TextReader(Reader):
    """Letters as numbers, as many as a text has."""

    kind: ClassVar[str] = "text"
    accepted: ClassVar[str] = "A text is a str."
    size_parameter: ClassVar[str] = "max_length"
    padding: ClassVar[float] = -1
    max_length: int = 40

    def samples(self, X):
        return list(X)

    def content(self, sample):
        if not isinstance(sample, str):
            raise ValueError(f"it is of type {type(sample).__name__}")
        return sample.encode()

    def size_of(self, content):
        return (min(len(content) + 1, self.max_length),)

    def draft(self, content):
        return torch.tensor([0, *content][: self.max_length])

    @property
    def size(self):
        return self.max_length

    def resized_to(self, size):
        return replace(self, max_length=size)

    def example(self, n):
        return torch.arange(self.max_length).repeat(n, 1)


counts = {}


class Letters(nn.Module):
    """Letters -> (n, length, channels), NaN where there is padding."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 8)

    def forward(self, x):
        there = (x >= 0)[..., None]
        counts["letters"] = counts.get("letters", 0) + len(x)
        counts["padded"] = counts.get("padded", 0) + int(not there.all())
        return self.table(x.clamp(min=0)).masked_fill(~there, float("nan"))


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x):
        there = ~x[..., :1].isnan()
        h = torch.relu(self.mix(x.masked_fill(~there, 0.0))) * there
        return h.sum(1) / there.sum(1)


def text_backbone():
    torch.manual_seed(0)
    stages = nn.Sequential(OrderedDict(letters=Letters(), mean=Mean()))
    return Backbone(stages, TextReader(), name="letters")


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(60)]
    return texts, np.array(["yes" if "good" in text else "no" for text in texts])


@pytest.mark.parametrize("stage", ["letters", "mean"])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_a_text_does_not_depend_on_its_neighbours(stage, n_jobs):
    settings = {"stage": stage, "batch_size": 3, "device": "cpu", "n_jobs": n_jobs}
    extractor = PretrainedFeatureExtractor(text_backbone(), **settings)
    counts.clear()
    for cache in [None, EmbeddingCache()]:
        together = extractor.set_params(cache=cache).transform(TEXTS)
        assert np.isfinite(together).all()
        alone = [extractor.transform([text])[0] for text in TEXTS]
        np.testing.assert_array_equal(together, alone)
        np.testing.assert_array_equal(extractor.transform(TEXTS[::-1])[::-1], together)
    # Other kernels may compute what is padded: none of it is.
    assert not counts.get("padded")


@pytest.mark.parametrize("stage", ["letters", "mean"])
@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax"])
def test_nor_in_batches_that_are_padded(stage, pooling, monkeypatch):
    settings = {"stage": stage, "pooling": pooling, "device": "cpu", "cache": None}
    extractor = PretrainedFeatureExtractor(text_backbone(), **settings)
    expected = extractor.transform(TEXTS)
    # As on a GPU.
    monkeypatch.setattr(Prefix, "alone", False)
    for size, cache in [(None, None), (3, EmbeddingCache())]:
        extractor.set_params(batch_size=size, cache=cache)
        counts.clear()
        together = extractor.transform(TEXTS)
        assert counts["padded"]
        np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-7)
        alone = [extractor.transform([text])[0] for text in TEXTS]
        np.testing.assert_array_equal(together, alone)
        np.testing.assert_array_equal(extractor.transform(TEXTS[::-1])[::-1], together)


def test_batches_of_texts_have_few_lengths(monkeypatch):
    monkeypatch.setattr(Prefix, "alone", False)
    prefix = Prefix(text_backbone(), 1, batch_size=4)
    assert [prefix.place((length, 8)) for length in (1, 5, 16, 17, 39)] == [
        (length, 8) for length in (1, 8, 16, 32, 40)
    ]
    lengths = []
    prefix.backbone.inference_stages("cpu")[0].register_forward_hook(
        lambda module, args, out: lengths.append(tuple(args[0].shape))
    )
    (rows,) = embed(Samples(TEXTS, TextReader()), [prefix])
    # None of the padding is returned, but what the longest text needs.
    assert (~np.isnan(rows[0]).any(axis=1)).sum() == len(TEXTS[0]) + 1
    assert rows.shape[1] == max(map(len, TEXTS)) + 1
    assert {*lengths} == {(4, length) for length in (1, 4, 8, 16)}
    monkeypatch.setattr(TextReader, "exact", True)
    assert prefix.place((5,)) == (5,)


def test_starts_from_padded_outputs_of_a_stage(monkeypatch):
    monkeypatch.setattr(Prefix, "alone", False)
    cache, samples = EmbeddingCache(), Samples(TEXTS, TextReader())
    first, both = Prefix(text_backbone(), 1), Prefix(text_backbone(), 2)
    (expected,) = embed(samples, [both])
    embed(samples, [first], cache=cache)
    counts.clear()
    np.testing.assert_array_equal(embed(samples, [both], cache=cache)[0], expected)
    assert not counts


def test_outputs_of_several_lengths_are_padded_with_nan():
    samples = Samples([*TEXTS, 3], TextReader())
    with pytest.warns(UserWarning, match=r"rows \[7\]"):
        (rows,) = embed(samples, [Prefix(text_backbone(), 1)], on_error="nan")
    lengths = (~np.isnan(rows).any(axis=2)).sum(axis=1)
    assert lengths.tolist() == [len(text) + 1 for text in TEXTS] + [0]
    assert rows.shape[1] == max(lengths)


def test_what_is_no_text_is_named():
    extractor = PretrainedFeatureExtractor(text_backbone(), on_error="nan")
    with pytest.warns(UserWarning, match=r"1 of 3 texts cannot be read.*row 1 \(int"):
        rows = extractor.transform(["good", 3, "bad"])
    assert np.isnan(rows[1]).all()
    with pytest.raises(ValueError, match=r"the text in row 1 \(int\).* A text is"):
        extractor.set_params(on_error="raise").transform(["good", 3])


def test_a_search_over_freeze_depth_computes_each_text_once(task):
    texts, y = task
    cache = EmbeddingCache()
    model = FineTuneClassifier(text_backbone(), cache=cache, device="cpu")
    model.set_params(random_state=0, max_epochs=9, lr=0.02, batch_size=8)
    model.set_params(backbone_lr_mult=1.0)
    guessing = (y == "no").mean()
    expected = {}
    for freeze in [0, "letters", "all"]:
        model.set_params(freeze=freeze, cache=None)
        expected[freeze] = model.fit(texts, y).predict_proba(texts)
        model.set_params(cache=cache)
        np.testing.assert_array_equal(
            model.fit(texts, y).predict_proba(texts), expected[freeze]
        )
        assert model.score(texts, y) > guessing + 0.2
    counts.clear()
    grid = {"freeze": ["letters", "all"]}
    search = GridSearchCV(model, grid, cv=3).fit(texts, y)
    assert search.best_score_ > guessing + 0.1
    assert not counts
    with pytest.raises(ValueError, match="augment='mild'.*a text is not augmented"):
        model.set_params(augment="mild").fit(texts, y)


def test_frozen_stages_within_a_step_give_the_same(task, monkeypatch):
    texts, y = task
    model = FineTuneClassifier(text_backbone(), freeze="letters", cache=None)
    model.set_params(random_state=0, max_epochs=2, batch_size=7, device="cpu")
    expected = model.fit(texts, y).predict_proba(texts)
    monkeypatch.setattr("sktransfer.finetuning._examples._MAX_BYTES", 1)
    counts.clear()
    np.testing.assert_array_equal(model.fit(texts, y).predict_proba(texts), expected)
    assert counts["letters"] > 2 * len(texts)
    assert not counts["padded"]


def test_saved_and_loaded_with_its_reader(task, tmp_path, monkeypatch):
    monkeypatch.setattr(_load, "_registered", {})
    register_backbone("letters", text_backbone)
    texts, y = task
    model = FineTuneClassifier("letters", max_length=12, max_epochs=1, random_state=0)
    model.fit(texts, y)
    assert model.backbone_.reader == TextReader(max_length=12)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.backbone_.reader == model.backbone_.reader
    np.testing.assert_array_equal(
        loaded.predict_proba(texts), model.predict_proba(texts)
    )
    _load._load_named.cache_clear()


def test_backbones_of_texts_are_ranked(task):
    texts, y = task
    (row,) = rank_backbones(texts, y, [text_backbone()], cv=3)
    assert row["probe"] > row["chance"]
    assert row["error"] is None
    assert row["seconds"] > 0


def test_backbones_of_several_kinds_are_refused(task):
    with pytest.raises(ValueError, match="one kind.*'tiny' images, 'letters' texts"):
        rank_backbones(*task, ["tiny", text_backbone()])


def test_a_card_counts_texts_and_displays_draw_none(task):
    model = FineTuneClassifier(text_backbone(), freeze="all").fit(*task)
    assert "60 texts, 2 classes." in model_card(model)
    for draw in [
        lambda: TopLossesDisplay.from_estimator(model, *task),
        lambda: AttributionDisplay.from_estimator(model, task[0]),
    ]:
        with pytest.raises(ValueError, match="backbone=.*expected a model of images"):
            draw()


def test_tags_say_what_samples_are():
    for estimator in [
        PretrainedFeatureExtractor(text_backbone()),
        FineTuneClassifier(text_backbone()),
        BackboneSelector([text_backbone()]),
    ]:
        tags = get_tags(estimator).input_tags
        assert (tags.string, tags.two_d_array, tags.three_d_array) == (1, 0, 0)
        tags = get_tags(type(estimator)()).input_tags
        assert (tags.string, tags.two_d_array, tags.three_d_array) == (0, 1, 1)


def test_sizes_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match="image_size=3 .*texts.* set by max_length"):
        load_backbone(text_backbone(), image_size=3)
    with pytest.raises(ValueError, match="max_length=3 .*images.* set by image_size"):
        load_backbone("tiny", max_length=3)
    with pytest.raises(ValueError, match="sampling_rate=8000.*images"):
        load_backbone("tiny", sampling_rate=8000)
    with pytest.raises(ValueError, match="max_length=1.5.*positive integer"):
        load_backbone(text_backbone(), max_length=1.5)


@pytest.mark.parametrize("padding", [-1, float("nan")])
def test_padding_goes_and_comes(padding):
    rows = [torch.ones(length, 2) for length in (3, 1, 2)]
    padded = nn.utils.rnn.pad_sequence(rows, True, padding)
    for row, found in zip(rows, unpadded(padded, padding), strict=True):
        assert torch.equal(row, found)
    assert pad_outputs(rows).isnan().sum() == 2 * 3


def test_only_models_of_images_are_exported_to_onnx(task, tmp_path):
    pytest.importorskip("onnxscript")
    model = FineTuneClassifier(text_backbone(), max_epochs=1, random_state=0)
    with pytest.raises(ValueError, match="model of images, got one of texts"):
        export_onnx(model.fit(*task), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
