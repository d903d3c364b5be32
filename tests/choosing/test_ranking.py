import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sktransfer import (
    Backbone,
    EmbeddingCache,
    PretrainedFeatureExtractor,
    h_score,
    knn_score,
    load_backbone,
    logme_score,
    rank_backbones,
    register_backbone,
)
from sktransfer.backbones import _load
from sktransfer.backbones._load import weights_licence
from sktransfer.inputs._decoding import decode
from sktransfer.inputs._images import ImageReader
from tests.small_network import (
    backbone_of_blocks,
    blind_backbone,
    colour_backbone,
    counts,
    small_backbone,
    wide_only,
)
from tests.small_tasks import make_table, make_task


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
    pytest.importorskip("timm")
    assert weights_licence("timm/resnet18.a1_in1k", "default") == "apache-2.0"
    assert weights_licence("timm/resnet18.a1_in1k", "my.pth") is None


def test_licence_of_a_name_of_the_users_own(monkeypatch):
    monkeypatch.setattr(_load, "_registered", {})
    register_backbone("resnet18", colour_backbone)
    assert weights_licence("resnet18", "default") is None


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
        for stage in ["0", "1", "3"]
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


def test_blocks_are_ranked_beside_stages_in_one_pass():
    X, y = make_task(n=32)
    source, cache = backbone_of_blocks(), EmbeddingCache()
    settings = {"scoring": "logme", "cv": None, "cache": cache}
    given = ["b.1", "b", "b.0", "a", "b.9"]
    ranking = rank_backbones(X, y, [source], stages=given, **settings)
    counts.clear()
    rank_backbones(X, y, [source], stages=given, **settings)
    # What is left the second time is the measurement of the seconds.
    assert counts["a"] == 4 * 3 * 32 * torch.get_num_threads()
    scores = {row["stage"]: row.get("logme") for row in ranking}
    assert scores.keys() == {*given}
    assert scores.pop("b.9") is None
    for stage, score in scores.items():
        features = PretrainedFeatureExtractor(source, stage=stage).fit_transform(X)
        assert score == logme_score(features, y)
    whole = rank_backbones(X, y, [source], stages="all", **settings)
    assert {row["stage"] for row in whole} <= {*source.stage_names}


@pytest.mark.parametrize(
    ("stages", "kept"),
    [
        ("all", ["stem", "layer1", "layer2", "layer3", "pool"]),
        (["layer4", "layer3", "pool"], ["layer3", "pool"]),
        (["layer4", "stem"], ["stem", "layer4"]),
    ],
)
def test_stages_that_give_the_same_are_one_row(stages, kept):
    X, y = make_task()
    ranking = rank_backbones(X, y, ["tiny"], scoring="logme", stages=stages, cv=None)
    assert sorted(row["stage"] for row in ranking) == sorted(kept)
    # What the row tells of the network is that of all of its stages.
    tiny = load_backbone("tiny")
    (last,) = (row for row in ranking if row["stage"] == kept[-1])
    assert last["parameters"] == tiny.n_parameters
    tensors = tiny.stages.state_dict().values()
    assert last["megabytes"] == sum(t.nbytes for t in tensors) / 1e6
    assert last["seconds"] > 0


def test_stages_of_one_width_that_give_something_else_are_rows_of_their_own():
    X, y = make_task()
    # The largest value of a feature map is not its mean, which the last stage gives.
    candidate = PretrainedFeatureExtractor(pooling="max")
    settings = {"scoring": "logme", "stages": ["layer4", "pool"], "cv": None}
    assert len(rank_backbones(X, y, [candidate], **settings)) == 2


def test_the_global_generators_stay_as_they_are():
    X, y = make_task()
    random = PretrainedFeatureExtractor("tiny", weights=None, random_state=0)
    backbones = [small_backbone(), random]
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    rank_backbones(X, y, backbones, cv=3, cache=None)
    assert torch.equal(torch.get_rng_state(), before[0])
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_equal(after, before[1])


def test_candidates_of_one_reader_share_decoding(monkeypatch):
    X, y = make_task()
    decoded = []

    def counting(*source):
        decoded.append(1)
        return decode(*source)

    monkeypatch.setattr("sktransfer.inputs._images.decode", counting)
    backbones = [colour_backbone(), small_backbone(), blind_backbone()]
    rank_backbones(X, y, backbones, scoring="knn", cv=None, cache=None)
    assert len(decoded) == len(X)


def test_a_candidate_that_fails_is_a_row():
    X, y = make_task()
    broken = Backbone(nn.Sequential(Broken()), ImageReader(18, 16), name="broken")
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


def constant(features, y):
    return 1.0


def unbounded(features, y):
    return np.inf if features.shape[1] == 12 else 1.0


@pytest.mark.parametrize(
    ("score", "value", "bad"),
    [
        # The stages are 8, 12, 16 and 3, 12 wide.
        (wide_only, "nan", ["small 0", "small 1", "colour 0", "colour 1"]),
        (unbounded, "inf", ["small 1", "colour 1"]),
    ],
)
def test_a_score_that_is_not_finite_is_a_failure_of_that_row(score, value, bad):
    X, y = make_task()
    sources, scoring = [small_backbone(), colour_backbone()], ["knn", score]
    ranking = rank_backbones(X, y, sources, scoring=scoring, stages="all", cv=None)
    good, failed = ranking[: -len(bad)], ranking[-len(bad) :]
    assert [f"{row['backbone']} {row['stage']}" for row in failed] == bad
    assert all(f"{score.__name__!r} is {value}" in row["error"] for row in failed)
    assert len(good) == 5 - len(bad)
    assert all(row["error"] is None for row in good)
    assert good[0]["knn_rank"] == 1


def test_where_no_score_is_finite_the_error_names_it():
    X, y = make_task()
    with pytest.raises(ValueError, match=r"All 1 .*colour, 1: .*'wide_only' is nan"):
        rank_backbones(X, y, [colour_backbone()], scoring=wide_only, cv=None)


def test_all_candidates_and_stages_share_the_folds():
    X, y = make_task()
    sources = [small_backbone(), colour_backbone()]
    settings = {"stages": "all", "scoring": "knn"}
    expected = rank_backbones(X, y, sources, cv=KFold(3), **settings)
    once = rank_backbones(X, y, sources, cv=KFold(3).split(X), **settings)
    assert [row["error"] for row in once] == [None] * 5
    assert [row["probe"] for row in once] == [row["probe"] for row in expected]
    # Without a seed each split is another one, and without a signal the probe shows it.
    noise, same = np.random.default_rng(0).permutation(y), [small_backbone()] * 2
    for _ in range(3):
        splitter = KFold(3, shuffle=True)
        one, other = rank_backbones(X, noise, same, scoring="knn", cv=splitter)
        assert one["probe"] == other["probe"]
        assert one["probe_se"] == other["probe_se"]


def test_an_iterator_of_folds_that_is_used_up():
    X, y = make_task()
    folds = KFold(3).split(X)
    list(folds)
    with pytest.raises(ValueError, match="has no folds.*pass its splitter or a list"):
        rank_backbones(X, y, [colour_backbone()], cv=folds)


def test_the_image_shape_of_a_candidate_is_that_of_all():
    X, y = make_table()
    candidate = PretrainedFeatureExtractor(colour_backbone(), image_shape=(16, 4))
    for common in (None, (8, 8)):
        with pytest.raises(ValueError, match=r"image_shape=\(16, 4\).*read once"):
            rank_backbones(X, y, ["tiny", candidate], cv=None, image_shape=common)
    # As lists and as tuples they are the same; None is what all have.
    other = PretrainedFeatureExtractor(colour_backbone())
    ranking = rank_backbones(
        X, y, [candidate, other], scoring="logme", cv=None, image_shape=[16, 4]
    )
    expected = logme_score(candidate.transform(X), y)
    assert [row["logme"] for row in ranking] == [expected] * 2


def test_parameters_of_a_candidate_are_checked():
    X, y = make_task()
    candidate = PretrainedFeatureExtractor(small_backbone(), pooling="median")
    ranking = rank_backbones(X, y, [candidate, colour_backbone()], cv=None)
    assert [row["backbone"] for row in ranking] == ["colour", "small"]
    assert "'pooling' parameter" in ranking[1]["error"]


def test_an_unreadable_image_is_no_failure_of_the_candidate(tmp_path):
    X, y = make_task()
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"row 2 .*bad\.jpg"):
        rank_backbones([*X[:2], bad, *X[3:]], y, [colour_backbone()])


def test_regression():
    X, _ = make_task()
    y = np.array([image.mean() for image in X])
    best, worst = rank_backbones(X, y, [blind_backbone(), colour_backbone()], cv=3)
    assert best["backbone"] == "colour"
    assert "h_score" not in best
    assert best["probe"] > worst["probe"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scoring": "leep"}, "Invalid scoring=.*leep.*: expected one of"),
        ({"scoring": []}, r"Invalid scoring=\[\]: .*non-empty"),
        ({"scoring": [lambda F, y: 1.0, lambda F, y: 2.0]}, "several .*'<lambda>'"),
        ({"scoring": ["knn", "logme", "knn"]}, "several scores named 'knn'"),
        ({"backbones": []}, "no backbone to rank"),
        ({"backbones": "tiny"}, r"backbones='tiny': .* Pass a list.*\['tiny'\]"),
        ({"backbones": nn.Sequential(nn.Flatten())}, "=Sequential: .* Pass a list"),
        ({"backbones": PretrainedFeatureExtractor()}, "Pass a list.*: .backbone."),
        ({"y": ["a"]}, "24 images and y has 1 targets"),
        ({"stages": ["layer9"]}, "layer9"),
    ],
)
def test_bad_arguments(arguments, message):
    X, y = make_task()
    arguments = {"y": y, "backbones": [colour_backbone()], **arguments}
    with pytest.raises(ValueError, match=message):
        rank_backbones(X, **arguments)


def test_a_function_of_the_name_of_a_score():
    X, y = make_task()

    def knn(features, y):
        return 7.0

    with pytest.raises(ValueError, match="several scores named 'knn'"):
        rank_backbones(X, y, [colour_backbone()], scoring=["knn", knn], cv=None)
    (row,) = rank_backbones(
        X, y, [colour_backbone()], scoring=iter([knn, constant]), cv=None
    )
    assert (row["knn"], row["constant"]) == (7.0, 1.0)


def test_a_stage_that_is_not_there_costs_no_other():
    X, y = make_task()
    backbones = [small_backbone(), colour_backbone()]
    ranking = rank_backbones(X, y, backbones, stages=["0", "2"], cv=None)
    assert [(row["backbone"], row["stage"]) for row in ranking[-1:]] == [
        ("colour", "2")
    ]
    assert "stage='2'" in ranking[-1]["error"]
    assert len(ranking) == 4
    assert all(row["error"] is None for row in ranking[:-1])
    with pytest.raises(ValueError, match="Invalid stages='0': expected 'all', a list"):
        rank_backbones(X, y, backbones, stages="0")
    with pytest.raises(ValueError, match="colour, 9: ValueError: "):
        rank_backbones(X, y, backbones[1:], stages=["9"])


def test_multilabel():
    X, y = make_task()
    bright = y == np.unique(y)[1]
    Y = np.column_stack([bright, ~bright, np.arange(len(X)) % 4 < 2]).astype(int)
    backbones = [blind_backbone(), colour_backbone()]
    ranking = rank_backbones(X, Y, backbones, cv=3)
    assert [row["backbone"] for row in ranking] == ["colour", "blind"]
    best, worst = ranking
    for score in ("logme", "h_score", "knn", "probe"):
        assert best[score] > worst[score]
    assert best["chance"] == pytest.approx(Y.mean())
    embedded = PretrainedFeatureExtractor(colour_backbone()).transform(X)
    assert best["knn"] == pytest.approx(knn_score(embedded, Y))
    linear = OneVsRestClassifier(LogisticRegression(C=0.01, max_iter=1000))
    model = make_pipeline(StandardScaler(), linear)
    # Of any order of the samples.
    cv = KFold(3, shuffle=True, random_state=0)
    expected = cross_val_score(model, embedded, Y, cv=cv, scoring="average_precision")
    assert best["probe"] == pytest.approx(expected.mean())
    # A label of a single sample is in no other fold than one.
    rare = np.column_stack([Y, np.arange(len(X)) == 5])
    assert all(row["error"] is None for row in rank_backbones(X, rare, backbones, cv=3))
    (again, *_) = rank_backbones(X, csr_matrix(Y), backbones, cv=3)
    assert again["logme"] == best["logme"]


def test_several_real_values():
    X, _ = make_task()
    y = np.array([[image.mean(), image[..., 0].mean()] for image in X])
    best, worst = rank_backbones(X, y, [blind_backbone(), colour_backbone()], cv=3)
    assert best["backbone"] == "colour"
    assert best["probe"] > worst["probe"]
