import threading

import pytest
import torch

from sktransfer.embedding import _threads
from sktransfer.embedding._threads import readers, run_lanes


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def test_lanes_work_side_by_side_and_take_each_batch_once(two_cores):
    together, done = threading.Barrier(2, timeout=60), []

    def work(batch):
        together.wait()
        yield (batch,)

    run_lanes(list(range(6)), work, done.append)
    assert sorted(done) == list(range(6))


def test_a_lane_has_one_openmp_thread():
    def threads(batch):
        info = _threads.thread_libraries().info()
        yield ([lib["num_threads"] for lib in info if lib["user_api"] == "openmp"],)

    found = []
    run_lanes([0], threads, found.append)
    with readers("cuda") as each:
        found += each(lambda batch: next(threads(batch))[0], [0])
    assert [set(counts) for counts in found] == [{1}, {1}]


def test_after_an_error_no_batch_is_begun(two_cores):
    begun = []

    def work(batch):
        begun.append(batch)
        raise OSError("broken")
        yield

    with pytest.raises(OSError, match="broken"):
        run_lanes(list(range(100)), work, print)
    assert len(begun) <= 2


def test_few_batches_wait_for_a_gpu(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    at_work, most, lock = [], [], threading.Lock()

    def work(batch):
        with lock:
            at_work.append(batch)
            most.append(len(at_work))
        threading.Event().wait(0.01)
        with lock:
            at_work.remove(batch)
        yield ()

    run_lanes(list(range(20)), work, lambda: None, "cuda")
    assert max(most) <= _threads._LANES_OF_A_DEVICE


def test_while_a_gpu_computes_a_batch_others_are_next(monkeypatch):
    # However few the cores: one batch is computed, one waits, and one is read.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    together, done = threading.Barrier(3, timeout=20), []

    def work(batch):
        together.wait()
        yield (batch,)

    run_lanes(list(range(6)), work, done.append, "cuda:0")
    assert sorted(done) == list(range(6))


def test_for_a_gpu_all_cores_read_one_batch(two_cores):
    together = threading.Barrier(2, timeout=60)

    def read(row):
        if row in (0, _threads._READ):
            together.wait()
        return -row

    with readers("cuda") as each:
        assert list(each(read, range(10))) == [-row for row in range(10)]


def test_an_image_that_cannot_be_read_ends_its_batch(two_cores):
    def read(row):
        if row == 3:
            raise OSError("broken")

    for device in ["cpu", "cuda"]:
        with readers(device) as each, pytest.raises(OSError, match="broken"):
            list(each(read, range(10)))


def test_ctrl_c_while_lanes_begin_stops_them(monkeypatch):
    class Interrupted(_threads.ThreadPoolExecutor):
        def submit(self, *args):
            super().submit(*args)
            raise KeyboardInterrupt

    monkeypatch.setattr(_threads, "ThreadPoolExecutor", Interrupted)
    done = []

    def work(batch):
        threading.Event().wait(0.01)
        yield (batch,)

    with pytest.raises(KeyboardInterrupt):
        run_lanes(list(range(200)), work, done.append)
    assert len(done) < 200
