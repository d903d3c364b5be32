"""Decoding of sounds: files by libsndfile, and arrays that are packed like files."""

import contextlib
import functools
import io
import math
import struct

import numpy as np
from scipy.signal import resample_poly

from sktransfer.inputs._file_kinds import file_kind

# What packed sounds begin with, and then their sampling rate. It is none of the formats
# of libsndfile, whose float WAV files hold the time at which they were written.
_PACKED = b"\x93SOUND"
_HEAD = struct.Struct(f"<{len(_PACKED)}sQ")
# The most values of a sound, of all channels, that are decoded: 1 GB as float32.
_MOST_VALUES = 2**28
# Of a ratio of two sampling rates, such as 441 to 160, the larger number decides how
# long the filter is by which sounds are resampled: here 21 MB.
_MOST_STEPS = 2**17
# WAV files with a larger size in their header were written without knowing it.
_UNKNOWN_SIZE = 0x7FFFF000


def pack(values: np.ndarray, rate: int) -> bytes:
    """Return the content of a sound that is an array of one channel."""
    return _HEAD.pack(_PACKED, rate) + values.astype("<f4").tobytes()


def waveform(content: bytes, rate: int, length: int) -> np.ndarray:
    """Decode the beginning of a sound, of one channel and at another sampling rate.

    Parameters
    ----------
    content : bytes
        A sound file, or the result of `pack`.
    rate : int
        The number of values per second.
    length : int
        The number of values at which a longer sound is cut.

    Returns
    -------
    ndarray of float32 of shape (at most length,)
    """
    with _opened(content) as (own_rate, n_values, read):
        if not n_values:
            raise ValueError("it has no values and lasts 0 seconds")
        up, down = _ratio(rate, own_rate)
        # The filter reaches ten steps of the lower rate to both sides. What lies beyond
        # has no influence on the part that is kept, and need not be decoded.
        beyond = 0 if up == down else 10 * max(up, down) // up + 1
        values = read(min(n_values, math.ceil(length * down / up) + beyond))
    if not len(values):
        raise ValueError("its header promises values, but it has none (cut off?)")
    if not np.isfinite(values).all():
        raise ValueError("it has NaN or infinite values")
    if up != down:
        values = resample_poly(values, up, down)
    return values[:length]


def is_longer(content: bytes, rate: int, length: int) -> bool:
    """Whether `waveform` cuts a sound, judged by its header without decoding it."""
    with _opened(content) as (own_rate, n_values, _):
        return n_values * rate > length * own_rate


def _ratio(rate: int, own_rate: int) -> tuple[int, int]:
    """Return the factors by which a sound is interpolated and decimated."""
    common = math.gcd(rate, own_rate)
    up, down = rate // common, own_rate // common
    if max(up, down) > _MOST_STEPS:
        raise ValueError(
            f"its sampling rate of {own_rate:,} Hz cannot be converted to {rate:,} Hz, "
            f"as their ratio in lowest terms, {up} to {down}, has a number above "
            f"{_MOST_STEPS:,} (resample it to a rate such as 44,100 Hz)"
        )
    return up, down


@contextlib.contextmanager
def _opened(content: bytes):
    """Yield the sampling rate, the number of values, and a function that reads some."""
    if content.startswith(_PACKED):
        values = np.frombuffer(content, "<f4", offset=_HEAD.size)
        yield _HEAD.unpack_from(content)[1], len(values), lambda most: values[:most]
        return
    _refuse_cut_off(content)
    soundfile = import_soundfile()
    try:
        opened = soundfile.SoundFile(io.BytesIO(content))
    except soundfile.LibsndfileError as error:
        raise _unreadable(content, error) from error
    with opened as file:
        read = functools.partial(_read, content, file)
        yield file.samplerate, file.frames, read


def _refuse_cut_off(content: bytes) -> None:
    """Raise an error if a WAV file ends before its header says.

    libsndfile would read what there is of it.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return
    size = int.from_bytes(content[4:8], "little")
    # A program that writes to a pipe puts 0 or the largest number in place of the size,
    # and some do not write the byte that makes it even.
    if len(content) - 8 < size - 1 and size < _UNKNOWN_SIZE:
        raise ValueError(
            f"it has {len(content):,} bytes, and {size + 8:,} by its header (cut off?)"
        )


def _read(content: bytes, file, most: int) -> np.ndarray:
    """Return the mean of the channels of the first values of an opened file."""
    # The header is not to be trusted with the allocation of memory.
    if most * file.channels > _MOST_VALUES:
        raise ValueError(
            f"the {most:,} values that would be read of each of its {file.channels} "
            f"channels are more than {_MOST_VALUES:,} (set a shorter max_length)"
        )
    try:
        values = file.read(most, dtype="float32", always_2d=True)
    except Exception as error:
        raise _unreadable(content, error) from error
    return mono(values)


def mono(values: np.ndarray) -> np.ndarray:
    """Return the mean over the channels, the second axis."""
    return values[:, 0] if values.shape[1] == 1 else values.mean(axis=1)


def _unreadable(content: bytes, error: Exception) -> ValueError:
    # The message of the error itself holds the address of a buffer.
    why = getattr(error, "error_string", str(error)).rstrip(".")
    kind = file_kind(content, "sound")
    return ValueError(f"libsndfile cannot read it ({why}): {kind}")


def import_soundfile():
    """Return the module soundfile, which is an optional dependency."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            "Sound files are read by soundfile, which cannot be imported "
            f"({error}). Install it with pip install 'sktransfer[sound]', or pass "
            "sounds as (rate, array), as scipy.io.wavfile.read returns them."
        ) from error
    return soundfile
