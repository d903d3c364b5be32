import numpy as np
import pytest
from matplotlib import pyplot as plt
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sktransfer import (
    BackboneRankingDisplay,
    FineTuneClassifier,
    FreezeDepthDisplay,
    TrainingHistoryDisplay,
    TransferReportDisplay,
    rank_backbones,
    transfer_report,
)
from tests.figures import labels_of, texts_are_legible
from tests.small_network import (
    backbone_of_blocks,
    blind_backbone,
    colour_backbone,
    small_backbone,
)
from tests.small_tasks import make_task


def test_what_is_not_fitted_has_nothing_to_show():
    model = FineTuneClassifier()
    search = GridSearchCV(model, {"freeze": [0, "all"]})
    with pytest.raises(NotFittedError, match="This GridSearchCV instance is not fit"):
        FreezeDepthDisplay.from_search(search)
    with pytest.raises(NotFittedError, match="FineTuneClassifier instance is not fit"):
        TrainingHistoryDisplay.from_estimator(model)


def test_freeze_depth_of_a_search():
    X, y = make_task()
    model = make_pipeline(
        FunctionTransformer(), FineTuneClassifier(small_backbone(), random_state=0)
    )
    depths = ["all", 0, -2, "0"]
    grid = {
        "finetuneclassifier__freeze": depths,
        "finetuneclassifier__max_epochs": [0, 3],
    }
    search = GridSearchCV(model, grid, cv=3).fit(X, y)
    display = FreezeDepthDisplay.from_search(search)
    assert display.depths == ["0", "0", "-2", "all"]
    results = search.cv_results_
    for row, depth in enumerate([0, "0", -2, "all"]):
        mean = max(
            score
            for score, params in zip(
                results["mean_test_score"], results["params"], strict=True
            )
            if params["finetuneclassifier__freeze"] == depth
        )
        assert display.scores[row].mean() == pytest.approx(mean)
    assert display.scores.shape == (4, 3)
    assert (display.seconds > 0).all()
    top, bottom = display.ax_
    assert labels_of(bottom.xaxis) == display.depths
    assert bottom.get_ylabel() == "fit (s)"
    texts_are_legible(display.figure_)
    alone = FreezeDepthDisplay.from_search(search, ax=plt.figure().subplots())
    assert len(alone.ax_) == 1
    with pytest.raises(ValueError, match=r"of which none are freeze depths. Pass"):
        FreezeDepthDisplay.from_search(
            GridSearchCV(LogisticRegression(), {"C": [1.0]}).fit(np.eye(10), y[:10])
        )


def test_freeze_depths_after_blocks_have_their_place():
    X, y = make_task()
    model = FineTuneClassifier(backbone_of_blocks(), max_epochs=1, random_state=0)
    grid = {"freeze": ["all", "b", "b.1", "c", 1, "b.2", "b.0"]}
    search = GridSearchCV(model, grid, cv=2).fit(X, y)
    depths = FreezeDepthDisplay.from_search(search).depths
    assert depths == ["1", "b.0", "b.1", "b", "all"]


def test_freeze_depth_of_one_of_several_scores():
    X, y = make_task()
    search = GridSearchCV(
        FineTuneClassifier(small_backbone(), max_epochs=1, random_state=0),
        {"freeze": ["all", 0]},
        cv=2,
        scoring={"accuracy": "accuracy", "my_test_accuracy": "neg_log_loss"},
        refit="my_test_accuracy",
    ).fit(X, y)
    for name in ("my_test_accuracy", "accuracy"):
        search.refit = name
        display = FreezeDepthDisplay.from_search(search)
        assert display.score_name == name
        assert display.depths == ["0", "all"]
        means = search.cv_results_[f"mean_test_{name}"][::-1]
        np.testing.assert_allclose(display.scores.mean(axis=1), means)
    for refit in (False, lambda results: 0):
        search.refit = refit
        with pytest.raises(ValueError, match="its refit=.* names none .* Set search"):
            FreezeDepthDisplay.from_search(search)


def test_freeze_depth_of_a_list_of_grids():
    X, y = make_task()
    model = FineTuneClassifier(small_backbone(), max_epochs=1, random_state=0)
    grids = [{"freeze": ["all", 2, 0]}, {"lr": [0.1]}]
    for refit, order in ((True, ["0", "2", "all"]), (False, ["all", "2", "0"])):
        search = GridSearchCV(model, grids, cv=2, refit=refit).fit(X, y)
        assert FreezeDepthDisplay.from_search(search).depths == order
    with pytest.raises(ValueError, match=r"Got param='frost'. Pass param="):
        FreezeDepthDisplay.from_search(search, param="frost")


def test_freeze_depth_of_a_halving_search_is_of_its_last_iterations():
    X, y = make_task()
    search = HalvingGridSearchCV(
        FineTuneClassifier(small_backbone(), random_state=0),
        {"freeze": [0, 1, 2, "all"], "lr": [1e-4, 1e-3]},
        resource="max_epochs",
        max_resources=4,
        min_resources=1,
        factor=2,
        cv=2,
        random_state=0,
    ).fit(X, y)
    # As if each iteration had been less lucky than the one before.
    results = search.cv_results_
    n_rows = len(results["params"])
    results["rank_test_score"] = np.arange(1, n_rows + 1)
    for fold in range(2):
        results[f"split{fold}_test_score"] = np.linspace(1, 0, n_rows)
    display = FreezeDepthDisplay.from_search(search)
    assert display.depths == ["0", "1", "2", "all"]
    for depth, scores in zip(display.depths, display.scores, strict=True):
        own = np.array([str(params["freeze"]) == depth for params in results["params"]])
        last = own & (results["iter"] == results["iter"][own].max())
        assert (scores == results["split0_test_score"][last].max()).all()


@pytest.mark.parametrize(
    ("depths", "named"),
    [
        ([0, -1, "2", "all", 2], {"0": [0], "2": [2], "all": [-1, "2", "all"]}),
        ([-1, "3", 2, "1", 0], {"0": [0], "2": [2, "1"], "-1": [-1, "3"]}),
    ],
)
def test_freeze_depths_that_train_the_same_are_one(depths, named):
    X, y = make_task()
    # The last stage only pools. Stage "2" is the third one, and the last but one.
    search = GridSearchCV(
        FineTuneClassifier(small_backbone(), max_epochs=0, random_state=0),
        {"freeze": depths},
        cv=2,
    ).fit(X, y)
    # As if they differed.
    results = search.cv_results_
    results["rank_test_score"] = np.arange(len(depths), 0, -1)
    for fold in range(2):
        results[f"split{fold}_test_score"] = np.linspace(0, 1, len(depths))
    display = FreezeDepthDisplay.from_search(search)
    assert display.depths == list(named)
    for scores, same in zip(display.scores, named.values(), strict=True):
        best = max(i for i, depth in enumerate(depths) if depth in same)
        assert (scores == results["split0_test_score"][best]).all()


@pytest.mark.parametrize("early_stopping", [False, True])
def test_history_of_a_fit(early_stopping):
    X, y = make_task()
    model = FineTuneClassifier(
        small_backbone(), head_epochs=2, max_epochs=3, early_stopping=early_stopping
    )
    display = TrainingHistoryDisplay.from_estimator(model.fit(X, y))
    losses = [row["train_loss"] for row in model.history_]
    assert len(losses) == 5
    np.testing.assert_array_equal(display.ax_[0].lines[0].get_ydata(), losses)
    assert len(display.ax_) == 1 + early_stopping
    names = [text.get_text() for text in display.ax_[0].get_legend().get_texts()]
    assert names == ["training", *["validation"] * early_stopping, "head only"]
    texts_are_legible(display.figure_)


def test_ranking():
    X, y = make_task()
    ranking = rank_backbones(X, y, [colour_backbone(), blind_backbone(), "resnet19"])
    display = BackboneRankingDisplay.from_ranking(ranking)
    assert labels_of(display.ax_.yaxis) == ["colour, 1", "blind, 1"]
    assert list(display.scores) == [row["probe"] for row in ranking[:2]]
    assert display.chance == 0.5
    texts_are_legible(display.figure_)
    display = BackboneRankingDisplay.from_ranking(ranking, column="knn")
    assert display.ax_.get_xlabel() == "knn"
    stages = rank_backbones(X, y, [small_backbone()], stages="all", cv=None)
    display = BackboneRankingDisplay.from_ranking(stages)
    assert sorted(display.names) == ["0", "1", "3"]
    assert list(display.scores) == [row["logme"] for row in stages]


def test_report():
    X, y = make_task()
    model = FineTuneClassifier(small_backbone(), max_epochs=1, random_state=0)
    report = transfer_report(model, X, y, cv=2)
    display = TransferReportDisplay.from_report(report)
    assert labels_of(display.ax_.yaxis) == [row["model"] for row in report]
    assert display.ax_.get_title("left") == report.verdict
    texts_are_legible(display.figure_)
    given = plt.figure().subplots()
    assert TransferReportDisplay.from_report(report, ax=given).ax_ is given


LONG = [
    "timm/vit_small_patch14_reg4_dinov2.lvd142m, blocks.11",
    "timm/swin_base_patch4_window12_384.ms_in22k_ft_in1k, layers.3",
    "resnet18, layer4",
]


def rankings_and_reports(names, ax=None):
    scores = np.array([[0.8, 0.9], [0.7, 0.9], [0.5, 0.6]])
    ranking = BackboneRankingDisplay(names, scores.mean(axis=1), chance=0.5)
    yield ranking.plot(ax)
    report = dict(zip(names, scores, strict=True))
    yield TransferReportDisplay(report, "negative transfer").plot(ax)


def test_long_names_leave_the_room_to_the_data():
    for display in rankings_and_reports(LONG):
        texts_are_legible(display.figure_)
        box = display.ax_.get_position()
        assert box.width > 0.55
        shown = ["".join(text.split()) for text in labels_of(display.ax_.yaxis)]
        assert shown == ["".join(name.split()) for name in LONG]


def test_short_names_stay_in_one_line():
    for display in rankings_and_reports(["one, pool", "two, pool", "three, pool"]):
        assert not any("\n" in name for name in labels_of(display.ax_.yaxis))


def test_long_depths_are_turned():
    scores = np.linspace(0, 1, 20).reshape(10, 2)
    for names in ([str(i) for i in range(10)], [f"denseblock{i}" for i in range(10)]):
        display = FreezeDepthDisplay(names, scores, scores[:, 0]).plot()
        (angle,) = {t.get_rotation() for t in display.ax_[-1].get_xticklabels()}
        assert (angle > 0) == (len(names[0]) > 1)
