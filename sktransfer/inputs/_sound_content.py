"""Conversion of `X` to a sequence of sounds, and of a sound in any form to content."""

import numbers
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from sktransfer.inputs._containers import refuse_folder, samples_of
from sktransfer.inputs._content import to_numpy
from sktransfer.inputs._encoded import encoded_bytes, is_encoded
from sktransfer.inputs._reader import is_missing
from sktransfer.inputs._sound_files import import_soundfile, mono, pack

# The value of silence, and the range to both sides of it, by dtype, as in files.
_RANGES = {
    np.dtype(np.uint8): (128, 2.0**7),
    np.dtype(np.int16): (0, 2.0**15),
    np.dtype(np.int32): (0, 2.0**31),
}
# More channels are no sound but something else, such as 80 bands of a spectrogram.
_MOST_CHANNELS = 64
# Floats may exceed [-1, 1], since filters overshoot, but not as far as 16-bit integers
# that were converted to float.
_LOUDEST = 16


def sound_samples(X) -> Sequence | None:
    """Return the sounds of `X`, or None if `X` is a table of numbers.

    Parameters
    ----------
    X : list, array, tensor, series or one-column frame of sounds
        The sounds. A 2-D array of numbers, or a list of lists of them, is a table.

    Raises
    ------
    ValueError
        If `X` is a single sound, is empty, or does not contain sounds.
    ImportError
        If it contains files, and soundfile is not installed.
    """
    refuse_folder(X, "sound")
    pair = isinstance(X, tuple) and len(X) == 2 and any(map(_is_rate, X))
    if pair or is_encoded(X) or isinstance(X, Mapping):
        raise ValueError(
            "Invalid X: expected a list of sounds, but it seems to be a single sound "
            f"({type(X).__name__}). Nothing was read. Wrap it in a list: [sound]."
        )
    samples = samples_of(X, "sound")
    if any(_is_file(sample) for sample in samples or ()):
        import_soundfile()
    return samples


def _is_rate(value) -> bool:
    return isinstance(value, numbers.Real)


def sound_content(sample, array_rate: int | None) -> bytes:
    """Return the content of a sound: encoded bytes, or a packed array.

    Parameters
    ----------
    sample : path, bytes, open file, (rate, array), mapping, array or tensor
        The sound.
    array_rate : int or None
        The sampling rate of arrays without one.
    """
    if _is_file(sample):
        return encoded_bytes(sample, "sound")
    rate, values = array_rate, sample
    if isinstance(sample, Mapping):
        rate, values = _parts_of(sample)
    elif isinstance(sample, tuple) and len(sample) == 2:
        # soundfile and librosa return the array first, scipy the rate.
        rate, values = sample if _is_rate(sample[0]) else reversed(sample)
    return pack(_one_channel(_as_array(values)), _checked_rate(rate))


def _is_file(sample) -> bool:
    """Whether a sample is a file of a sound, or holds one, rather than an array."""
    # A decoded sound of Hugging Face datasets has the path of its file, too.
    return is_encoded(sample) and not (
        isinstance(sample, Mapping) and sample.get("array") is not None
    )


def _parts_of(sample: Mapping):
    """Return the parts of a sound of Hugging Face datasets."""
    try:
        # In columns of Arrow, the array is a list.
        rate, array = sample["sampling_rate"], sample["array"]
        return rate, np.asarray(array) if isinstance(array, list) else array
    except KeyError as error:
        raise ValueError(
            f"it is a mapping without the key {error} (Hugging Face datasets has "
            "sounds with 'array' and 'sampling_rate', or with 'bytes' and 'path')"
        ) from error


def _as_array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return to_numpy(values)
    if hasattr(values, "__array__"):
        return np.asarray(values)
    if is_missing(values):
        raise ValueError(f"it is missing: {values} instead of a sound or its path")
    raise ValueError(f"it is of type {type(values).__name__}")


def _checked_rate(rate) -> int:
    if rate is None:
        raise ValueError(
            "it is an array without a sampling rate: set sampling_rate=, or pass "
            "(rate, array)"
        )
    if not _is_rate(rate) or not 1 <= rate < 2**31 or rate != int(rate):
        raise ValueError(f"its sampling rate is {rate!r}, which is no number of Hz")
    return int(rate)


def _one_channel(values: np.ndarray) -> np.ndarray:
    """Return an array as float32 of shape (n_values,), the mean of its channels."""
    if values.ndim == 1:
        values = values[:, None]
    # As in a file, where channels are second, unless there are fewer of them otherwise.
    if values.ndim == 2 and values.shape[0] < values.shape[1]:
        values = values.T
    if values.ndim != 2 or values.shape[1] > _MOST_CHANNELS:
        raise ValueError(
            f"it is an array of shape {values.shape}, neither (n_values,) nor "
            f"(n_values, n_channels) with at most {_MOST_CHANNELS} channels"
        )
    if values.dtype.kind != "f" and values.dtype not in _RANGES:
        raise ValueError(
            f"it is an array of dtype {values.dtype} (convert with .astype(np.int16) "
            "if its values have 16 bits, or scale to [-1, 1] as float)"
        )
    if not values.size:
        raise ValueError(f"it is an empty array of shape {values.shape}")
    values = _scaled(values)
    loudest = np.abs(values).max()
    if _LOUDEST < loudest < np.inf:
        raise ValueError(
            f"it is a float array with values up to {loudest:.4g}, far outside "
            "[-1, 1] (divide values of 16 bits by 32768)"
        )
    # Summed in the same order as the channels of a file.
    return mono(np.ascontiguousarray(values))


def _scaled(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        # What overflows is refused later, like other infinite values.
        with np.errstate(over="ignore"):
            return values.astype(np.float32)
    silence, full = _RANGES[values.dtype]
    return (values.astype(np.float32) - np.float32(silence)) / np.float32(full)


def table_sounds(X: np.ndarray, array_rate: int | None):
    """Read the rows of a table as sounds of equal length.

    Returns
    -------
    sounds : list of ndarray
        The rows, not yet scaled. uint8, int16 and int32 are scaled by their range. Of
        other dtypes, a row within [-1, 1] is used unchanged, and any other is divided
        by its largest absolute value.
    content : callable
        A function from a row to its content.
    """
    if array_rate is None:
        raise ValueError(
            "Invalid sampling_rate=None: expected the number of values per second, as "
            f"X is a table of numbers of shape {X.shape}, whose rows are sounds. "
            "Nothing was read. Set sampling_rate=, or pass a list of (rate, array)."
        )
    return list(X), partial(_row_content, rate=array_rate)


def _row_content(row: np.ndarray, rate: int) -> bytes:
    if row.dtype not in _RANGES:
        row = row / max(1.0, np.abs(row).max())
    return sound_content(row, rate)
