"""The network that comes with the package."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import mobilenet_v2

from sktransfer import (
    PretrainedFeatureExtractor,
    WeightsMismatchError,
    load_backbone,
)
from sktransfer.backbones import _load, _tiny
from sktransfer.backbones._tiny import N_FEATURES, WEIGHTS, tiny


def flops(network, side):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side))
    return counter.get_total_flops()


def test_it_is_a_fifteenth_of_mobilenet_and_fits_in_four_megabytes():
    assert 15 * flops(tiny(), 64) <= flops(mobilenet_v2().features, 224)
    assert WEIGHTS[0].stat().st_size <= 4e6


def test_its_weights_are_used_in_single_precision():
    backbone = load_backbone("tiny")
    assert backbone.n_features == N_FEATURES
    floats = [t for t in backbone.stages.state_dict().values() if t.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float32}
    assert backbone.digest != load_backbone("tiny", weights=None).digest


def test_a_spoiled_file_is_refused(tmp_path, monkeypatch):
    data = bytearray(WEIGHTS[0].read_bytes())
    data[-1] ^= 1
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(data)
    monkeypatch.setattr(_tiny, "WEIGHTS", (path, WEIGHTS[1]))
    _load._load_named.cache_clear()
    with pytest.raises(WeightsMismatchError, match="was demanded"):
        load_backbone("tiny")


@pytest.mark.slow
def test_another_process_gives_equal_embeddings():
    code = """
import hashlib, numpy, torch
from sktransfer import PretrainedFeatureExtractor
images = numpy.random.default_rng(0).integers(0, 256, (40, 70, 90, 3), numpy.uint8)
found = PretrainedFeatureExtractor(device="cpu").transform(images)
print(hashlib.sha256(found.tobytes()).hexdigest())
"""
    images = np.random.default_rng(0).integers(0, 256, (40, 70, 90, 3), np.uint8)
    found = PretrainedFeatureExtractor(device="cpu", cache=None).transform(images)
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.stdout.strip() == hashlib.sha256(found.tobytes()).hexdigest()


def test_it_tells_patches_of_photographs_apart_by_ten_labels():
    photos = load_sample_images().images
    corners = [(i, j) for i in range(0, 416, 32) for j in range(0, 608, 32)]
    patches = [p[i : i + 32, j : j + 32] for p in photos for i, j in corners]
    y = np.repeat([0, 1], len(corners))
    folds = StratifiedShuffleSplit(5, train_size=20, test_size=400, random_state=0)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))

    def accuracy(weights):
        extractor = PretrainedFeatureExtractor(weights=weights, cache=None)
        features = extractor.fit_transform(patches)
        return cross_val_score(probe, features, y, cv=folds).mean()

    assert accuracy("default") > 0.94
    assert accuracy("default") > accuracy(None) + 0.02
