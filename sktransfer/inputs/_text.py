"""TextReader: how texts become the inputs of a network."""

import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sktransfer.inputs._augment import check_takes_one, name_of
from sktransfer.inputs._callers import level_of_the_caller
from sktransfer.inputs._containers import samples_of
from sktransfer.inputs._reader import Reader, WeightsMismatchError, is_missing

# The bytes of tokens that a tokenizer remembers, and the bytes of Python's objects per
# text. A text is tokenised to learn its length, then to be computed, and again in each
# epoch of a training.
_REMEMBERED, _OVERHEAD = 2**25, 400
# The number of samples that are looked at to see whether all are paths of files.
_LOOKED_AT = 100


@dataclass(frozen=True)
class TextReader(Reader):
    """Convert texts to the inputs of a network, by the tokenizer it was trained with.

    The content of a text is its UTF-8 encoding, a draft is the text itself, and an
    input is the numbers of its tokens, those included that the tokenizer adds at the
    ends. A text that is longer than `max_length` is cut.

    Parameters
    ----------
    tokenizer : str
        The text of a ``tokenizer.json``, the file format of the package tokenizers.
    max_length : int
        The number of tokens at which texts are cut.
    longest : int, optional
        The largest `max_length` that the network takes. If None, it is `max_length`.
    """

    kind: ClassVar[str] = "text"
    accepted: ClassVar[str] = "A text is a str."
    size_parameter: ClassVar[str] = "max_length"
    padding: ClassVar[float] = -1

    # A tokenizer may have 17 MB, so that readers are compared by its digest.
    tokenizer: str = field(repr=False, compare=False)
    max_length: int
    longest: int | None = None
    tokenizer_sha256: str = field(init=False)

    def __post_init__(self):
        # The attributes of a frozen instance can only be set in this way.
        object.__setattr__(self, "tokenizer_sha256", _sha256(self.tokenizer))
        if self.longest is None:
            object.__setattr__(self, "longest", self.max_length)

    def __str__(self):
        return f"{self.max_length} tokens"

    @property
    def size(self) -> int:
        """The number of tokens at which texts are cut."""
        return self.max_length

    def samples(self, X) -> Sequence:
        """Return the texts of `X`, or refuse a table of numbers."""
        if isinstance(X, str | bytes):
            raise ValueError(
                "Invalid X: expected a list of texts, but it is a single one "
                f"({type(X).__name__}). Nothing was read. Wrap it in a list: [text]."
            )
        texts = samples_of(X, self.kind)
        if texts is None:
            numbers = X if hasattr(X, "shape") else np.asarray(X, dtype=object)
            # A number among texts is refused by its row.
            if len(numbers.shape) != 1 or not any(isinstance(x, str) for x in numbers):
                self.table(numbers, None, None)
            texts = list(numbers)
        _warn_of_paths(texts)
        return texts

    def content(self, sample) -> bytes:
        """Return the UTF-8 encoding of a text."""
        if isinstance(sample, str):
            try:
                return sample.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"its character {error.start}, {sample[error.start]!r}, is half of "
                    "a surrogate pair, which no text can be encoded with. Decode its "
                    "bytes with errors='replace'"
                ) from error
        raise ValueError(_why_no_text(sample))

    def size_of(self, content) -> tuple[int]:
        """Return the number of tokens of a text, once it is cut."""
        return (len(self._tokens(content)[0]),)

    def is_cut(self, content) -> bool:
        """Whether a text has more than `max_length` tokens."""
        return self._tokens(content)[1]

    def draft(self, content) -> str:
        """Return the text."""
        return content.decode()

    def finish(self, draft: str) -> torch.Tensor:
        """Return the numbers of the tokens of a text."""
        return self.read(draft.encode())

    def read(self, content) -> torch.Tensor:
        """Return the numbers of the tokens of a text, int64."""
        return torch.from_numpy(self._tokens(content)[0].astype(np.int64))

    def _tokens(self, content) -> tuple[np.ndarray, bool]:
        return _tokenizer(self).tokens(content)

    def augmentation(self, augment) -> Callable | None:
        """Return the function of a text that an ``augment=`` parameter names."""
        if augment is None:
            return None
        if not callable(augment):
            raise ValueError(
                f"Invalid augment={augment!r}: expected None or a callable that takes "
                "and returns a text, a str. Only for images are there augmentations "
                "that have a name. Nothing was trained."
            )
        check_takes_one(augment, "text, a str")
        return functools.partial(_augmented, self, augment)

    def check_size(self, size) -> None:
        """Refuse a number of tokens that the network or the tokenizer cannot have."""
        super().check_size(size)
        least = _tokenizer(self).n_added + 1
        if not least <= size <= self.longest:
            raise ValueError(
                f"Invalid max_length={size!r}: expected a number of tokens from "
                f"{least}, the {least - 1} that the tokenizer adds to a text and one "
                f"more, to {self.longest}, the most that this backbone takes."
            )

    def resized_to(self, size: int) -> "TextReader":
        """Return the same reader for texts that are cut at another length."""
        return replace(self, max_length=int(size))

    def example(self, n: int) -> torch.Tensor:
        """Return `n` inputs of `max_length` random tokens."""
        return _tokenizer(self).example(n, self.max_length)

    def plain(self) -> tuple[str, Pipeline]:
        """Return what a linear model without a network is given: the words."""
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
        # A vectorizer would iterate over the columns of a frame.
        return "TF-IDF", make_pipeline(FunctionTransformer(self.samples), words)

    def origin(self) -> str:
        """Name the tokenizer by its digest."""
        return (
            f" The SHA-256 of its tokenizer begins with `{self.tokenizer_sha256[:16]}`."
        )

    def cause(self) -> str:
        """Return what the inputs depend on, including the version of tokenizers."""
        version = _tokenizers().__version__
        return f"text, {self.tokenizer_sha256}, {self.max_length}, tokenizers {version}"

    def to_record(self) -> dict:
        """Return the fields, with the digest of the tokenizer in place of its text."""
        names = ("tokenizer_sha256", "max_length")
        return {name: getattr(self, name) for name in names}

    def from_record(self, record: dict) -> "TextReader":
        """Return this reader with the saved length, or refuse another tokenizer."""
        if record["tokenizer_sha256"] != self.tokenizer_sha256:
            raise WeightsMismatchError(
                "The tokenizer of the backbone is not the one that the saved estimator "
                f"was made with: its SHA-256 is {self.tokenizer_sha256[:12]}, not "
                f"{record['tokenizer_sha256'][:12]}. Nothing was loaded. Restore the "
                "original tokenizer.json, or fit again."
            )
        return self.resized_to(record["max_length"])


class _Tokenizer:
    """A tokenizer, and the tokens of the texts that it has last seen."""

    def __init__(self, reader: TextReader):
        tokenizer = _tokenizers().Tokenizer.from_str(reader.tokenizer)
        tokenizer.no_padding()
        tokenizer.enable_truncation(reader.max_length)
        self._tokenizer = tokenizer
        self._known, self._bytes = {}, 0
        self.n_added = tokenizer.num_special_tokens_to_add(False)
        added = tokenizer.get_added_tokens_decoder()
        self._special = sorted(number for number in added if added[number].special)

    def tokens(self, content: bytes) -> tuple[np.ndarray, bool]:
        """Return the numbers of the tokens of a text, and whether it was cut."""
        key = hashlib.sha256(content).digest()
        known = self._known.get(key)
        return self._tokenise(key, content.decode()) if known is None else known

    def _tokenise(self, key, text):
        found = self._tokenizer.encode(text)
        # Some tokenizers add nothing to an empty text, but a network needs a token. The
        # first special one is for most of these the end of a text, or its beginning.
        ids = found.ids or self._special[:1] or [0]
        tokens = np.array(ids, dtype=np.int32)
        if self._bytes > _REMEMBERED:
            self._known, self._bytes = {}, 0
        self._bytes += tokens.nbytes + _OVERHEAD
        self._known[key] = known = tokens, bool(found.overflowing)
        return known

    def example(self, n: int, length: int) -> torch.Tensor:
        # Special tokens are left out: networks treat some of them as padding.
        count = self._tokenizer.get_vocab_size()
        usual = np.setdiff1d(np.arange(count), self._special)
        # A generator of its own: the state of the global one must not change.
        chosen = np.random.default_rng(0).integers(0, max(len(usual), 1), (n, length))
        return torch.from_numpy(usual[chosen] if len(usual) else chosen)


# Once in a process: a tokenizer of many languages takes a second. Two threads may both
# make one, which does no harm.
@functools.lru_cache(maxsize=8)
def _tokenizer(reader: TextReader) -> _Tokenizer:
    return _Tokenizer(reader)


def _tokenizers():
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "Texts are read by the package tokenizers, which is not installed: "
            "pip install 'sktransfer[hf]'."
        ) from error
    return tokenizers


# Readers for other lengths share the text.
@functools.lru_cache(maxsize=8)
def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _why_no_text(sample) -> str:
    if is_missing(sample):
        return f"it is missing: {sample} instead of a text; an empty one is ''"
    if isinstance(sample, bytes | bytearray):
        return "it is bytes, not a text: decode them, for example with data.decode()"
    if isinstance(sample, os.PathLike):
        return "it is a path, which is not opened: pass path.read_text()"
    return f"it is of type {type(sample).__name__}"


def _augmented(reader: TextReader, augment: Callable, text: str) -> str:
    """Augment a text, and raise an error if the result is not a text."""
    found = augment(text)
    try:
        reader.content(found)
    except ValueError as error:
        raise ValueError(
            f"Invalid augment={name_of(augment)}: expected it to return a text, a str, "
            f"but of what it returned {error}. Nothing was fitted."
        ) from error
    return found


def _warn_of_paths(texts: Sequence) -> None:
    """Warn if the texts are paths of files, which are not opened."""
    first = list(islice(texts, _LOOKED_AT))
    if all(isinstance(text, str) and os.path.isfile(text) for text in first):
        warnings.warn(
            "The texts are paths of existing files. They are read as texts, and the "
            "files are not opened: pass their contents, path.read_text().",
            UserWarning,
            stacklevel=level_of_the_caller(),
        )
