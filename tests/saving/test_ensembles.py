"""Ensembles and searches over estimators of this package, in one file."""

import json
import pickle

import numpy as np
import pytest
from safetensors import safe_open
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    BaggingClassifier,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import fbeta_score, get_scorer, get_scorer_names, make_scorer
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import (
    MultiOutputClassifier,
    MultiOutputRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import (
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
    load,
    register_backbone,
    save,
)
from sktransfer.backbones import _load
from tests.small_network import small_backbone

pytest.importorskip("skops.io")

NAME = "small-in-ensembles"
N = 24
X = np.random.default_rng(0).random((N, 256))
VALUES = X.mean(axis=1)
TWO = np.arange(N) % 2
THREE = np.arange(N) % 3
LABELS = np.array(["dark", "pale"])[TWO]
MANY = np.column_stack([TWO, np.arange(N) // (N // 2)])


@pytest.fixture(autouse=True)
def named():
    register_backbone(NAME, small_backbone)
    yield
    del _load._registered[NAME]
    _load._load_named.cache_clear()


def classifier(backbone=NAME, freeze="all"):
    return FineTuneClassifier(backbone, freeze=freeze, max_epochs=1, random_state=0)


def regressor():
    return FineTuneRegressor(NAME, freeze="all", random_state=0)


def probe(last=None):
    embedder = PretrainedFeatureExtractor(NAME)
    return make_pipeline(embedder, StandardScaler(), last or LogisticRegression())


def there_and_back(estimator, folder):
    save(estimator, folder / "model")
    return load(folder / "model")


def check_same(loaded, fitted, rows=X):
    """Check that a loaded estimator is, and predicts, what the saved one did."""
    assert type(loaded) is type(fitted)
    assert set(vars(loaded)) == set(vars(fitted)) - {"net_"}
    assert str(clone(loaded)) == str(clone(fitted))
    for name in ("predict", "predict_proba", "decision_function"):
        if hasattr(fitted, name):
            found = getattr(loaded, name)(rows)
            np.testing.assert_array_equal(found, getattr(fitted, name)(rows))


ENSEMBLES = {
    "sigmoid": lambda: (CalibratedClassifierCV(classifier(), cv=2), LABELS),
    "isotonic": lambda: (
        CalibratedClassifierCV(probe(), cv=2, method="isotonic", ensemble=False),
        THREE,
    ),
    "tuned threshold": lambda: (
        TunedThresholdClassifierCV(classifier(), cv=2, store_cv_results=True),
        TWO,
    ),
    "fixed threshold": lambda: (
        FixedThresholdClassifier(classifier(), threshold=0.4),
        TWO,
    ),
    "voting": lambda: (
        VotingClassifier([("a", classifier()), ("b", probe())], voting="soft"),
        LABELS,
    ),
    "voting of values": lambda: (
        VotingRegressor([("a", regressor()), ("b", probe(Ridge()))]),
        VALUES,
    ),
    "stack": lambda: (
        StackingClassifier([("a", classifier()), ("b", probe())], cv=2),
        LABELS,
    ),
    "stack of values": lambda: (
        StackingRegressor([("a", regressor())], final_estimator=Ridge(), cv=2),
        VALUES,
    ),
    "outputs": lambda: (MultiOutputClassifier(classifier()), MANY),
    "outputs of values": lambda: (
        MultiOutputRegressor(regressor()),
        np.column_stack([VALUES, VALUES**2]),
    ),
    "bagging": lambda: (BaggingClassifier(classifier(), 2, random_state=0), LABELS),
    "one and rest": lambda: (OneVsRestClassifier(classifier()), THREE),
    # A column of its code may be constant.
    "code": lambda: (OutputCodeClassifier(classifier(), random_state=0), THREE),
    "scaled target": lambda: (
        TransformedTargetRegressor(regressor(), transformer=StandardScaler()),
        VALUES,
    ),
    "calibrated votes": lambda: (
        CalibratedClassifierCV(
            VotingClassifier([("a", classifier()), ("b", probe())], voting="soft"), cv=2
        ),
        LABELS,
    ),
}


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_an_ensemble_is_what_was_saved(kind, tmp_path):
    ensemble, y = ENSEMBLES[kind]()
    check_same(there_and_back(ensemble.fit(X, y), tmp_path), ensemble)


def test_members_that_are_one_object_are_one_again(tmp_path):
    voting = VotingClassifier([("a", classifier()), ("b", probe())]).fit(X, LABELS)
    loaded = there_and_back(voting, tmp_path)
    for member, name in zip(loaded.estimators_, ["a", "b"], strict=True):
        assert loaded.named_estimators_[name] is member
    # A part of scikit-learn alone, too.
    mixed = VotingClassifier([("a", classifier()), ("b", LogisticRegression())])
    loaded = there_and_back(mixed.fit(X, LABELS), tmp_path)
    assert loaded.named_estimators_["b"] is loaded.estimators_[1]


def test_weights_that_members_share_are_stored_once(tmp_path):
    source = classifier(freeze=0).fit(X, LABELS)
    voting = VotingClassifier([(c, classifier(source)) for c in "abc"]).fit(X, LABELS)
    save(voting, tmp_path / "one")
    # What worker processes give back are copies.
    voting.estimators_ = [pickle.loads(pickle.dumps(m)) for m in voting.estimators_]
    save(voting, tmp_path / "copies")
    for name in ("one", "copies"):
        with safe_open(tmp_path / name, "np") as file:
            arrays = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
        contents = {(a.tobytes(), a.dtype, a.shape) for a in arrays}
        assert len(arrays) == len(contents)
        assert len([a for a in arrays if a.ndim == 4]) == 3
    check_same(load(tmp_path / "copies"), voting)


SEARCHES = {
    "grid": lambda: GridSearchCV(
        classifier(), {"freeze": ["all", 2]}, cv=2, return_train_score=True
    ),
    "steps": lambda: GridSearchCV(
        probe(),
        [
            {"logisticregression__C": [0.1, 1.0]},
            {"standardscaler": ["passthrough", StandardScaler()]},
        ],
        cv=StratifiedKFold(2),
        scoring=["accuracy", "neg_log_loss"],
        refit="accuracy",
    ),
    # The search has a part of this package, and what it chooses has none.
    "none of ours": lambda: GridSearchCV(
        probe(),
        {"pretrainedfeatureextractor": ["passthrough"]},
        cv=[(np.arange(12), np.arange(12, N))],
    ),
    "scorers": lambda: GridSearchCV(
        classifier(),
        {"freeze": ["all"]},
        cv=2,
        scoring={"f": make_scorer(fbeta_score, beta=2, pos_label="pale")},
        refit="f",
    ),
    "random": lambda: RandomizedSearchCV(
        probe(),
        {
            "logisticregression__C": stats.loguniform(0.1, 1),
            "logisticregression__max_iter": stats.randint(100, 200),
        },
        n_iter=2,
        cv=2,
        random_state=0,
    ),
    "halving": lambda: HalvingGridSearchCV(
        classifier(),
        {"freeze": ["all", 2]},
        cv=2,
        factor=2,
        min_resources=8,
        random_state=0,
    ),
    "random halving": lambda: HalvingRandomSearchCV(
        probe(),
        {"logisticregression__C": stats.uniform(loc=0.1, scale=1)},
        n_candidates=3,
        cv=2,
        random_state=np.random.RandomState(0),
    ),
    "without refit": lambda: GridSearchCV(
        classifier(), {"max_epochs": range(1, 3)}, cv=2, refit=False
    ),
    "networks": lambda: GridSearchCV(
        make_pipeline(PretrainedFeatureExtractor(NAME), LogisticRegression()),
        {
            "pretrainedfeatureextractor": [
                PretrainedFeatureExtractor(NAME, stage=stage) for stage in (1, 2)
            ]
        },
        cv=2,
    ),
}


def check_same_results(loaded, search):
    assert loaded.cv_results_.keys() == search.cv_results_.keys()
    for name, column in search.cv_results_.items():
        found = loaded.cv_results_[name]
        assert type(found) is type(column)
        if isinstance(column, np.ma.MaskedArray):
            np.testing.assert_array_equal(found.mask, column.mask)
            assert found.fill_value == column.fill_value
            assert found.dtype == column.dtype
            found, column = found.compressed(), column.compressed()
        # Estimators among the values are equal, not the same.
        assert list(map(str, found)) == list(map(str, column))


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_search_is_what_was_saved(kind, tmp_path):
    search = SEARCHES[kind]()
    unfitted = there_and_back(search, tmp_path)
    # A distribution shows no more than its address.
    if not hasattr(search, "param_distributions"):
        assert str(unfitted) == str(search)
    search.fit(X, LABELS)
    loaded = there_and_back(search, tmp_path)
    check_same_results(loaded, search)
    assert set(vars(loaded)) == set(vars(search))
    if search.refit:
        assert str(loaded.best_params_) == str(search.best_params_)
        assert loaded.best_score_ == search.best_score_
        assert loaded.score(X, LABELS) == search.score(X, LABELS)
        np.testing.assert_array_equal(loaded.predict_proba(X), search.predict_proba(X))
    # It can be run again, with the same results.
    again = unfitted.fit(X, LABELS).cv_results_
    for name in again:
        if name.endswith("_score"):
            np.testing.assert_array_equal(again[name], search.cv_results_[name])


def test_scorers_of_scikit_learn_are_saved(tmp_path):
    scorers = {name: get_scorer(name) for name in get_scorer_names()}
    search = GridSearchCV(classifier(), {"freeze": [0]}, scoring=scorers)
    found = there_and_back(search, tmp_path).scoring
    assert str(found) == str(scorers)
    for name, scorer in scorers.items():
        assert found[name]._score_func is scorer._score_func


def test_nested_in_a_pipeline_and_columns(tmp_path):
    search = GridSearchCV(classifier(), {"freeze": ["all"]}, cv=2)
    columns = ColumnTransformer(
        [
            ("pixels", "passthrough", slice(0, 256)),
            ("unused", StandardScaler(), [0, 1]),
        ],
    )
    outer = make_pipeline(columns, CalibratedClassifierCV(search, cv=2))
    outer.set_params(columntransformer__unused="drop").fit(X, LABELS)
    check_same(there_and_back(outer, tmp_path), outer)
    embedder = ColumnTransformer(
        [("net", PretrainedFeatureExtractor(NAME), slice(0, 256))]
    )
    inner = make_pipeline(embedder, LogisticRegression())
    for ensemble in (
        StackingClassifier([("a", inner)], cv=2),
        GridSearchCV(inner, {"logisticregression__C": [1, 10]}, cv=2),
    ):
        ensemble.fit(X, LABELS)
        check_same(there_and_back(ensemble, tmp_path), ensemble)


class Foreign(ClassifierMixin, BaseEstimator):
    """A classifier of another package."""

    def __init__(self, estimator=None):
        self.estimator = estimator


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (
            GridSearchCV(classifier(), {"freeze": [0]}, scoring=lambda *_: 0.0),
            r"GridSearchCV\.scoring is <function .*make_scorer.*best_estimator_",
        ),
        (
            GridSearchCV(classifier(), {"freeze": [0]}, refit=lambda results: 0),
            r"GridSearchCV\.refit is <function",
        ),
        (
            VotingClassifier([("a", classifier()), ("b", Foreign())]),
            r"estimators\[1\]\[1\] is a .*\.Foreign",
        ),
        (StackingClassifier([("a", Foreign(classifier()))]), r"\[1\] is a .*\.Foreign"),
        (
            RandomizedSearchCV(
                probe(), {"standardscaler": stats.rv_histogram(([1], [0, 1]))}
            ),
            r"param_distributions\['standardscaler'\] is <scipy",
        ),
    ],
)
def test_what_cannot_be_saved_is_named(estimator, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save(estimator, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_distributions_that_only_have_a_known_name_are_refused(tmp_path):
    class Norm(type(stats.norm)):
        def _rvs(self, *args, **kwargs):
            return 7.0

    drawn = {"logisticregression__C": Norm(name="norm")(0, 1)}
    with pytest.raises(ValueError, match="is a distribution of .*Norm"):
        save(RandomizedSearchCV(probe(), drawn), tmp_path / "model")


def test_the_estimator_that_a_scorer_calls_is_not_stored_twice(tmp_path):
    search = GridSearchCV(classifier(), {"freeze": ["all"]}, cv=2).fit(X, LABELS)
    save(search, tmp_path / "model")
    with safe_open(tmp_path / "model", "np") as file:
        document = json.loads(file.metadata()["document"])
    holder = document["estimator"]["estimator"][1]["scorer_"]["holder"]
    assert list(holder[1]["_estimator"]) == ["same"]
    loaded = load(tmp_path / "model")
    assert loaded.scorer_._estimator is loaded.estimator
