import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    RandomizedSearchCV,
)
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from sktransfer import (
    EmbeddingCache,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    search_cost,
)
from tests.small_network import counts, small_backbone

N = 24
X = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
y = np.arange(N) % 2


def model(**parameters):
    settings = {"max_epochs": 2, "head_epochs": 0, "random_state": 0} | parameters
    return FineTuneClassifier(small_backbone(), cache=EmbeddingCache(), **settings)


def test_a_search_computes_what_was_told():
    search = GridSearchCV(model(), {"freeze": [1, 2, "all"]}, cv=3)
    cost = search_cost(search, X, y)
    assert (cost.n_candidates, cost.n_splits, cost.n_fits) == (3, 3, 10)
    assert str(cost).startswith("10 fits: 3 candidates in 3 folds, and the best once")
    assert "1 pass over 24 images" in str(cost)
    counts.clear()
    fits = []
    fit = FineTuneClassifier.fit

    def counted(self, *args, **kwargs):
        fits.append(self.max_epochs)
        return fit(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuneClassifier, "fit", counted)
        search.fit(X, y)
    assert len(fits) == cost.n_fits
    # What the first fold trains on in a batch of 32, filled up; the rest in another.
    assert counts["a"] == cost.n_passes * 2 * 32
    assert cost.n_steps == 3 * 2 * 3 * 16 + 2 * N


def test_what_differs_in_the_network_is_a_pass_of_its_own():
    grid = {"image_size": [16, 20], "freeze": [0, 1, 2], "augment": [None, "light"]}
    cost = search_cost(GridSearchCV(model(), grid, cv=2, refit=False), X, y)
    assert (cost.n_fits, cost.n_passes, cost.n_augmented) == (24, 2, 12)
    assert "12 fits augment" in str(cost)
    assert "once more" not in str(cost)


def test_the_first_head_stands_on_a_pass_of_the_source():
    search = GridSearchCV(model(max_epochs=0), {"freeze": [0]}, cv=3, refit=False)
    for weights, passes in (("default", 1), (None, 0)):
        search.estimator.set_params(weights=weights)
        assert search_cost(search, X, y).n_passes == passes
        counts.clear()
        search.fit(X, y)
        # And one, of the tuned network, over each fold's test images.
        assert counts["a"] == 3 * 32 + passes * 2 * 32


def test_searches_over_embeddings_and_groups():
    pipe = make_pipeline(PretrainedFeatureExtractor(small_backbone()), SVC())
    grid = {"svc__C": [1, 2, 3], "pretrainedfeatureextractor__stage": [1, 2]}
    search = RandomizedSearchCV(pipe, grid, n_iter=6, cv=GroupKFold(4))
    cost = search_cost(search, X, y, groups=np.arange(N) % 4)
    assert (cost.n_fits, cost.n_passes, cost.n_steps) == (25, 2, 0)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (SVC(), "cost of a SVC is not known"),
        (GridSearchCV(LogisticRegression(), {"C": [1]}), "0 parts with a pretrained"),
    ],
)
def test_what_is_no_such_search_is_refused(search, message):
    with pytest.raises(ValueError, match=message):
        search_cost(search, X, y)
