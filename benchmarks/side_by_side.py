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


def print_machine():
    """Print when, on what and with what the figures were made."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if "model name" in line]
        print(f"{len(names)} x {names[0]}", end=", ")
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{date.today()}, {versions}, scikit-learn {sklearn.__version__}", flush=True)


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
