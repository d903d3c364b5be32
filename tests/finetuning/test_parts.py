import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from sktransfer import (
    BackboneSelector,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
)
from sktransfer.finetuning._parts import ends_of, find_source, parts_of
from tests.small_network import small_backbone
from tests.small_tasks import make_table, searched


def tuned(**options):
    return FineTuneClassifier(
        small_backbone(), freeze="all", C=1.0, random_state=0, **options
    )


def networks(estimator):
    kinds = (FineTuneClassifier, PretrainedFeatureExtractor)
    return [part for part in parts_of(estimator) if isinstance(part, kinds)]


def probe():
    return make_pipeline(
        PretrainedFeatureExtractor(small_backbone()), LogisticRegression()
    )


@pytest.mark.parametrize(
    ("wrap", "count"),
    [
        (lambda: tuned(), 1),
        (lambda: tuned(teacher=tuned().fit(*make_table())), 1),
        (lambda: searched(tuned()), 1),
        (
            # A candidate of the grid is not what was found, but it is copied for it.
            lambda: GridSearchCV(
                Pipeline([("a", SVC())]), {"a": [tuned().fit(*make_table())]}
            ),
            1,
        ),
        (lambda: make_pipeline(FunctionTransformer(), searched(tuned())), 1),
        (lambda: searched(probe(), "logisticregression__C"), 1),
        (lambda: VotingClassifier([("a", tuned()), ("b", tuned())]), 2),
        (lambda: VotingClassifier([("a", tuned().fit(*make_table()))]), 1),
        (lambda: StackingClassifier([("a", probe())], cv=2), 1),
        (lambda: TunedThresholdClassifierCV(tuned(), cv=2), 1),
        (lambda: OneVsRestClassifier(tuned()), 1),
        (lambda: CalibratedClassifierCV(tuned(), cv=2, ensemble=True), 3),
        (lambda: make_pipeline(BackboneSelector([small_backbone()]), SVC()), 1),
        (
            lambda: make_pipeline(
                ColumnTransformer([("a", probe()[0], slice(0, 64))]), SVC()
            ),
            1,
        ),
    ],
)
def test_parts_are_the_fitted_ones_each_once(wrap, count):
    estimator = wrap()
    estimator.fit(*make_table())
    found = networks(estimator)
    assert len(found) == len({*map(id, found)}) == count
    # A calibrated classifier keeps what it was given beside what it has fitted.
    unfitted = 1 if isinstance(estimator, CalibratedClassifierCV) else 0
    assert sum(part._summary() is None for part in found) == unfitted


def test_outer_parts_come_before_inner_ones():
    model = make_pipeline(FunctionTransformer(), searched(tuned()))
    model.fit(*make_table())
    found = [part for part in parts_of(model) if hasattr(part, "get_params")]
    assert found == [model, model[0], model[1], model[1].best_estimator_]


def test_what_holds_itself_is_walked_once():
    model = LogisticRegression()
    model.itself = [model, {"model": model}]
    assert [part for part in parts_of(model) if part is model] == [model]


def test_the_ends_are_what_predicts():
    model = make_pipeline(FunctionTransformer(), searched(tuned()))
    search = model[1]
    assert [*ends_of(model)] == [model, search, search.estimator]
    model.fit(*make_table())
    assert [*ends_of(model)] == [model, search, search.best_estimator_]
    search = searched(probe(), "logisticregression__C", refit=False)
    assert [*ends_of(search)] == [search, *ends_of(search.estimator)]
    assert [*ends_of(search.fit(*make_table()))] == [search]


def test_the_source_has_the_name_of_its_parameters():
    inner = tuned(teacher=tuned())
    model = searched(make_pipeline(FunctionTransformer(), inner))
    name, part = find_source(model)
    assert name == "estimator__finetuneclassifier"
    assert part is inner
    model.set_params(**{f"{name}__lr": 0.25})
    assert inner.lr == 0.25
    with pytest.raises(ValueError, match=r"2 parts .*\['a', 'b'\]"):
        find_source(VotingClassifier([("a", tuned()), ("b", probe()[0])]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: make_pipeline(FunctionTransformer(), model),
        lambda model: searched(model),
        lambda model: searched(make_pipeline(model), "finetuneclassifier__max_epochs"),
        lambda model: make_pipeline("passthrough", searched(model)),
        lambda model: FrozenEstimator(model),
    ],
)
def test_a_network_within_is_a_backbone(wrap):
    X, y = make_table()
    model = FineTuneClassifier(small_backbone(), max_epochs=1, random_state=0)
    if isinstance(wrap(model), FrozenEstimator):
        model.fit(X, y)
    outer = wrap(model).fit(X, y)
    (inner,) = [part for part in networks(outer) if hasattr(part, "backbone_")]
    start = tuned().set_params(backbone=outer)
    again = clone(start)
    assert again.backbone is outer
    assert again.fit(X, y).source_.digest == inner.backbone_.digest
    embedder = PretrainedFeatureExtractor(outer)
    np.testing.assert_array_equal(
        embedder.fit_transform(X),
        PretrainedFeatureExtractor(inner).fit_transform(X),
    )


def test_what_has_no_tuned_network_is_no_backbone():
    X, y = make_table()
    outer = probe().fit(X, y)
    for given in (outer, searched(tuned(), refit=False).fit(X, y)):
        with pytest.raises(ValueError, match="at the end of a pipeline or as the best"):
            tuned().set_params(backbone=given).fit(X, y)
    with pytest.raises(NotFittedError):
        tuned().set_params(backbone=make_pipeline(tuned())).fit(X, y)
