import re

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, make_scorer, r2_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    StratifiedKFold,
    TunedThresholdClassifierCV,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from sktransfer import (
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
    transfer_report,
)
from sktransfer.choosing._report import SCRATCH, _models, corrected_interval
from tests.small_network import small_backbone

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
    # By accuracy, each fold would be half right and all right: without any spread.
    report = transfer_report(model, X, y, cv=4, scoring="neg_log_loss")
    assert report.verdict == "negative transfer"
    scratch = report[1]
    assert scratch["high"] < 0
    assert scratch["score"] > report[0]["score"] + 0.2
    assert "is below the" in report.explanation
    assert (
        "Guessing (-0.693) cannot be distinguished from it, since" in report.explanation
    )


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
    X = [np.repeat(np.repeat(image, 2, axis=0), 2, axis=1) for image in X]
    folds = list(StratifiedKFold(3).split(X, y))
    report = transfer_report(fine_tuned(max_epochs=1), X, y, cv=folds)
    flat = np.array([image.transpose(2, 0, 1).ravel() for image in X]) / 255.0
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


def test_the_interval_is_of_the_test_images_for_each_training_image(monkeypatch):
    given, scratch = np.array([0.9, 0.7, 0.8, 0.75]), np.array([0.5, 0.4, 0.6, 0.3])
    row = report_of(monkeypatch, given, scratch)[1]
    # Of four folds, each has a third of the images that it is trained on.
    low, high = corrected_interval(given - scratch, 1 / 3)
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))


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
    assert text.endswith(f"{report.explanation}\n\n{report.leaks_explanation}")
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
    y = np.array([image[..., 0].std() for image in X])
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


SETTINGS = {
    "weights": ("default", None),
    "freeze": ("all", 0),
    "train_only": ("norms", "all"),
    "backbone_lr_mult": (0.2, 1.0),
    "layer_decay": (0.5, 1.0),
    "l2_sp": (0.1, 0.0),
    "unfreeze_every": (3, 0),
    "teacher": (FineTuneClassifier(small_backbone()), None),
}


@pytest.mark.parametrize("wrap", [lambda model: model, in_pipeline, depths])
@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_keeps_the_model_from_scratch_back(name, wrap):
    given, expected = SETTINGS[name]
    model = fine_tuned(**{name: given}, lr=0.03)
    scratch = _models(wrap(model))[SCRATCH]
    (own,) = (
        part
        for part in {"": scratch, **scratch.get_params()}.values()
        if isinstance(part, FineTuneClassifier)
    )
    assert getattr(own, name) == expected
    assert own.lr == 0.03
    assert getattr(model, name) is given


def report_of(monkeypatch, given, scratch, n_images=60, **others):
    """The report on models that have these scores in the folds."""
    scores = {"as given": given, "from scratch": scratch, **others}
    names = iter(MODELS)

    def scored(model, X, y, cv, **settings):
        found = np.asarray(scores.get(next(names), given), dtype=float)
        assert len(found) == len(cv)
        return {
            "test_score": found,
            "fit_time": np.ones(len(cv)),
            "score_time": np.ones(len(cv)),
            "estimator": [None],
        }

    monkeypatch.setattr("sktransfer.choosing._report.cross_validate", scored)
    X, y = make_task(n_images)
    return transfer_report(fine_tuned(), X, y, cv=len(given))


def test_no_evidence_tells_what_could_not_have_been_seen(monkeypatch):
    given, scratch = [0.8, 0.7, 0.9, 0.6, 0.8], [0.7, 0.8, 0.8, 0.7, 0.7]
    report = report_of(monkeypatch, given, scratch)
    row = report[1]
    assert report.verdict == "no evidence"
    assert report.explanation.startswith(
        "No evidence: 0.760 cannot be distinguished from the 0.740 from scratch (95 % "
        f"interval of the difference {row['low']:+.3f} to {row['high']:+.3f}). "
        f"Differences below {row['difference'] - row['low']:.2g} could not be seen "
        "with 5 folds of 12 images."
    )
    report = report_of(monkeypatch, given, scratch, n_images=62)
    assert "5 folds of 12 to 13 images." in report.explanation
    # A verdict needs none of that.
    better = report_of(monkeypatch, given, np.subtract(scratch, 0.5))
    assert better.verdict == "transfer helps"
    assert "could not be seen" not in better.explanation
    worse = report_of(monkeypatch, given, np.add(scratch, 0.5))
    assert worse.verdict == "negative transfer"


@pytest.mark.parametrize("difference", [0.0, 0.3, -0.3])
def test_no_verdict_of_a_difference_without_spread(difference, monkeypatch):
    # In floating point these are not quite the same in all folds.
    scratch = np.array([0.1, 0.2, 0.4, 0.6])
    report = report_of(monkeypatch, scratch + difference, scratch, guessing=scratch)
    assert report.verdict == "no evidence"
    because = rf"since the difference is \{difference:+.3f} in each of the 4 folds"
    assert len(re.findall(because, report.explanation)) >= 2
    assert "could not be seen" not in report.explanation
    guess = f"Guessing ({scratch.mean():.3f}) cannot be distinguished from it, since"
    assert guess in report.explanation


def test_no_verdict_of_two_folds(monkeypatch):
    report = report_of(monkeypatch, [0.9, 0.8], [0.1, 0.0001])
    assert report.verdict == "no evidence"
    assert "since 2 folds are too few to tell" in report.explanation
    assert "pass at least 3, such as cv=5." in report.explanation
    # Of three folds as far apart there is one.
    report = report_of(monkeypatch, [0.9, 0.8, 0.8], [0.1, 0.0001, 0.0])
    assert report.verdict == "transfer helps"


def test_no_verdict_of_scores_that_are_no_numbers(monkeypatch):
    report = report_of(monkeypatch, [0.9, np.nan, 0.8], [0.1, 0.2, 0.0])
    assert report.verdict == "no evidence"
    assert "since the scores of fold 2 are nan and 0.2." in report.explanation


@pytest.fixture
def no_fit(monkeypatch):
    def fit(*args, **options):
        raise AssertionError("a model was fitted")

    monkeypatch.setattr("sktransfer.choosing._report.cross_validate", fit)


@pytest.mark.parametrize(
    "scoring", [["accuracy"], ("accuracy", "f1"), {"a": "accuracy"}, {"accuracy"}, 3]
)
def test_several_scores_are_refused_before_a_fit(scoring, no_fit):
    X, y = make_task(24)
    message = r"Invalid scoring=.*: expected .* None. No .* one after the other"
    with pytest.raises(ValueError, match=message):
        transfer_report(fine_tuned(), X, y, cv=3, scoring=scoring)


def test_a_function_that_gives_several_scores():
    X, y = make_task(24)
    model = fine_tuned(max_epochs=1)
    with pytest.raises(ValueError, match="scoring=.* gives several scores: exp"):
        transfer_report(model, X, y, cv=2, scoring=lambda *_: {"a": 1.0, "b": 2.0})


@pytest.mark.parametrize("scoring", [None, "r2", make_scorer(r2_score)])
def test_r2_of_one_image_is_refused_before_a_fit(scoring, no_fit):
    X, _ = make_task(9)
    model, numbers = FineTuneRegressor(small_backbone()), np.arange(9.0)
    message = "Fold 1 of 9 has 1 test sample.* two or more. Nothing was .* Pass fewer"
    with pytest.raises(ValueError, match=message):
        transfer_report(model, X, numbers, cv=LeaveOneOut(), scoring=scoring)
    # Of folds of two and three images R2 is defined, and so are other scores of one.
    for cv, other in [(4, scoring), (LeaveOneOut(), "neg_mean_absolute_error")]:
        with pytest.raises(AssertionError, match="a model was fitted"):
            transfer_report(model, X, numbers, cv=cv, scoring=other)


def test_accuracy_of_one_image_is_defined(no_fit):
    X, y = make_task(8)
    with pytest.raises(AssertionError, match="a model was fitted"):
        transfer_report(fine_tuned(), X, y, cv=LeaveOneOut())


@pytest.mark.parametrize(
    ("scoring", "refit", "score"),
    [
        ("balanced_accuracy", True, "balanced_accuracy"),
        (["accuracy", "balanced_accuracy"], "balanced_accuracy", "balanced_accuracy"),
        ({"a": "accuracy", "b": "balanced_accuracy"}, "b", "balanced_accuracy"),
        (None, True, "accuracy"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda model: model, in_pipeline])
def test_all_models_are_scored_as_a_search_scores_itself(scoring, refit, score, wrap):
    X, y = make_task(32)
    y[:8] = "|"
    pipe = make_pipeline(PretrainedFeatureExtractor(small_backbone()), SVC())
    search = GridSearchCV(pipe, {"svc__C": [1.0]}, cv=2, scoring=scoring, refit=refit)
    folds = list(StratifiedKFold(2).split(X, y))
    found = transfer_report(wrap(search), X, y, cv=folds)
    expected = transfer_report(wrap(search), X, y, cv=folds, scoring=score)
    np.testing.assert_equal(found.scores, expected.scores)
    assert found.scores["guessing"][0] == (10 / 16 if score == "accuracy" else 0.5)


def make_labels(y):
    return np.column_stack([y == "|", np.arange(len(y)) % 3 == 0]).astype(int)


def test_several_labels():
    X, y = make_task(24)
    Y = make_labels(y)
    report = transfer_report(fine_tuned(max_epochs=1), X, Y, cv=3)
    rows = {row["model"]: row for row in report}
    assert list(rows) == MODELS
    assert rows["linear probe"]["trained"] == 2 * (16 + 1)
    assert rows["as given"]["trained"] == small_backbone().n_parameters + 2 * 16 + 2
    sparse = transfer_report(fine_tuned(max_epochs=1), X, csr_array(Y), cv=3)
    np.testing.assert_equal(sparse.scores, report.scores)


def test_the_score_of_several_labels_is_their_average_precision():
    X, y = make_task(24)
    Y, folds = make_labels(y), list(KFold(3).split(X))
    model = fine_tuned(max_epochs=1, freeze="all")
    report = transfer_report(model, X, Y, cv=folds)
    # Of one score for all samples, the precision at the only threshold.
    guessed = [Y[test].mean(axis=0).mean() for _, test in folds]
    np.testing.assert_allclose(report.scores["guessing"], guessed)
    train, test = folds[0]
    model.fit([X[row] for row in train], Y[train])
    scores = model.predict_proba([X[row] for row in test])
    own = average_precision_score(Y[test], scores, average="macro")
    assert report.scores["as given"][0] == pytest.approx(own)
    asked = transfer_report(model, X, Y, cv=folds, scoring="accuracy")
    guess = np.round(Y[folds[0][0]].mean(axis=0))
    right = (Y[folds[0][1]] == guess).all(axis=1).mean()
    assert asked.scores["guessing"][0] == right


def with_unreadable(X):
    X = list(X)
    X[3], X[8] = b"", b"no image"
    return X


@pytest.mark.parametrize("kind", ["tuned", "extracted"])
def test_what_cannot_be_read_is_left_out_of_all_folds(kind):
    X, y = make_task(24)
    folds = list(StratifiedKFold(3).split(X, y))
    if kind == "tuned":
        model = fine_tuned(max_epochs=1, freeze="all", on_error="skip")
    else:
        extractor = PretrainedFeatureExtractor(small_backbone(), on_error="nan")
        model = make_pipeline(extractor, LogisticRegression())
    with pytest.warns(UserWarning, match=r"2 of 24 images .* left out of all folds"):
        report = transfer_report(model, with_unreadable(X), y, cv=folds)
    kept = [
        [rows[~np.isin(rows, [3, 8])] for rows in (train, test)]
        for train, test in folds
    ]
    expected = transfer_report(model, X, y, cv=kept)
    np.testing.assert_equal(report.scores, expected.scores)
    rows = {leak[side] for leak in report.leaks for side in ("test", "train")}
    assert rows.isdisjoint([3, 8])


def test_what_cannot_be_read_is_an_error_by_default():
    X, y = make_task(24)
    with pytest.raises(ValueError, match=r"Cannot read the image in row \d"):
        transfer_report(fine_tuned(max_epochs=1), with_unreadable(X), y, cv=2)


def test_leaks_are_reported():
    X, y = make_task(24, colours=True)
    rng = np.random.default_rng(0)
    X = [rng.integers(0, 256, image.shape, dtype=np.uint8) for image in X]
    # A copy with another label leaks, too.
    X[1], X[23] = X[0].copy(), X[2].copy()
    folds = [(np.arange(1, 24), np.arange(1)), (np.arange(23), np.arange(22, 24))]
    model = fine_tuned(max_epochs=1, freeze="all")
    report = transfer_report(model, X, y, cv=folds, scoring="accuracy")
    assert [(leak["fold"], leak["test"], leak["train"]) for leak in report.leaks] == [
        (0, 0, 1),
        (1, 22, 22),
        (1, 23, 2),
    ]
    assert "of 24 images, 3 have an exact copy" in report.leaks_explanation
    for text in (repr(report), report._repr_html_()):
        assert report.explanation in text
        assert report.leaks_explanation in text


@pytest.mark.parametrize(
    ("model", "cv", "message"),
    [
        (SVC(), 2, "SVC has 0 parts with a pretrained network, and"),
        (TwoNetworks(fine_tuned(), fine_tuned()), 2, r"2 parts .*\['one', 'two'\]"),
        (fine_tuned(), [(range(10), range(10, 24))], "1 fold: expected at least two"),
    ],
)
def test_bad_arguments(model, cv, message):
    X, y = make_task(24)
    with pytest.raises(ValueError, match=message):
        transfer_report(model, X, y, cv=cv)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        transfer_report(fine_tuned(), X, y[:-1])
