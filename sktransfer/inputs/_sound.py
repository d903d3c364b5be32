"""Readers of sounds: how sounds become the inputs of a network."""

import math
import numbers
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import scipy
import torch

from sktransfer.inputs._augment import check_takes_one, name_of
from sktransfer.inputs._reader import PADDING, Reader, Samples
from sktransfer.inputs._sound_content import sound_content, sound_samples, table_sounds
from sktransfer.inputs._sound_files import import_soundfile, is_longer, waveform
from sktransfer.inputs._spectrograms import (
    KALDI_FRAME,
    KALDI_HOP,
    kaldi_spectrogram,
    log_mel_spectrogram,
    whisper_spectrogram,
)

_WAVEFORM = "waveform, a float tensor of shape (n_values,)"


@dataclass(frozen=True)
class SoundReader(Reader):
    """Convert sounds to the inputs of a network, as subclasses define them.

    Sounds are given as paths, open files, encoded bytes, pairs ``(rate, array)``, or
    arrays whose rate is `array_rate`. The content of a sound is its encoded bytes. An
    array is scaled by its dtype as soundfile does, averaged over its channels and
    packed to bytes, so that it gives the same input as the file with its values. A
    draft is the beginning of the waveform at the rate of the network, float32 in
    [-1, 1].

    Parameters
    ----------
    sampling_rate : int, default=16000
        The number of values per second that the network was made for, to which sounds
        are resampled by a polyphase filter.
    max_length : float, default=30.0
        The length in seconds at which longer sounds are cut.
    array_rate : int or None, default=None
        The number of values per second of arrays without a rate.
    """

    kind: ClassVar[str] = "sound"
    accepted: ClassVar[str] = (
        "A sound is a path, an open file or encoded bytes (WAV, FLAC, OGG or MP3), "
        "(rate, array), or an array with sampling_rate=, of dtype int16, int32, uint8 "
        "or float in [-1, 1], and of shape (n_values,) or (n_values, n_channels)."
    )
    size_parameter: ClassVar[str] = "max_length"

    sampling_rate: int = 16000
    max_length: float = 30.0
    array_rate: int | None = None

    def __str__(self):
        return f"{self.max_length} seconds at {self.sampling_rate:,} Hz"

    @property
    def size(self) -> float:
        """Length in seconds at which longer sounds are cut."""
        return self.max_length

    @property
    def length(self) -> int:
        """The number of values at which longer sounds are cut."""
        return max(1, round(self.max_length * self.sampling_rate))

    def check_size(self, size) -> None:
        """Refuse what is no length in seconds."""
        number = isinstance(size, numbers.Real) and not isinstance(size, bool)
        if not number or not 0 < size < math.inf:
            raise ValueError(
                f"Invalid max_length={size!r}: expected None, for the length that the "
                "weights were made for, or a positive number of seconds."
            )

    def resized_to(self, size: float) -> "SoundReader":
        """Return the same reader for sounds of another length in seconds."""
        return replace(self, max_length=float(size))

    def at_rate(self, sampling_rate: int) -> "SoundReader":
        """Return the same reader for arrays of another sampling rate."""
        whole = isinstance(sampling_rate, numbers.Integral)
        if not whole or isinstance(sampling_rate, bool) or sampling_rate < 1:
            raise ValueError(
                f"Invalid sampling_rate={sampling_rate!r}: expected None or a positive "
                "integer, the number of values per second of sounds that are arrays."
            )
        return replace(self, array_rate=int(sampling_rate))

    def samples(self, X) -> Sequence | None:
        """Return the sounds of `X`, or None where `X` is a table of numbers."""
        return sound_samples(X)

    def content(self, sample) -> bytes:
        """Return the bytes by which a sound is hashed, encoded or of a packed array."""
        return sound_content(sample, self.array_rate)

    def table(self, X, image_shape, value_range) -> Samples:
        """Read the rows of a table as sounds of equal length."""
        sounds, content = table_sounds(X, self.array_rate)
        return Samples(sounds, self, content)

    def is_cut(self, content) -> bool:
        """Whether a sound is longer than what is read of it, judged by its header."""
        return is_longer(content, self.sampling_rate, self.length)

    def draft(self, content) -> torch.Tensor:
        """Return the beginning of a waveform, of shape (at most length,)."""
        wave = waveform(content, self.sampling_rate, self.length)
        # Copied where it is a view of content, which cannot be written to.
        return torch.from_numpy(np.array(wave, dtype=np.float32))

    def finish(self, draft: torch.Tensor) -> torch.Tensor:
        """Return the input made from a waveform, whether it was augmented or not."""
        return torch.from_numpy(self._input(draft[: self.length].numpy()))

    @abstractmethod
    def _input(self, wave: np.ndarray) -> np.ndarray:
        """Return the float32 input made from a waveform that is not too long."""

    def augmentation(self, augment) -> Callable | None:
        """Return a callable ``augment=``, of which it is checked what it returns."""
        if augment is None:
            return None
        if not callable(augment):
            raise ValueError(
                f"Invalid augment={augment!r}: expected None or a callable that takes "
                f"and returns a {_WAVEFORM}, at {self.sampling_rate:,} Hz. Only for "
                "images are there augmentations that have a name. Nothing was trained."
            )
        check_takes_one(augment, _WAVEFORM)
        return partial(_augmented, augment)

    def example(self, n: int) -> torch.Tensor:
        """Return the inputs of `n` sounds of full length, which are noise."""
        # A generator of its own: the state of the global one must not change.
        own = torch.Generator().manual_seed(0)
        waves = 0.1 * torch.randn((n, self.length), generator=own)
        return self.stack([self.finish(wave) for wave in waves])

    def plain(self) -> "tuple[str, StatisticsReader]":
        """Return what a linear model without a network is given: how loud bands are."""
        own = StatisticsReader(self.sampling_rate, self.max_length, self.array_rate)
        return "log-mel statistics", own

    def cause(self) -> str:
        """Return what the inputs depend on, including the versions of decoders."""
        # The rate of an array is a part of its content.
        reader = replace(self, array_rate=None)
        return f"{reader!r}, {_decoder()}, SciPy {scipy.__version__}"


@dataclass(frozen=True)
class WaveReader(SoundReader):
    """Convert sounds to waveforms, as wav2vec 2.0, HuBERT and WavLM take them.

    An input has the exact length of its sound, since padding would change the output
    of such a network: its first layer is normalised over all of the sound. Networks of
    this kind have no length of their own. By default sounds are cut at 30 seconds,
    since the cost of attention grows with the square of the length.

    Parameters
    ----------
    sampling_rate : int, default=16000
        The number of values per second that the network was made for.
    max_length : float, default=30.0
        The length in seconds at which longer sounds are cut.
    array_rate : int or None, default=None
        The number of values per second of arrays without a rate.
    standardised : bool, default=True
        Whether each sound is shifted and scaled to zero mean and unit variance.
    shortest : int, default=1
        The number of values that the network needs for a single output. Shorter sounds
        are followed by silence up to this length.
    """

    exact: ClassVar[bool] = True
    padding: ClassVar[float] = PADDING

    standardised: bool = True
    shortest: int = 1

    def size_of(self, content) -> tuple[int]:
        """Return the number of values of the input."""
        # Counted rather than read off the header, which is not exact for all formats.
        return (max(self.shortest, len(self.draft(content))),)

    def _input(self, wave: np.ndarray) -> np.ndarray:
        if self.standardised:
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        return np.pad(wave, (0, max(0, self.shortest - len(wave))))


@dataclass(frozen=True)
class SpectrogramReader(SoundReader):
    """Convert sounds to log-mel spectrograms of one size, as Whisper and AST take them.

    Shorter sounds are followed by silence up to `max_length`. A network computes as
    many positions as it is given frames, so that a shorter `max_length` makes it many
    times faster.

    Parameters
    ----------
    sampling_rate : int, default=16000
        The number of values per second that the network was made for.
    max_length : float, default=30.0
        The length in seconds at which longer sounds are cut.
    array_rate : int or None, default=None
        The number of values per second of arrays without a rate.
    recipe : {"whisper", "ast"}, default="whisper"
        "whisper" gives inputs of shape (bands, n_frames), whose range in a sound is
        limited to 80 dB. "ast" gives the features of Kaldi, (n_frames, bands).
    bands : int, default=80
        The number of mel bands.
    frame : int, default=400
        The number of values that a frame is made of.
    hop : int, default=160
        The number of values from one frame to the next.
    mean, std : float
        The values by which the features of "ast" are shifted and divided.
    shortest, longest : float
        The least and the largest `max_length` that the network can take, in seconds.
    """

    recipe: str = "whisper"
    bands: int = 80
    frame: int = 400
    hop: int = 160
    mean: float = 0.0
    std: float = 1.0
    shortest: float = 0.02
    longest: float = 30.0

    @property
    def frames(self) -> int:
        """The number of frames of an input."""
        return max(1, round(self.max_length * self.sampling_rate / self.hop))

    @property
    def length(self) -> int:
        # Frames of Whisper are centred, and those of Kaldi begin where the sound does.
        beyond = self.frame - self.hop if self.recipe == "ast" else 0
        return self.frames * self.hop + beyond

    def check_size(self, size) -> None:
        """Refuse a length for which the network has no positions."""
        super().check_size(size)
        if not self.shortest <= size <= self.longest:
            raise ValueError(
                f"Invalid max_length={size!r}: expected None, or from {self.shortest} "
                f"to {self.longest} seconds, which the positions of the network are "
                "made for."
            )

    def _input(self, wave: np.ndarray) -> np.ndarray:
        features = self._whisper if self.recipe == "whisper" else self._ast
        return features(wave).astype(np.float32)

    def _whisper(self, wave: np.ndarray) -> np.ndarray:
        wave = np.pad(wave, (0, self.length - len(wave)))
        rates = self.frame, self.hop, self.sampling_rate
        return whisper_spectrogram(wave, self.bands, *rates)

    def _ast(self, wave: np.ndarray) -> np.ndarray:
        # Features rather than the sound are padded, with zeros, as AST was trained. A
        # sound shorter than a frame still has one.
        wave = np.pad(wave, (0, max(0, self.frame - len(wave))))
        features = kaldi_spectrogram(wave, self.bands, self.sampling_rate)
        features = np.pad(features, ((0, self.frames - len(features)), (0, 0)))
        return (features - self.mean) / self.std


@dataclass(frozen=True)
class StatisticsReader(SoundReader):
    """Convert sounds to the means and standard deviations of log-mel bands over time.

    These are the features of a linear model without a network. Levels are relative to
    the loudest of a sound, so that the gain of a microphone does not matter. An input
    has the shape (2 * bands,), whatever the length of its sound.

    Parameters
    ----------
    sampling_rate, max_length, array_rate
        See `SoundReader`.
    bands : int, default=40
        The number of mel bands.
    """

    bands: int = 40

    def _input(self, wave: np.ndarray) -> np.ndarray:
        levels = log_mel_spectrogram(wave, self.bands, self.sampling_rate)
        found = np.concatenate([levels.mean(axis=1), levels.std(axis=1)])
        return found.astype(np.float32)


def sound_reader(preprocessor_config: dict, model_config: dict) -> SoundReader:
    """Return the reader of a model of transformers.

    Parameters
    ----------
    preprocessor_config : dict
        The content of the file preprocessor_config.json.
    model_config : dict
        The content of the file config.json.

    Raises
    ------
    ValueError
        If the features that the model takes are not known here.
    """
    known = {
        "WhisperFeatureExtractor": _whisper_reader,
        "ASTFeatureExtractor": _ast_reader,
        "Wav2Vec2FeatureExtractor": _wave_reader,
    }
    name = preprocessor_config.get("feature_extractor_type")
    if name not in known:
        raise ValueError(
            f"Invalid feature_extractor_type={name!r} in preprocessor_config.json: "
            f"expected {', '.join(known)}. The inputs of other models of sounds cannot "
            "be computed."
        )
    return known[name](preprocessor_config, model_config)


def _wave_reader(config: dict, model: dict) -> WaveReader:
    # What one output of the convolutions is computed from, by wav2vec 2.0's defaults.
    kernels = model.get("conv_kernel", (10, 3, 3, 3, 3, 2, 2))
    strides = model.get("conv_stride", (5, 2, 2, 2, 2, 2, 2))
    shortest = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        shortest = (shortest - 1) * stride + kernel
    return WaveReader(
        sampling_rate=config.get("sampling_rate", 16000),
        standardised=config.get("do_normalize", True),
        shortest=shortest,
    )


def _whisper_reader(config: dict, model: dict) -> SpectrogramReader:
    rate, hop = config.get("sampling_rate", 16000), config.get("hop_length", 160)
    # The second convolution has a stride of 2.
    positions = 2 * model.get("max_source_positions", 1500) * hop / rate
    longest = float(min(config.get("chunk_length", 30), positions))
    return SpectrogramReader(
        sampling_rate=rate,
        max_length=longest,
        bands=config.get("feature_size", 80),
        frame=config.get("n_fft", 400),
        hop=hop,
        # Half a frame is reflected at both ends of a sound, which must be longer.
        shortest=2 * hop / rate,
        longest=longest,
    )


def _ast_reader(config: dict, model: dict) -> SpectrogramReader:
    rate = config.get("sampling_rate", 16000)
    frames = min(config.get("max_length", 1024), model.get("max_length", 1024))
    scaled = config.get("do_normalize", True)
    return SpectrogramReader(
        sampling_rate=rate,
        max_length=frames * KALDI_HOP / rate,
        recipe="ast",
        bands=config.get("num_mel_bins", 128),
        frame=KALDI_FRAME,
        hop=KALDI_HOP,
        mean=config.get("mean", -4.2677393) if scaled else 0.0,
        std=2 * config.get("std", 4.5689974) if scaled else 1.0,
        shortest=model.get("patch_size", 16) * KALDI_HOP / rate,
        longest=frames * KALDI_HOP / rate,
    )


def _augmented(augment: Callable, wave: torch.Tensor) -> torch.Tensor:
    """Augment a waveform, and raise an error if the result is not one."""
    # The function gets a copy, as it may change its argument in place.
    x = augment(wave.clone())
    if isinstance(x, torch.Tensor) and x.ndim == 1 and len(x) and x.is_floating_point():
        return x.detach().float()
    shape = f" and shape {tuple(x.shape)}" if hasattr(x, "shape") else ""
    raise ValueError(
        f"Invalid augment={name_of(augment)}: expected it to return a {_WAVEFORM}, but "
        f"it returned a value of type {type(x).__name__}{shape}. Nothing was fitted. A "
        "function that changes its waveform in place must return it, too."
    )


def _decoder() -> str:
    try:
        soundfile = import_soundfile()
    except ImportError:
        return "no soundfile"
    return f"soundfile {soundfile.__version__} ({soundfile.__libsndfile_version__})"
