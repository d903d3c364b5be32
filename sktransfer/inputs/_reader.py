"""Reader: what a sample is, and how it becomes the input tensor of a network.

A *sample* is one element of `X`. Its *content* is what is hashed and decoded: encoded
bytes or an array, still undecoded. A *draft* is what augmentation changes, and an
*input* one row of what the first stage of a network is given.
"""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from sktransfer.inputs._file_kinds import shortened

# Stage outputs of samples of several sizes are padded by it, so that the mask travels
# in the tensor.
PADDING = float("nan")


@dataclass(frozen=True)
class Reader(ABC):
    """How samples of one kind become the inputs of a network.

    A subclass is a frozen dataclass whose fields are plain values: they are a part of
    each cache key and of saved files.
    """

    # What a sample is called in messages, and what is accepted as one, in a sentence.
    kind: ClassVar[str] = "sample"
    accepted: ClassVar[str] = ""
    # The parameter of `load_backbone` that `resized_to` stands behind.
    size_parameter: ClassVar[str] = "image_size"
    # What pads inputs to the longest of a batch; None where all are of one size.
    padding: ClassVar[float | None] = None

    @abstractmethod
    def samples(self, X) -> Sequence | None:
        """Return the samples of `X`, or None where `X` is a table of numbers."""

    @abstractmethod
    def content(self, sample) -> bytes | np.ndarray:
        """Return what is hashed and decoded of a sample; refuse what is none."""

    @abstractmethod
    def draft(self, content) -> torch.Tensor:
        """Decode content as far as augmentation wants it."""

    def finish(self, draft: torch.Tensor) -> torch.Tensor:
        """Make the input of a draft, augmented or not."""
        return draft

    def read(self, content) -> torch.Tensor:
        """Make the input of a sample that is not augmented."""
        return self.finish(self.draft(content))

    def size_of(self, content) -> tuple[int, ...]:
        """Size of the input; rows of other sizes are computed apart."""
        return ()

    def stack(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stack inputs; those of several sizes are padded."""
        if self.padding is None:
            return torch.stack(list(inputs))
        return pad_sequence(list(inputs), True, self.padding)

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Scale stacked inputs as the first stage expects them."""
        return batch

    def augmentation(self, augment) -> Callable | None:
        """Turn an ``augment=`` parameter into a function of a draft."""
        if augment is None:
            return None
        raise ValueError(
            f"Invalid augment={augment!r}: expected None, as a {self.kind} is not "
            "augmented. Nothing was trained."
        )

    def table(self, X: np.ndarray, image_shape, value_range) -> "Samples":
        """Read the rows of a table of numbers as samples."""
        raise ValueError(
            f"X is a table of numbers of shape {X.shape}. {self.accepted} Nothing was "
            f"read. Pass a list of them."
        )

    @property
    @abstractmethod
    def size(self) -> int:
        """Size of the input, which `resized_to` changes."""

    @abstractmethod
    def resized_to(self, size: int) -> "Reader":
        """Return the same reader for inputs of another size."""

    @abstractmethod
    def example(self, n: int) -> torch.Tensor:
        """Return some stacked inputs, to learn shapes and costs from."""

    def plain(self) -> "tuple[str, Reader] | None":
        """Return what a linear model without a network is given: its name, and reader.

        None where there is nothing to compare with.
        """
        return None

    def cause(self) -> str:
        """Say what decides the inputs: the reader's part of a cache key."""
        return repr(self)

    def to_record(self) -> dict:
        """Return the fields as plain values, for a saved file."""
        return asdict(self)

    def from_record(self, record: dict) -> "Reader":
        """Return a reader of this kind with the fields of `to_record`."""
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return type(self)(**fields)


class Samples(Sequence):
    """Samples as they were given, the content of each read when it is asked for.

    Parameters
    ----------
    given : sequence
    reader : Reader
    content : callable, optional
        Sample -> content, if it is not the reader's own.
    rows : sequence of int, optional
        What the rows are called in messages, if not 0 to n - 1.
    """

    def __init__(
        self,
        given: Sequence,
        reader: Reader,
        content: Callable | None = None,
        rows: Sequence[int] | None = None,
    ):
        self.given = given
        self.reader = reader
        self.rows = range(len(given)) if rows is None else rows
        self._content = content or reader.content

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, row: int) -> bytes | np.ndarray:
        return self._content(self.given[row])

    def take(self, rows: Sequence[int]) -> "Samples":
        """Return the samples at these rows, in this order."""
        given = [self.given[row] for row in rows]
        return Samples(given, self.reader, self._content, [self.rows[r] for r in rows])

    def describe(self, row: int) -> str:
        """Name a row for an error message, by its file where it has one."""
        sample = self.given[row]
        if is_missing(sample):
            return f"row {self.rows[row]} (missing)"
        if isinstance(sample, str | os.PathLike):
            return f"row {self.rows[row]} ({shortened(os.fspath(sample))!r})"
        return f"row {self.rows[row]} ({type(sample).__name__})"


def pad_outputs(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack stage outputs of several lengths, (length, channels) each."""
    return pad_sequence(list(rows), True, PADDING)


def unpadded(batch: torch.Tensor, padding: float | None) -> list[torch.Tensor]:
    """Return the rows of a batch, each without its padding."""
    if padding is None:
        return list(batch)
    first = batch.reshape(*batch.shape[:2], -1)[..., 0]
    filled = first.isnan() if math.isnan(padding) else first == padding
    return [row[:length] for row, length in zip(batch, (~filled).sum(1), strict=True)]


def content_digest(content: bytes | np.ndarray) -> bytes:
    """SHA-256 of content: of its bytes, or of dtype, shape and values."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    array = np.ascontiguousarray(content)
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + array.tobytes()).digest()


def is_missing(value) -> bool:
    """Whether a value is None, NaN, or what pandas has in place of these."""
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")
