from collections import OrderedDict

import numpy as np
import pytest
import torch
from joblib import parallel_config, register_parallel_backend
from joblib.parallel import ThreadingBackend
from torch import nn

from sktransfer import Backbone, EmbeddingCache, load_backbone
from sktransfer.embedding._embed import StageOutputs, embed, spreads
from sktransfer.embedding._prefix import (
    Prefix,
    resolve_cache,
    resolve_device,
    resolve_precision,
)
from sktransfer.embedding._reading import sample_digests
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Samples
from tests.small_network import colour_backbone

counts = {}


class Counted(nn.Module):
    """A stage that counts the rows that it computes."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        if x.device.type != "meta":
            counts[self.name] = counts.get(self.name, 0) + len(x)
        return self.conv(x)


@pytest.fixture
def counted():
    counts.clear()
    torch.manual_seed(0)
    stages = nn.Sequential(
        Counted("a"), Counted("b"), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    return Backbone(stages, ImageReader(resize=16, crop=16))


def prefix(backbone, depth=4, **options):
    return Prefix(backbone, depth, **{"batch_size": 2, **options})


def as_samples(images):
    return Samples(images, ImageReader())


def embed_one(images, prefix, **options):
    (rows,) = embed(as_samples(images), [prefix], **options)
    return rows


def test_rows_are_those_of_the_network(pictures):
    backbone = load_backbone("resnet18", weights=None, random_state=0, image_size=64)
    for depth in [1, 5, 6]:
        found = embed_one(pictures, Prefix(backbone, depth, "none"))
        squares = torch.stack([backbone.reader.read(p) for p in pictures])
        with torch.no_grad():
            expected = backbone.stages[:depth](
                backbone.reader.normalise(squares)
            ).numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax"])
def test_pooling(pooling, pictures, counted):
    maps = embed_one(pictures, prefix(counted, 1))
    rows = embed_one(pictures, prefix(counted, 1, pooling=pooling))
    parts = {"avg": [maps.mean((2, 3))], "max": [maps.max((2, 3))]}
    parts["avgmax"] = parts["avg"] + parts["max"]
    expected = np.concatenate(parts[pooling], axis=1)
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
    assert rows.shape[1:] == prefix(counted, 1, pooling=pooling).shape


def test_a_row_does_not_depend_on_its_neighbours(pictures):
    backbone = load_backbone("resnet18", weights=None, random_state=0, image_size=64)
    one = Prefix(backbone, 6, "avg")
    together = embed_one(pictures, one)
    for row, picture in enumerate(pictures):
        np.testing.assert_array_equal(embed_one([picture], one)[0], together[row])
    np.testing.assert_array_equal(embed_one(pictures[::-1], one), together[::-1])
    np.testing.assert_array_equal(embed_one(pictures, one, n_jobs=2), together)


class Collecting(ThreadingBackend):
    """An engine of joblib that gives all results at once, as ray's does."""

    supports_return_generator = False


def test_engines_that_do_not_give_results_one_by_one(pictures):
    register_parallel_backend("collecting", Collecting)
    one = Prefix(load_backbone("tiny"), 6, "avg", batch_size=2)
    with parallel_config(backend="collecting"):
        found = embed_one(pictures, one, n_jobs=2)
    np.testing.assert_array_equal(found, embed_one(pictures, one))


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_cache_never_shows_and_saves_all_forwards(place, pictures, counted, tmp_path):
    cache = EmbeddingCache(None if place == "memory" else tmp_path / "cache")
    plain = embed_one(pictures, prefix(counted))
    counts.clear()
    for _ in range(3):
        rows = embed_one(pictures, prefix(counted), cache=cache)
        np.testing.assert_array_equal(rows, plain)
        assert counts == {"a": 6, "b": 6}
    more = embed_one(pictures[::-1] + pictures, prefix(counted), cache=cache)
    np.testing.assert_array_equal(more, np.concatenate([plain[::-1], plain]))
    assert counts == {"a": 6, "b": 6}


def test_equal_images_are_computed_once(picture, counted):
    rows = embed_one([picture] * 5, prefix(counted), cache=EmbeddingCache())
    assert counts["a"] == 2  # one image, and the filler of its batch
    assert (rows == rows[0]).all()


def test_a_key_is_the_full_cause(pictures, counted, tmp_path):
    other = Backbone(counted.stages, ImageReader(resize=20, crop=16))
    prefixes = [
        prefix(counted),
        prefix(counted, 2),
        prefix(counted, 2, pooling="avg"),
        prefix(counted, 2, pooling="max"),
        prefix(counted, precision="bfloat16"),
        prefix(counted, batch_size=3),
        prefix(other),
    ]
    digests = sample_digests(as_samples(pictures[:2]))
    keys = [tuple(one.keys(digests)) for one in prefixes]
    assert len(set(keys)) == len(prefixes)
    assert all(one != other for one, other in keys)
    # What is flat is not pooled, and shares its entries; so do equal prefixes.
    assert prefix(counted, pooling="max").keys(digests) == prefix(counted).keys(digests)
    tuned = counted.tuned(2, nn.Sequential(OrderedDict(flat=nn.Flatten())))
    assert prefix(tuned, 2).keys(digests) == prefix(counted, 2).keys(digests)


@pytest.mark.parametrize("order", [[1, 2, 4], [4, 2, 1], [2, 4, 1]])
def test_each_stage_sees_each_image_once_whatever_the_depths(order, pictures, counted):
    cache = EmbeddingCache()
    expected = {depth: embed_one(pictures, prefix(counted, depth)) for depth in order}
    counts.clear()
    for depth in order:
        taps = [prefix(counted, tap) for tap in range(1, depth)]
        rows = embed_one(pictures, prefix(counted, depth), cache=cache, taps=taps)
        np.testing.assert_array_equal(rows, expected[depth])
    assert counts == {"a": 6, "b": 6}


def test_several_depths_and_backbones_are_one_pass(pictures, counted):
    colour = colour_backbone()
    asked = [prefix(counted, depth) for depth in (2, 4, 1)]
    asked += [prefix(colour, 2), prefix(counted, 2, pooling="avg"), asked[0]]
    for cache in [None, EmbeddingCache()]:
        counts.clear()
        found = embed(as_samples(pictures), asked, cache=cache)
        assert counts == {"a": 6, "b": 6}
        for rows, one in zip(found, asked, strict=True):
            np.testing.assert_array_equal(rows, embed_one(pictures, one))


@pytest.mark.parametrize("known", [1, 2, 4])
def test_what_is_lacking_starts_from_what_is_known(known, pictures, counted):
    cache, asked = EmbeddingCache(), [prefix(counted, 4), prefix(counted, 2)]
    expected = embed(as_samples(pictures), asked)
    embed_one(pictures[:4], prefix(counted, known), cache=cache)
    counts.clear()
    found = embed(as_samples(pictures), asked, cache=cache)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    # Of the four that are known, as many batches as lack the stage.
    assert counts == {"a": 6 if known == 4 else 2, "b": 2 if known == 2 else 6}


def test_backbones_of_one_reader_share_what_it_reads(pictures, counted, monkeypatch):
    read, whole = [], ImageReader.read

    def counting(reader, content):
        read.append(content)
        return whole(reader, content)

    monkeypatch.setattr(ImageReader, "read", counting)
    other = Backbone(counted.stages, counted.reader)
    embed(as_samples(pictures), [prefix(counted), prefix(other)])
    assert len(read) == len(pictures)


def test_a_backbone_that_fails_is_left_out_and_noted(pictures, counted):
    class Broken(nn.Module):
        def forward(self, x):
            if x.device.type != "meta":
                raise RuntimeError("no kernel for this")
            return x.mean((2, 3))

    broken = Backbone(nn.Sequential(Broken()), ImageReader(resize=16, crop=16))
    asked, failures = [prefix(broken, 1), prefix(counted)], {}
    _, rows = embed(as_samples(pictures), asked, failures=failures)
    np.testing.assert_array_equal(rows, embed_one(pictures, asked[1]))
    assert [(n, str(e)) for n, e in failures.items()] == [(0, "no kernel for this")]
    with pytest.raises(RuntimeError, match="no kernel"):
        embed(as_samples(pictures), asked)


def test_stage_outputs_go_on_where_a_prefix_ended(pictures, counted):
    maps = torch.from_numpy(embed_one(pictures, prefix(counted, 1)))
    (rows,) = embed(StageOutputs(maps, 1), [prefix(counted)])
    np.testing.assert_array_equal(rows, embed_one(pictures, prefix(counted)))


def test_bad_images_raise_with_row_and_file_or_become_nan(pictures, counted, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    mixed = [*pictures[:3], str(bad), None, *pictures[3:]]
    for cache in [None, EmbeddingCache()]:
        with pytest.raises(ValueError, match=r"row (3 \(.*bad\.jpg|4: it is missing)"):
            embed_one(mixed, prefix(counted), cache=cache)
        with pytest.warns(UserWarning, match=r"2 of 8 .*rows \[3, 4\].*bad\.jpg"):
            rows = embed_one(mixed, prefix(counted), cache=cache, on_error="nan")
        assert np.isnan(rows[[3, 4]]).all()
        good = embed_one(pictures, prefix(counted))
        np.testing.assert_array_equal(rows[[0, 1, 2, 5, 6, 7]], good)
    # Threads in place of processes, each of which would import torch anew.
    workers = parallel_config(backend="threading")
    with workers, pytest.warns(UserWarning, match="2 of 8"):
        rows = embed_one(mixed, prefix(counted), n_jobs=2, on_error="nan")
    np.testing.assert_array_equal(rows[[0, 1, 2, 5, 6, 7]], good)


@pytest.mark.parametrize("window", [2, 100])
def test_copies_of_a_bad_image_are_bad_too(window, pictures, counted, monkeypatch):
    monkeypatch.setattr("sktransfer.embedding._embed._WINDOW", window)
    X = [b"no picture", pictures[0], b"no picture", pictures[0], b"no picture"]
    with pytest.warns(UserWarning, match=r"3 of 5 .*rows \[0, 2, 4\].*; row 2 \(by"):
        rows = embed_one(X, prefix(counted), cache=EmbeddingCache(), on_error="nan")
    assert np.isnan(rows[::2]).all()
    np.testing.assert_array_equal(rows[1::2], embed_one(X[1::2], prefix(counted)))


@pytest.mark.parametrize("max_bytes", [1, 2**20])
def test_windows_never_show(max_bytes, pictures, counted, monkeypatch):
    X = [*pictures, *pictures[:3]]
    plain = embed_one(X, prefix(counted))
    monkeypatch.setattr("sktransfer.embedding._embed._WINDOW", 4)
    np.testing.assert_array_equal(embed_one(X, prefix(counted)), plain)
    # Even where nothing fits in the cache, copies are computed once.
    cache = EmbeddingCache(max_bytes=max_bytes)
    for digests in [None, sample_digests(as_samples(X))]:
        cache.clear()
        counts.clear()
        rows = embed_one(X, prefix(counted), cache=cache, digests=digests)
        np.testing.assert_array_equal(rows, plain)
        assert counts["a"] == 6


def test_nobody_elses_settings_move(pictures, counted):
    torch.manual_seed(3)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    digest = counted.digest
    embed_one(pictures, prefix(counted))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before[1:]
    assert Backbone(counted.stages).digest == digest


def test_ctrl_c_propagates(pictures, counted):
    class Interrupting:
        def __array__(self, dtype=None, copy=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_one([*pictures, Interrupting()], prefix(counted))


def test_a_progress_bar_counts_images(pictures, counted, capsys):
    embed_one(pictures, prefix(counted), verbose=1)
    assert "6/6" in capsys.readouterr().err


def test_mixed_depths_of_colour_share_a_batch(picture, counted):
    sharp = (picture[:, :, 0].astype(np.uint16) << 8) + 77
    rows = embed_one([picture, sharp], prefix(counted))
    for row, image in enumerate([picture, sharp]):
        np.testing.assert_array_equal(rows[row], embed_one([image], prefix(counted))[0])


def test_parameters_are_resolved(tmp_path):
    assert resolve_cache(None) is None
    assert resolve_cache("auto") is resolve_cache("auto")
    cache = EmbeddingCache()
    assert resolve_cache(cache) is cache
    assert resolve_cache(tmp_path).info().location == str(tmp_path)
    assert resolve_device("cpu") == "cpu"
    assert resolve_precision("float32", "cpu") == "float32"
    with pytest.raises(ValueError, match="Invalid cache=3: expected"):
        resolve_cache(3)


@pytest.mark.parametrize(
    ("device", "got"),
    [
        (3, "is not a device that torch knows"),
        ("gpu", "is not a device that torch knows"),
        ("vulkan", "cannot be used on this machine: .{10,99}[^.]"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, got):
    message = rf"^Invalid device={device!r}: expected .* or 'mps'\. It {got}\.$"
    with pytest.raises(ValueError, match=message):
        resolve_device(device)


def test_bfloat16_is_refused_where_it_is_slower(monkeypatch):
    monkeypatch.setattr(
        "sktransfer.embedding._prefix._has_bfloat16", lambda kind: False
    )
    with pytest.raises(ValueError, match="expected 'float32', as bfloat16 is slower"):
        resolve_precision("bfloat16", "cpu")


def test_workers_of_this_machine_do_not_share_its_gpu():
    class Elsewhere(ThreadingBackend):
        """As those of clusters, whose machines may have a GPU each."""

    register_parallel_backend("elsewhere", Elsewhere)
    assert not spreads(None, "cpu")
    assert not spreads(1, "cuda")
    for backend, on_gpu in [
        ("loky", False),
        ("threading", False),
        ("elsewhere", True),
    ]:
        with parallel_config(backend=backend, n_jobs=2):
            assert spreads(None, "cpu")
            assert spreads(2, "cuda:0") == on_gpu
