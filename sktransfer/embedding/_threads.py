"""Lanes: threads that each take the next batch, decode it and have it computed."""

import contextlib
import functools
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import ThreadpoolController

# A batch that a GPU computes, one that is next, and one that is being read.
_LANES_OF_A_DEVICE = 3
# Images that a thread reads for it at a time.
_READ = 4


@functools.cache
def _openmp() -> ThreadpoolController:
    # Looking for the libraries of the process takes far longer than limiting them.
    return ThreadpoolController()


@functools.cache
def keep_freed_memory() -> None:
    # Whatever a layer frees, glibc gives back to the system at once, to ask for it
    # again in the next layer, unless blocks as large were freed before: it learns from
    # one of 32 MiB, the most that it takes notice of. (Nothing is written to it.)
    torch.empty(2**25 - 2**13, dtype=torch.uint8)


def _one_thread():
    return _openmp().limit(limits=1, user_api="openmp")


def _is_cpu(device: str) -> bool:
    return torch.device(device).type == "cpu"


@contextlib.contextmanager
def readers(device: str):
    """Give a lane its `map`, to read the images of a batch with.

    On a CPU each lane reads its own. For another device all cores read one batch after
    the other: it has its first work soon, and few batches wait for it.
    """
    if _is_cpu(device):
        yield map
        return
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=_one_thread) as pool:

        def each(step, rows):
            parts = [rows[i : i + _READ] for i in range(0, len(rows), _READ)]
            done = pool.map(lambda part: [step(row) for row in part], parts)
            return itertools.chain.from_iterable(done)

        yield each


def run_lanes(batches: list, work, accept, device: str = "cpu") -> None:
    """Let threads each take the next batch, until none is left.

    Each lane decodes and computes its own batches, with one OpenMP thread: on a CPU,
    as many lanes as cores are faster than one computation on all cores, most of all
    when another program takes one of them, and the numbers do not depend on how many
    cores there are.

    Parameters
    ----------
    batches : list
    work : callable
        Batch -> iterable of results, each a tuple of arguments for `accept`.
    accept : callable
        Called by one lane at a time.
    device : str
        What computes. A CPU has as many lanes as cores, any other device a few.
    """
    keep_freed_memory()
    queue, lock, stop = iter(batches), threading.Lock(), threading.Event()

    def lane():
        with _one_thread():
            while not stop.is_set():
                with lock:
                    batch = next(queue, None)
                if batch is None:
                    return
                try:
                    for result in work(batch):
                        with lock:
                            accept(*result)
                except BaseException:
                    stop.set()
                    raise

    most = torch.get_num_threads() if _is_cpu(device) else _LANES_OF_A_DEVICE
    count = min(most, len(batches))
    with ThreadPoolExecutor(max(count, 1)) as pool:
        try:
            for future in [pool.submit(lane) for _ in range(count)]:
                future.result()
        finally:
            # After an error or Ctrl-C the others end with their present batch.
            stop.set()
