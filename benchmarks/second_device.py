"""What runs on a device, run on a second one and on the CPU: where they differ.

    PJRT_DEVICE=CPU python -m benchmarks.second_device [DEVICE] [--only WORD ...]

A tensor on the wrong device is an error wherever there are two devices. The device
"xla" of torch_xla is one that computes on a CPU, so that no GPU is needed. Prints the
largest difference of each case, and ends with status 1 if one fails or is beyond its
bound.
"""

import argparse
import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import torch

# Before scikit-learn is imported, whose array API dispatch asks for it.
os.environ["SCIPY_ARRAY_API"] = "1"
from sklearn import config_context
from torch import nn

from benchmarks.side_by_side import print_machine, print_table
from sktransfer import (
    Backbone,
    BackboneSelector,
    EmbeddingCache,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
    load,
    load_backbone,
    rank_backbones,
    save,
)
from sktransfer.datasets import find_duplicates
from sktransfer.inputs._images import ImageReader

# All are parts of what the rows differ by. Where nothing is trained:
COMPUTED = 1e-5
# Of predictions after training: optimizers divide by gradients, and thereby enlarge the
# rounding errors of small ones. Found on XLA: up to 2.8e-2, mostly below 5e-3.
TRAINED = 3e-2
# In bfloat16, which has 8 bits, beside float32 on the CPU.
COMPUTED_LOW, TRAINED_LOW = 0.03, 0.15
# Of the accuracy, where devices draw different random numbers, as for dropout.
RANDOM = 0.15

SIDE = 40
COLOURS = np.array(["blue", "green", "red"])


def make_images(n, seed):
    """Make noisy images, and tell which colour there is more of."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    shades = 110 + 40 * np.eye(3)[2 - codes]
    X = rng.normal(shades[:, None, None], 60, (n, SIDE, SIDE, 3))
    return np.clip(X, 0, 255).astype(np.uint8), COLOURS[codes]


X, Y = make_images(36, 0)
X_TEST, Y_TEST = make_images(24, 1)
REDNESS = X[..., 0].mean((1, 2)) / 50


def small_network(norm):
    """Make a network that a compiler is soon done with."""

    def stage(n_in, n_out, stride):
        convolution = nn.Conv2d(n_in, n_out, 3, stride, padding=1)
        return nn.Sequential(convolution, norm(n_out), nn.ReLU())

    torch.manual_seed(0)
    stages = OrderedDict(
        stem=stage(3, 8, 2),
        layer1=stage(8, 12, 2),
        layer2=stage(12, 16, 1),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    reader = ImageReader(resize=SIDE, crop=SIDE)
    return Backbone(nn.Sequential(stages), reader, name="small")


# torch_xla 2.9 has no gradient of batch norms that keep their statistics, as those of a
# pretrained network do here; only a training from scratch has others.
SMALL = small_network(partial(nn.GroupNorm, 2))
TRAINING = {
    "backbone": SMALL,
    "max_epochs": 3,
    "batch_size": 18,
    "lr": 0.02,
    # XLA compiles each step again, of Adam and of another learning rate.
    "lr_schedule": "constant",
    "random_state": 0,
    "cache": None,
}


def extract(device, **params):
    params = {"cache": None, **params}
    extractor = PretrainedFeatureExtractor(device=device, **params)
    return extractor.fit(X).transform(X)


def encode(device):
    """Embed with a transformer, whose outputs are sequences."""
    backbone = load_backbone("vit_b_32", weights=None, random_state=0)
    return extract(device, backbone=backbone, stage=backbone.stage_names[-2])


def extract_by_way_of_cache(device):
    """Embed from outputs of an earlier stage that are stored."""
    cache = EmbeddingCache()
    extract(device, stage="layer2", cache=cache)
    return extract(device, cache=cache)


def tensors(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def extract_tensors(device):
    """Embed tensors to tensors that stay on the device."""
    extractor = PretrainedFeatureExtractor(device=device, cache=EmbeddingCache())
    with config_context(array_api_dispatch=True):
        extractor.fit(tensors(X)).transform(tensors(X[:7]))
        found = extractor.transform(tensors(X))
    assert found.device.type == torch.device(device).type, found.device
    return found.cpu().numpy()


def duplicates(device):
    noisy = np.clip(
        X[:5] + np.random.default_rng(0).integers(-2, 3, X[:5].shape), 0, 255
    )
    both = [*X, *noisy.astype(np.uint8)]
    return find_duplicates(both, device=device, cache=None)


def rank(device):
    table = rank_backbones(X, Y, ["tiny"], device=device, cache=None)
    return np.array([row["logme"] for row in table], dtype=float)


def select(device):
    selector = BackboneSelector(["tiny"], device=device, cache=None)
    return selector.fit(X, Y).transform(X)


def train(device, **params):
    model = FineTuneClassifier(device=device, **{**TRAINING, **params})
    return model.fit(X, Y)


def fit(device, **params):
    return train(device, **params).predict_proba(X_TEST)


def fit_with_chance(device, **params):
    """Only the accuracy is the same, where each device draws its own random numbers."""
    return np.array([train(device, **params).score(X_TEST, Y_TEST)])


def fit_tensors(device):
    """Fit and predict tensors under array API dispatch."""
    codes = torch.from_numpy(COLOURS.searchsorted(Y))
    with config_context(array_api_dispatch=True):
        model = FineTuneClassifier(device=device, freeze=2, **TRAINING)
        model.fit(tensors(X), codes)
        proba = model.predict_proba(tensors(X_TEST))
        model.predict(tensors(X_TEST))
    assert proba.device.type == torch.device(device).type, proba.device
    return proba.cpu().numpy()


def distil(device):
    teacher = train(device, freeze="all")
    return fit(device, freeze=2, teacher=teacher)


def fit_in_parts(device, **params):
    model = FineTuneClassifier(device=device, **{**TRAINING, **params})
    for part in (slice(0, 20), slice(20, None), slice(0, 20)):
        model.partial_fit(X[part], Y[part], classes=COLOURS)
    return model.predict_proba(X_TEST)


def fit_again(device):
    model = train(device, freeze=2, warm_start=True)
    return model.set_params(max_epochs=1).fit(X, Y).predict_proba(X_TEST)


def fit_multilabel(device):
    labels = np.column_stack([Y == "red", Y != "blue"]).astype(int)
    model = FineTuneClassifier(
        device=device, freeze=2, class_weight="balanced", **TRAINING
    )
    return np.asarray(model.fit(X, labels).predict_proba(X_TEST))


def fit_regressor(device, **params):
    model = FineTuneRegressor(device=device, **{**TRAINING, **params})
    return model.fit(X, REDNESS).predict(X_TEST)


def save_and_load(device):
    """Predict on the CPU with a saved model, and on the device after that."""
    # "tiny" has batch norms, which torch_xla cannot train.
    model = train(device, backbone="tiny", freeze="all", hidden_layer_sizes=(8,))
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder, "model"))
        loaded = load(Path(folder, "model"))
    here = loaded.set_params(device="cpu").predict_proba(X_TEST)
    there = loaded.set_params(device=device).predict_proba(X_TEST)
    return np.concatenate([here, there])


def pickled(device):
    model = pickle.loads(pickle.dumps(train(device, freeze=2)))
    there = model.predict_proba(X_TEST)
    here = model.set_params(device="cpu").predict_proba(X_TEST)
    more = model.set_params(device=device, warm_start=True, max_epochs=1).fit(X, Y)
    return np.concatenate([there, here, more.predict_proba(X_TEST)])


def cases() -> dict:
    """Return the cases by name: a function of the device, and its bound."""
    low = {"precision": "bfloat16"}
    rare = {"class_weight": {"blue": 3.0, "green": 1.0, "red": 0.5}}
    stop = {"early_stopping": True, "validation_fraction": 0.3, "max_epochs": 4}
    computed = {
        "extract: tiny": extract,
        "extract: a middle stage, avgmax": partial(
            extract, stage="layer2", pooling="avgmax"
        ),
        "extract: mobilenet_v3_small": partial(
            extract,
            backbone="mobilenet_v3_small",
            weights=None,
            random_state=0,
            image_size=64,
        ),
        "extract: vit_b_32": encode,
        "extract: from a stored stage": extract_by_way_of_cache,
        "extract: tensors": extract_tensors,
        "find_duplicates": duplicates,
        "rank_backbones": rank,
        "BackboneSelector": select,
    }
    trained = {
        **{f"fit: freeze={depth}": partial(fit, freeze=depth) for depth in range(4)},
        "fit: freeze='all', solved": partial(fit, freeze="all"),
        "fit: freeze='all', trained": partial(fit, freeze="all", solve_head=False),
        "fit: hidden layer": partial(fit, freeze="all", hidden_layer_sizes=(8,)),
        "fit: from scratch": partial(
            fit, backbone=small_network(nn.BatchNorm2d), weights=None
        ),
        "fit: norms alone": partial(fit, train_only="norms"),
        "fit: sgd, one-cycle": partial(
            fit, freeze=2, optimizer="sgd", lr_schedule="one-cycle", max_epochs=2
        ),
        "fit: an optimizer class": partial(fit, optimizer=torch.optim.Adam, freeze=2),
        "fit: augment='light'": partial(fit, augment="light", freeze=2),
        "fit: augment='strong'": partial(fit, augment="strong"),
        "fit: teacher": distil,
        "fit: l2_sp": partial(fit, l2_sp=0.1, freeze=1),
        "fit: unfreeze_every=1": partial(fit, unfreeze_every=1),
        "fit: early stopping": partial(fit, freeze=2, **stop),
        "fit: class_weight": partial(fit, freeze=2, **rare),
        "fit: multilabel": fit_multilabel,
        "fit: tensors": fit_tensors,
        "fit: warm start": fit_again,
        "partial_fit": partial(fit_in_parts, freeze=2),
        "partial_fit: head": partial(fit_in_parts, freeze="all"),
        "regressor": partial(fit_regressor, freeze=2),
        "regressor: freeze='all'": partial(fit_regressor, freeze="all"),
        "save, load": save_and_load,
        "pickle": pickled,
    }
    return {
        **{name: (case, COMPUTED) for name, case in computed.items()},
        **{name: (case, TRAINED) for name, case in trained.items()},
        "extract: bfloat16": (partial(extract, **low), COMPUTED_LOW),
        "fit: bfloat16": (partial(fit, freeze=2, **low), TRAINED_LOW),
        "fit: bfloat16, all": (partial(fit, **low), TRAINED_LOW),
        "fit: dropout": (partial(fit_with_chance, freeze=2, dropout=0.3), RANDOM),
    }


def on_cpu(case):
    """Run a case on the CPU, in float32, which every CPU has instructions for."""
    if isinstance(case, partial):
        kept = {k: v for k, v in case.keywords.items() if k != "precision"}
        case = partial(case.func, **kept)
    return case("cpu")


def compare(case, device) -> float:
    """Return the largest difference as a part of what the rows differ by on the CPU."""
    ours, theirs = np.asarray(on_cpu(case)), np.asarray(case(device))
    if ours.shape != theirs.shape:
        raise ValueError(f"shape {theirs.shape} rather than {ours.shape}")
    # Of a single row, the values themselves. Where all rows have the same, nothing was
    # learnt that could differ.
    apart = np.ptp(ours, axis=0).max() if len(ours) > 1 else np.abs(ours).max()
    return float(np.abs(ours - theirs).max() / apart)


def run_here(name: str, device: str) -> None:
    """Print the difference of a case, in this process."""
    warnings.simplefilter("ignore")
    # Before anything is trained on the CPU, when autograd counts the devices.
    torch.zeros(1, device=device)
    print(compare(cases()[name][0], device))


def run(name: str, device: str) -> float | None:
    """Return the difference of a case, or None if it failed."""
    # Each has its own process: one that ends must not end the others, and XLA keeps
    # what it has compiled, until the system has no more memory areas for it.
    script = [sys.executable, "-m", "benchmarks.second_device", device]
    done = subprocess.run([*script, "--here", name], stdout=subprocess.PIPE, text=True)
    return None if done.returncode else float(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("device", nargs="?", default="xla")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="cases whose name contains one of these"
    )
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if torch.device(options.device).type == "xla":
        # torch knows the device, but only this makes it one that computes.
        importlib.import_module("torch_xla")
    if options.here:
        run_here(options.here, options.device)
        return 0
    print_machine(options.device)
    rows, failed = [], 0
    for name, (_, bound) in cases().items():
        if not any(word in name for word in options.only):
            continue
        begin = time.perf_counter()
        found = run(name, options.device)
        good = found is not None and found <= bound
        failed += not good
        seconds = time.perf_counter() - begin
        verdict = "none" if found is None else f"{found:.1e}"
        rows.append([name, verdict, bound, "" if good else "FAILED", f"{seconds:.0f}"])
        print(*rows[-1], file=sys.stderr, flush=True)
    print_table(["case", "difference", "bound", "", "seconds"], rows)
    print(f"\n{len(rows)} cases, {failed} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
