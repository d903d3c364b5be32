"""Callbacks of scikit-learn 1.9: what they are told, and that they change nothing."""

import contextlib
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sktransfer import (
    BackboneSelector,
    EmbeddingCache,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
    load,
    save,
)
from sktransfer.embedding import _tasks
from tests.small_network import small_backbone
from tests.small_tasks import make_task

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn before 1.9")
X, Y = make_task()


class Recorder:
    """Writes down the tasks that it is told of, and stops where it is told to."""

    max_propagation_depth = None

    def __init__(self, stops_at=None, scores=False):
        self.told = []
        self.stops_at = stops_at
        self.scores = scores

    def setup(self, estimator, context):
        self.told.append("setup")

    def teardown(self, estimator, context):
        self.told.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.told.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator=None):
        self.told.append(f"end {context.task_name}")
        self.most = context.max_subtasks
        if self.scores and fitted_estimator is not None:
            self.told.append(fitted_estimator.predict_proba(X))
        return context.task_name == self.stops_at

    def names(self):
        return [one[4:] for one in self.told if str(one).startswith("end ")]


def extractor(**params):
    params = {"device": "cpu", "cache": None, "batch_size": 5, **params}
    return PretrainedFeatureExtractor(small_backbone(), **params)


def classifier(**params):
    params = {"freeze": 1, "max_epochs": 2, "random_state": 0, "cache": None, **params}
    return FineTuneClassifier(small_backbone(), device="cpu", **params)


def test_an_extractor_tells_of_its_batches():
    told, one = Recorder(), extractor()
    rows = one.set_callbacks(told).fit_transform(X)
    np.testing.assert_array_equal(rows, extractor().fit_transform(X))
    # 24 samples in batches of 5, of which each ends before the next begins.
    batches = ["begin batch", "end batch"] * 5
    assert told.told == [
        "setup",
        "begin fit",
        "begin embed",
        *batches,
        "end embed",
        "end fit",
        "teardown",
    ]
    told.told.clear()
    one.fit(X)
    one.transform(X)
    assert told.told == ["setup", "begin fit", "end fit", "teardown"]


def test_what_a_cache_knows_is_done_at_once():
    cache = EmbeddingCache()
    extractor(cache=cache).transform(X)
    told = Recorder()
    extractor(cache=cache).set_callbacks(told).fit_transform(X)
    assert told.names() == ["batch"] * 5 + ["embed", "fit"]


def test_many_batches_are_told_of_together(monkeypatch):
    monkeypatch.setattr(_tasks, "_MOST", 3)
    told = Recorder()
    extractor(batch_size=1).set_callbacks(told).fit_transform(X)
    assert told.names().count("batch") == 3


@pytest.mark.parametrize("workers", [None, 2])
def test_workers_are_told_of_too(workers):
    told = Recorder()
    extractor(n_jobs=workers).set_callbacks(told).fit_transform(X)
    assert told.names().count("batch") == 5


def test_a_fit_tells_of_its_epochs():
    told = Recorder()
    classifier().set_callbacks(told).fit(X, Y)
    expected = ["batch", "embed", "epoch", "train-head", "epoch", "epoch", "train"]
    assert told.names() == [*expected, "fit"]
    told = Recorder()
    classifier(freeze="all").set_callbacks(told).fit(X, Y)
    assert told.names() == ["batch", "embed", "solve", "fit"]
    told = Recorder()
    one = classifier().set_callbacks(told).partial_fit(X, Y, classes=["dark", "light"])
    one.partial_fit(X, Y)
    assert told.told[0] == "setup"
    assert told.names().count("partial-fit") == 2
    assert told.names().count("train") == 2


@pytest.mark.parametrize(
    "params",
    [
        {"freeze": 0},
        {"freeze": 1, "head_epochs": 0},
        {"freeze": 1, "augment": "light"},
        {"weights": None},
        {"early_stopping": True, "n_iter_no_change": 1, "max_epochs": 6, "lr": 1.0},
        {"freeze": "all", "solve_head": False},
    ],
    ids=str,
)
def test_callbacks_change_no_bit_of_a_fit(params):
    plain = classifier(**params).fit(X, Y)
    told = Recorder(scores=True)
    told_of = classifier(**params).set_callbacks(told).fit(X, Y)
    expected = plain.predict_proba(X)
    np.testing.assert_array_equal(told_of.predict_proba(X), expected)
    assert len(told_of.history_) == len(plain.history_)
    assert told.names().count("epoch") == len(plain.history_)
    assert "told" not in dict(told_of.net_.callbacks_)
    # The estimators at the end of the last epoch, and of the fit, predict the same.
    last, whole = [one for one in told.told if isinstance(one, np.ndarray)][-2:]
    np.testing.assert_array_equal(last, expected)
    np.testing.assert_array_equal(whole, expected)


def test_a_callback_can_stop_the_training():
    told = Recorder(stops_at="epoch")
    model = classifier(max_epochs=5).set_callbacks(told).fit(X, Y)
    assert model.n_iter_ == 1
    expected = classifier(max_epochs=5, lr_schedule="constant").fit(X, Y)
    assert expected.n_iter_ == 5
    assert told.names()[-2:] == ["train", "fit"]
    assert model.score(X, Y) > 0


def test_an_error_or_an_interrupt_ends_the_callbacks():
    class Fails(Recorder):
        def on_fit_task_end(self, estimator, context):
            if context.task_name == "epoch":
                raise KeyboardInterrupt

    told, model = Fails(), classifier()
    with pytest.raises(KeyboardInterrupt):
        model.set_callbacks(told).fit(X, Y)
    assert told.told[-1] == "teardown"
    assert not hasattr(model, "_callback_fit_ctx")
    assert not hasattr(model, "backbone_")


def test_scores_are_monitored_by_epoch():
    monitor = callback.ScoringMonitor(scoring="accuracy")
    model = classifier().set_callbacks(monitor).fit(X, Y)
    rows = monitor.get_logs().data
    assert [row["task_name"] for row in rows].count("epoch") == 3
    (fit,) = [row for row in rows if row["task_name"] == "fit"]
    assert fit["accuracy"] == model.score(X, Y)


def test_searches_and_pipelines_pass_their_callbacks_on():
    told, probe = Recorder(), make_pipeline(extractor(), LogisticRegression())
    search = GridSearchCV(probe, {"logisticregression__C": [1, 2]}, cv=2)
    search.set_callbacks(told).fit(X, Y)
    # Four folds of 12 samples and a refit of 24, in batches of 5.
    assert told.names().count("batch") == 4 * 3 + 5
    told = Recorder()
    search = GridSearchCV(classifier(), {"max_epochs": [1, 2]}, cv=2)
    search.set_callbacks(told).fit(X, Y)
    assert told.names().count("epoch") >= 4 + (1 + 1 + 2 + 2)
    told = Recorder()
    selector = BackboneSelector([small_backbone()])
    make_pipeline(selector, LogisticRegression()).set_callbacks(told).fit(X, Y)
    assert "embed" in told.names()
    regressor = FineTuneRegressor(small_backbone(), freeze="all").set_callbacks(told)
    assert regressor.fit(X, np.arange(24.0)).predict(X).shape == (24,)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_the_progress_bar_of_scikit_learn_shows_a_search(n_jobs, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "200")
    search = GridSearchCV(classifier(), {"max_epochs": [1, 2]}, cv=2, n_jobs=n_jobs)
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=None))
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        search.fit(X, Y)
    text = shown.getvalue()
    assert "FineTuneClassifier - train" in text
    assert "100%" in text


def test_callbacks_are_cloned_and_pickled_but_not_saved(tmp_path):
    told = Recorder()
    model = classifier(freeze="all").set_callbacks(told).fit(X, Y)
    assert clone(model)._skl_callbacks == [told]
    expected = model.predict_proba(X)
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(loaded.predict_proba(X), expected)
    path = tmp_path / "model.sktransfer"
    model = FineTuneClassifier(freeze="all").set_callbacks(told).fit(X, Y)
    save(model, path)
    assert not hasattr(load(path), "_skl_callbacks")


def test_a_task_is_told_of_by_no_other_process():
    told, one = Recorder(), classifier()
    task = _tasks.Task.of(one.set_callbacks(told), "fit", 1)
    told.told.clear()
    with pickle.loads(pickle.dumps(task)).subtask("part") as part:
        assert part.end() is False
    assert told.told == []


def test_older_versions_have_neither_mixin_nor_tasks():
    code = (
        "import sys\n"
        "from sklearn import ensemble, model_selection\n"
        "sys.modules['sklearn.callback'] = None\n"
        "from sktransfer.embedding import _tasks\n"
        "from sktransfer import PretrainedFeatureExtractor as E\n"
        "assert _tasks.with_callbacks(len) is len\n"
        "assert not hasattr(E(), 'set_callbacks')\n"
        "assert not _tasks.is_watched(E())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
