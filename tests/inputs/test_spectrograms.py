import numpy as np
import pytest

from sktransfer.inputs._spectrograms import (
    kaldi_spectrogram,
    log_mel_spectrogram,
    whisper_spectrogram,
)

RATE = 16000


def tone(hz, seconds=0.5):
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)


@pytest.mark.parametrize(
    "spectrogram",
    [
        lambda wave: log_mel_spectrogram(wave, 64, RATE).T,
        lambda wave: whisper_spectrogram(wave, 64, 400, 160, RATE).T,
        lambda wave: kaldi_spectrogram(wave, 64, RATE),
    ],
)
def test_a_tone_is_loudest_in_the_band_of_its_frequency(spectrogram):
    loudest = [spectrogram(tone(hz))[20].argmax() for hz in (100, 500, 1000, 2000)]
    assert sorted({*loudest}) == loudest
    # The scale is nearly linear below 1,000 Hz and logarithmic above.
    low, middle, high = np.diff(loudest)
    assert low < 1.3 * middle
    assert high < 1.6 * middle
    assert spectrogram(tone(7900))[20].argmax() in (62, 63)


def test_levels_are_relative_to_the_loudest_and_limited():
    quiet = log_mel_spectrogram(0.01 * tone(500), 40, RATE)
    loud = log_mel_spectrogram(tone(500), 40, RATE)
    np.testing.assert_allclose(quiet, loud, atol=1e-9)
    assert quiet.max() == 0
    assert quiet.min() == -8
    assert (log_mel_spectrogram(np.zeros(10), 40, RATE) == 0).all()


def test_frames_follow_each_other_every_ten_milliseconds():
    wave = np.zeros(RATE)
    wave[8000] = 1
    loud = log_mel_spectrogram(wave, 40, RATE).max(0) > -8
    # Each has 25 ms, and is silent at its ends.
    assert np.flatnonzero(loud).tolist() == [48, 49]
    assert loud.shape == (98,)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_spectrograms_equal_those_of_transformers():
    audio = pytest.importorskip("transformers.audio_utils")
    wave = np.random.default_rng(0).normal(size=8000) * np.linspace(1, 0.001, 8000)
    slaney = audio.mel_filter_bank(201, 80, 0, 8000, RATE, "slaney", "slaney")
    theirs = audio.spectrogram(
        wave,
        audio.window_function(400, "hann"),
        400,
        160,
        mel_filters=slaney,
        power=2.0,
        log_mel="log10",
    )[:, :-1]
    theirs = (np.maximum(theirs, theirs.max() - 8) + 4) / 4
    ours = whisper_spectrogram(wave, 80, 400, 160, RATE)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    kaldi = audio.mel_filter_bank(257, 64, 20, 8000, RATE, None, "kaldi", True)
    theirs = audio.spectrogram(
        wave,
        audio.window_function(400, "hann", periodic=False),
        400,
        160,
        512,
        center=False,
        preemphasis=0.97,
        mel_filters=kaldi,
        power=2.0,
        log_mel="log",
        mel_floor=2.0**-23,
        remove_dc_offset=True,
    ).T
    np.testing.assert_allclose(kaldi_spectrogram(wave, 64, RATE), theirs, atol=1e-5)
