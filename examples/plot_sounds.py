"""
Sounds: what the loudness of bands does not tell
================================================

A small network is trained on the spectrograms of one task, and serves another that has
forty labels. Beside it stands what needs no network: how loud a sound is in each band.
"""

# %%
# Sounds of half a second, made by formulas. The source task has five kinds, at random
# pitches and in noise: tones, rising and falling chirps, trills and hiss.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torch import nn

from sktransfer import Backbone, FineTuneClassifier, SpectrogramReader, transfer_report

RATE, SECONDS = 16_000, 0.5
time = np.linspace(0, SECONDS, int(RATE * SECONDS))
rng = np.random.default_rng(0)


def sound(octaves):
    """A tone at a random pitch that moves by so many octaves, with noise."""
    pitch = 300 * 2 ** (rng.uniform(0, 2.5) + octaves)
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
    wave += rng.uniform(0.02, 0.2) * rng.normal(size=len(time))
    return np.clip(wave, -1, 1).astype(np.float32)


SHAPES = {
    "tone": lambda: np.zeros(len(time)),
    "rising": lambda: rng.uniform(0.6, 2) * time,
    "falling": lambda: rng.uniform(0.6, 2) * (SECONDS - time),
    "trill": lambda: 0.3 * np.sin(2 * np.pi * rng.uniform(5, 12) * time),
    "hiss": lambda: 3 * rng.normal(size=len(time)),
}
kinds = rng.choice([*SHAPES], 600)
source_sounds = [sound(SHAPES[kind]()) for kind in kinds]

# %%
# In the target task, a sound glides from one note to another, up or down. Both kinds
# have the same notes for the same time; only their order differs.


def glide(direction):
    octaves = rng.uniform(0.3, 1) / (1 + np.exp((SECONDS / 2 - time) / 0.03))
    return sound(octaves if direction == "up" else octaves[::-1])


y = rng.choice(["up", "down"], 240)
sounds = [glide(direction) for direction in y]
shown = {kind: source_sounds[[*kinds].index(kind)] for kind in ("rising", "trill")}
shown |= {f"glide {way}": sounds[[*y].index(way)] for way in ("up", "down")}
figure, axes = plt.subplots(1, 4, figsize=(8, 2.2), sharey=True, layout="constrained")
for ax, (name, wave) in zip(axes, shown.items(), strict=True):
    ax.specgram(wave, NFFT=512, Fs=RATE, noverlap=256, vmin=-90)
    ax.set(title=name, xlabel="seconds", ylim=(0, 4000))
axes[0].set_ylabel("Hz")
plt.show()

# %%
# A backbone of sounds is a row of stages and a reader: here the log-mel spectrograms
# that Whisper takes, and convolutions that are trained on the source task. Arrays need
# a sampling rate; files have their own. A pretrained encoder comes with its reader:
# ``"hf/<folder>"`` or ``"hf/<name>"``.


def block(n_in, n_out):
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()
    )


torch.manual_seed(0)
network = nn.Sequential(
    nn.Sequential(nn.Unflatten(1, (1, 80)), block(1, 16)),
    *[block(16, 24), block(24, 32)],
    nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
)
reader = SpectrogramReader(max_length=SECONDS, array_rate=RATE)
source = FineTuneClassifier(
    Backbone(network, reader, name="chirps"),
    weights=None,
    lr=1e-2,
    backbone_lr_mult=1.0,
    max_epochs=8,
    random_state=0,
)
source.fit(source_sounds, kinds)
print(f"source task, training sounds: {source.score(source_sounds, kinds):.3f}")

# %%
# The target task with forty labels, in four random choices of them. The mean and the
# standard deviation of each band over time are the same for both kinds, so that no
# linear model of them can tell the two apart; where the order of things does not
# matter, they are hard to beat. From scratch, forty labels do not show the network what
# a slope is. The network of the source task knows it.

model = FineTuneClassifier(
    source, freeze=-2, max_epochs=10, batch_size=8, random_state=0
)
folds = StratifiedShuffleSplit(4, train_size=40, random_state=0)
transfer_report(model, sounds, y, cv=folds)
