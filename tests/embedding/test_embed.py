from collections import OrderedDict

import numpy as np
import pytest
import torch
from joblib import parallel_config, register_parallel_backend
from joblib.parallel import ThreadingBackend
from torch import nn

from sktransfer import Backbone, EmbeddingCache, load_backbone
from sktransfer.backbones._backbone import Recipe
from sktransfer.embedding._embed import embed, image_digests, run_on, spreads
from sktransfer.embedding._prefix import (
    Pass,
    resolve_cache,
    resolve_device,
    resolve_precision,
)
from sktransfer.inputs._images import Images

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
    return Backbone(stages, Recipe(resize=16, crop=16))


def way(backbone, depth=4, **options):
    return Pass(backbone, depth, **{"batch_size": 2, **options})


def test_rows_are_those_of_the_network(pictures):
    backbone = load_backbone("resnet18", weights=None, random_state=0, image_size=64)
    for depth in [1, 5, 6]:
        found = embed(Images(pictures), Pass(backbone, depth, "none"))
        squares = torch.stack([backbone.recipe.read(p) for p in pictures])
        with torch.no_grad():
            expected = backbone.stages[:depth](
                backbone.recipe.normalise(squares)
            ).numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax"])
def test_pooling(pooling, pictures, counted):
    maps = embed(Images(pictures), way(counted, 1))
    rows = embed(Images(pictures), way(counted, 1, pooling=pooling))
    parts = {"avg": [maps.mean((2, 3))], "max": [maps.max((2, 3))]}
    parts["avgmax"] = parts["avg"] + parts["max"]
    expected = np.concatenate(parts[pooling], axis=1)
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
    assert rows.shape[1:] == way(counted, 1, pooling=pooling).shape


def test_a_row_does_not_depend_on_its_neighbours(pictures):
    backbone = load_backbone("resnet18", weights=None, random_state=0, image_size=64)
    one = Pass(backbone, 6, "avg")
    together = embed(Images(pictures), one)
    for row, picture in enumerate(pictures):
        np.testing.assert_array_equal(embed(Images([picture]), one)[0], together[row])
    np.testing.assert_array_equal(embed(Images(pictures[::-1]), one), together[::-1])
    np.testing.assert_array_equal(embed(Images(pictures), one, n_jobs=2), together)


class Collecting(ThreadingBackend):
    """An engine of joblib that gives all results at once, as ray's does."""

    supports_return_generator = False


def test_engines_that_do_not_give_results_one_by_one(pictures):
    register_parallel_backend("collecting", Collecting)
    one = Pass(load_backbone("tiny"), 6, "avg", batch_size=2)
    with parallel_config(backend="collecting"):
        found = embed(Images(pictures), one, n_jobs=2)
    np.testing.assert_array_equal(found, embed(Images(pictures), one))


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_cache_never_shows_and_saves_all_forwards(place, pictures, counted, tmp_path):
    cache = EmbeddingCache(None if place == "memory" else tmp_path / "cache")
    plain = embed(Images(pictures), way(counted))
    counts.clear()
    for _ in range(3):
        rows = embed(Images(pictures), way(counted), cache=cache)
        np.testing.assert_array_equal(rows, plain)
        assert counts == {"a": 6, "b": 6}
    more = embed(Images(pictures[::-1] + pictures), way(counted), cache=cache)
    np.testing.assert_array_equal(more, np.concatenate([plain[::-1], plain]))
    assert counts == {"a": 6, "b": 6}


def test_equal_images_are_computed_once(picture, counted):
    rows = embed(Images([picture] * 5), way(counted), cache=EmbeddingCache())
    assert counts["a"] == 2  # one image, and the filler of its batch
    assert (rows == rows[0]).all()


def test_a_key_is_the_full_cause(pictures, counted, tmp_path):
    other = Backbone(counted.stages, Recipe(resize=20, crop=16))
    ways = [
        way(counted),
        way(counted, 2),
        way(counted, 2, pooling="avg"),
        way(counted, 2, pooling="max"),
        way(counted, precision="bfloat16"),
        way(counted, batch_size=3),
        way(other),
    ]
    digests = image_digests(Images(pictures[:2]))
    keys = [tuple(one.keys(digests)) for one in ways]
    assert len(set(keys)) == len(ways)
    assert all(one != other for one, other in keys)
    # What is flat is not pooled, and shares its entries; so do equal prefixes.
    assert way(counted, pooling="max").keys(digests) == way(counted).keys(digests)
    tuned = counted.tuned(2, nn.Sequential(OrderedDict(flat=nn.Flatten())))
    assert way(tuned, 2).keys(digests) == way(counted, 2).keys(digests)


@pytest.mark.parametrize("order", [[1, 2, 4], [4, 2, 1], [2, 4, 1]])
def test_each_stage_sees_each_image_once_whatever_the_depths(order, pictures, counted):
    cache = EmbeddingCache()
    expected = {depth: embed(Images(pictures), way(counted, depth)) for depth in order}
    counts.clear()
    for depth in order:
        rows = embed(Images(pictures), way(counted, depth), cache=cache, taps=True)
        np.testing.assert_array_equal(rows, expected[depth])
    assert counts == {"a": 6, "b": 6}


def test_taps_that_would_not_fit_are_not_kept(pictures, counted):
    cache = EmbeddingCache(max_bytes=4 * 6 * 800)
    embed(Images(pictures), way(counted), cache=cache, taps=True)
    assert cache.info().rows == 6


def test_run_on_continues_where_a_prefix_ended(pictures, counted):
    maps = torch.from_numpy(embed(Images(pictures), way(counted, 1)))
    rows = run_on(maps, way(counted), 1).numpy()
    np.testing.assert_array_equal(rows, embed(Images(pictures), way(counted)))


def test_bad_images_raise_with_row_and_file_or_become_nan(pictures, counted, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    mixed = [*pictures[:3], str(bad), None, *pictures[3:]]
    for cache in [None, EmbeddingCache()]:
        with pytest.raises(ValueError, match=r"row (3 \(.*bad\.jpg|4 \(missing)"):
            embed(Images(mixed), way(counted), cache=cache)
        with pytest.warns(UserWarning, match=r"2 of 8 .*rows \[3, 4\].*bad\.jpg"):
            rows = embed(Images(mixed), way(counted), cache=cache, on_error="nan")
        assert np.isnan(rows[[3, 4]]).all()
        good = embed(Images(pictures), way(counted))
        np.testing.assert_array_equal(rows[[0, 1, 2, 5, 6, 7]], good)
    # Threads in place of processes, each of which would import torch anew.
    workers = parallel_config(backend="threading")
    with workers, pytest.warns(UserWarning, match="2 of 8"):
        rows = embed(Images(mixed), way(counted), n_jobs=2, on_error="nan")
    np.testing.assert_array_equal(rows[[0, 1, 2, 5, 6, 7]], good)


@pytest.mark.parametrize("window", [2, 100])
def test_copies_of_a_bad_image_are_bad_too(window, pictures, counted, monkeypatch):
    monkeypatch.setattr("sktransfer.embedding._embed._WINDOW", window)
    X = [b"no picture", pictures[0], b"no picture", pictures[0], b"no picture"]
    with pytest.warns(UserWarning, match=r"3 of 5 .*rows \[0, 2, 4\].*; row 2 \(by"):
        rows = embed(Images(X), way(counted), cache=EmbeddingCache(), on_error="nan")
    assert np.isnan(rows[::2]).all()
    np.testing.assert_array_equal(rows[1::2], embed(Images(X[1::2]), way(counted)))


@pytest.mark.parametrize("max_bytes", [1, 2**20])
def test_windows_never_show(max_bytes, pictures, counted, monkeypatch):
    X = [*pictures, *pictures[:3]]
    plain = embed(Images(X), way(counted))
    monkeypatch.setattr("sktransfer.embedding._embed._WINDOW", 4)
    np.testing.assert_array_equal(embed(Images(X), way(counted)), plain)
    # Even where nothing fits in the cache, copies are computed once.
    cache = EmbeddingCache(max_bytes=max_bytes)
    for digests in [None, image_digests(Images(X))]:
        cache.clear()
        counts.clear()
        rows = embed(Images(X), way(counted), cache=cache, digests=digests)
        np.testing.assert_array_equal(rows, plain)
        assert counts["a"] == 6


def test_nobody_elses_settings_move(pictures, counted):
    torch.manual_seed(3)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    digest = counted.digest
    embed(Images(pictures), way(counted))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before[1:]
    assert Backbone(counted.stages).digest == digest


def test_ctrl_c_propagates(pictures, counted):
    class Interrupting:
        def __array__(self, dtype=None, copy=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(Images([*pictures, Interrupting()]), way(counted))


def test_a_progress_bar_counts_images(pictures, counted, capsys):
    embed(Images(pictures), way(counted), verbose=1)
    assert "6/6" in capsys.readouterr().err


def test_mixed_depths_of_colour_share_a_batch(picture, counted):
    sharp = (picture[:, :, 0].astype(np.uint16) << 8) + 77
    rows = embed(Images([picture, sharp]), way(counted))
    for row, image in enumerate([picture, sharp]):
        np.testing.assert_array_equal(
            rows[row], embed(Images([image]), way(counted))[0]
        )


def test_parameters_are_resolved(tmp_path):
    assert resolve_cache(None) is None
    assert resolve_cache("auto") is resolve_cache("auto")
    cache = EmbeddingCache()
    assert resolve_cache(cache) is cache
    assert resolve_cache(tmp_path).info().location == str(tmp_path)
    assert resolve_device("cpu") == "cpu"
    assert resolve_precision("float32", "cpu") == "float32"
    with pytest.raises(ValueError, match="Accepted are"):
        resolve_cache(3)


@pytest.mark.parametrize(
    ("device", "got"),
    [
        (3, "is no device that torch knows"),
        ("gpu", "is no device that torch knows"),
        ("vulkan", "cannot be used on this machine: .{10,99}[^.]"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, got):
    message = rf"^device={device!r} {got}\. Accepted are 'auto', .* and 'mps'\.$"
    with pytest.raises(ValueError, match=message):
        resolve_device(device)


def test_bfloat16_is_refused_where_it_is_slower(monkeypatch):
    monkeypatch.setattr(
        "sktransfer.embedding._prefix._has_bfloat16", lambda kind: False
    )
    with pytest.raises(ValueError, match="slower than 'float32'"):
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
