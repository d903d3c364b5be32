import copy
import pickle

import joblib
import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback

from sktransfer import (
    EmbeddingCache,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
)
from sktransfer.backbones._weights import module_digest
from sktransfer.finetuning import _base
from tests.small_network import backbone_of_blocks, counts, make_net, small_backbone
from tests.small_tasks import make_picture


@pytest.fixture
def task():
    """Pictures of three classes, told apart by their brightness and hue."""
    X, y = [], []
    for seed in range(36):
        label = seed % 3
        image = make_picture(seed, 20, 24).astype(float) * 0.3
        image[:, :, label] += 150
        X.append(image.astype(np.uint8))
        y.append(["ant", "bee", "wasp"][label])
    return X, np.array(y)


def model(**parameters):
    defaults = {
        "backbone": small_backbone(),
        "lr": 0.02,
        "max_epochs": 4,
        "batch_size": 8,
        "random_state": 0,
    }
    return FineTuneClassifier(**{**defaults, **parameters})


def tensors(stages):
    return {name: t.clone() for name, t in stages.state_dict().items()}


def assert_equal_tensors(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("augment", [None, "light"])
@pytest.mark.parametrize("freeze", [0, 1, "1", -1, "all"])
def test_frozen_is_bit_identical(norm, augment, freeze, task):
    source = small_backbone(norm)
    before = tensors(source.stages)
    fitted = model(backbone=source, augment=augment, freeze=freeze).fit(*task)
    fitted.partial_fit(*task)
    assert_equal_tensors(tensors(source.stages), before)
    # The last stage is a pooling.
    depth = 4 if freeze == -1 else source.depth(freeze)
    assert fitted.freeze_depth_ == depth
    assert fitted.frozen_stages_ == source.stage_names[:depth]
    after = tensors(fitted.backbone_.stages)
    for name, tensor in before.items():
        if int(name.split(".")[0]) < depth:
            assert torch.equal(after[name], tensor)
    trained = [name for name in before if int(name.split(".")[0]) >= depth]
    assert not trained or any(not torch.equal(after[n], before[n]) for n in trained)


@pytest.mark.parametrize("kind", [FineTuneClassifier, FineTuneRegressor])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("augment", [None, "light"])
@pytest.mark.parametrize("freeze", ["b.0", "b.1", "b.2"])
def test_what_is_frozen_of_a_stage_is_bit_identical(kind, norm, augment, freeze, task):
    X, y = task
    source, number = backbone_of_blocks(norm), int(freeze[2:])
    before = tensors(source.stages)
    settings = {"freeze": freeze, "augment": augment, "max_epochs": 2, "lr": 0.02}
    y = y if kind is FineTuneClassifier else np.arange(len(y)) % 3.0
    fitted = kind(source, **settings, random_state=0, weights="default").fit(X, y)
    fitted.partial_fit(X, y)
    frozen = [f"b.{i}" for i in range(number + 1)] if number < 2 else ["b"]
    assert fitted.frozen_stages_ == ("a", *frozen)
    stages = fitted.backbone_.stages
    found = [stages[: len(frozen) + 1], stages[len(frozen) + 1 :]]
    kept, trained = (list(tensors(part).values()) for part in found)
    for new, old in zip(kept, before.values(), strict=False):
        assert torch.equal(new, old)
    old = list(before.values())[len(kept) :]
    assert any(not torch.equal(*both) for both in zip(trained, old, strict=True))
    assert_equal_tensors(tensors(source.stages), before)


@pytest.mark.parametrize("order", [["b.0", "b.1", "b", "all"], ["b.1", "all", "b.0"]])
def test_a_search_through_blocks_computes_what_all_freeze_once(order, task):
    settings = {"backbone": backbone_of_blocks(), "max_epochs": 1}
    grid, cache = {"freeze": order}, EmbeddingCache()
    searches = [
        GridSearchCV(model(**settings, cache=c), grid, cv=3, scoring="neg_log_loss")
        for c in (cache, None)
    ]
    counts.clear()
    searches[0].fit(*task)
    assert counts["a"] == counts["b0"] == 2 * 32
    counts.clear()
    found, expected = (search.fit(*task).cv_results_ for search in searches)
    for name in ("split0_test_score", "split1_test_score", "split2_test_score"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_the_stages_of_a_block_learn_as_fast_as_those_of_the_whole(task):
    settings = {"backbone": backbone_of_blocks(), "layer_decay": 0.5, "lr": 0.01}
    rates = {}
    for freeze in ("a", "b.0", "b.1"):
        fitted = model(**settings, freeze=freeze, max_epochs=1).fit(*task)
        groups = fitted.net_.optimizer_.param_groups
        rates[freeze] = {group["initial_lr"] for group in groups}
    # Blocks of a stage of which nothing is frozen learn alike.
    fitted = model(**settings | {"backbone": fitted}, freeze=1, max_epochs=1).fit(*task)
    assert "b.1" in fitted.backbone_.stage_names
    groups = fitted.net_.optimizer_.param_groups
    assert {group["initial_lr"] for group in groups} == rates["a"]
    # Of the head, of stage c, and of what remains of stage b.
    assert rates["a"] == rates["b.0"] == rates["b.1"] == {0.01, 0.001, 0.0005}


def test_a_warm_start_pulls_what_remains_to_the_source_of_the_first_fit(task):
    settings = {"backbone": backbone_of_blocks(), "warm_start": True, "l2_sp": 10.0}
    fitted = model(**settings, freeze=0).fit(*task)
    fitted.set_params(freeze="b.0").fit(*task)
    assert fitted.source_.stage_names == fitted.backbone_.stage_names
    fitted.set_params(freeze="b.1").fit(*task)
    assert fitted.source_.stage_names == ("a", "b.0", "b.1", "b", "c", "pool")
    assert fitted.frozen_stages_ == ("a", "b.0", "b.1")
    fitted.set_params(freeze=1).fit(*task)
    assert fitted.frozen_stages_ == ("a",)


@pytest.mark.parametrize("freeze", [0, 1, 2, "all"])
def test_the_prefix_computed_once_or_in_every_step_is_the_same(freeze, task):
    settings = {"freeze": freeze, "max_epochs": 2, "solve_head": False}
    once = model(**settings).fit(*task)
    each = model(**settings, augment=lambda x: x, cache=None).fit(*task)
    np.testing.assert_array_equal(
        once.decision_function(task[0]), each.decision_function(task[0])
    )


@pytest.mark.parametrize("order", [[0, 1, 2, "all"], ["all", 2, 1, 0]])
def test_a_search_over_depth_computes_frozen_stages_once(order, task):
    cache = EmbeddingCache()
    search = GridSearchCV(
        model(cache=cache, max_epochs=2), {"freeze": [d for d in order if d != 0]}, cv=3
    )
    counts.clear()
    search.fit(*task)
    # What the first fold trains on in a batch of 32, filled up; the rest in another.
    assert counts["a"] == 2 * 32
    counts.clear()
    search.fit(*task)
    assert "a" not in counts


@pytest.mark.parametrize("freeze", [0, 1, 2, "all"])
def test_the_embeddings_of_the_source_are_computed_once(freeze, task):
    X, y = task
    settings = {"cache": EmbeddingCache(), "max_epochs": 0}
    model(freeze=1, **settings).fit(X, y)
    counts.clear()
    model(freeze=freeze, **settings).fit(X[:30], y[:30])
    assert "c" not in counts
    known = model(freeze=freeze, **settings).fit(X, y)
    fresh = model(freeze=freeze, **{**settings, "cache": None}).fit(X, y)
    assert_equal_tensors(tensors(known.head_), tensors(fresh.head_))


@pytest.mark.parametrize("depths", [[0, 1, 2, "all"], ["all", 2, 1, 0]])
def test_the_source_runs_once_whatever_depth_comes_first(depths, task):
    cache = EmbeddingCache()
    model(max_epochs=0, cache=None).fit(*task)
    counts.clear()
    for depth in depths:
        model(freeze=depth, max_epochs=0, cache=cache).fit(*task)
    rows = -(-len(task[0]) // 32) * 32
    assert set(counts.values()) == {rows}


def test_a_cache_never_shows(task, tmp_path):
    X, y = task
    scores = [
        model(freeze=2, cache=cache).fit(X, y).predict_proba(X)
        for cache in [None, "auto", EmbeddingCache(), tmp_path, tmp_path]
    ]
    for other in scores[1:]:
        np.testing.assert_array_equal(other, scores[0])


def test_the_same_seed_is_the_same_model(task):
    X, y = task
    one, other = model(dropout=0.2).fit(X, y), model(dropout=0.2).fit(X, y)
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    seeds = model(random_state=1, dropout=0.2).fit(X, y)
    assert not np.array_equal(seeds.predict_proba(X), one.predict_proba(X))
    search = GridSearchCV(model(), {"freeze": [1]}, cv=[(range(24), range(24, 36))])
    search.fit(X, y)
    own = clone(model(freeze=1)).fit(X[:24], y[:24]).score(X[24:], y[24:])
    assert search.cv_results_["split0_test_score"][0] == own


def test_threads_do_not_disturb_one_another(task):
    X, y = np.stack(task[0]), task[1]
    parts = {"backbone": make_net(), "image_size": 16}
    net = model(**parts, freeze=1, dropout=0.2, hidden_layer_sizes=(8,))
    expected = cross_val_predict(net, X, y, cv=4, method="predict_proba")
    with joblib.parallel_config(backend="threading", n_jobs=4):
        found = cross_val_predict(net, X, y, cv=4, method="predict_proba")
    np.testing.assert_array_equal(found, expected)


def test_it_learns_and_tells_of_it(task):
    X, y = task
    fitted = model(max_epochs=10).fit(X, y)
    assert fitted.score(X, y) > 0.9
    assert fitted.classes_.tolist() == ["ant", "bee", "wasp"]
    assert [row["phase"] for row in fitted.history_] == ["head"] + ["tune"] * 10
    assert fitted.history_[-1]["train_loss"] < fitted.history_[1]["train_loss"]
    proba = fitted.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_array_equal(fitted.classes_[proba.argmax(1)], fitted.predict(X))


@pytest.mark.parametrize(
    "parameters",
    [
        {"optimizer": "sgd", "lr": 0.005},
        {"optimizer": torch.optim.Adam},
        {"lr_schedule": "one-cycle"},
        {"lr_schedule": "constant"},
        {"hidden_layer_sizes": (10,), "dropout": 0.1},
        {"layer_decay": 0.5, "backbone_lr_mult": 0.5},
        {"unfreeze_every": 1},
        {"l2_sp": 0.1},
        {"augment": "strong"},
        {"head_epochs": 0},
        {"early_stopping": True, "validation_fraction": 0.25},
        {"class_weight": "balanced"},
        {"class_weight": {"ant": 2.0, "bee": 1.0, "wasp": 1.0}},
        {"net_params": {"criterion__label_smoothing": 0.1}},
    ],
)
def test_every_way_of_training_learns(parameters, task):
    assert model(max_epochs=8, **parameters).fit(*task).score(*task) > 0.8


def test_l2_sp_keeps_the_weights_near_their_source(task):
    source = small_backbone()
    start = torch.cat([p.flatten() for p in source.stages.parameters()])

    def distance(strength):
        fitted = model(l2_sp=strength, backbone_lr_mult=1.0, optimizer="sgd", lr=0.005)
        fitted.fit(*task)
        end = torch.cat([p.flatten() for p in fitted.backbone_.stages.parameters()])
        return float((end - start).norm())

    assert distance(5.0) < 0.7 * distance(0.0)


class Recorder(Callback):
    """Remembers learning rates, and which stages may train."""

    def on_batch_begin(self, net, training=False, **kwargs):
        if training:
            groups = net.optimizer_.param_groups
            self.rates = [g["lr"] for g in groups if g["weight_decay"]]
            self.flat = [
                p.ndim for g in groups if not g["weight_decay"] for p in g["params"]
            ]

    def on_epoch_begin(self, net, **kwargs):
        awake = [
            any(p.requires_grad for p in stage.parameters())
            for stage in net.module_.suffix
        ]
        self.awake = [*getattr(self, "awake", []), awake[:3]]


def test_rates_decay_with_depth_and_flat_tensors_do_not_decay(task):
    recorder = Recorder()
    model(
        lr=0.01,
        backbone_lr_mult=0.5,
        layer_decay=0.5,
        lr_schedule="constant",
        net_params={"callbacks": [recorder]},
    ).fit(*task)
    # Stages "0", "1", "2" and the pool without parameters; then the head.
    np.testing.assert_allclose(np.sort(recorder.rates), [0.00125, 0.0025, 0.005, 0.01])
    assert set(recorder.flat) == {1}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimizers_are_fused_unless_told_otherwise(optimizer, task):
    for params, fused in (({}, True), ({"optimizer__fused": False}, False)):
        fitted = model(optimizer=optimizer, max_epochs=1, net_params=params).fit(*task)
        assert fitted.net_.optimizer_.defaults["fused"] == fused


def test_gradual_unfreezing_goes_from_the_last_stage_to_the_first(task):
    recorder = Recorder()
    model(unfreeze_every=1, head_epochs=0, net_params={"callbacks": [recorder]}).fit(
        *task
    )
    assert recorder.awake == [
        [False, False, True],
        [False, True, True],
        [True, True, True],
        [True, True, True],
    ]


def test_augmentation_is_for_training_images_only(task):
    X, y = task
    seen = []

    def augment(image):
        seen.append(image.shape)
        return image.flip(2)

    fitted = model(
        augment=augment, early_stopping=True, validation_fraction=0.25, max_epochs=2
    ).fit(X, y)
    assert len(seen) == 2 * 27
    before = len(seen)
    fitted.predict(X)
    assert len(seen) == before


def test_early_stopping_returns_to_the_best_epoch(task):
    seen = {}

    class Watch(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen[net.history[-1, "epoch"]] = tensors(net.module_.head)

    fitted = model(
        early_stopping=True,
        validation_fraction=0.25,
        n_iter_no_change=2,
        lr=0.5,
        lr_schedule="constant",
        max_epochs=60,
        net_params={"callbacks": [Watch()]},
    ).fit(*task)
    rows = [row for row in fitted.history_ if row["phase"] == "tune"]
    assert {"valid_loss", "valid_score", "train_loss", "seconds"} <= rows[0].keys()
    best = min(rows, key=lambda row: row["valid_loss"])["epoch"]
    assert len(rows) == best + 2 < 60
    assert_equal_tensors(tensors(fitted.head_), seen[best])
    with pytest.raises(ValueError, match="early_stopping=True cannot set aside"):
        fitted.fit(task[0][:3], task[1][:3])


def test_weights_and_copies_are_the_same_thing(task):
    X, y = task
    weights = np.arange(len(y)) % 3
    copies = np.repeat(np.arange(len(y)), weights)
    weighted = model().fit(X, y, sample_weight=weights)
    order = np.random.default_rng(0).permutation(copies)
    copied = model().fit([X[i] for i in order], y[order])
    np.testing.assert_array_equal(
        weighted.decision_function(X), copied.decision_function(X)
    )
    with pytest.raises(ValueError, match=r"zero"):
        model().fit(X, y, sample_weight=np.zeros(len(y)))


def test_multilabel(task):
    X, y = task
    Y = np.column_stack([y != "ant", y != "bee"]).astype(int)
    fitted = model(max_epochs=10, early_stopping=True).fit(X, Y)
    assert fitted.predict(X).shape == Y.shape
    assert (fitted.predict(X) == Y).mean() > 0.9
    proba = fitted.predict_proba(X)
    assert proba.shape == Y.shape
    np.testing.assert_array_equal(fitted.predict(X), proba > 0.5)


def test_own_source_task_to_target_task(task):
    X, y = task
    source = model(max_epochs=8).fit(X, y)
    target = model(backbone=source, freeze="all").fit(X, y != "ant")
    assert_equal_tensors(
        tensors(target.backbone_.stages), tensors(source.backbone_.stages)
    )
    assert clone(target).backbone is source
    probe = make_pipeline(
        PretrainedFeatureExtractor(backbone=source), LogisticRegression()
    )
    assert cross_val_predict(probe, X, y, cv=2).shape == y.shape
    scratch = model(backbone=source, weights=None, max_epochs=1).fit(X, y)
    assert scratch.backbone_.digest != source.backbone_.digest
    with pytest.raises(NotFittedError):
        model(backbone=model()).fit(X, y)


@pytest.mark.parametrize("freeze", [0, 2, "all"])
def test_from_scratch_there_are_no_features_to_stand_on(task, freeze):
    X, y = task
    settings = {"weights": None, "max_epochs": 1, "solve_head": False}
    fitted = model(**settings, freeze=freeze).fit(X, y)
    scale = fitted.head_[0].scale
    neutral = bool((scale == 1).all() and (fitted.head_[0].mean == 0).all())
    assert neutral == (freeze != "all")
    assert [row["phase"] for row in fitted.history_] == ["tune"]


def test_distillation_learns_the_teachers_scores(task):
    X, y = task
    teacher = model(max_epochs=1, lr=0.003).fit(X, y)
    soft = {"freeze": "all", "max_epochs": 60, "optimizer": "adamw", "lr": 0.05}
    student = model(teacher=teacher, distill_weight=1.0, temperature=1.0, **soft)
    alone = model(**soft)

    def gap(one):
        return np.abs(one.fit(X, y).predict_proba(X) - teacher.predict_proba(X)).mean()

    assert gap(student) < gap(alone)
    with pytest.raises(ValueError, match="teacher: .* fitted on the same labels"):
        student.fit(X, np.where(y == "ant", "x", "z"))


def test_partial_fit_and_warm_start_go_on(task):
    X, y = task
    with pytest.raises(ValueError, match="needs classes"):
        model().partial_fit(X, y)
    growing = model().partial_fit(X[:12], y[:12], classes=np.unique(y))
    for _ in range(8):
        growing.partial_fit(X, y)
    assert growing.score(X, y) > 0.8
    assert len(growing.history_) == 10
    before = growing.predict_proba(X)
    with pytest.raises(ValueError, match="not among the classes"):
        growing.partial_fit(X, np.array(["new"] * len(y)))
    np.testing.assert_array_equal(growing.predict_proba(X), before)
    warm = model(warm_start=True, max_epochs=3, lr=0.005).fit(X, y)
    loss = warm.history_[-1]["train_loss"]
    assert warm.fit(X, y).history_[-1]["train_loss"] < loss


@pytest.mark.parametrize("freeze", [1, "all"])
def test_copies_and_pickles_predict_the_same(freeze, task):
    X, y = task
    fitted = model(freeze=freeze).fit(X, y)
    expected = fitted.predict_proba(X)
    for other in [pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)]:
        np.testing.assert_array_equal(other.predict_proba(X), expected)
    fitted.fit(X, y)
    np.testing.assert_array_equal(fitted.predict_proba(X), expected)


@pytest.mark.filterwarnings("ignore::skorch.exceptions.DeviceWarning")
@pytest.mark.parametrize(
    "parameters",
    [
        {"l2_sp": 0.1, "optimizer": "sgd"},
        {"early_stopping": True, "validation_fraction": 0.3},
        {"lr_schedule": "one-cycle", "unfreeze_every": 1, "augment": "light"},
    ],
)
def test_a_pickle_from_a_gpu_opens_without_one(parameters, task, monkeypatch):
    X, y = task
    fitted = model(freeze=1, device="cpu", **parameters).fit(X, y)
    expected, net = fitted.predict_proba(X), fitted.net_
    # What would be on the GPU says that it was, which no other machine would accept.
    tensors = [*net.module_.parameters(), *net.module_.buffers()]
    for state in net.optimizer_.state.values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    there = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    net.device = "cuda"
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.serialization,
            "location_tag",
            lambda storage: "cuda:0" if storage.data_ptr() in there else "cpu",
        )
        pickled = pickle.dumps(fitted)
        with pytest.raises(RuntimeError, match="CUDA device"):
            pickle.loads(pickle.dumps(net.module_))
    assert b"cuda:0" in pickled
    opened = pickle.loads(pickled)
    np.testing.assert_array_equal(opened.predict_proba(X), expected)
    opened.partial_fit(X, y)


def test_the_tools_of_scikit_learn(task):
    X, y = task
    X = np.stack(X)
    quick = model(freeze="all", max_epochs=3)
    assert cross_val_predict(quick, X, y, cv=2, method="predict_proba").shape == (36, 3)
    for meta in [
        CalibratedClassifierCV(quick, cv=2),
        StackingClassifier([("net", quick)], cv=2),
        GridSearchCV(
            make_pipeline(quick), {"finetuneclassifier__freeze": [2, "all"]}, cv=2
        ),
    ]:
        assert meta.fit(X, y).predict(X).shape == y.shape


class Noting(FineTuneClassifier):
    """Notes something before it is fitted, as subclasses of scikit-learn's may."""

    def fit(self, X, y):
        self.kinds_ = sorted(set(y))
        return super().fit(X, y)


def test_a_fit_keeps_what_a_subclass_has_noted(task):
    X, y = task
    noting = Noting(small_backbone(), freeze="all", random_state=0)
    assert noting.fit(X, y).kinds_ == ["ant", "bee", "wasp"]
    assert isinstance(noting.C_, float)
    # Of its own it keeps nothing: this head is not solved, but trained.
    noting.set_params(solve_head=False, max_epochs=1).fit(X[:8], y[:8])
    assert noting.kinds_ == sorted(set(y[:8]))
    assert not hasattr(noting, "C_")


@pytest.mark.parametrize("freeze", ["all", 2])
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        (FineTuneClassifier, [0, 1]),
        (FineTuneClassifier, [[0, 1], [1, 1]]),
        (FineTuneRegressor, [0.5, 1.5]),
        (FineTuneRegressor, [[0.5, 1], [1.5, 2]]),
    ],
)
def test_all_that_a_fit_sets_is_forgotten_by_the_next(kind, targets, freeze):
    X = np.arange(24 * 48, dtype=np.uint8).reshape(24, 48)
    y = np.array(targets * 12)
    fitted = kind(small_backbone(), freeze=freeze, max_epochs=1, image_shape=(4, 4, 3))
    before = set(vars(fitted))
    fitted.fit(X, y)
    assert set(vars(fitted)) - before
    with pytest.raises(ValueError, match="NaN"):
        fitted.fit(X, np.full(len(y), np.nan))
    # Only what is known of the columns of the new X.
    assert set(vars(fitted)) - before <= {"n_features_in_"}


class Interrupt(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise KeyboardInterrupt


def test_ctrl_c_propagates_and_leaves_it_unfitted(task):
    X, y = task
    fitted = model().fit(X, y)
    fitted.set_params(net_params={"callbacks": [Interrupt()]})
    before = fitted.predict_proba(X)
    with pytest.raises(KeyboardInterrupt):
        fitted.partial_fit(X, y)
    np.testing.assert_array_equal(fitted.predict_proba(X), before)
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(X, y)
    with pytest.raises(NotFittedError):
        fitted.predict(X)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X, np.array(["ant"] * len(y))), "only one class, .*'ant'"),
        (lambda X, y: (X[:-1], y), "35 images and y has 36"),
        (lambda X, y: (X, np.where(y == "ant", np.nan, 1.0)), "NaN"),
        (lambda X, y: (X, None), "y to be passed"),
        (lambda X, y: (X, np.column_stack([y, y])), "several targets"),
        (lambda X, y: ([*X[:-1], "no.png"], y), r"row 35 \('no.png'\)"),
    ],
)
def test_bad_data_is_refused_and_leaves_it_unfitted(change, message, task):
    broken = model().fit(*task)
    with pytest.raises(ValueError, match=message):
        broken.fit(*change(*task))
    with pytest.raises(NotFittedError):
        broken.predict(task[0])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([{1}, {2}] * 6, r"types \['set'\]. Expected one label .*MultiLabelBinar"),
        (np.array([1, "a"] * 6, dtype=object), r"types \['int', 'str'\]. Expected"),
        (np.array([0, 1] * 6, dtype=object), r"types \['int'\]. Expected"),
    ],
)
def test_labels_of_no_one_type_are_refused(y, message, task):
    with pytest.raises(ValueError, match=message):
        model().fit(task[0][:12], y)


@pytest.mark.parametrize("kind", [str, object])
def test_a_regressor_refuses_labels(kind, task):
    regressor = FineTuneRegressor(small_backbone())
    with pytest.raises(ValueError, match="numbers .*'a'.* use FineTuneClassifier"):
        regressor.fit(task[0][:6], np.array(list("ababab"), dtype=kind))
    regressor.set_params(max_epochs=0).fit(task[0][:4], np.array(list("1212"), kind))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"freeze": "layer9"}, "Invalid freeze='layer9'"),
        ({"freeze": 7}, "Invalid freeze=7"),
        ({"augment": "heavy"}, "expected None, 'mild'"),
        ({"lr": -1.0}, "'lr' parameter"),
        ({"optimizer": "lion"}, "'optimizer' parameter"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters, message, task):
    with pytest.raises(ValueError, match=message):
        model(**parameters).fit(*task)


def test_norms_keep_their_statistics_unless_trained_from_scratch(task):
    source = small_backbone()
    before = tensors(source.stages)

    def moved(**parameters):
        after = tensors(
            model(backbone=source, **parameters).fit(*task).backbone_.stages
        )
        names = [name for name in before if "running_" in name]
        return [not torch.equal(after[name], before[name]) for name in names]

    assert not any(moved())
    assert all(moved(weights=None))


@pytest.mark.parametrize("weights", ["default", None])
def test_few_samples_and_a_last_batch_of_one(weights, task):
    X, y = task
    for count in [2, 9]:
        fitted = model(weights=weights).fit(X[:count], y[:count])
        assert fitted.predict(X).shape == y.shape
        assert all(np.isfinite(row["train_loss"]) for row in fitted.history_)


def test_regression_of_one_and_several_targets(task):
    X, _ = task
    bright = np.array([image.mean() for image in X])
    red = np.array([image[:, :, 0].mean() for image in X])
    settings = {"backbone": small_backbone(), "lr": 0.02, "random_state": 0}
    one = FineTuneRegressor(max_epochs=40, **settings).fit(X, red)
    assert one.predict(X).shape == (36,)
    assert one.score(X, red) > 0.7
    two = FineTuneRegressor(max_epochs=40, early_stopping=True, **settings)
    assert two.fit(X, np.column_stack([red, 1000 + bright])).predict(X).shape == (36, 2)
    with pytest.raises(ValueError, match="expected 2 targets .* got 1"):
        two.partial_fit(X, red)


def test_nobody_elses_state_moves(task):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads, digest = torch.get_num_threads(), module_digest(net := make_net())
    one = model(backbone=net)
    torch.manual_seed(5)
    one.fit(*task)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert module_digest(net) == digest


def test_verbose_prints_a_line_for_each_epoch(task, capsys):
    model(verbose=1, max_epochs=2, head_epochs=0).fit(*task)
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[0].split() == ["epoch", "train_loss", "dur"]
    assert [line.split()[0] for line in lines[-2:]] == ["1", "2"]


def test_an_augment_may_compute_in_place(task):
    black = []

    def erase(image):
        black.append(float((image == 0).all(dim=0).float().mean()))
        image[:, :8, :8] = 0
        return image

    model(augment=erase, max_epochs=3).fit(*task)
    assert len(black) == 3 * len(task[0])
    assert max(black) == 0


def test_further_fits_are_pulled_to_the_first_source(task):
    def drift(l2_sp):
        fitted = model(l2_sp=l2_sp, backbone_lr_mult=1, lr=0.01, freeze=0)
        for _ in range(8):
            fitted.partial_fit(*task, classes=np.unique(task[1]))
        source = small_backbone().stages.parameters()
        pairs = zip(fitted.backbone_.stages.parameters(), source, strict=True)
        return sum(float((one - other).square().sum()) for one, other in pairs)

    assert drift(10.0) < 0.2 * drift(0.0)


def test_further_fits_go_on_unfreezing(task):
    fitted = model(unfreeze_every=1, freeze=0, weight_decay=0)
    source = [module_digest(stage) for stage in small_backbone().stages]
    changed = []
    for _ in range(3):
        fitted.partial_fit(*task, classes=np.unique(task[1]))
        now = [module_digest(stage) for stage in fitted.backbone_.stages]
        pairs = zip(now, source, strict=True)
        changed.append(sum(one != other for one, other in pairs))
    assert fitted.n_iter_ == 3
    assert changed[0] < changed[1] <= changed[2]


def test_a_warm_start_keeps_to_the_columns():
    X, y = np.random.default_rng(0).random((12, 64)), np.arange(12) % 2
    fitted = model(warm_start=True, max_epochs=1).fit(X, y).fit(X, y)
    assert (fitted.n_features_in_, fitted.n_iter_) == (64, 2)
    with pytest.raises(ValueError, match="256 features"):
        fitted.predict(np.ones((3, 256)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64, np.uint16])
def test_predictions_on_a_table_do_not_depend_on_its_dtype(dtype):
    X = np.random.default_rng(0).integers(0, 17, (12, 64))
    fitted = model(max_epochs=1).fit(X.astype(dtype), np.arange(12) % 2)
    expected = fitted.predict_proba(X.astype(dtype))
    for other in [np.uint8, np.int64, np.float64, np.uint16]:
        found = fitted.predict_proba(X.astype(other))
        np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("divisor", [1, 255])
def test_floats_are_read_as_the_integers_that_they_were(divisor):
    X = np.random.default_rng(0).integers(0, 256, (12, 64), dtype=np.uint8)
    floats = X / divisor
    for first, second in [(X, floats), (floats, X)]:
        if first is floats and divisor == 1:
            floats[0, :2] = 0, 255
        fitted = model(max_epochs=1).fit(first, np.arange(12) % 2)
        np.testing.assert_allclose(
            fitted.predict_proba(second[1:]),
            fitted.predict_proba(first[1:]),
            atol=0.01,
        )


def test_an_indicator_matrix_is_of_0_and_1(task):
    X, labels = task
    y = np.column_stack([labels == "ant", labels == "bee"]).astype(int)
    for wrong in [2 * y - 1, y + 1]:
        with pytest.raises(ValueError, match="an indicator matrix of 0 and 1"):
            model().fit(X, wrong)
    fitted = model(max_epochs=1).fit(X, sparse.csr_array(y))
    for other in [labels, np.column_stack([y, y])]:
        with pytest.raises(ValueError, match="fitted on an indicator matrix of 2 col"):
            fitted.partial_fit(X, other)
    with pytest.raises(ValueError, match="fitted on one label"):
        model(max_epochs=1).fit(X, labels).partial_fit(X, y)


def test_a_default_dtype_of_torch_does_not_matter(task):
    fitted, before = model(), torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert fitted.fit(*task).score(*task) > 0.8
    finally:
        torch.set_default_dtype(before)


def test_layers_of_a_head_may_be_an_array(task):
    fitted = model(hidden_layer_sizes=np.array([5]), dropout=0.1, max_epochs=1)
    assert fitted.fit(*task).head_[1].out_features == 5


@pytest.mark.parametrize("sizes", [(-3,), (2.5,), (4, 0)])
def test_layers_of_a_head_have_sizes(sizes, task):
    with pytest.raises(ValueError, match="hidden_layer_sizes=.*positive integers"):
        model(hidden_layer_sizes=sizes).fit(*task)


def test_a_class_may_be_left_out_but_not_count_against(task):
    fitted = model(class_weight={"ant": 0, "bee": 1, "wasp": 2}, max_epochs=1)
    fitted.fit(*task)
    assert (fitted.n_images_, fitted.class_count_.tolist()) == (24, [0, 12, 12])
    with pytest.raises(ValueError, match="no negative weight"):
        fitted.set_params(class_weight={"ant": -1}).fit(*task)
    with pytest.raises(ValueError, match="All class weights are zero"):
        fitted.set_params(class_weight=dict.fromkeys(np.unique(task[1]), 0)).fit(*task)


def test_what_the_optimizer_kept_is_let_go(task):
    assert not model(max_epochs=1).fit(*task).net_.optimizer_.state


def test_the_source_of_further_fits_is_that_of_the_first(task, monkeypatch):
    plans = []
    train = _base.train

    def recorded(network, rows, valid, plan):
        plans.append(plan)
        return train(network, rows, valid, plan)

    monkeypatch.setattr(_base, "train", recorded)
    fitted = model(freeze=1, head_epochs=0, l2_sp=0.1)
    for _ in range(2):
        fitted.partial_fit(*task, classes=np.unique(task[1]))
    source = small_backbone().stages[1:]
    assert [module_digest(plan.source) for plan in plans] == [module_digest(source)] * 2
