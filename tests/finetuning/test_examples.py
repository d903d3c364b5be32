import numpy as np
import pytest

from sktransfer import EmbeddingCache, FineTuneClassifier
from sktransfer.embedding._embed import embed
from sktransfer.embedding._prefix import Prefix
from sktransfer.finetuning._examples import taps_of
from sktransfer.inputs._reader import Samples
from tests.small_network import backbone_of_blocks, counts, small_backbone
from tests.small_tasks import make_picture, make_task


def test_all_depths_before_are_kept_for_other_fits_if_they_fit():
    prefix = Prefix(small_backbone(), 3)
    shapes = prefix.backbone.shapes[:3]
    size = 4 * 10 * sum(a * b * c for a, b, c in shapes)
    kept = taps_of(prefix, 10, EmbeddingCache(max_bytes=2 * size))
    assert [tap.depth for tap in kept] == [1, 2]
    assert all(tap.pooling == "none" for tap in kept)
    assert taps_of(prefix, 10, EmbeddingCache(max_bytes=2 * size - 1)) == []


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_without_a_cache_or_a_way_nothing_is_kept(depth):
    prefix = Prefix(small_backbone(), depth)
    assert taps_of(prefix, 10, None) == []
    assert len(taps_of(prefix, 10, EmbeddingCache())) == max(depth - 1, 0)


def embed_up_to(order, backbone, samples, cache=None):
    """Outputs of the frozen stages of several fits, one after another."""
    found = {}
    for name in order:
        cut = backbone.cut(name)
        prefix = Prefix(cut, cut.depth(name), batch_size=2)
        taps = taps_of(prefix, len(samples), cache)
        (found[name],) = embed(samples, [prefix], cache=cache, taps=taps)
    return found


@pytest.mark.parametrize(
    "order",
    [
        ["a", "b.0", "b.1", "b", "c", "all"],
        ["b.1", "all", "c", "b.0", "b", "a"],
        ["b.1", "a", "b", "b.0", "all", "c"],
        ["b.2", "all"],
    ],
)
def test_fits_that_are_cut_after_blocks_compute_each_block_once(order):
    backbone, cache = backbone_of_blocks(), EmbeddingCache()
    samples = Samples(
        [make_picture(seed, 32, 32) for seed in range(4)], backbone.reader
    )
    expected = embed_up_to(order, backbone, samples)
    counts.clear()
    found = embed_up_to(order, backbone, samples, cache)
    assert counts == dict.fromkeys(["a", "b0", "b1", "b2", "c"], 4)
    for name, rows in found.items():
        np.testing.assert_array_equal(rows, expected[name])


def test_outputs_of_blocks_are_kept_only_where_a_fit_is_cut_after_one():
    backbone, cache = backbone_of_blocks(), EmbeddingCache()
    samples = Samples(
        [make_picture(seed, 32, 32) for seed in range(4)], backbone.reader
    )
    embed_up_to(["all"], backbone, samples, cache)
    assert cache.info().rows == 4 * 4
    counts.clear()
    # So that a fit that comes later computes these blocks, and none besides, again.
    embed_up_to(["b.1", "b.0", "b", "c", "a"], backbone, samples, cache)
    assert counts == {"b0": 4, "b1": 4}
    assert cache.info().rows == 4 * 6


def test_in_bfloat16_a_cut_is_told_apart_as_it_rounds():
    backbone = backbone_of_blocks()
    cut = backbone.cut("b.1")
    for precision, same in [("float32", True), ("bfloat16", False)]:
        options = {"batch_size": 2, "precision": precision}
        whole, divided = Prefix(backbone, 2, **options), Prefix(cut, 4, **options)
        assert (whole.keys([b"x"]) == divided.keys([b"x"])) == same
        samples = Samples([make_picture()], backbone.reader)
        one, other = (embed(samples, [p])[0] for p in (whole, divided))
        assert not same or np.array_equal(one, other)


def test_outputs_beyond_memory_are_read_from_a_cache_on_disk(monkeypatch, tmp_path):
    X, y = make_task()
    model = FineTuneClassifier(backbone_of_blocks(), freeze="b", batch_size=7)
    model.set_params(max_epochs=3, random_state=0, cache=None, device="cpu")
    expected = model.fit(X, y).predict_proba(X)
    monkeypatch.setattr("sktransfer.finetuning._examples._MAX_BYTES", 1)
    counted = {}
    caches = {
        "disk": EmbeddingCache(tmp_path / "rows"),
        "full": EmbeddingCache(tmp_path / "few", max_bytes=1000),
        "memory": EmbeddingCache(),
    }
    for name, cache in caches.items():
        counts.clear()
        fitted = model.set_params(cache=cache).fit(X, y)
        counted[name] = dict(counts)
        np.testing.assert_array_equal(fitted.predict_proba(X), expected)
    # One batch, filled up with copies.
    assert counted["disk"]["a"] == counted["disk"]["b0"] == 32
    assert counted["full"]["a"] > 3 * 32
    assert counted["memory"]["a"] > 3 * 32
    # Rows that another process removes are computed once more.
    caches["disk"].clear()
    counts.clear()
    np.testing.assert_array_equal(model.fit(X, y).predict_proba(X), expected)
    fitted = model.set_params(cache=caches["disk"]).fit(X, y)
    counts.clear()
    np.testing.assert_array_equal(fitted.fit(X, y).predict_proba(X), expected)
    assert not {"a", "b0"} & counts.keys()
