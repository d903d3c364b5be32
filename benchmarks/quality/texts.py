"""Reviews of films: how deep to fine-tune an encoder of texts, and what a search costs.

    python -m benchmarks.quality.texts IMDB MODEL [--parts ...] [--depths ...]

IMDB is a folder with `train.csv` and `test.csv`, whose columns are `label` and `text`.
MODEL is a folder of transformers, such as all-MiniLM-L6-v2. The first table compares a
linear model of the words, a linear probe and fine-tuned models by the test reviews; the
seconds are those of the fit. The second table is of one grid search over the freeze
depths, whose frozen stages run once for each text or within every step. With
``--layers 12`` it is of an encoder of random weights with that many layers.
"""

import argparse
import csv
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from benchmarks.side_by_side import print_machine, print_table
from sktransfer import EmbeddingCache, FineTuneClassifier, load_backbone

# From the shallow end, so that each depth starts from the states of the one before.
DEPTHS = ["layer3", "layer4", "layer5"]
TOKENS, MORE_TOKENS = 128, 256


def reviews(folder, part):
    with open(Path(folder) / f"{part}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], np.array([row["label"] for row in rows])


def words():
    """Return a linear model of the words of whole texts."""
    counted = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    linear, grid = LogisticRegression(max_iter=1000), {"C": np.logspace(-1, 3, 9)}
    return make_pipeline(counted, GridSearchCV(linear, grid, scoring="neg_log_loss"))


def row(name, model, train, test):
    """Fit a model, and return how well it does and the seconds of its fit."""
    start = time.perf_counter()
    model.fit(*train)
    seconds = time.perf_counter() - start
    found = model.predict_proba(test[0])
    right = accuracy_score(test[1], model.classes_[found.argmax(axis=1)])
    loss = log_loss(test[1], found, labels=model.classes_)
    return [name, f"{right:.3f}", f"{loss:.3f}", f"{seconds:.0f}"]


def unchanged(text):
    """Return the text: an augmentation that has the frozen stages run in each step."""
    return text


def searches(name, texts, y, depths):
    """Search the depths in both ways, and return a row for each and their scores."""
    scores, rows = [], []
    for way, settings in {
        "once for each text": {"cache": EmbeddingCache(max_bytes=2**32)},
        "within every step": {"cache": None, "augment": unchanged},
    }.items():
        backbone, count = load_backbone(name, max_length=TOKENS), [0]

        def add(module, inputs, output, count=count):
            count[0] += len(output)

        hook = backbone.inference_stages("cpu")[0].register_forward_hook(add)
        # A head that is solved would be trained in the other way, where there is
        # augmentation.
        model = FineTuneClassifier(
            backbone, max_epochs=2, solve_head=False, random_state=0, device="cpu"
        ).set_params(**settings)
        start, used = time.perf_counter(), time.process_time()
        search = GridSearchCV(model, {"freeze": depths}, cv=2, refit=False)
        scores.append(search.fit(texts, y).cv_results_["mean_test_score"])
        seconds, used = time.perf_counter() - start, time.process_time() - used
        hook.remove()
        rows.append([way, f"{seconds:.0f}", f"{used:.0f}", count[0]])
    return rows, scores


def deeper(model, layers, folder):
    """Save an encoder with another number of layers, with random weights."""
    from transformers import AutoConfig, AutoModel

    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(model, num_hidden_layers=layers)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def print_quality(name, train, test, settings):
    rows = [row("TF-IDF of whole texts", words(), train, test)]
    tuner = FineTuneClassifier(name, **settings)
    depths = ["all", *reversed(DEPTHS)]
    for freeze in depths:
        tuner.set_params(freeze=freeze, max_length=TOKENS)
        rows.append(row(f"freeze={freeze!r}, {TOKENS} tokens", tuner, train, test))
    best = max(depths, key=lambda freeze: float(rows[1 + depths.index(freeze)][1]))
    tuner.set_params(freeze=best, max_length=MORE_TOKENS)
    rows.append(row(f"freeze={best!r}, {MORE_TOKENS} tokens", tuner, train, test))
    print_table(["model", "accuracy", "log loss", "seconds"], rows)


def print_searches(name, texts, y, depths):
    rows, (once, always) = searches(name, texts, y, depths)
    head = ["frozen stages run", "seconds", "CPU seconds", "rows of the stem"]
    print_table(head, rows)
    equal = np.array_equal(once, always)
    print(f"\n{len({*texts})} distinct texts; equal scores: {equal}")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("imdb")
parser.add_argument("model")
parser.add_argument("--parts", nargs="*", default=["quality", "searches"])
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--grid-texts", type=int, default=160)
parser.add_argument("--depths", nargs="*", default=DEPTHS, help="of the searches")
parser.add_argument("--layers", type=int, help="of the encoder that is searched")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
# Most reviews are cut, which the number of tokens says.
warnings.filterwarnings("ignore", message=".*were cut")
train, test = (reviews(arguments.imdb, part) for part in ("train", "test"))
name = f"hf/{Path(arguments.model).resolve()}"
print_machine()
if "quality" in arguments.parts:
    settings = {"max_epochs": arguments.epochs, "random_state": arguments.seed}
    print_quality(name, train, test, settings)
if "searches" in arguments.parts:
    few = slice(arguments.grid_texts)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.layers:
            other = deeper(arguments.model, arguments.layers, Path(folder) / "encoder")
            name = f"hf/{other}"
        print_searches(name, train[0][few], train[1][few], arguments.depths)
