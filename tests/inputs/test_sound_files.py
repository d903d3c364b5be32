import io

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from sktransfer.inputs import _sound_files
from sktransfer.inputs._sound_files import is_longer, pack, waveform

RNG = np.random.default_rng(0)
NOISE = (RNG.normal(size=(24000, 2)) * 3000).clip(-30000, 30000).astype(np.int16)


def encoded(values=NOISE, rate=8000, kind="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, values, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "OGG", "MP3"])
def test_formats_are_decoded_and_their_channels_averaged(kind):
    tones = np.sin(np.arange(24000)[:, None] * [0.1, 0.3])
    values = np.rint(tones * 9000) / 32768
    found = waveform(encoded(values, kind=kind), 8000, 10**6)
    expected = values.mean(axis=1)
    if kind in ("WAV", "FLAC", "AIFF"):
        np.testing.assert_array_equal(found, expected.astype(np.float32))
    else:
        assert abs(len(found) - len(expected)) < 3000
        assert found.std() == pytest.approx(expected.std(), rel=0.05)


@pytest.mark.parametrize("own", [8000, 11025, 22050, 44100, 48000])
def test_only_the_beginning_is_decoded_and_resampled_as_if_it_were_all(own):
    data = encoded(rate=own)
    whole = resample_poly(waveform(data, own, 10**6), 16000 // 25, own // 25)
    found = waveform(data, 16000, 5000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole[:5000], atol=1e-7)


def test_packed_arrays_are_what_was_packed():
    wave = NOISE[:, 0] / np.float32(32768)
    np.testing.assert_array_equal(waveform(pack(wave, 8000), 8000, 10**6), wave)
    assert (waveform(pack(wave, 8000), 8000, 100) == wave[:100]).all()


def test_what_is_longer_is_told_by_the_header():
    for content in (encoded(), pack(NOISE[:, 0], 8000)):
        assert is_longer(content, 8000, 23999)
        assert not is_longer(content, 8000, 24000)
        assert is_longer(content, 16000, 47999)
        assert not is_longer(content, 16000, 48000)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"a text, really", "Format not recognised.*first bytes, b'a text, real"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"\0\0\0 ftypM4A \0\0\0\0", "a sound in an MP4 file"),
        (b"%PDF-1.7", "a PDF document$"),
        (encoded()[:30], "has 30 bytes, and 96,044 by its header .cut off"),
        (encoded(kind="FLAC")[:30], "libsndfile cannot read it"),
        (encoded(NOISE[:0]), "no values and lasts 0 seconds"),
        (encoded(np.array([0.1, np.nan]), subtype="FLOAT"), "NaN or infinite"),
        (encoded(np.array([0.1, np.inf]), subtype="FLOAT"), "NaN or infinite"),
        (encoded(rate=767_999), "767,999 Hz cannot be converted.*16000 to 767999"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_a_reason(content, why):
    with pytest.raises(ValueError, match=why) as caught:
        waveform(content, 16000, 16000)
    assert "BytesIO" not in str(caught.value)


def test_a_wav_file_that_was_cut_off_is_refused():
    data = encoded()
    for length in (len(data) // 2, len(data) - 2):
        with pytest.raises(ValueError, match="by its header .cut off"):
            waveform(data[:length], 8000, 100)
    # The byte that makes the size even may be missing, and a size may be unknown.
    whole = waveform(data, 8000, 10**6)
    assert len(waveform(data[:-1], 8000, 10**6)) >= len(whole) - 1
    for size in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"):
        streamed = data[:4] + size + data[8:]
        np.testing.assert_array_equal(waveform(streamed, 8000, 10**6), whole)


def test_memory_is_not_allocated_as_a_header_demands(monkeypatch):
    monkeypatch.setattr(_sound_files, "_MOST_VALUES", 20_000)
    assert len(waveform(encoded(), 8000, 9_000)) == 9_000
    with pytest.raises(ValueError, match="24,000.*2 channels.*shorter max_length"):
        waveform(encoded(), 8000, 30_000)


def test_without_soundfile_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"pip install 'sktransfer\[sound\]'"):
        waveform(encoded(), 8000, 100)
    assert len(waveform(pack(NOISE[:, 0], 8000), 8000, 100)) == 100
