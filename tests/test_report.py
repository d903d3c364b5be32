import numpy as np
import pytest
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    StratifiedKFold,
    TunedThresholdClassifierCV,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from small_network import small_backbone

from sktransfer import (
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
    transfer_report,
)
from sktransfer._report import SCRATCH, _models, corrected_interval

MODELS = ["as given", "from scratch", "linear probe", "pixels", "guessing"]


def make_task(n=40, seed=0, colours=False):
    """Stripes that lie or stand, at any phase, and of any colour if that is asked."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    waves = np.sin(np.arange(16) * 1.5 + rng.uniform(0, 6.3, (n, 1)))
    X = np.where(y[:, None, None], waves[:, :, None], waves[:, None, :])
    signs = rng.choice([-1, 1], (n, 1, 1, 3)) if colours else np.ones(3)
    X = 127 + 120 * X[..., None] * signs
    return list(X.astype(np.uint8)), np.array(["|", "-"])[y]


def fine_tuned(**options):
    settings = {"lr": 0.02, "max_epochs": 15, "batch_size": 8, "random_state": 0}
    return FineTuneClassifier(**{"backbone": small_backbone(), **settings, **options})


def trained_on_noise():
    """Weights that decay, with no signal in the labels to hold them up."""
    rng = np.random.default_rng(1)
    X = list(rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8))
    source = FineTuneClassifier(
        small_backbone(norm=False),
        weights=None,
        optimizer="sgd",
        lr=0.05,
        backbone_lr_mult=1.0,
        weight_decay=2.0,
        batch_size=4,
        max_epochs=30,
        random_state=0,
    )
    return source.fit(X, rng.permutation(np.arange(24) % 2))


def trained_on_the_task():
    X, y = make_task(160, seed=2, colours=True)
    return fine_tuned(weights=None, backbone_lr_mult=1.0).fit(X, y)


@pytest.mark.slow
def test_transfer_that_helps():
    X, y = make_task(colours=True)
    source = trained_on_the_task()
    model = fine_tuned(backbone=source, freeze="all", max_epochs=1, lr=1e-3)
    report = transfer_report(model, X, y, cv=10)
    assert report.verdict == "transfer helps"
    assert "is above the" in report.explanation
    assert [row["model"] for row in report] == MODELS
    rows = {row["model"]: row for row in report}
    assert rows["as given"]["score"] > 0.9
    assert rows["as given"]["difference"] is None
    assert rows["guessing"]["score"] == 0.5
    assert rows["guessing"]["low"] > 0


@pytest.mark.slow
def test_negative_transfer_is_found():
    X, y = make_task()
    model = fine_tuned(backbone=trained_on_noise(), freeze="all")
    report = transfer_report(model, X, y, cv=4)
    assert report.verdict == "negative transfer"
    scratch = report[1]
    assert scratch["high"] < 0
    assert scratch["score"] > report[0]["score"] + 0.2
    assert "is below the" in report.explanation
    assert "Guessing (0.500) is not to be told from it." in report.explanation


def test_rows_are_those_of_own_fits_on_the_same_folds():
    X, y = make_task(24)
    folds = list(StratifiedKFold(3).split(X, y))
    model = fine_tuned(freeze=2, max_epochs=2)
    report = transfer_report(model, X, y, cv=folds)
    rows = {row["model"]: row for row in report}
    source = small_backbone()
    own = {
        "as given": fine_tuned(freeze=2, max_epochs=2),
        "from scratch": fine_tuned(
            freeze=0, max_epochs=2, weights=None, backbone_lr_mult=1.0
        ),
        "linear probe": make_pipeline(
            PretrainedFeatureExtractor(source),
            StandardScaler(),
            LogisticRegression(C=0.01),
        ),
    }
    for name, own_model in own.items():
        for i, (train, test) in enumerate(folds):
            own_model.fit([X[row] for row in train], y[train])
            score = own_model.score([X[row] for row in test], y[test])
            assert report.scores[name][i] == score
        scores = report.scores[name]
        assert rows[name]["score"] == scores.mean()
        assert rows[name]["se"] == pytest.approx(stats.sem(scores))
    difference = report.scores["as given"] - report.scores["from scratch"]
    assert rows["from scratch"]["difference"] == pytest.approx(difference.mean())
    assert rows["as given"]["trained"] == own["as given"].n_trained_parameters_
    head = 2 * 16 + 2
    assert rows["from scratch"]["trained"] == source.n_parameters + head
    assert rows["linear probe"]["trained"] == 16 + 1
    assert rows["pixels"]["trained"] == 3 * 32 * 32 + 1
    assert rows["guessing"]["trained"] == 0
    assert all(row["seconds"] >= 0 for row in report)


def test_pixels_are_the_pixels():
    X, y = make_task(24)
    X = [np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1) for picture in X]
    folds = list(StratifiedKFold(3).split(X, y))
    report = transfer_report(fine_tuned(max_epochs=1), X, y, cv=folds)
    flat = np.array([picture.transpose(2, 0, 1).ravel() for picture in X]) / 255.0
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    scores = [
        probe.fit(flat[train], y[train]).score(flat[test], y[test])
        for train, test in folds
    ]
    np.testing.assert_allclose(report.scores["pixels"], scores)


def test_interval_of_nadeau_and_bengio():
    differences = [0.1, 0.3, 0.2]
    low, high = corrected_interval(differences, test_share=0.5)
    deviation = ((1 / 3 + 0.5) * 0.01) ** 0.5
    assert (low + high) / 2 == pytest.approx(0.2)
    # The quantile of Student's t with two degrees of freedom, from a table.
    assert (high - low) / 2 == pytest.approx(4.303 * deviation, rel=1e-4)
    narrow = corrected_interval(differences, test_share=0.0)
    plain = stats.t.interval(0.95, 2, 0.2, stats.sem(differences))
    assert narrow == pytest.approx(plain)
    assert corrected_interval([0.5, 0.5], 0.25) == (0.5, 0.5)


def test_pipelines_searches_groups_and_scoring():
    X, y = make_task(24)
    pipe = make_pipeline(PretrainedFeatureExtractor(small_backbone()), SVC())
    search = GridSearchCV(pipe, {"svc__C": [1.0, 10.0]}, cv=2)
    settings = {"groups": np.arange(24) // 2, "scoring": "balanced_accuracy"}
    report = transfer_report(search, X, y, cv=GroupKFold(3), **settings)
    rows = {row["model"]: row for row in report}
    assert rows["as given"]["trained"] is None
    assert rows["from scratch"]["trained"] > small_backbone().n_parameters
    assert rows["guessing"]["score"] == 0.5
    text = repr(report)
    assert text.endswith(report.explanation)
    assert report.explanation in report._repr_html_()
    assert all(name in text for name in MODELS)


def test_from_scratch_is_not_frozen_by_a_search():
    X, y = make_task(24)
    search = GridSearchCV(fine_tuned(max_epochs=1), {"freeze": [2, "all"]}, cv=2)
    given, scratch, *_ = transfer_report(search, X, y, cv=2)
    assert scratch["trained"] == small_backbone().n_parameters + 2 * 16 + 2
    assert given["trained"] < scratch["trained"]


def depths(model, name="freeze"):
    """A search that would freeze all."""
    return GridSearchCV(model, {name: ["all"]}, cv=2)


_INNER_FREEZE = "gridsearchcv__estimator__freeze"


def in_pipeline(model):
    return make_pipeline(FunctionTransformer(), model)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: in_pipeline(depths(model)),
        lambda model: TunedThresholdClassifierCV(depths(model), cv=2),
        lambda model: depths(depths(model), "estimator__freeze"),
        lambda model: in_pipeline(depths(in_pipeline(depths(model)), _INNER_FREEZE)),
    ],
)
def test_from_scratch_is_not_frozen_by_a_search_within(wrap):
    estimator = wrap(fine_tuned(max_epochs=1))
    scratch = _models(estimator)[SCRATCH]
    parts = {"": scratch, **scratch.get_params()}.values()
    assert not any(isinstance(part, GridSearchCV) for part in parts)
    (model,) = (part for part in parts if isinstance(part, FineTuneClassifier))
    assert (model.freeze, model.weights) == (0, None)
    # What was given is as it was.
    assert any(
        isinstance(part, GridSearchCV)
        for part in {"": estimator, **estimator.get_params()}.values()
    )


def test_a_search_beside_the_network_is_kept():
    other = GridSearchCV(SVC(), {"C": [1.0, 10.0]}, cv=2)
    both = VotingClassifier([("tuned", depths(fine_tuned())), ("svc", other)])
    scratch = dict(_models(both)[SCRATCH].estimators)
    assert scratch["tuned"].freeze == 0
    assert scratch["svc"].param_grid == other.param_grid


def test_trained_parameters_of_a_search_in_a_pipeline():
    X, y = make_task(24)
    report = transfer_report(in_pipeline(depths(fine_tuned(max_epochs=1))), X, y, cv=2)
    assert report[0]["trained"] == 2 * 16 + 2
    assert report[1]["trained"] == small_backbone().n_parameters + 2 * 16 + 2


def test_regression():
    X, _ = make_task(24)
    y = np.array([picture[..., 0].std() for picture in X])
    model = FineTuneRegressor(small_backbone(), max_epochs=2, random_state=0)
    report = transfer_report(model, X, y, cv=3)
    rows = {row["model"]: row for row in report}
    probe = make_pipeline(
        PretrainedFeatureExtractor(small_backbone()), StandardScaler(), Ridge(100.0)
    )
    assert rows["linear probe"]["trained"] == 17
    assert probe.fit(X[8:], y[8:]).score(X[:8], y[:8]) == pytest.approx(
        report.scores["linear probe"][0]
    )


class TwoNetworks(BaseEstimator):
    def __init__(self, one=None, two=None):
        self.one = one
        self.two = two


def test_a_source_task_is_a_part_of_the_model():
    X, y = make_task(24)
    teacher = fine_tuned(max_epochs=1).fit(X, y)
    model = fine_tuned(backbone=teacher, teacher=teacher, max_epochs=1)
    assert len(transfer_report(model, X, y, cv=2)) == 5


@pytest.mark.parametrize(
    ("model", "cv", "message"),
    [
        (SVC(), 2, "SVC has 0 parts with a pretrained network, and"),
        (TwoNetworks(fine_tuned(), fine_tuned()), 2, r"2 parts .*\['one', 'two'\]"),
        (fine_tuned(), [(range(10), range(10, 24))], "makes 1 fold, and differences"),
    ],
)
def test_bad_arguments(model, cv, message):
    X, y = make_task(24)
    with pytest.raises(ValueError, match=message):
        transfer_report(model, X, y, cv=cv)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        transfer_report(fine_tuned(), X, y[:-1])
