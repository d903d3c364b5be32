"""Reading of samples in threads, and the treatment of those that cannot be read."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from sktransfer.embedding._threads import run_lanes
from sktransfer.inputs._reader import Samples, content_digest

# The number of samples that a thread reads and hashes at a time.
_DIGESTS = 16


class UnreadableError(ValueError):
    """Raised if a sample cannot be read. The message names its row and file."""


class Refusals:
    """Reads samples and remembers which of them could not be read."""

    def __init__(self, samples: Samples, strict: bool):
        self.samples = samples
        self.strict = strict
        # The reason for each row.
        self.rows: dict[int, str] = {}

    def read(self, row: int, step):
        """Return `step` of the content of a sample, or None if it cannot be read."""
        if row in self.rows:
            return None
        try:
            return step(self.samples[row])
        # Decoders raise errors of many types, SyntaxError among them.
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
        """Refuse the rows with the same content as a refused row."""
        for row, others in equal.items():
            if row in self.rows:
                self.rows.update(dict.fromkeys(others, self.rows[row]))

    def report(self, outputs: list[np.ndarray]) -> None:
        """Fill the refused rows with NaN and issue one warning that lists them."""
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
            # The warning points at the caller of `embed`.
            stacklevel=3,
        )


def sample_digests(
    samples: Samples, refusals: Refusals | None = None, rows: range | None = None
) -> list[bytes]:
    """Return the digest of the content of each sample.

    Threads are used, as reading and hashing release the global interpreter lock. The
    digest of a refused sample is empty.
    """
    refusals = refusals or Refusals(samples, strict=True)
    rows = rows or range(len(samples))

    def some(first):
        chunk = rows[first : first + _DIGESTS]
        return [refusals.read(row, content_digest) or b"" for row in chunk]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return sum(pool.map(some, range(0, len(rows), _DIGESTS)), [])


def read_samples(samples: Samples, rows, step) -> list:
    """Return `step` of the content of the samples at some rows, read in threads."""
    refusals, found = Refusals(samples, strict=True), {}
    run_lanes(
        list(rows),
        lambda row: [(row, refusals.read(row, step))],
        found.__setitem__,
    )
    return [found[row] for row in rows]
