import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from small_network import small_backbone
from test_ranking import blind_backbone, colour_backbone, make_task

from sktransfer import BackboneSelector, PretrainedFeatureExtractor

# Of tables whose rows are no squares, as those of most checks are.
ONE_ROW = "ignore:Rows of .* values are no square:UserWarning"


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
