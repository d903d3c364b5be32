import copy
import pickle
import re

import numpy as np
import pytest
from joblib import wrap_non_picklable_objects
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from sktransfer import (
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    split_stages,
)
from sktransfer.embedding import _mixin
from tests.small_network import small_backbone
from tests.small_tasks import make_task


def cells(text):
    return re.findall(r"<td>(.*?)</td>", text)


def test_fitted_classifier_shows_its_stages():
    X, y = make_task()
    model = FineTuneClassifier(small_backbone(), freeze=2, max_epochs=1)
    assert "16 features" not in model._repr_html_()
    text = model.fit(X, y)._repr_html_()
    assert "embedding of 16 features" in text
    source = small_backbone()
    assert f"{source.n_parameters:,} parameters" in text
    third = sum(p.numel() for p in source.stages[2].parameters())
    assert model.n_trained_parameters_ == third + 2 * 16 + 2
    assert f"{model.n_trained_parameters_:,} trained" in text
    rows = cells(text)[-16:]
    assert rows[::4] == ["0", "1", "2", "3"]
    assert rows[1::4] == ["8 x 8 x 8", "12 x 4 x 4", "16 x 2 x 2", "16"]
    assert rows[3::4] == ["frozen", "frozen", "trained", "trained"]
    assert model._repr_mimebundle_()["text/html"].endswith("</details>")


def test_fitted_extractor_shows_what_it_uses():
    X, _ = make_task()
    model = PretrainedFeatureExtractor(small_backbone(), stage="1", pooling="avgmax")
    assert "<details><summary>small" not in model._repr_html_()
    text = model.fit(X)._repr_html_()
    assert "trained with" not in text
    assert "embedding of 24 features" in text
    assert cells(text)[-16:][3::4] == ["frozen", "frozen", "not used", "not used"]


def test_a_repr_shows_what_was_fitted_and_loads_nothing():
    X, _ = make_task()
    model = PretrainedFeatureExtractor(small_backbone()).fit(X)
    before = model._stages_html()
    assert model.set_params(backbone="nothing", stage=99)._stages_html() == before


def test_text_stays_text():
    X, y = make_task()
    model = PretrainedFeatureExtractor(small_backbone()).fit(X)
    with config_context(display="text"):
        assert "text/html" not in model._repr_mimebundle_()
        assert not hasattr(model, "_repr_html_")


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 9)
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, x):
        return self.fc(self.body(x))


@pytest.fixture
def own():
    """A type of network that only this process knows how to split."""
    kind = type("Own", (Own,), {"__module__": "__main__"})

    @split_stages.register(kind)
    def split(model):
        return nn.Sequential(*model.body)

    return kind


@pytest.mark.slow
def test_workers_split_as_it_was_registered(own):
    X, y = np.random.default_rng(0).random((8, 64)), np.arange(8) % 2
    scores = {}
    for backbone in (own(), own):
        model = FineTuneClassifier(backbone, image_size=8, max_epochs=1, random_state=0)
        for n_jobs in (None, 2):
            search = GridSearchCV(model, {"freeze": [0, 2]}, cv=2, n_jobs=n_jobs)
            search.set_params(scoring="neg_log_loss", error_score="raise", refit=False)
            scores[n_jobs] = search.fit(X, y).cv_results_["mean_test_score"]
        assert scores[2].tolist() == scores[None].tolist()


def test_what_is_registered_goes_with_an_estimator_that_needs_it(own, monkeypatch):
    others = FineTuneClassifier(Own()).__getstate__()
    assert others.keys() - {"_sklearn_version"} == vars(FineTuneClassifier()).keys()
    model = FineTuneClassifier(own(), max_epochs=3)
    for copied in (copy.copy(model), copy.deepcopy(model), clone(model)):
        assert vars(copied).keys() == vars(model).keys()
        assert copied.max_epochs == 3
    by_value = wrap_non_picklable_objects(
        PretrainedFeatureExtractor(own()), keep_wrapper=False
    )
    registered, dumped = {}, pickle.dumps(by_value)
    monkeypatch.setattr(_mixin, "registered_split", registered.get)
    monkeypatch.setattr(split_stages, "register", registered.__setitem__)
    loaded = pickle.loads(dumped)
    ((kind, split),) = registered.items()
    assert kind is type(loaded.backbone)
    assert len(split(loaded.backbone)) == 3
