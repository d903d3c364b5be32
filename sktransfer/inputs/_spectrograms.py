"""Log-mel spectrograms: how loud a sound is over time in bands of frequencies.

Frequencies are spaced by mels, as the ear tells them apart: the same number of mels is
100 Hz for low tones and 1,000 Hz for high ones.
"""

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import rfft
from scipy.signal.windows import hann
from scipy.sparse import csr_array

# Kaldi's length of a frame, its distance to the next one, and the length of its Fourier
# transform, in values; and the share of the value before that it subtracts from each.
KALDI_FRAME, KALDI_HOP = 400, 160
_KALDI_FFT = 512
_PREEMPHASIS = 0.97
_KALDI_LOWEST_HZ = 20.0
_KALDI_FLOOR = 2.0**-23
_FLOOR = 1e-10


def whisper_spectrogram(
    wave: np.ndarray, bands: int, frame: int, hop: int, rate: int
) -> np.ndarray:
    """Return the features of Whisper, of shape (bands, len(wave) / hop).

    Parameters
    ----------
    wave : ndarray of shape (n_values,)
        The sound, longer than half a frame.
    bands : int
        The number of mel bands.
    frame, hop : int
        The number of values that one spectrum is made of, and from one to the next.
    rate : int
        The number of values per second.
    """
    wave = np.pad(wave, frame // 2, mode="reflect")
    # The last frame is left out, as OpenAI's own code does.
    return (_levels(wave, bands, frame, hop, rate, slice(-1)) + 4) / 4


def log_mel_spectrogram(wave: np.ndarray, bands: int, rate: int) -> np.ndarray:
    """Return the levels of mel bands relative to the loudest, (bands, n_frames).

    The unit is 10 dB, and the lowest level is -8.
    """
    # Frames of 25 ms, one every 10 ms, are customary for speech.
    frame, hop = rate // 40, rate // 100
    wave = np.pad(wave, (0, max(0, frame - len(wave))))
    levels = _levels(wave, bands, frame, hop, rate)
    return levels - levels.max()


def _levels(wave, bands, frame, hop, rate, chosen=slice(None)) -> np.ndarray:
    """Return logarithms of the power in mel bands, within 80 dB of the largest."""
    frames = sliding_window_view(wave.astype(np.float64), frame)[::hop][chosen]
    powers = np.abs(rfft(frames * hann(frame, sym=False))) ** 2
    powers = _slaney_filters(bands, frame, rate) @ powers.T
    levels = np.log10(np.maximum(powers, _FLOOR))
    return np.maximum(levels, levels.max() - 8)


def kaldi_spectrogram(wave: np.ndarray, bands: int, rate: int) -> np.ndarray:
    """Return the features of Kaldi's ``fbank``, of shape (n_frames, bands).

    The wave has at least the length of a frame.
    """
    frames = sliding_window_view(wave.astype(np.float64), KALDI_FRAME)[::KALDI_HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - _PREEMPHASIS * before) * hann(KALDI_FRAME)
    powers = np.abs(rfft(frames, _KALDI_FFT)) ** 2
    filters = _kaldi_filters(bands, rate)
    return np.log(np.maximum(filters @ powers.T, _KALDI_FLOOR)).T


# Filters are sparse, which also makes the product with them independent of the number
# of threads, to the last bit.
@functools.lru_cache(maxsize=16)
def _slaney_filters(bands: int, frame: int, rate: int) -> csr_array:
    """Return the filters of librosa and Whisper: triangles in Hz, of equal area."""
    highest = _hz_to_mel(np.array([min(8000.0, rate / 2)]))[0]
    edges = _mel_to_hz(np.linspace(0, highest, bands + 2))
    filters = _triangles(np.linspace(0, rate // 2, 1 + frame // 2), edges)
    return csr_array(filters * (2 / (edges[2:] - edges[:-2]))[:, None])


@functools.lru_cache(maxsize=16)
def _kaldi_filters(bands: int, rate: int) -> csr_array:
    """Return the filters of Kaldi: triangles in mels."""
    hz = np.arange(1 + _KALDI_FFT // 2) * (rate / _KALDI_FFT)
    ends = np.array([_KALDI_LOWEST_HZ, rate // 2])
    edges = np.linspace(*_kaldi_mel(ends), bands + 2)
    return csr_array(_triangles(_kaldi_mel(hz), edges))


def _triangles(points: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return a row for every three edges in a row: 0, 1 and 0 at them."""
    slopes = edges[:, None] - points
    widths = np.diff(edges)[:, None]
    rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
    return np.maximum(0.0, np.minimum(rising, falling))


def _kaldi_mel(hz: np.ndarray) -> np.ndarray:
    return 1127.0 * np.log(1.0 + hz / 700.0)


# Slaney's scale is linear up to 1,000 Hz, which are 15 mels, and logarithmic above.
_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    return np.where(
        hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1) / 1000) / _STEP
    )


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(_STEP * (mels - 15)))
