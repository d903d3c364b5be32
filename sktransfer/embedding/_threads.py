"""Lanes: threads that each take the next batch, decode it and compute it."""

import contextlib
import functools
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import ThreadpoolController

# One batch that the GPU computes, one that is ready, and one that is being read.
_LANES_OF_A_DEVICE = 3
# The number of samples that a thread reads for a GPU at a time.
_READ = 4


@functools.cache
def thread_libraries() -> ThreadpoolController:
    """Return what limits the threads of OpenMP and BLAS."""
    # Kept, as finding the libraries of the process takes far longer than limiting them.
    return ThreadpoolController()


@functools.cache
def keep_freed_memory() -> None:
    # By default, glibc returns the memory that a layer frees to the system at once, and
    # requests it again for the next layer. Freeing one block of almost 32 MiB, the
    # largest that it takes into account, raises the threshold above which it does so.
    # Nothing is written to the block, so it takes no memory.
    torch.empty(2**25 - 2**13, dtype=torch.uint8)


def _one_thread():
    return thread_libraries().limit(limits=1, user_api="openmp")


def _is_cpu(device: str) -> bool:
    return torch.device(device).type == "cpu"


@contextlib.contextmanager
def readers(device: str):
    """Provide the `map` function with which a lane reads the samples of a batch.

    On a CPU, each lane reads its own batch. For other devices, all cores read one batch
    after another, so that the device can start early and few batches wait for it.
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
    """Process batches in threads, each of which takes the next batch when it is free.

    Each lane decodes and computes its own batches with a single OpenMP thread. On a
    CPU, one lane per core is faster than one computation on all cores, above all if
    another program occupies one of them, and the results do not depend on the number
    of cores.

    Parameters
    ----------
    batches : list
        The batches.
    work : callable
        A function from a batch to an iterable of results, each of which is a tuple of
        arguments for `accept`.
    accept : callable
        A function that receives the results. It is called by one lane at a time.
    device : str
        The device used for computation. A CPU has one lane per core, any other device
        only a few lanes.
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
            # After an error or Ctrl-C, the other lanes stop after their current batch.
            stop.set()
