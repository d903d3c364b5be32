"""Reader: what a sample is, and how it becomes the input tensor of a network.

A *sample* is one element of `X`. Its *content*, undecoded bytes or an array, is what is
hashed and decoded. A *draft* is a decoded sample to which augmentation is applied, and
an *input* is one row of the tensor that the first stage of a network receives.
"""

import functools
import hashlib
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import TransformerMixin
from torch.nn.utils.rnn import pad_sequence

from sktransfer.inputs._encoded import file_name
from sktransfer.inputs._file_kinds import shortened

# The outputs of stages are padded with NaN where samples differ in size. The padding
# can thus be recognised in the tensor itself, and no separate mask is needed.
PADDING = float("nan")


class WeightsMismatchError(ValueError):
    """The weights do not belong to the network, or are not those that were demanded.

    Raised for a tokenizer, too, which the weights were trained with.
    """


@dataclass(frozen=True)
class Reader(ABC):
    """Base class for readers, which convert samples of one kind to network inputs.

    A subclass is a frozen dataclass whose fields are plain values, since they are part
    of every cache key and of saved files.
    """

    # What a sample is called in messages, and a sentence that says what is accepted.
    kind: ClassVar[str] = "sample"
    accepted: ClassVar[str] = ""
    # The parameter of `load_backbone` whose value is passed to `resized_to`.
    size_parameter: ClassVar[str] = "image_size"
    # Whether a CPU takes as long for a batch as for its samples one after another, so
    # that a batch is not worth being filled up with copies of the last sample.
    one_by_one: ClassVar[bool] = True
    # Whether padding changes the output of a network, so that only samples of exactly
    # the same length can be computed together.
    exact: ClassVar[bool] = False
    # The value by which inputs are padded to the longest of a batch; None if all inputs
    # have the same size.
    padding: ClassVar[float | None] = None

    @abstractmethod
    def samples(self, X) -> Sequence | None:
        """Return the samples of `X`, or None where `X` is a table of numbers."""

    @abstractmethod
    def content(self, sample) -> bytes | np.ndarray:
        """Return the content of a sample, or raise an error if it is not a sample."""

    @abstractmethod
    def draft(self, content) -> torch.Tensor:
        """Decode content to the form that augmentation is applied to."""

    def finish(self, draft: torch.Tensor) -> torch.Tensor:
        """Return the input made from a draft, whether it was augmented or not."""
        return draft

    def read(self, content) -> torch.Tensor:
        """Return the input made from content, without augmentation."""
        return self.finish(self.draft(content))

    def size_of(self, content) -> tuple[int, ...]:
        """Return the size of the input; only inputs of equal size share a batch."""
        return ()

    def is_cut(self, content) -> bool:
        """Whether the input is only a part of a sample that is longer than `size`."""
        return False

    def stack(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stack inputs to a batch, padding them if they differ in size."""
        if self.padding is None:
            return torch.stack(list(inputs))
        return pad_sequence(list(inputs), True, self.padding)

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Scale a batch of inputs as the first stage expects it."""
        return batch

    def augmentation(self, augment) -> Callable | None:
        """Return the function of a draft that an ``augment=`` parameter names."""
        if augment is None:
            return None
        raise ValueError(
            f"Invalid augment={augment!r}: expected None, as a {self.kind} is not "
            "augmented. Nothing was trained."
        )

    def table(self, X: np.ndarray, image_shape, value_range) -> "Samples":
        """Return the rows of a table of numbers as samples."""
        raise ValueError(
            f"Invalid X: expected a list of {self.kind}s, but it is a table of numbers "
            f"of shape {tuple(X.shape)}. {self.accepted} Nothing was read."
        )

    @property
    @abstractmethod
    def size(self) -> int:
        """Size of the input, which `resized_to` changes."""

    @abstractmethod
    def resized_to(self, size: int) -> "Reader":
        """Return the same reader for inputs of another size."""

    def check_size(self, size) -> None:
        """Refuse what is no size that `resized_to` can be given."""
        whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)
        if not whole or size < 1:
            raise ValueError(
                f"Invalid {self.size_parameter}={size!r}: expected None, for the size "
                "that the weights were made for, or a positive integer."
            )

    def at_rate(self, sampling_rate: int) -> "Reader":
        """Return the same reader for arrays of another sampling rate."""
        raise ValueError(
            f"Invalid sampling_rate={sampling_rate!r}: expected None, as the samples "
            f"of this backbone are {self.kind}s. Only sounds have a sampling rate."
        )

    def decoded(self, decoding: str) -> "Reader":
        """Return the same reader with another way of decoding."""
        raise ValueError(
            f"Invalid decoding={decoding!r}: expected 'exact', as the samples of this "
            f"backbone are {self.kind}s. Only images can be decoded faster."
        )

    @abstractmethod
    def example(self, n: int) -> torch.Tensor:
        """Return a batch of `n` inputs, from which shapes and costs are measured."""

    def plain(self) -> "tuple[str, Reader | TransformerMixin] | None":
        """Return what a linear model without a network is given, and its name.

        It is a reader of features, or a transformer of scikit-learn that is fitted to
        samples. None where there is nothing to compare with.
        """
        return None

    def origin(self) -> str:
        """Return a sentence on the reader for a model card; empty for none."""
        return ""

    def cause(self) -> str:
        """Return what the inputs depend on: the reader's part of a cache key."""
        return repr(self)

    def to_record(self) -> dict:
        """Return the fields as plain values, to be saved in a file."""
        return asdict(self)

    def from_record(self, record: dict) -> "Reader":
        """Return a reader of this class with the fields returned by `to_record`."""
        # A file holds lists where the fields are tuples, which can be hashed.
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return type(self)(**fields)


@dataclass(slots=True, eq=False, repr=False)
class DatasetItem:
    """The sample of an item of a dataset of torch, which is loaded when it is read."""

    dataset: object
    number: int

    def __repr__(self):
        return f"<item {self.number} of {type(self.dataset).__name__}>"

    def load(self):
        """Return the sample, the first part of the item."""
        return self.dataset[self.number][0]


class Samples(Sequence):
    """A sequence of samples whose content is read when it is accessed.

    Parameters
    ----------
    given : sequence
        The samples as the user passed them.
    reader : Reader
        The reader of the samples.
    content : callable, optional
        A function from a sample to its content, in place of `reader.content`.
    rows : sequence of int, optional
        The row numbers used in messages. If None, these are 0 to n - 1.
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
        sample = self.given[row]
        if isinstance(sample, DatasetItem):
            sample = sample.load()
        return self._content(sample)

    def take(self, rows: Sequence[int]) -> "Samples":
        """Return the samples at the given rows, in that order."""
        given = [self.given[row] for row in rows]
        return Samples(given, self.reader, self._content, [self.rows[r] for r in rows])

    def file(self, row: int) -> str | None:
        """Return the path or name of the file of a sample, or None if it has none."""
        return file_name(self._shown(row))

    def describe(self, row: int) -> str:
        """Return the row number and file or type of a sample, for error messages."""
        sample = self._shown(row)
        # The reason that follows says that it is missing.
        if is_missing(sample):
            return f"row {self.rows[row]}"
        if isinstance(sample, DatasetItem):
            what = repr(sample)[1:-1]
        else:
            name = file_name(sample)
            what = type(sample).__name__ if name is None else repr(shortened(name))
        return f"row {self.rows[row]} ({what})"

    def _shown(self, row: int):
        try:
            return self.given[row]
        except Exception as error:
            # A sequence that decodes its elements when they are accessed may fail, and
            # the error that it fails with is reported elsewhere.
            return error


# Examples take longer to make than the shape of one is worth, which is asked for often.
@functools.lru_cache(maxsize=64)
def input_shape(reader: Reader) -> tuple[int, ...]:
    """Return the shape of one input."""
    return tuple(reader.example(1).shape[1:])


def pad_outputs(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack stage outputs of shape (length, channels) whose lengths differ."""
    return pad_sequence(list(rows), True, PADDING)


def lengthened(batch: torch.Tensor, length: int, padding: float) -> torch.Tensor:
    """Pad all rows of a batch to a length."""
    sides = [0, 0] * (batch.ndim - 2) + [0, length - batch.shape[1]]
    return torch.nn.functional.pad(batch, sides, value=padding)


def unpadded(batch: torch.Tensor, padding: float | None) -> list[torch.Tensor]:
    """Return the rows of a batch, each without its padding."""
    if padding is None:
        return list(batch)
    # Padding fills whole positions, so the first value of each is enough to look at.
    first = batch.reshape(*batch.shape[:2], -1)[..., 0]
    filled = first.isnan() if math.isnan(padding) else first == padding
    return [row[:length] for row, length in zip(batch, (~filled).sum(1), strict=True)]


def content_digest(content: bytes | np.ndarray) -> bytes:
    """Return the SHA-256 digest of bytes, or of an array with its dtype and shape."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    # Arrays of different shapes or dtypes can consist of the same bytes.
    array = np.ascontiguousarray(content)
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + array.tobytes()).digest()


def is_missing(value) -> bool:
    """Whether a value is None, NaN, or one of pandas' missing values."""
    # The types of pandas are recognised by name, as pandas may not be installed.
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")
