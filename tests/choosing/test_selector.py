import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from sktransfer import BackboneSelector, EmbeddingCache, PretrainedFeatureExtractor
from tests.small_network import (
    blind_backbone,
    colour_backbone,
    counts,
    small_backbone,
    wide_only,
)
from tests.small_tasks import make_table, make_task

# Of tables whose rows are hardly images, as those of most checks are.
ONE_ROW = "ignore:Rows of .* values? are:UserWarning"


@pytest.mark.slow
@pytest.mark.filterwarnings(ONE_ROW)
@parametrize_with_checks([BackboneSelector([small_backbone()])])
def test_scikit_learns_estimator_checks(estimator, check):
    check(estimator)


def test_selects_and_embeds_with_the_best():
    X, y = make_task()
    selector = BackboneSelector([blind_backbone(), colour_backbone()])
    rows = selector.fit_transform(X, y)
    assert selector.best_backbone_.name == "colour"
    assert selector.best_stage_ == "1"
    assert [row["backbone"] for row in selector.ranking_] == ["colour", "blind"]
    expected = PretrainedFeatureExtractor(colour_backbone()).fit_transform(X)
    np.testing.assert_array_equal(rows, expected)
    assert len(selector.get_feature_names_out()) == rows.shape[1]


def test_selects_a_stage_and_keeps_an_extractors_settings():
    X, y = make_task()
    extractor = PretrainedFeatureExtractor(small_backbone(), pooling="max")
    selector = BackboneSelector([extractor], stages="all").fit(X, y)
    assert len(selector.ranking_) == 4
    extractor.set_params(stage=selector.best_stage_)
    np.testing.assert_array_equal(selector.transform(X), extractor.transform(X))


def test_what_embeds_has_the_settings_of_the_candidate():
    X, y = make_task()
    own = {"on_error": "nan", "batch_size": 5, "n_jobs": 1, "device": "cpu"}
    candidate = PretrainedFeatureExtractor(
        small_backbone(), **own, weights=None, image_size=12, random_state=3, stage="2"
    )
    source, cache = candidate.backbone, EmbeddingCache()
    selector = BackboneSelector([candidate], device="cpu:0", cache=cache).fit(X, y)
    found = selector.extractor_.get_params(deep=False)
    assert {name: found[name] for name in own} == own
    assert found["stage"] == "2"
    assert candidate.backbone is source
    counts.clear()
    rows = selector.transform(X)
    assert not counts, "the embeddings of fit are not those of transform"
    np.testing.assert_array_equal(rows, candidate.transform(X))
    with pytest.warns(UserWarning, match="nowhere"):
        assert np.isnan(selector.transform([*X[:2], "nowhere.png"])[2]).all()


def test_shared_parameters_are_those_of_plain_candidates():
    X, y = make_task()
    shared = {"device": "cpu", "random_state": 5, "cache": None}
    selector = BackboneSelector([colour_backbone()], **shared).fit(X, y)
    found = selector.extractor_.get_params(deep=False)
    assert {name: found[name] for name in shared} == shared


def test_the_image_shape_of_a_candidate_is_that_of_all():
    X, y = make_table()
    candidate = PretrainedFeatureExtractor(colour_backbone(), image_shape=(16, 4))
    with pytest.raises(ValueError, match=r"image_shape=\(16, 4\).*read once"):
        BackboneSelector([candidate]).fit(X, y)
    expected = candidate.transform(X)
    for given in (candidate, PretrainedFeatureExtractor(colour_backbone())):
        selector = BackboneSelector([given], image_shape=(16, 4)).fit(X, y)
        np.testing.assert_array_equal(selector.transform(X), expected)


def test_a_score_that_is_not_a_number_is_a_failure_of_that_candidate():
    X, y = make_task()
    selector = BackboneSelector(
        [colour_backbone(), small_backbone()], scoring=["knn", wide_only]
    ).fit(X, y)
    assert selector.best_backbone_.name == "small"
    assert "score 'wide_only' is nan" in selector.ranking_[1]["error"]


@pytest.mark.parametrize("candidates", ["tiny", iter(["tiny"]), 3])
def test_candidates_are_a_list(candidates):
    X, y = make_task()
    with pytest.raises(ValueError, match="Invalid candidates=.* Pass a list.*: .*"):
        BackboneSelector(candidates).fit(X, y)


def test_inside_search_and_cross_validation():
    X, y = make_task()
    model = make_pipeline(
        BackboneSelector([blind_backbone(), colour_backbone()]), LogisticRegression()
    )
    assert cross_val_score(model, X, y, cv=3).mean() > 0.7
    search = GridSearchCV(
        model, {"backboneselector__scoring": ["logme", "knn", ["logme", "knn"]]}, cv=2
    )
    assert search.fit(X, y).best_score_ > 0.7


def test_needs_targets_for_each_image():
    X, y = make_task()
    selector = BackboneSelector([colour_backbone()])
    with pytest.raises(ValueError, match="24 images and y has 23 targets"):
        selector.fit(X, y[:-1])
    with pytest.raises(ValueError, match="no backbone to rank"):
        BackboneSelector([]).fit(X, y)
