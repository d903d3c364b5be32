"""EmbeddingCache: right values or none, whatever happens to the store."""

import copy
import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest

from sktransfer.embedding import _cache, _shards
from sktransfer.embedding._cache import CacheInfo, EmbeddingCache


def key(i):
    return hashlib.sha256(b"%d" % i).digest()


def row(i, shape=(16,), dtype="float32"):
    return np.full(shape, i % 251, dtype=dtype) + np.arange(shape[-1], dtype=dtype)


def rows(*numbers, **kwargs):
    return {key(i): row(i, **kwargs) for i in numbers}


def stored(cache, numbers, **kwargs):
    """Which numbers the cache has; every value it gives must be right."""
    found = cache.get_many([key(i) for i in numbers])
    have = [i for i in numbers if key(i) in found]
    for i in have:
        np.testing.assert_array_equal(found[key(i)], row(i, **kwargs), strict=True)
    assert len(found) == len(set(have))
    return have


def shards(folder):
    return sorted(Path(folder).glob("*.sktrows"))


@pytest.fixture(params=["memory", "folder"])
def cache(request, tmp_path):
    return EmbeddingCache(None if request.param == "memory" else tmp_path / "store")


# One interface over both stores


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4), (2, 0)])
def test_round_trip(cache, shape, dtype):
    value = np.asarray(np.random.default_rng(0).uniform(0, 9, shape)).astype(dtype)
    cache.put_many({key(0): value, key(1): value + value})
    found = cache.get_many([key(1), key(2), key(0)])
    assert found.keys() == {key(0), key(1)}
    np.testing.assert_array_equal(found[key(0)], value, strict=True)
    np.testing.assert_array_equal(found[key(1)], value + value, strict=True)


def test_mixed_kinds_in_one_put(cache):
    values = [row(0), row(1, dtype="uint8"), row(2, shape=(2, 8)), row(3)]
    cache.put_many({key(i): value for i, value in enumerate(values)})
    found = cache.get_many(map(key, range(4)))
    for i, value in enumerate(values):
        np.testing.assert_array_equal(found[key(i)], value, strict=True)


def test_other_layouts_and_byte_orders_are_the_same_values(cache):
    square = row(0, shape=(4, 4)) + np.arange(4, dtype="float32")[:, None]
    cache.put_many({key(0): square.T, key(1): square.astype(">f4"), key(2): square[1]})
    found = cache.get_many(map(key, range(3)))
    np.testing.assert_array_equal(found[key(0)], square.T)
    np.testing.assert_array_equal(found[key(1)], square)
    np.testing.assert_array_equal(found[key(2)], square[1])
    assert {value.dtype for value in found.values()} == {np.dtype("float32")}


def test_values_do_not_change_with_what_was_put_or_got(cache):
    value = row(1)
    cache.put_many({key(1): value})
    value[:] = -1
    found = cache.get_many([key(1)])[key(1)]
    with pytest.raises(ValueError, match="read-only"):
        found[:] = -1
    with pytest.raises(ValueError, match="WRITEABLE"):
        found.flags.writeable = True
    cache.clear()
    np.testing.assert_array_equal(found, row(1))


def test_present_keys_are_skipped(cache):
    cache.put_many(rows(1))
    cache.put_many({key(1): row(9)})
    assert stored(cache, [1]) == [1]
    assert cache.info().rows == 1


def test_info_counts(cache):
    assert cache.info()[:2] == (0, 0)
    cache.put_many(rows(*range(5)))
    stored(cache, [0, 1, 7])
    cache.get_many([key(0), key(0), key(8)])
    info = cache.info()
    assert isinstance(info, CacheInfo)
    assert (info.rows, info.hits, info.misses) == (5, 3, 2)
    assert info.max_bytes == 2**30
    assert 5 * row(0).nbytes < info.bytes < 5000
    assert info.location == (cache.location and str(cache.location))


def test_clear(cache):
    cache.put_many(rows(1, 2))
    stored(cache, [1])
    cache.clear()
    assert cache.info()[:5] == (0, 0, 2**30, 0, 0)
    assert stored(cache, [1, 2]) == []
    cache.put_many(rows(1))
    assert stored(cache, [1, 2]) == [1]


def test_empty_calls(cache):
    cache.put_many({})
    assert cache.get_many([]) == {}
    assert cache.info().bytes == 0


def test_threads(cache):
    wrong = []

    def work(seed):
        order = random.Random(seed)
        for _ in range(30):
            some = order.sample(range(200), 8)
            have = stored(cache, some)
            cache.put_many(rows(*set(some) - set(have)))
            if stored(cache, some) != some:
                wrong.append(some)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.info().rows == len(stored(cache, range(200)))


# The object: parameters, copies, pickles, errors


def test_constructor_only_stores(tmp_path):
    location = tmp_path / "none yet"
    cache = EmbeddingCache(location, max_bytes="later")
    assert cache.location is location
    assert cache.max_bytes == "later"
    cache = EmbeddingCache(location)
    assert cache.info().rows == 0
    assert stored(cache, [1]) == []
    cache.clear()
    assert not location.exists()


def test_repr(tmp_path):
    assert repr(EmbeddingCache()) == "EmbeddingCache(None, max_bytes=1073741824)"
    assert repr(EmbeddingCache("x", max_bytes=9)) == "EmbeddingCache('x', max_bytes=9)"
    assert repr(EmbeddingCache(Path("x"))) == repr(EmbeddingCache("x"))
    assert repr(EmbeddingCache(3)) == "EmbeddingCache(3, max_bytes=1073741824)"


def test_home_and_relative_locations(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for location in ("~/here", "here"):
        cache = EmbeddingCache(location)
        assert cache.info().location == str(tmp_path / "here")
    cache.put_many(rows(1))
    monkeypatch.chdir("/")
    assert stored(cache, [1]) == [1]


def test_copies_are_the_same_store(cache):
    copies = [copy.deepcopy(cache), copy.copy(cache), copy.deepcopy([cache])[0]]
    cache.put_many(rows(1))
    for other in copies:
        assert stored(other, [1]) == [1]
        assert other.location == cache.location


def test_pickle_carries_parameters_only(cache):
    cache.put_many(rows(*range(50)))
    pickled = pickle.dumps(cache)
    assert len(pickled) < 400
    other = pickle.loads(pickled)
    assert (other.location, other.max_bytes) == (cache.location, cache.max_bytes)
    assert other.info().hits == 0
    assert stored(other, range(50)) == ([] if cache.location is None else [*range(50)])
    other.put_many(rows(99))
    assert stored(other, [99]) == [99]


def test_hash_does_not_change_through_use(cache):
    before, state = joblib.hash(cache), cache.__getstate__()
    cache.put_many(rows(1))
    stored(cache, [1, 2])
    assert joblib.hash(cache) == before
    assert cache.__getstate__() == state
    assert state == {"location": cache.location, "max_bytes": cache.max_bytes}


@pytest.mark.parametrize("max_bytes", [0, -1, 1.5, 1e9, "1 GB", None, True])
def test_bad_max_bytes(max_bytes):
    cache = EmbeddingCache(max_bytes=max_bytes)
    for _ in range(2):
        with pytest.raises(ValueError, match="expected a positive int") as error:
            cache.get_many([key(1)])
        assert f"max_bytes={max_bytes!r}" in str(error.value)
        assert "Nothing was stored. Pass" in str(error.value)


@pytest.mark.parametrize("location", [3, b"bytes", "", ["a"]])
def test_bad_location(location):
    with pytest.raises(TypeError, match="the path of a folder") as error:
        EmbeddingCache(location).info()
    assert f"location={location!r}" in str(error.value)
    assert "Nothing was stored. Pass" in str(error.value)


@pytest.mark.parametrize("bad", ["key", b"short", key(1).hex(), None])
def test_bad_key(cache, bad):
    with pytest.raises(ValueError, match="expected 32 bytes. Nothing was stored. Pass"):
        cache.put_many({key(1): row(1), bad: row(2)})
    assert cache.info().rows == 0


@pytest.mark.parametrize("value", [np.zeros(3), [1, 2], np.array([None]), "text"])
def test_bad_value(cache, value):
    with pytest.raises(TypeError, match="float16 or uint8. Nothing was stored. Conv"):
        cache.put_many({key(1): row(1), key(2): value})
    assert cache.info().rows == 0


# Limits


def test_memory_gives_up_the_least_recently_used():
    size = row(0).nbytes + _cache._MemoryStore.ROW_OVERHEAD
    cache = EmbeddingCache(max_bytes=4 * size)
    cache.put_many(rows(0, 1, 2, 3))
    assert stored(cache, [0]) == [0]
    cache.put_many(rows(4, 5))
    assert stored(cache, range(6)) == [0, 3, 4, 5]
    assert cache.info().bytes == 4 * size


def test_folder_gives_up_the_oldest_shards(tmp_path):
    unlimited = EmbeddingCache(tmp_path)
    for i in range(6):
        before = shards(tmp_path)
        unlimited.put_many(rows(i))
        (new,) = set(shards(tmp_path)) - set(before)
        os.utime(new, (1000 + i, 1000 + i))
    size = new.stat().st_size
    cache = EmbeddingCache(tmp_path, max_bytes=5 * size)
    # Read last, so newest now; only the first read of a process marks a shard.
    assert stored(cache, [0]) == [0]
    cache.put_many(rows(6))
    assert stored(cache, range(7)) == [0, 3, 4, 5, 6]
    assert cache.info().bytes == sum(path.stat().st_size for path in shards(tmp_path))
    assert cache.info().bytes <= cache.max_bytes


def test_reading_marks_a_shard_once_per_process(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(0))
    (path,) = shards(tmp_path)
    for expected in (True, False):
        os.utime(path, (1000, 1000))
        stored(cache, [0])
        assert (path.stat().st_mtime > 1000) == expected


def test_total_counts_all_our_files(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(0))
    (shard,) = shards(tmp_path)
    (tmp_path / f"{shard.name}-{'a' * 32}").write_bytes(bytes(700))
    (tmp_path / f"{'b' * 32}.sktrows").write_bytes(bytes(500))
    (tmp_path / "users.txt").write_bytes(bytes(9000))
    assert cache.info().bytes == shard.stat().st_size + 700 + 500


@pytest.mark.parametrize("max_bytes", [1, 100, 700])
def test_a_value_above_the_limit_is_not_stored(cache, max_bytes):
    cache.max_bytes = max_bytes
    cache.put_many({key(1): np.zeros(300, "float32")})
    assert cache.info()[:2] == (0, 0)
    assert cache.get_many([key(1)]) == {}


def test_a_put_above_the_limit_is_stored_in_part(cache):
    cache.max_bytes = 5000
    cache.put_many(rows(*range(100)))
    info = cache.info()
    assert 2500 < info.bytes <= 5000
    assert len(stored(cache, range(100))) == info.rows > 0


# Shards


def test_one_put_is_one_shard_and_nothing_else(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(*range(10)))
    assert len(list(tmp_path.iterdir())) == 1
    cache.put_many(rows(*range(10)))
    assert len(list(tmp_path.iterdir())) == 1
    cache.put_many({key(20): row(20), key(21): row(21, dtype="uint8")})
    assert len(list(tmp_path.iterdir())) == len(shards(tmp_path)) == 3


def test_the_format_is_fixed(tmp_path):
    """A change of these bytes needs a new version: old folders stay in use."""
    EmbeddingCache(tmp_path).put_many({key(1): np.array([1, 2], "float32")})
    (path,) = shards(tmp_path)
    data = path.read_bytes()
    about = json.dumps(["<f4", [2]]).encode()
    assert data.startswith(
        b"sktrows\x01" + len(about).to_bytes(4, "little") + (1).to_bytes(8, "little")
        + about + key(1)
    )  # fmt: skip
    value = data[-8:]
    assert value == b"\0\0\x80\x3f\0\0\0\x40"
    checksum = hashlib.blake2b(key(1) + value, digest_size=8).digest()
    digest = hashlib.blake2b(data[:-24], digest_size=16).digest()
    assert data[-32:-8] == checksum + digest
    assert path.name == digest.hex() + ".sktrows"


def test_other_objects_see_new_rows_and_removals(tmp_path):
    ours, theirs = EmbeddingCache(tmp_path), EmbeddingCache(str(tmp_path))
    assert stored(theirs, [1]) == []
    ours.put_many(rows(1))
    assert stored(theirs, [1]) == [1]
    ours.put_many(rows(2))
    theirs.put_many(rows(2))
    assert len(shards(tmp_path)) == 2
    theirs.clear()
    assert stored(ours, [1, 2]) == []
    ours.put_many(rows(1))
    assert stored(theirs, [1, 2]) == [1]


def test_every_flipped_byte_is_a_miss(tmp_path):
    EmbeddingCache(tmp_path).put_many(rows(0, 1, 2))
    (path,) = shards(tmp_path)
    good = path.read_bytes()
    for at, byte in enumerate(good):
        path.unlink(missing_ok=True)
        path.write_bytes(good[:at] + bytes([byte ^ 16]) + good[at + 1 :])
        have = stored(EmbeddingCache(tmp_path), range(3))
        assert len(have) == (2 if at >= len(good) - 3 * row(0).nbytes else 0)


def test_every_truncation_is_a_miss(tmp_path):
    EmbeddingCache(tmp_path).put_many(rows(0, 1, 2))
    (path,) = shards(tmp_path)
    size = path.stat().st_size
    for length in [size + 1, *reversed(range(size))]:
        os.truncate(path, length)
        assert stored(EmbeddingCache(tmp_path), range(3)) == []


def test_damage_under_an_open_cache_is_a_miss_and_heals(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(0, 1, 2))
    (path,) = shards(tmp_path)
    os.truncate(path, path.stat().st_size - 10)
    assert stored(cache, range(3)) == [0, 1]
    assert not path.exists()
    cache.put_many(rows(0, 1, 2))
    for reader in (cache, EmbeddingCache(tmp_path)):
        assert stored(reader, range(3)) == [0, 1, 2]


def test_damage_does_not_hide_a_double_for_long(tmp_path):
    caches = [EmbeddingCache(tmp_path) for _ in range(2)]
    caches[0].put_many(rows(0, 1))
    (path,) = shards(tmp_path)
    path.rename(tmp_path / "away")
    caches[1].put_many(rows(0))
    (tmp_path / "away").rename(path)
    with open(path, "r+b") as file:
        file.seek(-2 * row(0).nbytes, os.SEEK_END)
        file.write(b"damage")
    for _ in range(2):
        stored(EmbeddingCache(tmp_path), [0])
    assert stored(EmbeddingCache(tmp_path), [0]) == [0]


def test_swapped_rows_and_files_are_not_confused(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(0, 1))
    (path,) = shards(tmp_path)
    n = row(0).nbytes
    good = path.read_bytes()
    path.write_bytes(good[: -2 * n] + good[-n:] + good[-2 * n : -n])
    assert stored(cache, [0, 1]) == []
    path.write_bytes(good)
    assert stored(cache, [0, 1]) == [0, 1]
    cache.put_many(rows(2, 3))
    first, second = shards(tmp_path)
    other = second.read_bytes()
    second.write_bytes(first.read_bytes())
    first.write_bytes(other)
    assert stored(EmbeddingCache(tmp_path), range(4)) == [0, 1, 2, 3]


def _signed(*parts):
    body = b"".join(parts)
    return body + hashlib.blake2b(body, digest_size=16).digest()


@pytest.mark.parametrize(
    "about",
    [b"", b"no json", b"3", b'["<f4"]', b'["<f8", [2]]', b'["|O", [1]]', b'["<f4", 2]',
     b'["<f4", [-1, -2]]', b'["<f4", ["2"]]', b'[["<f4"], [2]]', b'["<f4", [2.0]]',
     b"\xff"],
)  # fmt: skip
def test_well_signed_nonsense_is_a_miss(tmp_path, about):
    head = _shards._HEAD.pack(_shards._MAGIC, len(about), 1)
    checksum = hashlib.blake2b(key(1) + bytes(8), digest_size=8).digest()
    data = _signed(head, about, key(1), checksum) + bytes(8)
    (tmp_path / f"{'a' * 32}.sktrows").write_bytes(data)
    cache = EmbeddingCache(tmp_path)
    assert cache.get_many([key(1)]) == {}
    assert cache.info()[:2] == (0, len(data))
    cache.put_many(rows(1))
    assert stored(cache, [1]) == [1]


def test_another_version_is_a_miss(tmp_path):
    EmbeddingCache(tmp_path).put_many(rows(1))
    (path,) = shards(tmp_path)
    data = bytearray(path.read_bytes())
    data[7] += 1
    at = len(data) - row(1).nbytes
    path.write_bytes(_signed(data[: at - 16]) + data[at:])
    cache = EmbeddingCache(tmp_path)
    assert stored(cache, [1]) == []
    cache.put_many(rows(1))
    assert stored(cache, [1]) == [1]


def problems(cache):
    return {Path(row["file"]).name: row["problem"] for row in cache.verify()}


def test_nothing_is_found_in_a_sound_cache(cache):
    assert cache.verify() == []
    cache.put_many(rows(0, 1, 2))
    cache.put_many(rows(3, shape=(2, 0)))
    assert cache.verify() == []


def test_every_flipped_byte_is_found_and_left_as_it_is(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(0, 1, 2))
    (path,) = shards(tmp_path)
    good = path.read_bytes()
    for at, byte in enumerate(good):
        damaged = good[:at] + bytes([byte ^ 16]) + good[at + 1 :]
        path.write_bytes(damaged)
        (found,) = cache.verify()
        assert found["file"] == str(path)
        assert found["advice"].startswith("Delete it.")
        in_row = at >= len(good) - 3 * row(0).nbytes
        assert (found["problem"] == "1 of 3 rows are damaged") == in_row
        assert path.read_bytes() == damaged
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert len(problems(cache)) == 1
    path.write_bytes(good)
    assert cache.verify() == []


def test_what_is_found_has_a_reason(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(0))
    (path,) = shards(tmp_path)
    good = path.read_bytes()
    name = "{0}" * 32 + ".sktrows"
    (tmp_path / name.format("a")).write_bytes(good[:-1])
    (tmp_path / name.format("b")).write_bytes(good[:7] + b"\x02" + good[8:])
    (tmp_path / name.format("c")).write_bytes(good[:50] + b"?" + good[51:])
    (tmp_path / name.format("d")).write_bytes(b"")
    (tmp_path / f"{name.format('e')}-{'e' * 32}").write_bytes(b"half a shard")
    (tmp_path / f"{name.format('f')}-{'f' * 32}").write_bytes(b"half a shard")
    os.utime(tmp_path / f"{name.format('f')}-{'f' * 32}", (time.time() - 3700,) * 2)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / name.format("0")).mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert problems(EmbeddingCache(tmp_path)) == {
        name.format("0"): "not a file of the cache",
        name.format("a"): "cut short",
        name.format("b"): "not of this version of the format",
        name.format("c"): "damaged header",
        name.format("d"): "damaged header",
        f"{name.format('f')}-{'f' * 32}": "left by a writer that was killed",
        "notes.txt": "not a file of the cache",
    }
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs mkfifo")
def test_a_fifo_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / f"{'c' * 32}.sktrows")
    (found,) = EmbeddingCache(tmp_path).verify()
    assert found["problem"] == "not a file of the cache"
    assert found["advice"].startswith("Move it elsewhere, or leave it")


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(0))

    def refused(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_shards, "_read_header", refused)
    (found,) = cache.verify()
    assert found["problem"] == "cannot be read: Permission denied"

    def removed(*args):
        raise FileNotFoundError

    monkeypatch.setattr(_shards, "_read_header", removed)
    assert cache.verify() == []


def test_a_folder_that_is_none_is_an_error(tmp_path):
    assert EmbeddingCache(tmp_path / "none").verify() == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        EmbeddingCache(tmp_path / "file").verify()


def test_clear_leaves_what_is_not_ours(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(1))
    (tmp_path / "notes.sktrows").write_text("mine")
    (tmp_path / "photo.jpg").write_text("mine")
    folder = tmp_path / f"{'a' * 32}.sktrows"
    folder.mkdir()
    (folder / f"{'b' * 32}.sktrows").write_text("mine")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / f"{'c' * 32}.sktrows")
        (tmp_path / f"{'d' * 32}.sktrows").symlink_to(tmp_path / "photo.jpg")
    before = set(tmp_path.rglob("*"))
    (ours,) = (path for path in before if path.is_file() and path.stat().st_size > 99)
    cache.clear()
    assert set(tmp_path.rglob("*")) == before - {ours}
    assert stored(cache, [1]) == []


def test_leftovers_of_killed_writers_are_removed_after_an_hour(tmp_path):
    old, new = (tmp_path / f"{'a' * 32}.sktrows-{c * 32}" for c in "bc")
    for path in (old, new):
        path.write_bytes(b"half a shard")
    os.utime(old, (time.time() - 3700,) * 2)
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(1))
    cache.clear()
    assert list(tmp_path.iterdir()) == [new]


@pytest.fixture
def merging(monkeypatch):
    monkeypatch.setattr(_shards.ShardStore, "MAX_SMALL", 6)
    monkeypatch.setattr(_shards.ShardStore, "MERGED_AT_ONCE", 5)


@pytest.mark.usefixtures("merging")
def test_small_shards_are_merged(tmp_path):
    cache = EmbeddingCache(tmp_path)
    reader = EmbeddingCache(tmp_path)
    for i in range(60):
        cache.put_many(rows(i) | {key(1000 + i): row(i, dtype="uint8")})
        assert stored(reader, range(i + 1)) == [*range(i + 1)]
        assert len(shards(tmp_path)) <= 2 * 6
    assert {path.suffix for path in tmp_path.iterdir()} == {".sktrows"}
    fresh = EmbeddingCache(tmp_path)
    assert fresh.info().rows == cache.info().rows == 120
    assert stored(fresh, range(60)) == [*range(60)]
    assert len(fresh.get_many(map(key, range(1000, 1060)))) == 60


@pytest.mark.usefixtures("merging")
def test_merging_leaves_out_damage(tmp_path):
    cache = EmbeddingCache(tmp_path)
    for i in range(6):
        cache.put_many(rows(i))
    damaged = shards(tmp_path)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    for i in range(6, 12):
        cache.put_many(rows(i))
    have = stored(EmbeddingCache(tmp_path), range(12))
    assert len(have) == 11
    assert {*range(6, 12)} < set(have)


@pytest.mark.usefixtures("merging")
def test_merging_ends_doubles(tmp_path):
    def all_keys():
        sized = [(path, path.stat().st_size) for path in shards(tmp_path)]
        return [k for args in sized for k in _shards._parse_shard(*args).keys]

    for i in range(1, 5):
        # Each in a folder of its own, as if written at the same moment.
        EmbeddingCache(tmp_path / "one").put_many(rows(0, i))
        (path,) = shards(tmp_path / "one")
        path.rename(tmp_path / path.name)
    assert len(all_keys()) == 8
    cache = EmbeddingCache(tmp_path)
    for i in range(5, 30):
        cache.put_many(rows(i))
    assert sorted(all_keys()) == sorted(map(key, range(30)))
    assert stored(cache, range(30)) == [*range(30)]


@pytest.mark.usefixtures("merging")
def test_merging_survives_shards_that_vanish(tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path)
    for i in range(6):
        cache.put_many(rows(i))
    write = _shards.ShardStore._write

    def write_and_lose(self, kind, rows):
        lost = next(iter(shards(tmp_path)))
        shard = write(self, kind, rows)
        lost.unlink()
        return shard

    monkeypatch.setattr(_shards.ShardStore, "_write", write_and_lose)
    cache.put_many(rows(6))
    assert len(stored(cache, range(7))) >= 5
    monkeypatch.undo()
    cache.put_many(rows(*range(7)))
    assert stored(EmbeddingCache(tmp_path), range(7)) == [*range(7)]


def test_a_shard_merged_elsewhere_is_found_again(tmp_path):
    reader, other = EmbeddingCache(tmp_path), EmbeddingCache(tmp_path)
    for i in range(3):
        reader.put_many(rows(i))
    for path in shards(tmp_path):
        path.unlink()
    other.put_many(rows(0, 1, 2))
    assert stored(reader, range(3)) == [0, 1, 2]
    assert reader.info().rows == 3


# Faults


def put_warns_once(cache, match):
    with pytest.warns(UserWarning, match=match) as caught:
        cache.put_many(rows(1))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert "Expected a writable folder" in text
    assert "Results are correct, but not all of them are cached" in text
    assert "pass cache=None" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put_many(rows(2))


def test_a_location_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for location in (path, path / "below"):
        cache = EmbeddingCache(location)
        assert stored(cache, [1]) == []
        put_warns_once(cache, "could not write to '.*file")
        assert stored(cache, [1, 2]) == []
        cache.clear()
        assert path.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may")
def test_read_only_folder(tmp_path):
    EmbeddingCache(tmp_path).put_many(rows(7))
    tmp_path.chmod(0o500)
    try:
        cache = EmbeddingCache(tmp_path, max_bytes=1000)
        put_warns_once(cache, "Permission denied")
        assert stored(cache, [1, 2, 7]) == [7]
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("fault", ["os.makedirs", "open", "os.replace"])
def test_write_faults(tmp_path, monkeypatch, fault):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(7))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    owner = _shards.os if fault.startswith("os.") else _shards
    monkeypatch.setattr(owner, fault.removeprefix("os."), full, raising=False)
    put_warns_once(cache, "No space left on device")
    monkeypatch.undo()
    assert stored(cache, [1, 2, 7]) == [7]
    assert len(list(tmp_path.iterdir())) == 1
    cache.put_many(rows(1))
    assert stored(cache, [1, 2, 7]) == [1, 7]


def test_a_short_write_is_not_renamed(tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path)
    good = _shards._header
    monkeypatch.setattr(_shards, "_header", lambda kind, rows: good(kind, rows)[:-1])
    put_warns_once(cache, "was written cannot be read")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_over_its_limit_that_cannot_be_trimmed_still_reads(
    tmp_path, monkeypatch
):
    cache = EmbeddingCache(tmp_path, max_bytes=1000)
    cache.put_many(rows(*range(5)))

    def denied(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(_shards.os, "unlink", denied)
    cache.put_many(rows(*range(5, 10)))
    assert stored(cache, range(10)) == [*range(10)]


def test_read_errors_are_misses(tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path)
    cache.put_many(rows(1))

    def broken(self, rows):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_shards._Shard, "read", broken)
    assert stored(cache, [1]) == []
    monkeypatch.undo()
    assert stored(cache, [1]) == [1]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_shards.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.put_many(rows(1))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    cache.put_many(rows(1))
    assert stored(cache, [1]) == [1]


# Other processes

# The modules alone: importing the package would take most of the time.
PRELUDE = (
    f"FOLDER = {os.path.dirname(os.path.dirname(_cache.__file__))!r}"
    + """
import hashlib, os, random, signal, sys, threading, time, types, warnings
import numpy as np

# Python 3.12 warns of any fork beside threads, which numpy's BLAS has.
warnings.filterwarnings("ignore", "This process .* is multi-threaded")

sktransfer = sys.modules["sktransfer"] = types.ModuleType("sktransfer")
sktransfer.__path__ = [FOLDER]
from sktransfer.embedding import _cache, _shards
_shards.ShardStore.MAX_SMALL, _shards.ShardStore.MERGED_AT_ONCE = 12, 8

def key(i):
    return hashlib.sha256(b"%d" % i).digest()

def row(i):
    return np.full((16,), i % 251, "float32") + np.arange(16, dtype="float32")

def work(cache, seed, n_rounds):
    order = random.Random(seed)
    for _ in range(n_rounds):
        some = order.sample(range(300), 6)
        found = cache.get_many(map(key, some))
        for i in some:
            assert key(i) not in found or (found[key(i)] == row(i)).all()
        cache.put_many({key(i): row(i) for i in some})
"""
)


def start(code, *args):
    command = [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)]
    return subprocess.Popen(
        [*command, *map(str, args)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


@pytest.mark.parametrize("max_bytes", [2**30, 20_000])
def test_processes(tmp_path, max_bytes):
    code = """
        cache = _cache.EmbeddingCache(sys.argv[1], max_bytes=int(sys.argv[2]))
        work(cache, int(sys.argv[3]), 40)
    """
    processes = [start(code, tmp_path, max_bytes, seed) for seed in range(2)]
    cache = EmbeddingCache(tmp_path, max_bytes=max_bytes)
    while any(process.poll() is None for process in processes):
        stored(cache, random.sample(range(300), 20))
        time.sleep(0.01)
    for process in processes:
        finish(process)
    have = stored(EmbeddingCache(tmp_path), range(300))
    assert have
    assert set(have) >= set(stored(cache, range(300)))
    assert {path.suffix for path in tmp_path.iterdir()} == {".sktrows"}
    cache.put_many(rows(999))
    assert cache.info().bytes <= max_bytes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_right_rows(tmp_path):
    finish(start("""
        for seed in range(50):
            child = os.fork()
            if child == 0:
                work(_cache.EmbeddingCache(sys.argv[1]), seed, 10**9)
            time.sleep(random.uniform(0.02, 0.15))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    """, tmp_path))  # fmt: skip
    cache = EmbeddingCache(tmp_path)
    have = stored(cache, range(300))
    assert have
    assert cache.info().rows == len(have)
    cache.put_many(rows(*range(300)))
    assert stored(cache, range(300)) == [*range(300)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_amid_the_work_of_threads_does_not_hang(tmp_path):
    finish(start("""
        caches = [_cache.EmbeddingCache(), _cache.EmbeddingCache(sys.argv[1])]
        for cache in caches:
            threading.Thread(target=work, args=(cache, 0, 10**9), daemon=True).start()
        for seed in range(5):
            time.sleep(0.05)
            child = os.fork()
            if child == 0:
                signal.alarm(120)
                for cache in caches:
                    work(cache, seed, 5)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        os._exit(0)
    """, tmp_path))  # fmt: skip
