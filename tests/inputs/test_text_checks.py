"""scikit-learn's checks of estimators, for texts.

Most of scikit-learn's own feed numbers, which estimators of texts refuse. These hold
them to the same promises about texts.
"""

import pickle
import warnings
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    cross_val_predict,
    cross_validate,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import estimator_checks_generator

from sktransfer import (
    BackboneSelector,
    EmbeddingCache,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
)
from tests.small_network import counts, text_backbone
from tests.small_tasks import make_texts

pytest.importorskip("tokenizers")

SHARED = {"device": "cpu", "cache": None, "random_state": 0}
TUNED = {**SHARED, "freeze": "layer1", "max_epochs": 2, "lr": 0.01, "batch_size": 8}
EXTRACTOR = PretrainedFeatureExtractor(text_backbone(), **SHARED)
CLASSIFIER = FineTuneClassifier(text_backbone(), **TUNED)
REGRESSOR = FineTuneRegressor(text_backbone(), **TUNED)
SELECTOR = BackboneSelector([text_backbone(), text_backbone(6)], **SHARED)
SOLVED = clone(CLASSIFIER).set_params(freeze="all")
WHOLE = clone(REGRESSOR).set_params(freeze=0)
TUNERS = [CLASSIFIER, REGRESSOR, SOLVED, WHOLE]
WITH_TARGETS = [*TUNERS, SELECTOR]
ESTIMATORS = [EXTRACTOR, *WITH_TARGETS]

# `text_backbone(6)` cuts some of the texts, which is no matter here.
pytestmark = pytest.mark.filterwarnings("ignore:.*longer than .* tokens:UserWarning")
TEXTS, LABELS = make_texts(30)
NUMBERS = np.array([len(text) for text in TEXTS], dtype=float)


def each(estimators):
    names = [f"{type(e).__name__}-{getattr(e, 'freeze', '')}" for e in estimators]
    return pytest.mark.parametrize("estimator", estimators, ids=names)


def targets(estimator):
    return NUMBERS if is_regressor(estimator) else LABELS


def fitted(estimator, X=TEXTS, y=None, **further):
    y = targets(estimator)[: len(X)] if y is None else y
    return clone(estimator).fit(X, y, **further)


def outputs(estimator, X=TEXTS):
    """All that an estimator computes of texts, one array for each method."""
    names = ["transform", "predict", "predict_proba", "decision_function"]
    found = [getattr(estimator, n)(X) for n in names if hasattr(estimator, n)]
    assert found
    return found


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_close(found, expected):
    """Rows of embeddings are equal; heads, in float64, are computed for all at once."""
    for one, other in zip(found, expected, strict=True):
        if one.dtype == np.float64:
            np.testing.assert_allclose(one, other, rtol=1e-12)
        else:
            np.testing.assert_array_equal(one, other)


def apis():
    # A check that needs numbers is replaced by one warning.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        for estimator in [EXTRACTOR, CLASSIFIER, REGRESSOR, SELECTOR]:
            for _, check in estimator_checks_generator(estimator):
                yield estimator, check


@pytest.mark.parametrize(("estimator", "check"), [*apis()])
def test_what_scikit_learn_checks_without_data(estimator, check):
    check(clone(estimator))


@each(ESTIMATORS)
def test_tags_say_texts_and_no_tables(estimator):
    tags = get_tags(estimator).input_tags
    assert tags.string
    assert [tags.two_d_array, tags.three_d_array, tags.sparse] == [False] * 3


@each(ESTIMATORS)
def test_clones_have_the_parameters_and_nothing_fitted(estimator):
    model = fitted(estimator)
    assert model.get_params() == estimator.get_params()
    copied = clone(model)
    assert copied.get_params() == estimator.get_params()
    assert not {name for name in vars(copied) if name.endswith("_")}
    other = clone(estimator).set_params(max_length=9, random_state=3)
    assert clone(other).get_params()["max_length"] == 9
    assert estimator.max_length is None
    with pytest.raises(ValueError, match="Invalid parameter 'tokens'"):
        other.set_params(tokens=3)


@each(ESTIMATORS)
def test_fit_returns_self_and_changes_no_parameter(estimator):
    model = clone(estimator)
    before = {**vars(model)}
    assert model.fit(TEXTS, targets(model)) is model
    assert {name: vars(model)[name] for name in before} == before
    new = vars(model).keys() - before
    assert all(name.endswith("_") or name.startswith("_") for name in new)
    kept = {**vars(model)}
    outputs(model)
    assert vars(model).keys() == kept.keys()


@each(ESTIMATORS)
def test_fit_is_idempotent_and_deterministic(estimator):
    model = fitted(estimator)
    expected = outputs(model)
    assert_same(outputs(model), expected)
    assert_same(outputs(fitted(estimator)), expected)
    assert_same(outputs(model.fit(TEXTS, targets(model))), expected)


@each(ESTIMATORS)
def test_neither_texts_nor_targets_are_changed(estimator):
    X, y = np.array(TEXTS, dtype=object), targets(estimator).copy()
    X.flags.writeable = y.flags.writeable = False
    assert_same(outputs(fitted(estimator, X, y), X), outputs(fitted(estimator)))
    given = list(TEXTS)
    outputs(fitted(estimator, given), given)
    assert given == TEXTS


@each(ESTIMATORS)
def test_a_row_depends_on_no_other_row(estimator):
    model = fitted(estimator)
    # Of several lengths, with copies and an empty text.
    texts = [*TEXTS, "", *TEXTS[:3]]
    expected = outputs(model, texts)
    alone = [outputs(model, [text]) for text in texts]
    assert_close([np.concatenate(rows) for rows in zip(*alone, strict=True)], expected)
    for order in [range(len(texts))[::-1], np.random.default_rng(0).permutation(20)]:
        some = outputs(model, [texts[row] for row in order])
        assert_close(some, [rows[list(order)] for rows in expected])


@each(WITH_TARGETS)
def test_the_order_of_a_fit_does_not_matter(estimator):
    order = np.random.default_rng(1).permutation(len(TEXTS))
    shuffled = fitted(
        estimator, [TEXTS[row] for row in order], targets(estimator)[order]
    )
    for one, other in zip(outputs(shuffled), outputs(fitted(estimator)), strict=True):
        # A selector scores its candidates in the order of the rows.
        if estimator is SELECTOR:
            np.testing.assert_allclose(one, other)
        else:
            np.testing.assert_array_equal(one, other)


@each(ESTIMATORS)
def test_pickles_and_copies_compute_the_same(estimator):
    model = fitted(estimator)
    for copied in [pickle.loads(pickle.dumps(model)), deepcopy(model)]:
        assert_same(outputs(copied), outputs(model))
    unfitted = pickle.loads(pickle.dumps(clone(estimator)))
    assert_same(outputs(fitted(unfitted)), outputs(model))


@each([EXTRACTOR, SELECTOR])
def test_transformers_name_their_features(estimator):
    model = fitted(estimator)
    rows = model.transform(TEXTS)
    names = model.get_feature_names_out()
    assert rows.shape == (len(TEXTS), len(names)) == (len(TEXTS), 8)
    assert rows.dtype == np.float32
    assert_same([model.fit_transform(TEXTS, LABELS)], [rows])
    index = [f"row {i}" for i in range(len(TEXTS))]
    model.set_output(transform="pandas")
    for X in [pd.Series(TEXTS, index), pd.DataFrame({"review": TEXTS}, index)]:
        frame = fitted(model, X).transform(X)
        assert frame.columns.tolist() == names.tolist()
        assert frame.index.tolist() == index
        np.testing.assert_array_equal(frame.to_numpy(), rows)


@each(ESTIMATORS)
def test_only_frames_have_columns(estimator):
    for X in [TEXTS, np.array(TEXTS), pd.Series(TEXTS, name="review")]:
        model = fitted(estimator, X)
        assert not hasattr(model, "n_features_in_")
        assert not hasattr(model, "feature_names_in_")
    frame = pd.DataFrame({"review": TEXTS})
    model.fit(frame, targets(model))
    assert model.n_features_in_ == 1
    assert model.feature_names_in_.tolist() == ["review"]
    with pytest.raises(ValueError, match="feature names should match"):
        outputs(model, frame.rename(columns={"review": "text"}))


@each(ESTIMATORS)
def test_containers_of_texts_are_equivalent(estimator):
    odd = range(100, 100 - len(TEXTS), -1)
    y = targets(estimator)
    expected = outputs(fitted(estimator))
    for X in [
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object)[:, None],
        list(map(np.str_, TEXTS)),
        pd.Series(TEXTS, odd),
        pd.Series(TEXTS, odd, dtype="string"),
        pd.DataFrame({"review": TEXTS}, odd),
    ]:
        for labels in [y, y.tolist(), pd.Series(y)]:
            model = fitted(estimator, X, labels)
        assert_same(outputs(model, X), expected)


@each(ESTIMATORS)
def test_what_holds_no_texts_is_refused_by_every_method(estimator):
    model = fitted(estimator)
    for X, reason in [
        ([], "Found 0 texts in X"),
        (np.array([], dtype=object), "Found 0 texts in X"),
        (np.eye(30), r"a list of texts, .* table of numbers of shape \(30, 30\)"),
        ("a good day", r"Wrap it in a list"),
        (pd.DataFrame({"review": TEXTS, "more": TEXTS}), "a single column of texts"),
    ]:
        with pytest.raises(ValueError, match=reason):
            clone(estimator).fit(X, targets(estimator))
        with pytest.raises(ValueError, match=reason):
            outputs(model, X)


@each(ESTIMATORS)
def test_what_is_no_text_is_refused_by_its_row(estimator):
    for hole, reason in [(None, "missing"), (3, "int"), (b"good", "bytes")]:
        X = [*TEXTS[:4], hole, *TEXTS[5:]]
        with pytest.raises(ValueError, match=f"the text in row 4.*{reason}"):
            outputs(fitted(estimator, X), X)


@each(WITH_TARGETS)
def test_targets_must_be_there_and_fit(estimator):
    y = targets(estimator)
    holes = y.astype(object)
    holes[[2, 5]] = None, float("nan")
    for wrong, reason in [
        (None, "target y is None"),
        (y[:-1], "X has 30 texts and y has 29 targets"),
        (holes, r"2 of 30 targets are missing, in rows \[2, 5\]"),
        (np.where(np.arange(30) == 7, np.nan, 1.0), r"in rows \[7\]"),
    ]:
        with pytest.raises(ValueError, match=reason):
            clone(estimator).fit(TEXTS, wrong)


@each([CLASSIFIER, REGRESSOR, SELECTOR])
def test_without_a_fit_there_is_nothing_to_predict(estimator):
    with pytest.raises(NotFittedError):
        outputs(clone(estimator))


def test_an_extractor_needs_no_fit():
    assert_same(outputs(clone(EXTRACTOR)), outputs(fitted(EXTRACTOR)))


@each(TUNERS)
def test_a_weight_is_a_number_of_copies(estimator):
    y, weights = targets(estimator), np.arange(len(TEXTS)) % 3
    copies = np.repeat(np.arange(len(TEXTS)), weights)
    weighted = fitted(estimator, sample_weight=weights)
    copied = fitted(estimator, [TEXTS[row] for row in copies], y[copies])
    assert_same(outputs(weighted), outputs(copied))
    ones = fitted(estimator, sample_weight=np.ones(len(TEXTS)))
    assert_same(outputs(ones), outputs(fitted(estimator)))
    differ = zip(outputs(weighted), outputs(ones), strict=True)
    assert any(np.any(one != other) for one, other in differ)
    with pytest.raises(ValueError, match="sample_weight"):
        fitted(estimator, sample_weight=np.ones(3))


@pytest.mark.parametrize("model", [CLASSIFIER, SOLVED])
def test_classes_have_any_labels(model):
    y = np.where(LABELS == "yes", 1, 0)
    expected = outputs(fitted(model))[1:]
    for kinds in [["no", "yes"], [3, 7], [False, True], [-1.0, 2.0]]:
        labels = np.array(kinds)[y]
        again = fitted(model, y=labels)
        assert again.classes_.tolist() == kinds
        assert {*again.predict(TEXTS).tolist()} <= {*kinds}
        assert_same(outputs(again)[1:], expected)
    three = fitted(model, y=np.arange(30) % 3)
    assert three.predict_proba(TEXTS).shape == (30, 3)
    np.testing.assert_allclose(three.predict_proba(TEXTS).sum(axis=1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="at least two classes, got only one class"):
        fitted(model, y=["yes"] * 30)


def test_several_numbers_are_predicted_at_once():
    y = np.column_stack([NUMBERS, -NUMBERS])
    assert fitted(REGRESSOR, y=y).predict(TEXTS).shape == (30, 2)


@each(TUNERS)
def test_partial_fit_goes_on_and_has_the_classes_of_its_first_call(estimator):
    model, y = clone(estimator), targets(estimator)
    known = {"classes": ["no", "yes"]} if is_classifier(model) else {}
    # The first ten texts of one class alone.
    first = np.flatnonzero(LABELS == "no")[:10]
    assert model.partial_fit([TEXTS[row] for row in first], y[first], **known) is model
    before = outputs(model)
    outputs(model.partial_fit(TEXTS, y))
    assert any(np.any(a != b) for a, b in zip(before, outputs(model), strict=True))
    with pytest.raises(ValueError, match="a list of texts"):
        model.partial_fit(np.eye(30), y)


@each([CLASSIFIER, REGRESSOR])
def test_a_warm_start_goes_on(estimator):
    model = clone(estimator).set_params(warm_start=True)
    y = targets(estimator)
    first = model.fit(TEXTS, y).n_iter_
    assert model.fit(TEXTS, y).n_iter_ > first
    assert fitted(estimator).n_iter_ == first


@each(TUNERS)
def test_scores_and_predictions_are_cross_validated(estimator):
    y = targets(estimator)
    for X in [TEXTS, np.array(TEXTS), pd.Series(TEXTS, range(60, 90))]:
        found = cross_val_predict(clone(estimator), X, y, cv=3)
        assert found.shape == (30,)
    (first, *_) = np.array_split(np.arange(30), 3)
    if is_regressor(estimator):
        rest = range(10, 30)
        model = fitted(estimator, [TEXTS[row] for row in rest], y[rest])
        expected = model.predict([TEXTS[row] for row in first])
        np.testing.assert_array_equal(found[first], expected)


def test_a_search_over_freeze_depth_runs_each_text_once_through_the_stem():
    texts, y = make_texts(24, seed=5)
    cache = EmbeddingCache()
    model = clone(CLASSIFIER).set_params(cache=cache, max_epochs=1)
    # Each starts from the state that the one before has stored.
    grid = {"freeze": ["stem", "layer1", "layer2"]}
    counts.clear()
    search = GridSearchCV(model, grid, cv=2).fit(texts, y)
    assert counts["tokens"] == len({*texts})
    # The states of two depths and the embeddings, of which the third is the head's.
    assert cache.info().rows == 3 * len({*texts})
    counts.clear()
    GridSearchCV(model, {"freeze": ["layer1"]}, cv=2).fit(texts, y)
    assert not counts
    alone = model.set_params(cache=EmbeddingCache(), freeze="layer1").fit(texts, y)
    assert alone.cache.info().rows == 2 * len({*texts})
    plain = GridSearchCV(model.set_params(cache=None), grid, cv=2).fit(texts, y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )
    assert_same(outputs(search), outputs(plain))


def twice(text):
    return f"{text} {text}"


@each([CLASSIFIER, WHOLE])
def test_texts_are_augmented_in_training_alone(estimator):
    plain = fitted(estimator)
    augmented = fitted(clone(estimator).set_params(augment=twice))
    found = outputs(augmented)
    assert any(np.any(a != b) for a, b in zip(found, outputs(plain), strict=True))
    assert_same(outputs(pickle.loads(pickle.dumps(augmented))), found)
    with pytest.raises(ValueError, match="expected it to return a text, a str"):
        fitted(clone(estimator).set_params(augment=len))


def test_weights_are_routed_to_a_fit_and_its_score():
    texts, weights = np.array(TEXTS), np.arange(30) % 2 + 1.0
    with config_context(enable_metadata_routing=True):
        model = clone(CLASSIFIER).set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        params = {"sample_weight": weights}
        found = cross_validate(model, texts, LABELS, cv=2, params=params)
        other = cross_validate(model, texts, LABELS, cv=2, scoring="neg_log_loss")
    assert found["test_score"].shape == other["test_score"].shape == (2,)


@pytest.mark.parametrize(
    "wrapped",
    [
        CalibratedClassifierCV(SOLVED, cv=2),
        OneVsRestClassifier(SOLVED),
        VotingClassifier([("one", SOLVED), ("two", CLASSIFIER)], voting="soft"),
        StackingClassifier([("one", SOLVED)], LogisticRegression(), cv=2),
        make_pipeline(EXTRACTOR, LogisticRegression()),
        make_pipeline(SELECTOR, LogisticRegression()),
        make_pipeline(
            ColumnTransformer([("text", EXTRACTOR, ["review"])]), LogisticRegression()
        ),
    ],
)
def test_within_estimators_of_scikit_learn(wrapped):
    X = pd.DataFrame({"review": TEXTS})
    model = clone(wrapped).fit(X, LABELS)
    assert model.score(X, LABELS) > 0.6
    np.testing.assert_array_equal(model.predict(X[::-1])[::-1], model.predict(X))


def test_a_regression_on_embeddings():
    model = make_pipeline(clone(EXTRACTOR), Ridge()).fit(TEXTS, NUMBERS)
    assert model.score(TEXTS, NUMBERS) > 0


def test_workers_compute_the_same_as_this_process():
    expected = outputs(fitted(EXTRACTOR))
    shared = clone(EXTRACTOR).set_params(n_jobs=2, batch_size=4)
    assert_same(outputs(shared), expected)
    model = clone(CLASSIFIER).set_params(max_epochs=1)
    grid = {"freeze": ["layer1", "all"]}
    found = GridSearchCV(model, grid, cv=2, n_jobs=2).fit(TEXTS, LABELS)
    alone = GridSearchCV(model, grid, cv=2).fit(TEXTS, LABELS)
    assert_same(outputs(found), outputs(alone))
    with parallel_config("threading", n_jobs=2):
        assert_same(outputs(clone(EXTRACTOR)), expected)
