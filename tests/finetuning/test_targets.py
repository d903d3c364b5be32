from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import log_loss, r2_score

from sktransfer.finetuning._targets import (
    ClassTargets,
    LabelTargets,
    ValueTargets,
    fitted_targets,
    label_targets,
)

RNG = np.random.default_rng(0)
LABELS = np.array(["ant", "bee", "bee", "wasp", "bee"])
WEIGHTS = np.array([1, 1, 1, 2, 3.0])
MATRIX = np.array([[0, 1], [1, 1], [0, 0], [1, 1], [0, 1]])
CLASSES = label_targets(LABELS, WEIGHTS)
INDICATORS = label_targets(MATRIX, WEIGHTS)
SCORES = RNG.normal(size=(5, 3))


@pytest.mark.parametrize(
    ("targets", "y", "kind"),
    [
        (CLASSES, LABELS, ClassTargets),
        (INDICATORS, MATRIX, LabelTargets),
        (ValueTargets.of(WEIGHTS), WEIGHTS, ValueTargets),
        (ValueTargets.of(MATRIX), MATRIX, ValueTargets),
    ],
)
def test_targets_come_back_from_their_codes_and_from_a_fitted_estimator(
    targets, y, kind
):
    encoded = targets.encode(y, WEIGHTS)
    assert encoded.shape[0] == 5
    known = fitted_targets(SimpleNamespace(**targets.attributes))
    assert type(targets) is type(known) is kind
    assert targets.n_outputs == known.n_outputs
    scores = np.eye(3)[encoded[:, 0]] if kind is ClassTargets else encoded
    np.testing.assert_array_equal(known.predictions(scores), y)


def test_labels_are_not_numbers_nor_of_one_class_nor_new():
    with pytest.raises(ValueError, match="expected one or more numbers"):
        ValueTargets.of(LABELS).encode(LABELS, WEIGHTS)
    with pytest.raises(ValueError, match="only one class, 'ant'"):
        ClassTargets(np.array(["ant"])).encode(LABELS[:1], WEIGHTS[:1])
    few = ClassTargets(np.array(["ant", "bee"]))
    with pytest.raises(ValueError, match=r"labels \['wasp'\] are not among"):
        few.encode(LABELS, WEIGHTS)
    # What weighs nothing may be anything.
    assert few.encode(LABELS, WEIGHTS * (LABELS != "wasp")).max() == 1


@pytest.mark.parametrize(
    ("y", "classes", "before", "message"),
    [
        (LABELS, ["ant", "bee"], CLASSES, r"classes=\['ant', 'bee'\]: expected the"),
        (MATRIX, None, CLASSES, "was fitted on one label for each sample"),
        (LABELS, None, INDICATORS, "fitted on an indicator matrix of 2 columns"),
        (MATRIX[:, [0, 1, 1]], None, INDICATORS, "an indicator matrix of 2 columns"),
        (
            MATRIX + np.arange(5)[:, None],
            None,
            None,
            "several targets of several classes",
        ),
    ],
)
def test_a_fit_goes_on_with_targets_of_its_kind(y, classes, before, message):
    with pytest.raises(ValueError, match=message):
        label_targets(y, WEIGHTS, classes, before)


def test_a_fit_goes_on_with_its_classes_and_the_class_weight_of_now():
    further = label_targets(LABELS[:2], WEIGHTS[:2], None, CLASSES, {"bee": 5.0})
    assert further.classes.tolist() == ["ant", "bee", "wasp"]
    encoded = further.encode(LABELS[:2], WEIGHTS[:2])
    assert further.weighted(encoded, WEIGHTS[:2]).tolist() == [1, 5]
    assert label_targets(LABELS, WEIGHTS, LABELS[::-1]).n_outputs == 3


def test_balanced_classes_weigh_the_same():
    targets = label_targets(LABELS, WEIGHTS, class_weight="balanced")
    encoded = targets.encode(LABELS, WEIGHTS)
    weighted = targets.weighted(encoded, WEIGHTS)
    assert np.bincount(encoded[:, 0], weighted).tolist() == pytest.approx([8 / 3] * 3)
    assert CLASSES.weighted(encoded, WEIGHTS) is WEIGHTS


def test_counts_are_of_each_class_and_label():
    assert CLASSES.counts(CLASSES.encode(LABELS, WEIGHTS))["class_count_"].tolist() == [
        1,
        3,
        1,
    ]
    counts = INDICATORS.counts(INDICATORS.encode(MATRIX, WEIGHTS))
    assert counts["class_count_"].tolist() == [2, 4]
    assert ValueTargets.of(WEIGHTS).counts(WEIGHTS) == {}


def test_prior_scores_are_the_weighted_frequencies():
    codes = np.array([0, 0, 1, 1, 1])
    three = ClassTargets(np.arange(3)).prior_scores(codes[:, None], WEIGHTS)
    assert np.exp(three).tolist() == pytest.approx([0.25, 0.75, 0.1])
    never = np.column_stack([codes, np.zeros(5)])
    two = LabelTargets(np.arange(2)).prior_scores(never, WEIGHTS)
    assert 1 / (1 + np.exp(-two)) == pytest.approx([0.75, 0.1])
    assert ValueTargets.of(MATRIX).prior_scores(MATRIX, WEIGHTS).tolist() == [0, 0]


@pytest.mark.parametrize("targets", [CLASSES, INDICATORS])
def test_logarithms_of_probabilities_are_finite_where_these_are_0(targets):
    found = targets.log_probabilities(SCORES)
    np.testing.assert_allclose(np.exp(found), targets.probabilities(SCORES))
    far = 2000 * SCORES
    assert (targets.probabilities(far) == 0).any()
    assert np.isfinite(targets.log_probabilities(far)).all()


def test_the_losses_and_scores_of_rows_are_those_of_scikit_learn():
    codes = CLASSES.encode(LABELS, WEIGHTS)
    loss = np.average(CLASSES.row_losses(SCORES, codes), weights=WEIGHTS)
    proba = CLASSES.probabilities(SCORES)
    assert loss == pytest.approx(log_loss(LABELS, proba, sample_weight=WEIGHTS))
    right = CLASSES.predictions(SCORES) == LABELS
    accuracy = CLASSES.validation_score(SCORES, codes, WEIGHTS)
    assert accuracy == pytest.approx(np.average(right, weights=WEIGHTS))
    two = INDICATORS.probabilities(SCORES[:, :2])
    expected = [log_loss(MATRIX[:, i], two[:, i]) for i in range(2)]
    assert INDICATORS.row_losses(SCORES[:, :2], MATRIX).mean() == pytest.approx(
        np.mean(expected)
    )
    values = MATRIX + SCORES[:, :2]
    score = ValueTargets.of(values).validation_score(SCORES[:, :2], values, WEIGHTS)
    expected = r2_score(values, SCORES[:, :2], sample_weight=WEIGHTS)
    assert score == pytest.approx(expected)


def test_decisions_of_two_classes_are_one_column():
    two = ClassTargets(np.array([0, 1])).decisions(SCORES[:, :2])
    assert two.tolist() == (SCORES[:, 1] - SCORES[:, 0]).tolist()
    assert CLASSES.decisions(SCORES) is SCORES
    assert INDICATORS.decisions(SCORES[:, :2]).shape == (5, 2)


@pytest.mark.parametrize("split", [1, 30, 59])
def test_values_of_two_calls_are_standardised_as_those_of_one(split):
    y, weights = RNG.normal(3, 2, (60, 2)), RNG.random(60) + 0.1
    targets, seen = ValueTargets.of(y), 0.0
    for rows in (slice(0, split), slice(split, 60)):
        examples = SimpleNamespace(targets=y[rows], weights=weights[rows])
        every = np.arange(len(examples.targets))
        targets, encoded = targets.standardised(examples, every, seen)
        seen += examples.weights.sum()
    mean = np.average(y, axis=0, weights=weights)
    variance = np.average((y - mean) ** 2, axis=0, weights=weights)
    np.testing.assert_allclose(targets.mean, mean)
    np.testing.assert_allclose(targets.scale, np.sqrt(variance))
    np.testing.assert_allclose(targets.predictions(encoded), y[split:])
