"""Reading of samples in threads, and the treatment of those that cannot be read."""

import contextlib
import itertools
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from sktransfer.embedding._threads import run_lanes
from sktransfer.inputs._callers import level_of_the_caller
from sktransfer.inputs._reader import Reader, Samples, content_digest

# The number of samples that a thread reads and hashes at a time.
_DIGESTS = 16
# The seconds in which samples are read and hashed before threads are started, which
# get in each other's way where files are small.
_MOMENT = 0.02
# In a search, nothing here knows which rows of the user a fold is made of.
_NUMBERING = "Rows are numbered within this X, in cross-validation a fold of yours."


class UnreadableError(ValueError):
    """Raised if a sample cannot be read. The message names its row and file."""


@contextlib.contextmanager
def advising(advice: str):
    """Add to the error of an unreadable sample what its caller can do about it."""
    try:
        yield
    except UnreadableError as error:
        raise UnreadableError(f"{error} {advice}") from error.__cause__


class Refusals:
    """Reads samples and remembers which of them could not be read."""

    def __init__(self, samples: Samples, strict: bool):
        self.samples = samples
        self.strict = strict
        # The reason for each row.
        self.rows: dict[int, str] = {}
        # The rows that were read and those that were cut, by the size of the inputs.
        self.seen: dict[str, set[int]] = {}
        self.cut: dict[str, set[int]] = {}

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
                f"{reason}. {reader.accepted} Nothing was returned. {_NUMBERING} "
                f"Repair that {reader.kind} or leave it out."
            ) from error

    def read_input(self, row: int, reader: Reader):
        """Return the input made from a sample, and remember whether it was cut."""
        # Of images, which are never cut like that, there may be millions.
        if type(reader).is_cut is Reader.is_cut:
            return self.read(row, reader.read)

        def step(content):
            size = str(reader)
            self.seen.setdefault(size, set()).add(row)
            if reader.is_cut(content):
                self.cut.setdefault(size, set()).add(row)
            return reader.read(content)

        return self.read(row, step)

    def found(self) -> tuple[dict, dict, dict]:
        """Return what a worker found out about its chunk, for `include`."""
        return self.rows, self.seen, self.cut

    def include(self, found: tuple[dict, dict, dict], chunk: Sequence[int]) -> None:
        """Take over what a worker found out about a chunk of rows."""
        refused, *sets = found
        self.rows.update({chunk[row]: why for row, why in refused.items()})
        for own, other in zip((self.seen, self.cut), sets, strict=True):
            for size, rows in other.items():
                own.setdefault(size, set()).update(chunk[row] for row in rows)

    def spread(self, equal: dict[int, list[int]]) -> None:
        """Treat rows with the same content as one of them was."""
        for row, others in equal.items():
            if row in self.rows:
                self.rows.update(dict.fromkeys(others, self.rows[row]))
            for rows in (*self.seen.values(), *self.cut.values()):
                if row in rows:
                    rows.update(others)

    def report(self, outputs: list[np.ndarray]) -> None:
        """Fill the refused rows with NaN, and warn of them and of those cut."""
        self.warn_of_cut()
        for out in outputs if self.rows else ():
            out[list(self.rows)] = np.nan
        self.warn_of_refused("their rows are NaN")

    def warn_of_cut(self) -> None:
        for size, rows in self.cut.items():
            reader, seen = self.samples.reader, len(self.seen[size])
            # What was read before, and is in the cache, was counted then.
            known = len(self.samples) - seen
            others = f" ({known:,} others were read before)" if known else ""
            warnings.warn(
                f"{len(rows):,} of {seen:,} {reader.kind}s{others} are longer than "
                f"{size} and were cut. Set {reader.size_parameter} to cut them "
                "elsewhere.",
                UserWarning,
                stacklevel=level_of_the_caller(),
            )

    def warn_of_refused(self, outcome: str) -> None:
        """Warn, once, of all refused rows and of what became of them."""
        if self.rows:
            kind = self.samples.reader.kind
            warnings.warn(
                f"{len(self.rows)} of {len(self.samples)} {kind}s cannot be read, and "
                f"{outcome}: {self.listed()} {_NUMBERING}",
                UserWarning,
                stacklevel=level_of_the_caller(),
            )

    def listed(self) -> str:
        """Return the refused rows, and the files and reasons of the first of them."""
        rows = sorted(self.rows)
        reasons = "; ".join(
            f"{self.samples.describe(row)}: {self.rows[row]}" for row in rows[:5]
        )
        more = f"; and {len(rows) - 5} more" if len(rows) > 5 else ""
        numbers = f"{rows[:20]}{'...' if len(rows) > 20 else ''}"
        return f"rows {numbers}. {reasons}{more}."


def sample_digests(
    samples: Samples, refusals: Refusals | None = None, rows: range | None = None
) -> list[bytes]:
    """Return the digest of the content of each sample.

    Threads are used for what takes longer than a moment, as reading and hashing release
    the global interpreter lock. The digest of a refused sample is empty.
    """
    refusals = refusals or Refusals(samples, strict=True)
    rows = rows or range(len(samples))
    digests, begin = [], time.perf_counter()

    def digest(row):
        return refusals.read(row, content_digest) or b""

    while len(digests) < len(rows) and time.perf_counter() - begin < _MOMENT:
        digests.append(digest(rows[len(digests)]))
    rest = rows[len(digests) :]
    chunks = [rest[i : i + _DIGESTS] for i in range(0, len(rest), _DIGESTS)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = pool.map(lambda chunk: [digest(row) for row in chunk], chunks)
        return digests + list(itertools.chain.from_iterable(found))


def read_samples(samples: Samples, rows, step) -> list:
    """Return `step` of the content of the samples at some rows, read in threads."""
    refusals, found = Refusals(samples, strict=True), {}
    run_lanes(
        list(rows),
        lambda row: [(row, refusals.read(row, step))],
        found.__setitem__,
    )
    return [found[row] for row in rows]
