import numpy as np
import PIL.Image
import pytest
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from sktransfer import (
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
)
from sktransfer.finetuning._head import _as_C, _choose_C, _Fold, _folds
from sktransfer.finetuning._targets import ClassTargets
from tests.small_network import small_backbone

RNG = np.random.default_rng(0)
# Noisy enough for the penalty to matter.
X = RNG.integers(0, 256, (150, 16, 16, 3), dtype=np.uint8)
X[:, :8] = X[:, :8] * 0.2 + 20 * (np.arange(150) % 3)[:, None, None, None]
Y = np.array(["ant", "bee", "wasp"])[np.arange(150) % 3]
Y[::11] = "bee"
TRAIN, TEST = slice(0, 90), slice(90, 150)
BACKBONE = small_backbone()
FEATURES = PretrainedFeatureExtractor(BACKBONE).transform(X).astype(float)
SCALED = StandardScaler().fit(FEATURES[TRAIN]).transform(FEATURES)


def probe(**parameters):
    return FineTuneClassifier(BACKBONE, freeze="all", random_state=0, **parameters)


@pytest.mark.parametrize("C", [None, 0.003, 1.0])
@pytest.mark.parametrize("labels", [Y, Y == "ant"])
def test_it_is_the_logistic_regression_of_scikit_learn(labels, C):
    weights = np.where(labels[TRAIN] == labels[0], 3.0, 1.0)
    fitted = probe(C=C).fit(X[TRAIN], labels[TRAIN], sample_weight=weights)
    assert fitted.C_ == C or C is None
    model = LogisticRegression(C=fitted.C_, tol=1e-7, max_iter=1000)
    model.fit(SCALED[TRAIN], labels[TRAIN], weights)
    np.testing.assert_allclose(
        fitted.predict_proba(X[TEST]), model.predict_proba(SCALED[TEST]), atol=1e-4
    )
    (row,) = fitted.history_
    loss = log_loss(
        labels[TRAIN], model.predict_proba(SCALED[TRAIN]), sample_weight=weights
    )
    assert (row["phase"], row["epoch"]) == ("solve", 1)
    assert row["train_loss"] == pytest.approx(loss, rel=1e-4)
    assert row["seconds"] > 0


def test_labels_are_logistic_regressions_each_of_its_own_penalty():
    labels = np.column_stack([Y == "ant", Y != "bee", RNG.random(150) < 0.5]).astype(
        int
    )
    fitted = probe().fit(X[TRAIN], labels[TRAIN])
    proba = fitted.predict_proba(X[TEST])
    for i, C in enumerate(fitted.C_):
        model = LogisticRegression(C=C, tol=1e-7).fit(SCALED[TRAIN], labels[TRAIN, i])
        expected = model.predict_proba(SCALED[TEST])[:, 1]
        np.testing.assert_allclose(proba[:, i], expected, atol=1e-4)
    assert fitted.C_[2] < fitted.C_[0]


@pytest.mark.parametrize("outputs", [1, 2])
def test_numbers_are_the_ridge_regression_of_scikit_learn(outputs):
    y = SCALED[:, :2] @ RNG.normal(size=(2, 2)) + RNG.normal(size=(150, 2))
    y = 1e3 * (y if outputs == 2 else y[:, 0])
    fitted = FineTuneRegressor(BACKBONE, freeze="all").fit(X[TRAIN], y[TRAIN])
    alphas = np.logspace(-2, 7, 37)
    model = RidgeCV(alphas, alpha_per_target=outputs == 2).fit(SCALED[TRAIN], y[TRAIN])
    np.testing.assert_allclose(fitted.alpha_, model.alpha_)
    np.testing.assert_allclose(
        fitted.predict(X[TEST]), model.predict(SCALED[TEST]), rtol=1e-4, atol=0.1
    )
    given = FineTuneRegressor(BACKBONE, freeze="all", alpha=1e9).fit(X[TRAIN], y[TRAIN])
    np.testing.assert_allclose(given.predict(X[TEST]).std(axis=0), 0, atol=1)


def held_out_loss(Z, codes, C):
    proba = cross_val_predict(
        LogisticRegression(C=C, max_iter=1000),
        Z,
        codes,
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
        method="predict_proba",
    )
    return log_loss(codes, proba)


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_the_penalty_is_that_of_the_least_held_out_loss(noise):
    codes = np.arange(120) % 3
    Z = np.eye(3)[codes] @ RNG.normal(size=(3, 20)) + noise * RNG.normal(size=(120, 20))
    chosen = _choose_C(Z, codes, np.ones(120), None)
    values = [_as_C(half_power) for half_power in range(-8, 7)]
    losses = [held_out_loss(Z, codes, C) for C in values]
    assert held_out_loss(Z, codes, chosen) <= min(losses) + 0.01


def test_what_weighs_nothing_does_not_choose_the_penalty():
    codes = np.arange(120) % 2
    Z = np.eye(2)[codes] @ RNG.normal(size=(2, 8)) + 3 * RNG.normal(size=(120, 8))
    noisy = np.arange(120) % 4 < 2
    codes[noisy] = RNG.integers(0, 2, 60)
    weights = np.where(noisy, 1e-9, 2.0)
    chosen = _choose_C(Z, codes, weights, None)
    clean = _choose_C(Z[~noisy], codes[~noisy], np.full(60, 2.0), None)
    other = _choose_C(Z, codes, np.where(noisy, 2.0, 1e-9), None)
    assert abs(np.log10(chosen / clean)) <= 0.5 + 1e-9
    assert other < chosen


def test_what_weighs_nothing_is_not_fitted_to():
    codes, weights = np.arange(60) // 2 % 2, np.tile([2.0, 1e-9], 30)
    Z, test = RNG.normal(size=(60, 4)) + codes[:, None], np.arange(40, 60)
    codes[1:40:4] = 1 - codes[1:40:4]
    train = np.arange(40)
    whole = _Fold(Z, codes, weights, train, test).loss(0.1)
    part = _Fold(Z, codes, weights, train[::2], test).loss(0.1)
    alike = _Fold(Z, codes, np.ones(60), train, test).loss(0.1)
    assert whole == pytest.approx(part, rel=0.01)
    assert whole != pytest.approx(alike * 2, rel=0.1)


def test_the_scale_of_weights_does_not_matter():
    fits = [probe().fit(X, Y, np.full(150, w)) for w in (1.0, 1e-30, 1e30)]
    for fitted, scale in zip(fits, (1.0, 1e-30, 1e30), strict=True):
        assert fitted.C_ * scale == pytest.approx(fits[0].C_)
        np.testing.assert_allclose(
            fitted.predict_proba(X), fits[0].predict_proba(X), atol=1e-5
        )


def test_numbers_of_some_weight_are_the_ridge_regression_of_those_weights():
    y, weights = SCALED[:, 0] + RNG.normal(size=150), 3.0 ** (np.arange(150) % 5)
    fitted = FineTuneRegressor(BACKBONE, freeze="all").fit(X, y, weights)
    Z = StandardScaler().fit_transform(FEATURES)
    # In the units in which the weights have a mean of 1.
    alphas = np.logspace(-2, 7, 37) * weights.mean()
    model = RidgeCV(alphas).fit(Z, y, weights)
    assert fitted.alpha_ == pytest.approx(model.alpha_)
    np.testing.assert_allclose(
        fitted.predict(X), model.predict(Z), rtol=1e-4, atol=1e-4
    )


def test_a_head_is_chosen_in_float32_and_solved_in_float64(monkeypatch):
    fits = []

    class Watched(LogisticRegression):
        def fit(self, X, y, sample_weight=None):
            fits.append(X.dtype.name)
            return super().fit(X, y, sample_weight)

    monkeypatch.setattr("sktransfer.finetuning._head.LogisticRegression", Watched)
    probe().fit(X[TRAIN], Y[TRAIN])
    *chosen, solved = fits
    assert set(chosen) == {"float32"}
    assert solved == "float64"


def test_weights_are_copies():
    weights = np.arange(150) % 3
    rows = RNG.permutation(np.repeat(np.arange(150), weights))
    for labels in (Y, np.column_stack([Y == "ant", Y == "bee"]).astype(int)):
        weighted = probe().fit(X, labels, sample_weight=weights)
        copied = probe().fit(X[rows], labels[rows])
        np.testing.assert_array_equal(
            weighted.decision_function(X), copied.decision_function(X)
        )
    y = SCALED[:, 0]
    weighted = FineTuneRegressor(BACKBONE, freeze="all").fit(X, y, weights)
    copied = FineTuneRegressor(BACKBONE, freeze="all").fit(X[rows], y[rows])
    np.testing.assert_array_equal(weighted.predict(X), copied.predict(X))


def test_probabilities_have_the_frequencies_of_the_classes():
    fitted = probe().fit(X, Y)
    shares = np.unique(Y, return_counts=True)[1] / 150
    np.testing.assert_allclose(fitted.predict_proba(X).mean(axis=0), shares, atol=1e-3)


@pytest.mark.parametrize("freeze", [0, 2, "all"])
def test_the_share_of_a_class_grows_with_its_weight(freeze):
    def share(weight):
        model = FineTuneClassifier(
            BACKBONE,
            freeze=freeze,
            max_epochs=3,
            random_state=0,
            class_weight={"ant": 1, "bee": 1, "wasp": weight},
        )
        return (model.fit(X[TRAIN], Y[TRAIN]).predict(X[TEST]) == "wasp").mean()

    low, middle, high = share(1), share(10), share(1000)
    assert low <= middle <= high
    assert low < high


@pytest.mark.parametrize("freeze", [2, "all"])
def test_balancing_helps_the_rare_class(freeze):
    labels = np.where(np.arange(150) % 3 == 0, "rare", "usual")
    rows = np.flatnonzero((labels[TRAIN] == "usual") | (np.arange(90) < 12))

    def score(class_weight):
        model = FineTuneClassifier(
            BACKBONE, freeze=freeze, class_weight=class_weight, random_state=0
        )
        predicted = model.fit(X[rows], labels[rows]).predict(X[TEST])
        return balanced_accuracy_score(labels[TEST], predicted)

    assert score("balanced") > score(None)


@pytest.mark.parametrize(
    "parameters",
    [
        {"solve_head": False},
        {"hidden_layer_sizes": (4,)},
        {"dropout": 0.1},
        {"augment": "mild"},
        {"net_params": {"criterion__label_smoothing": 0.1}},
        {"teacher": probe().fit(X, Y)},
    ],
)
def test_what_is_not_plain_is_trained(parameters):
    fitted = probe(max_epochs=2, **parameters).fit(X[:30], Y[:30])
    assert [row["phase"] for row in fitted.history_] == ["tune"] * 2
    assert not hasattr(fitted, "C_")


def test_few_stages_frozen_are_trained():
    fitted = FineTuneClassifier(BACKBONE, freeze=2, max_epochs=1).fit(X[:30], Y[:30])
    assert [row["phase"] for row in fitted.history_] == ["head", "tune"]


def test_where_only_pooling_is_left_all_is_frozen():
    last = FineTuneClassifier(BACKBONE, freeze=-1).fit(X, Y)
    assert last.freeze_depth_ == len(BACKBONE.stages)
    np.testing.assert_array_equal(
        last.predict_proba(X), probe().fit(X, Y).predict_proba(X)
    )


def test_a_class_may_be_rare_or_absent():
    two = probe().fit(X[:2], Y[1:3])
    assert two.score(X[:2], Y[1:3]) == 1
    rare = np.where(np.arange(40) == 7, "rare", Y[:40])
    assert probe().fit(X[:40], rare).predict_proba(X).shape == (150, 4)
    absent = probe(class_weight={"ant": 0, "bee": 1, "wasp": 1}).fit(X, Y)
    proba = absent.predict_proba(X)[Y != "ant"]
    assert proba[:, 0].max() < 0.05
    # As half an example would be, on average.
    expected = np.log(0.5 / (Y != "ant").sum())
    assert np.log(proba[:, 0]).mean() == pytest.approx(expected, abs=0.1)
    constant = np.column_stack([Y == "ant", np.ones(150)]).astype(int)
    assert probe().fit(X, constant).predict_proba(X)[:, 1].min() > 0.99


def test_groups_are_not_divided():
    codes, groups = np.arange(120) % 3, np.arange(120) // 4
    Z = np.zeros((120, 2))
    folds = _folds(Z, codes, groups)
    assert len(folds) == 15
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
    assert _folds(Z, codes, np.zeros(120)) == []


def test_groups_keep_the_choice_honest():
    # Each group is a single image with slight noise: its copies add no information.
    few, labels = X[:30], RNG.permutation(np.arange(30) % 2)
    many = np.repeat(few, 6, axis=0)
    many[:, 0, 0, 0] = np.arange(180)
    y, groups = np.repeat(labels, 6), np.repeat(np.arange(30), 6)
    assert probe().fit(many, y, groups=groups).C_ < probe().fit(many, y).C_
    numbers = RNG.normal(size=30)[groups]
    regressor = FineTuneRegressor(BACKBONE, freeze="all")
    honest = regressor.fit(many, numbers, groups=groups).alpha_
    assert honest > regressor.fit(many, numbers).alpha_
    for wrong, what in ((groups[:5], "5 values"), ([None] * 180, "missing values in")):
        with pytest.raises(ValueError, match=f"groups: .*, got {what}.* one group for"):
            probe().fit(many, y, groups=wrong)


def test_one_thread_of_blas_solves_and_others_are_as_they_were(monkeypatch):
    seen, solve = [], ClassTargets.solve

    def threads():
        return [
            library["num_threads"]
            for library in threadpool_info()
            if library["user_api"] == "blas"
        ]

    def recorded(*arguments):
        seen.extend(threads())
        return solve(*arguments)

    monkeypatch.setattr(ClassTargets, "solve", recorded)
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        probe().fit(X[:30], Y[:30])
        assert threads() == before
    assert set(seen) == {1}


def test_few_images_choose_no_extreme_penalty():
    for count in (4, 6, 12):
        values = [
            probe().fit(X[i : i + count], Y[i : i + count]).C_ for i in (0, 30, 60)
        ]
        assert 0.003 < min(values) <= max(values) < 3


def test_the_same_images_are_the_same_model_whatever_they_come_as():
    y = SCALED[:, 0]
    regressor = FineTuneRegressor(BACKBONE, freeze="all").fit(X, y)
    fitted = probe().fit(X, Y)
    images = [PIL.Image.fromarray(x) for x in X]
    floats = X / np.float32(255)
    for same in (images, floats):
        other = probe().fit(same, Y)
        assert other.C_ == fitted.C_
        np.testing.assert_array_equal(other.predict_proba(X), fitted.predict_proba(X))
        predicted = FineTuneRegressor(BACKBONE, freeze="all").fit(same, y).predict(X)
        np.testing.assert_allclose(predicted, regressor.predict(X), rtol=1e-6)
    # Of few images with wrong labels, other folds would choose another penalty.
    for seed in range(6):
        rng = np.random.default_rng(seed)
        labels = np.where(rng.random(40) < 0.4, rng.choice(Y, 40), Y[:40])
        chosen = [probe().fit(same[:40], labels).C_ for same in (X, floats)]
        assert chosen[0] == chosen[1]


def test_small_tasks_choose_by_more_folds_and_large_ones_by_fewer():
    for n, count in [(60, 25), (90, 20), (200, 10), (1000, 5), (2500, 2), (20000, 1)]:
        codes = np.arange(n) % 2
        assert len(_folds(np.zeros((n, 1)), codes, None)) == count


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_training_begins_at_the_frequencies(hidden):
    labels = np.where(np.arange(150) % 10 == 0, "dog", "cat")
    options = {"hidden_layer_sizes": hidden, "lr": 1e-9, "max_epochs": 1}
    fitted = FineTuneClassifier(BACKBONE, **options).fit(X, labels)
    np.testing.assert_allclose(fitted.predict_proba(X)[:, 1], 0.1, atol=1e-4)


def test_a_solved_head_goes_on():
    warm = probe(warm_start=True).fit(X[:60], Y[:60])
    cold = probe().fit(X, Y)
    np.testing.assert_allclose(
        warm.fit(X, Y).predict_proba(X), cold.predict_proba(X), atol=1e-6
    )
    before = cold.predict_proba(X)
    cold.set_params(lr=1e-4).partial_fit(X, Y)
    assert not hasattr(cold, "C_")
    after = cold.predict_proba(X)
    assert 0 < np.abs(after - before).max() < 0.1
    assert [row["phase"] for row in cold.history_] == ["solve", "tune"]
    assert isinstance(cold.net_.module_.head[-1], nn.Linear)
