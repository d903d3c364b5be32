"""Samples read in threads; those that cannot be read, and what that means."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from sktransfer.embedding._threads import run_lanes
from sktransfer.inputs._reader import Samples, content_digest

# Samples that a thread reads and hashes at a time.
_DIGESTS = 16


class UnreadableError(ValueError):
    """A sample cannot be read: the message names row and file."""


class Refusals:
    """The samples that could not be read, and what that means to the caller."""

    def __init__(self, samples: Samples, strict: bool):
        self.samples = samples
        self.strict = strict
        # Row -> why.
        self.rows: dict[int, str] = {}

    def read(self, row: int, step):
        """Do a step with the content of a sample; None if the sample is refused."""
        if row in self.rows:
            return None
        try:
            return step(self.samples[row])
        except Exception as error:
            reason = str(error) or type(error).__name__
            if not self.strict:
                self.rows[row] = reason
                return None
            reader = self.samples.reader
            raise UnreadableError(
                f"Cannot read the {reader.kind} in {self.samples.describe(row)}: "
                f"{reason}. {reader.accepted} Nothing was returned. Repair that "
                f"{reader.kind} or leave it out; "
                "PretrainedFeatureExtractor(on_error='nan') gives a row of NaN for it."
            ) from error

    def spread(self, equal: dict[int, list[int]]) -> None:
        """Refuse the rows whose content is that of a refused one."""
        for row, others in equal.items():
            if row in self.rows:
                self.rows.update(dict.fromkeys(others, self.rows[row]))

    def report(self, outputs: list[np.ndarray]) -> None:
        """Put NaN into the rows that were refused, and warn of them once."""
        if not self.rows:
            return
        rows, n_samples = sorted(self.rows), len(self.samples)
        for out in outputs:
            out[rows] = np.nan
        listed = "; ".join(
            f"{self.samples.describe(row)}: {self.rows[row]}" for row in rows[:5]
        )
        more = f"; and {len(rows) - 5} more" if len(rows) > 5 else ""
        warnings.warn(
            f"{len(rows)} of {n_samples} {self.samples.reader.kind}s cannot be read, "
            f"and their rows are NaN: rows {rows[:20]}"
            f"{'...' if len(rows) > 20 else ''}. {listed}{more}.",
            UserWarning,
            # From `embed` and `transform` up to who called the latter.
            stacklevel=3,
        )


def sample_digests(
    samples: Samples, refusals: Refusals | None = None, rows: range | None = None
) -> list[bytes]:
    """Digest the content of each sample, in threads.

    Reading and hashing release the interpreter. A refused sample has an empty digest.
    """
    refusals = refusals or Refusals(samples, strict=True)
    rows = rows or range(len(samples))

    def some(first):
        chunk = rows[first : first + _DIGESTS]
        return [refusals.read(row, content_digest) or b"" for row in chunk]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return sum(pool.map(some, range(0, len(rows), _DIGESTS)), [])


def read_samples(samples: Samples, rows, step) -> list:
    """Read the samples at some rows, content -> result, in threads."""
    refusals, found = Refusals(samples, strict=True), {}
    run_lanes(
        list(rows),
        lambda row: [(row, refusals.read(row, step))],
        found.__setitem__,
    )
    return [found[row] for row in rows]
