import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_network import counts, small_backbone
from torch import nn

from sktransfer import (
    Backbone,
    EmbeddingCache,
    PretrainedFeatureExtractor,
    h_score,
    logme_score,
    rank_backbones,
)
from sktransfer._backbones import Recipe
from sktransfer._decoding import decode
from sktransfer._loading import weights_licence


def make_task(n=24, seed=0):
    """Noisy pictures of two classes, whose mean colours differ."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    shade = np.where(y, 150, 100)[:, None, None, None]
    X = np.clip(rng.normal(shade, 60, (n, 20, 20, 3)), 0, 255).astype(np.uint8)
    return list(X), np.array(["dark", "light"])[y]


def colour_backbone():
    stages = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Backbone(stages, Recipe(resize=18, crop=16), name="colour")


class Blind(nn.Module):
    def forward(self, x):
        return (x - x.mean((2, 3), keepdim=True))[:, :, 3, 3]


def blind_backbone():
    stages = nn.Sequential(nn.Identity(), Blind())
    return Backbone(stages, Recipe(resize=18, crop=16), name="blind")


class Broken(nn.Module):
    def forward(self, x):
        if x.shape[0] > 1:
            raise RuntimeError("no kernel for this")
        return x.mean((2, 3))


def test_best_backbone_comes_first_under_every_score():
    X, y = make_task()
    ranking = rank_backbones(X, y, [blind_backbone(), colour_backbone()], cv=3)
    best, worst = ranking
    assert (best["backbone"], worst["backbone"]) == ("colour", "blind")
    for name in ("logme", "h_score", "knn"):
        assert best[name] > worst[name]
        assert (best[f"{name}_rank"], worst[f"{name}_rank"]) == (1, 2)
    assert best["probe"] > worst["probe"]
    assert best["chance"] == 0.5
    assert best["error"] is None


def test_scores_are_those_of_the_extractors_embeddings():
    X, y = make_task()
    source = small_backbone()
    (row,) = rank_backbones(X, y, [source], scoring=["logme", h_score], cv=None)
    features = PretrainedFeatureExtractor(source).fit_transform(X)
    assert row["logme"] == logme_score(features, y)
    assert row["h_score"] == h_score(features, y)
    assert "probe" not in row
    assert row["parameters"] == source.n_parameters
    tensors = source.stages.state_dict().values()
    assert row["megabytes"] == sum(t.numel() * t.element_size() for t in tensors) / 1e6
    assert row["licence"] is None
    assert row["seconds"] > 0


def test_probe_is_scikit_learns_own():
    X, y = make_task()
    (row,) = rank_backbones(X, y, [colour_backbone()], scoring="knn", cv=4)
    features = PretrainedFeatureExtractor(colour_backbone()).fit_transform(X)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    scores = cross_val_score(probe, features, y, cv=4)
    assert row["probe"] == scores.mean()
    assert row["probe_se"] == scores.std(ddof=1) / 2


def test_licence_of_the_weights():
    assert "BSD-3-Clause" in weights_licence("resnet18", "default")
    assert weights_licence("resnet18", "my.pth") is None
    assert weights_licence("resnet18", None) is None


@pytest.mark.parametrize("cache", [None, "memory", "disk"])
def test_every_stage_in_one_pass(cache, tmp_path):
    X, y = make_task()
    source = small_backbone()
    store = {"memory": EmbeddingCache(), "disk": EmbeddingCache(tmp_path / "cache")}
    settings = {"stages": "all", "scoring": "logme", "cv": None}
    way = {"cache": store.get(cache)}
    expected = {
        stage: logme_score(
            PretrainedFeatureExtractor(source, stage=stage, **way).fit_transform(X), y
        )
        for stage in source.stage_names
    }
    for _ in range(2):
        ranking = rank_backbones(X, y, [source], **settings, **way)
        assert {row["stage"]: row["logme"] for row in ranking} == expected


def test_each_stage_computes_each_image_once():
    X, y = make_task(n=32)
    source, cache = small_backbone(), EmbeddingCache()
    rank_backbones(X, y, [source], stages="all", scoring="knn", cv=None, cache=None)
    counts.clear()
    settings = {"stages": ["0", "2"], "scoring": "knn", "cv": None}
    ranking = rank_backbones(X, y, [source], **settings, cache=cache)
    timing = {name: counts.get(name, 0) for name in "abc"}
    counts.clear()
    again = rank_backbones(X, y, [source], **settings, cache=cache)
    # What is left the second time is the measurement of the seconds.
    assert {name: timing[name] - counts[name] for name in "abc"} == dict.fromkeys(
        "abc", 32
    )
    assert [row["knn"] for row in again] == [row["knn"] for row in ranking]


def test_candidates_of_one_recipe_share_decoding(monkeypatch):
    X, y = make_task()
    decoded = []

    def counting(source):
        decoded.append(1)
        return decode(source)

    monkeypatch.setattr("sktransfer._backbones.decode", counting)
    backbones = [colour_backbone(), small_backbone(), blind_backbone()]
    rank_backbones(X, y, backbones, scoring="knn", cv=None, cache=None)
    assert len(decoded) == len(X)


def test_a_candidate_that_fails_is_a_row():
    X, y = make_task()
    broken = Backbone(nn.Sequential(Broken()), Recipe(18, 16), name="broken")
    extractor = PretrainedFeatureExtractor("resnet18", weights="nowhere.pth")
    ranking = rank_backbones(
        X, y, [broken, "resnet19", extractor, colour_backbone()], cv=None
    )
    assert [row["backbone"] for row in ranking] == [
        "colour", "broken", "resnet19", "resnet18, nowhere.pth"
    ]  # fmt: skip
    errors = [row["error"] for row in ranking]
    assert errors[0] is None
    assert "no kernel for this" in errors[1]
    assert "Did you mean 'resnet18'" in errors[2]
    assert "nowhere.pth" in errors[3]
    assert "nowhere.pth" in repr(ranking)
    with pytest.raises(ValueError, match=r"All 1 candidates failed. resnet19: "):
        rank_backbones(X, y, ["resnet19"])


def test_an_unreadable_image_is_no_failure_of_the_candidate(tmp_path):
    X, y = make_task()
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"row 2 .*bad\.jpg"):
        rank_backbones([*X[:2], bad, *X[3:]], y, [colour_backbone()])


def test_regression():
    X, _ = make_task()
    y = np.array([picture.mean() for picture in X])
    best, worst = rank_backbones(X, y, [blind_backbone(), colour_backbone()], cv=3)
    assert best["backbone"] == "colour"
    assert "h_score" not in best
    assert best["probe"] > worst["probe"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scoring": "leep"}, "scoring=.*leep.* is not known. Accepted are"),
        ({"scoring": []}, "is not known"),
        ({"backbones": []}, "no backbone to rank"),
        ({"y": ["a"]}, "24 images and y has 1 targets"),
        ({"stages": ["layer9"]}, "layer9"),
    ],
)
def test_bad_arguments(arguments, message):
    X, y = make_task()
    arguments = {"y": y, "backbones": [colour_backbone()], **arguments}
    with pytest.raises(ValueError, match=message):
        rank_backbones(X, **arguments)
