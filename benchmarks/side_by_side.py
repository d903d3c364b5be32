"""Timing of variants beside one another: machines are noisy, ratios are not."""

import contextlib
import multiprocessing
import statistics
import time
from datetime import date

import sklearn
import torch
import torchvision


def measure(variants, rounds=3):
    """Run each variant once unmeasured, then in rounds whose order rotates.

    Parameters
    ----------
    variants : dict of str to callable
        Called without arguments.
    rounds : int

    Returns
    -------
    dict of str to list of float
        Seconds of each round.
    """
    for variant in variants.values():
        variant()
    seconds, names = {name: [] for name in variants}, list(variants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(slow, fast):
    """Return the median over rounds of how many times as fast, and its range."""
    found = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def print_table(head, rows):
    """Print a table in Markdown."""
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def print_machine(device="cpu"):
    """Print when, on what and with what the figures were made."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if "model name" in line]
        print(f"{len(names)} x {names[0]}", end=", ")
    if torch.device(device).type == "cuda":
        print(torch.cuda.get_device_name(device), end=", ")
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{date.today()}, {versions}, scikit-learn {sklearn.__version__}", flush=True)


def finish(device):
    """Wait until a device has computed all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def precisions(device):
    """Return the precisions that a device has instructions for."""
    if torch.device(device).type == "cuda":
        return ["float32", "tf32", "bfloat16"]
    low = torch.device(device).type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return ["float32", "bfloat16"] if low else ["float32"]


@contextlib.contextmanager
def tf32(allowed):
    """Let torch compute in TF32 what is in float32, or forbid it."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    before = cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32 = before


def _spin():
    while True:
        pass


@contextlib.contextmanager
def busy_core():
    """Keep one core busy with another process."""
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
