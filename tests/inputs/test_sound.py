import io
import json
import os

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from scipy.io import wavfile
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sktransfer import (
    Backbone,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    load,
    save,
)
from sktransfer.backbones import _load
from sktransfer.datasets import list_sounds
from sktransfer.inputs._reader import Samples
from sktransfer.inputs._sound import (
    SpectrogramReader,
    StatisticsReader,
    WaveReader,
    sound_reader,
)

RATE = 8000
WHISPER = {"feature_extractor_type": "WhisperFeatureExtractor"}
AST = {"feature_extractor_type": "ASTFeatureExtractor"}
WAVE = {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
READERS = [
    WaveReader(max_length=0.5, shortest=400),
    SpectrogramReader(max_length=0.5, bands=20),
    SpectrogramReader(max_length=0.5, recipe="ast", bands=20, mean=-4.0, std=9.0),
    StatisticsReader(max_length=0.5, bands=20),
]


def noise(n, seed=0):
    values = np.random.default_rng(seed).normal(size=n) * np.linspace(1, 0.1, n)
    return (3000 * values).astype(np.int16)


def encoded(values, rate=RATE, kind="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, values, rate, format=kind, subtype=subtype)
    return file.getvalue()


def extractor(reader=READERS[3], **parameters):
    stages = nn.Sequential(nn.Flatten())
    return PretrainedFeatureExtractor(
        Backbone(stages, reader, name="bands"), cache=None, **parameters
    )


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: type(reader).__name__)
def test_the_same_sound_gives_the_same_input_in_any_form(reader, tmp_path):
    values = noise(3000)
    path = tmp_path / "a.wav"
    wavfile.write(path, RATE, values)
    floats = values / 32768
    forms = [
        path.read_bytes(),
        encoded(values, kind="FLAC"),
        wavfile.read(path),
        soundfile.read(path),
        (RATE, values[:, None]),
        (RATE, np.stack([values, values])),
        (RATE, np.stack([values, values], axis=1)),
        (RATE, values.astype(np.int32) * 65536),
        (float(RATE), floats.astype(np.float32)),
        (RATE, torch.from_numpy(floats)),
        {"array": floats, "sampling_rate": RATE, "path": "a.wav"},
    ]
    expected = reader.read(reader.content(str(path)))
    for sample in forms:
        assert torch.equal(reader.read(reader.content(sample)), expected)
    at_rate = reader.at_rate(RATE)
    for sample in (values, torch.from_numpy(values), pd.Series(values)):
        assert torch.equal(at_rate.read(at_rate.content(sample)), expected)
    assert at_rate.cause() == reader.cause()


@pytest.mark.parametrize(
    ("values", "subtype"), [(noise(900) // 256, "PCM_U8"), (noise(900), "FLOAT")]
)
def test_bytes_and_floats_are_scaled_as_in_a_file(values, subtype, tmp_path):
    values = (values + 128).astype(np.uint8) if subtype == "PCM_U8" else values / 32768
    path = tmp_path / "a.wav"
    wavfile.write(path, RATE, values)
    assert soundfile.info(path).subtype in (subtype, "DOUBLE")
    reader = WaveReader()
    drafts = [reader.draft(reader.content(form)) for form in (path, (RATE, values))]
    assert torch.equal(*drafts)


def test_channels_are_averaged():
    reader = WaveReader(sampling_rate=RATE)
    stereo = np.stack([noise(900), noise(900, 1)])
    (found,) = {tuple(reader.content((RATE, x))) for x in (stereo, stereo.T)}
    expected = (stereo / 32768).mean(0)
    np.testing.assert_allclose(reader.draft(bytes(found)), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("sample", "why"),
    [
        (None, "it is missing: None"),
        (float("nan"), "it is missing"),
        (noise(9), "without a sampling rate: set sampling_rate=, or pass .rate, array"),
        ([0.1, 0.2], "of type list"),
        ((RATE, [0.1, 0.2]), "of type list"),
        ((RATE, noise(9).astype(np.int64)), r"dtype int64.*astype\(np.int16\)"),
        (
            (RATE, noise(9).astype(float)),
            "up to 1488.*divide values of 16",
        ),
        ((RATE, np.zeros(0)), "empty array"),
        ((RATE, np.zeros((0, 2))), "empty array"),
        ((RATE, np.zeros((80, 300))), r"shape \(300, 80\).*at most 64 channels"),
        ((RATE, np.zeros((2, 2, 2))), "array of shape"),
        ((RATE, np.full(9, np.nan)), "NaN or infinite"),
        ((RATE, np.full(9, 1e300)), "NaN or infinite"),
        ((0, noise(9)), "sampling rate is 0, which"),
        ((22050.5, noise(9)), "sampling rate is 22050.5"),
        ({"array": noise(9)}, "without the key 'sampling_rate'"),
        ("", "the path is empty"),
        ("https://example.org/a.wav", "URL"),
        ("no.wav", "No such file"),
        (os.curdir, "folder.*list_sounds, or with load_sound_folder"),
        (b"RIFF", "libsndfile cannot read it"),
    ],
)
def test_what_is_no_sound_is_refused_by_row(sample, why):
    X = [(RATE, noise(900)), sample]
    with pytest.raises(ValueError, match=rf"sound in row 1\b.*{why}"):
        extractor().transform(X)
    with pytest.warns(UserWarning, match="1 of 2 sounds cannot be read"):
        Z = extractor(on_error="nan").transform(X)
    assert np.isnan(Z).all(axis=1).tolist() == [False, True]


def test_sounds_come_in_any_container(tmp_path):
    sounds = [(RATE, noise(900, seed)) for seed in range(3)]
    expected = extractor().transform(sounds)
    column = np.empty(3, dtype=object)
    column[:] = sounds
    for X in (
        tuple(sounds),
        column,
        column[:, None],
        pd.Series(column),
        pd.DataFrame({"sound": column}),
    ):
        np.testing.assert_array_equal(extractor().transform(X), expected)
    arrays = [values for _, values in sounds]
    objects = pd.Series(arrays)
    stack = np.stack(arrays)
    for X in (arrays, objects, stack, torch.from_numpy(stack), stack[:, None]):
        found = extractor(sampling_rate=RATE).transform(X)
        np.testing.assert_array_equal(found, expected)
    ragged = [noise(900), noise(500)]
    assert extractor(sampling_rate=RATE).transform(ragged).shape == (2, 40)


@pytest.mark.parametrize(
    ("X", "why"),
    [
        ("a.wav", "single sound .str"),
        (b"RIFF", "single sound"),
        ((RATE, noise(9)), "single sound .tuple"),
        ((noise(9), RATE), "single sound"),
        ({"array": noise(9), "sampling_rate": RATE}, "single sound .dict"),
        (os.curdir, "folder.*list_sounds"),
        ([], "Found 0 sounds"),
        (object(), "of type object"),
        (noise(9), "contains single numbers"),
        ([0.1, 0.2], "contains single numbers"),
        (np.array([["a.wav", "b.wav"]], dtype=object), "2 columns"),
        (noise(8).reshape(2, 4), "sampling_rate=None.*table of numbers"),
    ],
)
def test_what_is_no_list_of_sounds_is_refused(X, why):
    with pytest.raises(ValueError, match=why):
        extractor().transform(X)


def test_rows_of_a_table_are_sounds():
    model = extractor(sampling_rate=RATE)
    table = np.stack([noise(900), noise(900, 1)])
    expected = extractor().transform([(RATE, row) for row in table])
    np.testing.assert_array_equal(model.transform(table), expected)
    floats = table / np.abs(table).max(axis=1, keepdims=True)
    np.testing.assert_array_equal(model.transform(floats), model.transform(5.0 * table))
    found = model.transform(floats.tolist())
    np.testing.assert_array_equal(found, model.transform(floats))


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: type(reader).__name__)
def test_inputs_have_the_length_that_is_set(reader):
    long, short = ((RATE, noise(n)) for n in (9000, 700))
    assert [reader.is_cut(reader.content(x)) for x in (long, short)] == [True, False]
    examples = reader.example(2)
    assert examples.dtype == torch.float32
    sizes = {}
    for sample in (long, short):
        content = reader.content(sample)
        x = reader.read(content)
        assert x.dtype == torch.float32
        assert torch.equal(x, reader.finish(reader.draft(content)))
        sizes[len(x)] = reader.size_of(content)
    if isinstance(reader, WaveReader):
        assert sizes == {8000: (8000,), 1400: (1400,)}
    else:
        assert examples.shape[1:] == x.shape
        assert {*sizes.values()} == {()}
    assert reader.resized_to(1).size == 1.0
    assert str(reader.resized_to(1)) == "1.0 seconds at 16,000 Hz"


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: type(reader).__name__)
def test_silence_and_the_shortest_sounds_are_legal(reader):
    for values in (np.zeros(5000), noise(1), np.zeros(1)):
        assert reader.read(reader.content((RATE, values))).isfinite().all()


def test_a_draft_may_be_augmented():
    reader = READERS[0]
    draft = reader.draft(reader.content((RATE, noise(900))))
    louder = reader.augmentation(lambda wave: wave.mul_(2).repeat(9))
    assert torch.equal(louder(draft)[:1800], 2 * draft)
    assert len(reader.finish(louder(draft))) == 8000
    assert reader.augmentation(None) is None
    with pytest.raises(ValueError, match="takes one waveform.*arguments are .a, b."):
        reader.augmentation(lambda a, b: a)
    with pytest.raises(ValueError, match="augment='mild'.*a waveform"):
        reader.augmentation("mild")
    for wrong in (lambda wave: None, lambda wave: wave[None], lambda wave: wave[:0]):
        with pytest.raises(ValueError, match="expected it to return a waveform"):
            reader.augmentation(wrong)(draft)


@pytest.mark.parametrize("size", [0, -1, "1", True, float("nan"), float("inf")])
def test_a_length_is_a_positive_number_of_seconds(size):
    for reader in READERS:
        with pytest.raises(ValueError, match="Invalid max_length=.*seconds"):
            reader.check_size(size)


def test_no_length_is_set_that_a_network_has_no_positions_for():
    whisper = sound_reader(WHISPER, {"max_source_positions": 100})
    assert whisper.size == 2.0
    whisper.check_size(0.5)
    for size in (0.01, 2.5):
        with pytest.raises(ValueError, match="from 0.02 to 2.0 seconds"):
            whisper.check_size(size)
    with pytest.raises(ValueError, match="from 0.16 to 10.24 seconds"):
        sound_reader(AST, {}).check_size(0.1)


@pytest.mark.parametrize("rate", [0, -8000, 8000.5, "8000", True])
def test_a_sampling_rate_is_a_positive_integer(rate):
    with pytest.raises(ValueError, match="Invalid sampling_rate="):
        READERS[0].at_rate(rate)


@pytest.mark.parametrize("seconds", [None, 1.0, 0.5])
def test_features_are_those_of_whisper(seconds):
    extract = pytest.importorskip("transformers").WhisperFeatureExtractor()
    reader = sound_reader(json.loads(extract.to_json_string()), {})
    assert reader.size == 30.0
    reader = reader if seconds is None else reader.resized_to(seconds)
    for n in (3000, 20_000):
        wave = noise(n) / np.float32(32768)
        theirs = extract(
            wave, sampling_rate=16000, max_length=reader.length, return_tensors="pt"
        )
        ours = reader.read(reader.content((16000, wave)))
        assert ours.shape == (80, round(100 * reader.size))
        torch.testing.assert_close(ours, theirs.input_features[0], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("do_normalize", [True, False])
def test_features_are_those_of_ast(do_normalize):
    transformers = pytest.importorskip("transformers")
    extract = transformers.ASTFeatureExtractor(do_normalize=do_normalize)
    reader = sound_reader(json.loads(extract.to_json_string()), {})
    assert reader.size == 10.24
    for n in (400, 20_000, 200_000):
        wave = noise(n) / np.float32(32768)
        theirs = extract(wave, sampling_rate=16000, return_tensors="pt").input_values[0]
        ours = reader.read(reader.content((16000, wave)))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    # A window of another length has the same frames.
    short = reader.resized_to(1.6).read(reader.content((16000, wave)))
    assert torch.equal(short, ours[:160])


@pytest.mark.parametrize("do_normalize", [True, False])
def test_waveforms_are_those_of_wav2vec2(do_normalize):
    transformers = pytest.importorskip("transformers")
    extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    config = transformers.Wav2Vec2Config()
    reader = sound_reader(json.loads(extract.to_json_string()), config.to_dict())
    assert (reader.shortest, reader.size) == (400, 30.0)
    wave = noise(3000) / np.float32(32768)
    theirs = extract(wave, sampling_rate=16000, return_tensors="pt").input_values[0]
    ours = reader.read(reader.content((16000, wave)))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    # The shortest sound that gives one output.
    shortest = reader.read(reader.content((16000, wave[:99])))
    assert len(shortest) == 400
    assert (shortest[99:] == 0).all()


@pytest.mark.parametrize("name", [None, "SeamlessM4TFeatureExtractor"])
def test_other_features_are_refused_by_name(name):
    config = {} if name is None else {"feature_extractor_type": name}
    with pytest.raises(ValueError, match=f"feature_extractor_type={name!r}.*Whisper"):
        sound_reader(config, {})


def test_waveforms_are_stacked_with_nan():
    reader = WaveReader()
    rows = [reader.read(reader.content((16000, noise(n)))) for n in (5, 3)]
    batch = reader.stack(rows)
    assert batch.isnan().sum(1).tolist() == [0, 2]


def test_files_are_named_and_soundfile_asked_for(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    wavfile.write(good, RATE, noise(900))
    bad.write_text("no sound at all")
    with pytest.raises(ValueError, match=r"row 1 \('.*bad.wav'\): .*recognised"):
        extractor().transform([str(good), str(bad)])
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"pip install 'sktransfer\[sound\]'"):
        extractor().transform([good])
    assert extractor().transform([(RATE, noise(900))]).shape == (1, 40)
    assert "no soundfile" in READERS[0].cause()


class Envelope(nn.Module):
    """Loudness in frames of 400 values, (n, n_frames, 2)."""

    def forward(self, x):
        frames = x[:, : x.shape[1] // 400 * 400].reshape(len(x), -1, 400)
        return torch.stack([frames.abs().mean(2), frames.diff().abs().mean(2)], dim=2)


class Means(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x.nanmean(1) * self.scale


def tones(n):
    """Low and high tones of different lengths."""
    high = np.arange(n) % 2
    times = [np.arange(900 + 40 * (i % 5)) / RATE for i in range(n)]
    hz = [400 + 900 * kind + 9 * i for i, kind in enumerate(high)]
    waves = [np.sin(2 * np.pi * h * t) for h, t in zip(hz, times, strict=True)]
    return [(RATE, wave) for wave in waves], high


@pytest.fixture
def envelopes(monkeypatch):
    """The name of a network of sounds."""

    def make():
        return Backbone(nn.Sequential(Envelope(), Means()), WaveReader(shortest=400))

    monkeypatch.setattr(_load, "_registered", {"envelopes": make})
    return "envelopes"


@pytest.mark.filterwarnings("ignore:.* sounds are longer than 0.115 seconds")
def test_a_sound_does_not_depend_on_its_neighbours(envelopes):
    X, _ = tones(12)
    model = PretrainedFeatureExtractor(envelopes, cache=None, batch_size=4)
    Z = model.transform(X)
    assert np.isfinite(Z).all()
    np.testing.assert_array_equal(model.transform(X[::-1])[::-1], Z)
    np.testing.assert_array_equal([model.transform([x])[0] for x in X], Z)
    shorter = model.set_params(max_length=0.115).transform(X)
    first = [(RATE, wave[:920]) for _, wave in X]
    np.testing.assert_allclose(shorter, model.transform(first), atol=0.05)


def test_a_model_of_sounds_is_fitted_and_saved(envelopes, tmp_path):
    X, y = tones(24)
    rates = {"max_epochs": 20, "lr": 0.3, "random_state": 0}
    model = FineTuneClassifier(envelopes, freeze=1, cache=None, **rates).fit(X, y)
    assert model.score(X, y) == 1
    save(model, tmp_path / "model.sktransfer")
    again = load(tmp_path / "model.sktransfer")
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


def test_levels_of_bands_tell_spoken_digits_apart(real_data):
    paths = list_sounds(real_data / "data" / "spoken_digits")[::5]
    digits = [os.path.basename(path)[0] for path in paths]
    name, reader = SpectrogramReader(max_length=1.0).plain()
    assert name == "log-mel statistics"
    samples = Samples(paths, reader)
    features = np.stack([reader.read(samples[row]) for row in range(len(paths))])
    assert features.shape == (180, 80)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    assert (
        model.fit(features[::2], digits[::2]).score(features[1::2], digits[1::2]) > 0.8
    )


def test_sounds_that_cannot_be_read_are_left_out_of_a_fit(envelopes):
    X, y = tones(12)
    model = FineTuneClassifier(envelopes, freeze=1, max_epochs=1, random_state=0)
    expected = model.fit(X, y).predict_proba(X)
    bad, told = [b"RIFF", *X], r"1 of 13 sounds .* row 0 \(bytes\): .*libsndfile"
    with pytest.warns(UserWarning, match=told):
        model.set_params(on_error="skip").fit(bad, [0, *y])
    with pytest.warns(UserWarning, match=told):
        rows = model.set_params(on_error="nan").predict_proba(bad)
    assert np.isnan(rows[0]).all()
    np.testing.assert_array_equal(rows[1:], expected)
