import copy
import json
import os
import pickle
import re
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from sklearn import config_context, model_selection
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import _scorer, get_scorer
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    TimeSeriesSplit,
    check_cv,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import Bunch, _metadata_requests
from torch import nn

from sktransfer import (
    Backbone,
    BackboneSelector,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
    WeightsMismatchError,
    load,
    load_backbone,
    register_backbone,
    save,
)
from sktransfer.backbones import _load
from sktransfer.inputs._images import ImageReader
from sktransfer.saving import _file
from sktransfer.saving._names import find_class
from tests.small_network import backbone_of_blocks, make_net, small_backbone

NAME = "small-to-save"
BLOCKS = "blocks-to-save"


@pytest.fixture(autouse=True)
def named():
    register_backbone(NAME, small_backbone)
    register_backbone(BLOCKS, backbone_of_blocks)
    yield
    del _load._registered[NAME], _load._registered[BLOCKS]
    _load._load_named.cache_clear()


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    X = rng.random((12, 256))
    return X, np.array(["dark", "pale"])[(X.mean(axis=1) > 0.5).astype(int)]


def classifier(backbone=NAME, **options):
    settings = {"max_epochs": 1, "lr": 0.01, "random_state": 0} | options
    return FineTuneClassifier(backbone, **settings)


def embedder(backbone=NAME, **options):
    return PretrainedFeatureExtractor(backbone, **options)


def probe(*steps):
    return make_pipeline(*steps, StandardScaler(), LogisticRegression())


def there_and_back(estimator, folder, name="model.sktransfer"):
    save(estimator, folder / name)
    return load(folder / name)


def outputs(estimator, X):
    if hasattr(estimator, "predict_proba"):
        return estimator.predict_proba(X)
    return getattr(estimator, "predict", getattr(estimator, "transform", None))(X)


def shown(estimator):
    return re.sub("0x[0-9A-F]+", "", repr(estimator))


@pytest.mark.parametrize(
    "make",
    [
        classifier,
        lambda: classifier(freeze="all", hidden_layer_sizes=(5,), dropout=0.2),
        lambda: classifier(freeze=2, optimizer=torch.optim.RMSprop, cache=None),
        lambda: classifier(backbone=small_source()),
        lambda: classifier(BLOCKS, freeze="b.1"),
        lambda: classifier(BLOCKS, freeze="b.1", l2_sp=0.1, head_epochs=0),
        lambda: embedder(BLOCKS, stage="b.0"),
        lambda: BackboneSelector([BLOCKS], stages=["b.0", "b.1"], scoring="knn"),
        lambda: FineTuneRegressor(NAME, max_epochs=1, random_state=0),
        lambda: FineTuneRegressor("tiny", weights=None, random_state=0, freeze="all"),
        embedder,
        lambda: embedder(weights=None, random_state=np.random.RandomState(3)),
        lambda: embedder(stage=2, pooling="avgmax", image_shape=(16, 16)),
        lambda: BackboneSelector([NAME, embedder(stage=1)], scoring="knn"),
        lambda: probe(embedder()),
        lambda: Pipeline([("scale", StandardScaler()), ("net", classifier())]),
        lambda: probe(
            ColumnTransformer(
                [("image", embedder(), slice(0, 256)), ("number", "passthrough", [3])]
            )
        ),
        lambda: make_pipeline(
            embedder(), GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=2)
        ),
        lambda: FrozenEstimator(probe(embedder())),
        lambda: LogisticRegression(),
    ],
)
def test_what_is_loaded_is_what_was_saved(make, task, tmp_path):
    X, y = task
    estimator = make()
    unfitted = there_and_back(estimator, tmp_path)
    assert shown(unfitted) == shown(estimator)
    numeric = isinstance(estimator, FineTuneRegressor)
    if not isinstance(estimator, FrozenEstimator):
        estimator.fit(X, np.column_stack([X[:, 0], X[:, 1]]) if numeric else y)
    else:
        estimator.estimator.fit(X, y)
    loaded = there_and_back(estimator, tmp_path)
    np.testing.assert_array_equal(outputs(loaded, X), outputs(estimator, X))
    assert type(loaded) is type(estimator)
    assert set(vars(loaded)) == set(vars(estimator)) - {"net_"}
    assert shown(clone(loaded)) == shown(clone(estimator))
    again = there_and_back(loaded, tmp_path, "again")
    np.testing.assert_array_equal(outputs(again, X), outputs(estimator, X))


def small_source():
    X = np.random.default_rng(1).random((8, 256))
    return classifier().fit(X, np.arange(8) % 2)


@pytest.mark.parametrize(
    "value",
    [
        (1, 2.5, "text", None, True),
        [float("inf"), -float("inf")],
        {"a": {"b": [1]}, 2: (3,)},
        np.arange(6, dtype=np.uint16).reshape(2, 3),
        np.array(2.5),
        np.array(["some", "words"]),
        np.array([1, "mixed", None], dtype=object),
        np.array([], dtype=np.float32),
        np.float32(0.1),
        np.bool_(True),
        Path("some", "file"),
        slice(1, None, 2),
        range(2, 9, 3),
        Bunch(a=1, b=(2,)),
    ],
    ids=repr,
)
def test_values_of_parameters(value, tmp_path):
    found = there_and_back(embedder(image_size=value), tmp_path).image_size
    assert type(found) is type(value)
    assert np.shape(found) == np.shape(value)
    np.testing.assert_equal(found, value)


def test_what_is_learnt_on_is_the_same(task, tmp_path):
    X, y = task
    model = classifier(freeze=1, warm_start=True).fit(X, y)
    loaded = there_and_back(model, tmp_path)
    for estimator in (model, loaded):
        estimator.partial_fit(X, y)
        estimator.fit(X[::-1], y[::-1])
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert [row["epoch"] for row in loaded.history_] == [
        row["epoch"] for row in model.history_
    ]


def test_a_file_does_not_grow_by_learning_on(task, tmp_path):
    X, y = task
    model, sizes = classifier(freeze=2).fit(X, y), []
    for _ in range(3):
        model.partial_fit(X, y)
        save(model, tmp_path / "model")
        tensors = os.path.getsize(tmp_path / "model")
        sizes.append((tensors - 200 * len(model.history_), len(pickle.dumps(model))))
    assert sizes[2][0] < sizes[0][0] + 100
    assert sizes[2][1] < sizes[0][1] + 1000


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("second", [0, 1, 3, 4])
def test_tuned_twice_refers_to_the_first_source(first, second):
    source = small_backbone()
    torch.manual_seed(1)
    once = source.tuned(first, make_net()[first:])
    torch.manual_seed(2)
    twice = once.tuned(second, make_net()[second:])
    assert twice.origin.source is source
    assert twice.origin.depth == min(first, second)
    assert pickle.loads(pickle.dumps(twice)).digest == twice.digest
    kept = once.cause(second)
    assert twice.cause(second) == kept


def test_frozen_stages_are_not_in_the_file(task, tmp_path):
    X, y = task
    network = {"backbone": "mobilenet_v3_small", "weights": None, "image_size": 32}
    model = classifier(**network, freeze="all").fit(X, y)
    loaded = there_and_back(model, tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    head = sum(value.nbytes for value in model.head_.state_dict().values())
    assert os.path.getsize(tmp_path / "model.sktransfer") < head + 20_000
    assert loaded.backbone_.n_parameters > 900_000


def tensors_of(path):
    """The tuned tensors that a file holds, by their names."""
    with safe_open(path, framework="numpy") as file:
        record = json.loads(file.metadata()["document"])["estimator"]
        changed = record["estimator"][1]["backbone_"]["tuned"][2]
        return {name: file.get_tensor(at["array"]) for name, at in changed.items()}


def test_a_file_holds_the_tensors_that_differ_from_the_source(task, tmp_path):
    X, y = task
    model = classifier(freeze=1).fit(X, y)
    save(model, tmp_path / "model")
    source = model.source_.stages.state_dict()
    tuned = model.backbone_.stages.state_dict()
    differ = {name for name, v in tuned.items() if not torch.equal(v, source[name])}
    found = tensors_of(tmp_path / "model")
    assert found.keys() == differ
    # Statistics of norms stay as they were, and are not tuned.
    assert not any("running" in name for name in found)
    assert any("norm.weight" in name for name in found)
    for name, array in found.items():
        np.testing.assert_array_equal(array, tuned[name].numpy())


@pytest.mark.parametrize("train_only", ["norms", "biases"])
def test_a_file_of_norms_or_biases_holds_no_other_tensors(train_only, task, tmp_path):
    X, y = task
    model = classifier(train_only=train_only).fit(X, y)
    loaded = there_and_back(model, tmp_path)
    np.testing.assert_array_equal(outputs(loaded, X), outputs(model, X))
    found = tensors_of(tmp_path / "model.sktransfer")
    assert not any("conv.weight" in name for name in found)
    head = sum(p.numel() for p in model.head_.parameters())
    assert sum(a.size for a in found.values()) == model.n_trained_parameters_ - head
    assert loaded.n_trained_parameters_ == model.n_trained_parameters_
    # It goes on with the same parameters.
    loaded.partial_fit(X, y)
    save(loaded, tmp_path / "again")
    assert tensors_of(tmp_path / "again").keys() == found.keys()


def test_what_training_left_as_it_was_is_not_in_the_file(task, tmp_path):
    X, y = task
    still = classifier(freeze=1, backbone_lr_mult=0.0, weight_decay=0.0).fit(X, y)
    loaded = there_and_back(still, tmp_path)
    assert tensors_of(tmp_path / "model.sktransfer") == {}
    np.testing.assert_array_equal(outputs(loaded, X), outputs(still, X))


def test_bits_and_not_numbers_are_compared():
    source = small_backbone()
    stages = source.stages[:1]
    bias, weight = stages[0].conv.bias, stages[0].conv.weight
    assert source.tuned(0, source.stages).origin.changed() == {}
    with torch.no_grad():
        bias.zero_()
        weight[0, 0, 0, 0] = float("nan")
    zero = Backbone(nn.Sequential(*stages, *source.stages[1:]), source.reader)
    assert zero.tuned(0, zero.stages).origin.changed() == {}
    suffix = copy.deepcopy(zero.stages)
    suffix[0].conv.bias.data.neg_()
    changed = zero.tuned(0, suffix).origin.changed()
    assert list(changed) == ["0.conv.bias"]


def test_another_architecture_cannot_be_saved(task, tmp_path):
    X, y = task
    model = classifier(freeze=2).fit(X, y)
    other = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.backbone_ = model.source_.tuned(3, nn.Sequential(OrderedDict({"3": other})))
    save(model, tmp_path / "same")
    model.backbone_ = model.source_.tuned(3, other)
    with pytest.raises(ValueError, match=r"backbone_ cannot be .* '3' on were repl"):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# It was written before files held the changed tensors alone.
FORMAT_1 = Path(__file__).with_name("format_1.sktransfer")


def plain_backbone():
    """A network whose weights are the same numbers in every version of torch."""
    stem, body = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        for layer in (stem, body):
            numbers = torch.arange(layer.weight.numel()) % 7 - 3
            layer.weight.copy_(numbers.reshape(layer.weight.shape) / 16)
            layer.bias.zero_()
    stages = OrderedDict(
        stem=nn.Sequential(stem, nn.BatchNorm2d(4), nn.ReLU()),
        body=nn.Sequential(body, nn.BatchNorm2d(4), nn.ReLU()),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    return Backbone(nn.Sequential(stages), ImageReader(resize=8, crop=8))


@pytest.mark.skipif(
    "bias" not in repr(nn.BatchNorm2d(1)),
    reason="the network of the file is shown differently",
)
def test_a_file_of_format_1_loads(tmp_path):
    register_backbone("saved-in-format-1", plain_backbone)
    try:
        loaded = load(FORMAT_1)
        assert loaded.frozen_stages_ == ("stem",)
        assert loaded.train_only == "all"
        assert loaded.n_trained_parameters_ == 4 * 4 + 4 + 2 * 4 + 2 * 4 + 2
        numbers = np.arange(12 * 64, dtype=np.uint8).reshape(12, 64)
        X = numbers * np.arange(1, 13, dtype=np.uint8)[:, None]
        # As the estimator predicted before it was saved.
        expected = [0.71596161, 0.42063899, 0.55185652, 0.42727591]
        found = loaded.predict_proba(X)
        np.testing.assert_allclose(found[:4, 0], expected, atol=1e-4)
        assert len(tensors_of(FORMAT_1)) == 7
        # In the format of today it has no tensor of the source.
        again = there_and_back(loaded, tmp_path)
        np.testing.assert_array_equal(again.predict_proba(X), found)
        names = [*tensors_of(tmp_path / "model.sktransfer")]
        assert names == ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
    finally:
        del _load._registered["saved-in-format-1"]


def test_weights_in_a_file_are_referred_to(task, tmp_path):
    X, y = task
    path, elsewhere = tmp_path / "w" / "tiny.safetensors", tmp_path / "elsewhere"
    path.parent.mkdir()
    elsewhere.mkdir()
    state = load_backbone("tiny", weights=None, random_state=5).stages.state_dict()
    save_tensors(dict(state), path)
    model = classifier(backbone="tiny", weights=path, freeze="all").fit(X, y)
    expected = model.predict_proba(X)
    for place in (tmp_path, elsewhere):
        loaded = there_and_back(model, place)
        np.testing.assert_array_equal(loaded.predict_proba(X), expected)
        assert loaded.weights == path

    path.rename(elsewhere / path.name)
    loaded = load(elsewhere / "model.sktransfer")
    np.testing.assert_array_equal(loaded.predict_proba(X), expected)
    with pytest.raises(FileNotFoundError, match=r"Copy it to '.*tiny\.safetensors'"):
        load(tmp_path / "model.sktransfer")

    state = {name: value + 1 for name, value in state.items()}
    save_tensors(state, path)
    with pytest.raises(WeightsMismatchError, match="not those that the saved estim"):
        load(tmp_path / "model.sktransfer")


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (classifier(augment=lambda x: x), r"FineTuneClassifier\.augment is <function"),
        (classifier(net_params={"callbacks": [torch.nn.ReLU()]}), r"callbacks'\]\[0\]"),
        (classifier(backbone=small_backbone()), "Register it under a name, register"),
        (embedder(weights=np.array([1j])), "weights is an array of complex128"),
        (make_pipeline(embedder(), FunctionTransformer(print)), r"steps\[1\]\[1\]"),
        (FrozenEstimator(type("Own", (BaseEstimator,), {})()), "Own"),
        (make_net(), "got a Sequential"),
        (embedder(backbone=make_net()), r"backbone is a module of \['Block', 'Seq"),
    ],
)
def test_what_cannot_be_saved_is_named(estimator, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save(estimator, tmp_path / "model")
    assert not list(tmp_path.iterdir())


class Own:
    """Holds an estimator, and is none."""

    def __init__(self, estimator):
        self.estimator = estimator


def test_what_holds_ours_and_is_no_estimator_is_named(tmp_path):
    model = make_pipeline(embedder(), FunctionTransformer(kw_args={"a": classifier()}))
    assert there_and_back(model, tmp_path)[1].kw_args["a"].backbone == NAME
    # Of objects that are no estimators, only parts of this package are looked for.
    model[1].kw_args["a"] = Own(classifier())
    with pytest.raises(ValueError, match=r"kw_args\['a'\] is .*Own") as caught:
        save(model, tmp_path / "other")
    assert "Tensor" not in str(caught.value)
    assert not (tmp_path / "other").exists()


def test_what_skops_cannot_store_is_named_without_its_words(tmp_path):
    # Older ones store tensors.
    pytest.importorskip("skops", minversion="0.12")
    scaler = StandardScaler()
    scaler.mean_ = torch.zeros(2)
    with pytest.raises(Exception, match="Tensor"):
        pytest.importorskip("skops.io").dumps(scaler)
    with pytest.raises(ValueError, match=r"steps\[1\]\[1\]\.mean_ is ten") as caught:
        save(make_pipeline(embedder(), scaler), tmp_path / "model")
    assert "Tensor" not in str(caught.value)


def test_what_holds_itself_is_named(tmp_path):
    pytest.importorskip("skops.io")
    scaler = StandardScaler()
    scaler.itself = [scaler]
    with pytest.raises(ValueError, match=r"itself\[0\] is a StandardScaler that holds"):
        save(make_pipeline(embedder(), scaler), tmp_path / "model")


@pytest.mark.parametrize(
    "part",
    [
        LogisticRegression(n_jobs=StratifiedKFold(3)),
        LogisticRegression(n_jobs=TimeSeriesSplit()),
        LogisticRegression(n_jobs=check_cv([([0], [1])])),
        LogisticRegression(n_jobs=get_scorer("positive_likelihood_ratio")),
    ],
    ids=repr,
)
def test_what_splits_and_scores_is_kept(part, tmp_path):
    loaded = there_and_back(probe(embedder(), part), tmp_path)
    assert type(loaded[1].n_jobs) is type(part.n_jobs)


@pytest.mark.parametrize(
    "harmful",
    [
        model_selection._split.train_test_split,
        _scorer.get_scorer,
        _scorer._cached_call,
        _metadata_requests.process_routing,
    ],
)
def test_what_stands_beside_the_harmless_is_not_loaded(harmful, tmp_path):
    pytest.importorskip("skops.io")
    with pytest.raises(ValueError, match=harmful.__name__):
        save(FunctionTransformer(harmful), tmp_path / "model")


def test_a_failed_write_leaves_the_old_file(task, tmp_path, monkeypatch):
    path = tmp_path / "model"
    save(embedder(), path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    for owner, name in [(_file, "save_file"), (os, "replace")]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(OSError, match="No space left"):
                save(embedder(stage=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damage_is_seen(task, tmp_path):
    X, y = task
    path = tmp_path / "model"
    save(classifier(freeze=3).fit(X, y), path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for place in [*range(header), *range(header, len(content), 300)]:
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="Cannot load an estimator|later version"):
            load(path)
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="Cannot load an estimator"):
            load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "file"
    save_tensors({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="it contains only tensors"):
        load(path)
    path.write_bytes(pickle.dumps(embedder()))
    with pytest.raises(ValueError, match="Cannot load an estimator"):
        load(path)
    with pytest.raises(FileNotFoundError, match="load reads files"):
        load(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError, match="load reads files"):
        load(tmp_path / "fifo")


def forge(path, record=None, **metadata):
    """Change a saved file, its checksum included."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = file.metadata() | metadata
    if record is not None:
        found["document"] = json.dumps({"estimator": record})
    found["sha256"] = _file._digest(found["document"], arrays)
    save_file(arrays, path, found)


def test_a_file_from_the_future(tmp_path):
    save(embedder(), tmp_path / "model")
    forge(tmp_path / "model", version="3")
    with pytest.raises(ValueError, match="format 3; .* reads formats up to 2"):
        load(tmp_path / "model")


def test_files_of_before_load_without_parameters_added_since(tmp_path):
    save(embedder(), tmp_path / "model")
    with safe_open(tmp_path / "model", "np") as file:
        record = json.loads(file.metadata()["document"])["estimator"]
    parameters = record["estimator"][1]
    assert parameters.pop("max_length", 0) is parameters.pop("sampling_rate", 0) is None
    assert parameters.pop("decoding") == "exact"
    forge(tmp_path / "model", record)
    loaded = load(tmp_path / "model")
    assert (loaded.max_length, loaded.decoding) == (None, "exact")


def test_parameters_of_later_versions_are_not_ignored(tmp_path):
    save(embedder(), tmp_path / "model")
    with safe_open(tmp_path / "model", "np") as file:
        record = json.loads(file.metadata()["document"])["estimator"]
    record["estimator"][1]["rotation"] = 90
    forge(tmp_path / "model", record)
    with pytest.raises(ValueError, match=r"Extractor with \['rotation'\].*Upgrade it"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    "record",
    [
        {"estimator": ["os:system", {}, {}]},
        {"estimator": ["subprocess:Popen", {}, {}]},
        {"estimator": ["sklearn.externals._packaging.version:Version", {}, {}]},
        {"estimator": ["sktransfer:load", {}, {}]},
        {"estimator": ["sktransfer:FineTuneClassifier", {}, {}]},
        {"optimizer": "Tensor"},
        {"weights": "os.system"},
        {"head": [["Conv2d"], [None], {}]},
        {"head": [["Linear"], [None], {}]},
        {"named": [NAME, None, 0, {}, ""]},
        {"named": ["tiny", "../../etc/passwd.pth", 0, {}, ""]},
        {"same": 3},
        {"array": "17"},
        {"unknown": 1},
        {"tuple": 1, "array": "0"},
        {"objects": [[], "<f8", [10**15]]},
        {"objects": [[{"estimator": ["sklearn.svm:SVC", {}, {}]}], "<U3", [1]]},
        [[]] * 3 + [{"dict": [[[], []]]}],
        {"skops": {"array": "0"}},
        {"bunch": [1]},
        {"bunch": {"dict": [[1, 2]]}},
        {"range": ["a", "b", "c"]},
        {"masked": [1]},
        {"holder": ["subprocess:Popen", {}]},
        {"holder": ["sklearn.metrics._scorer:_Scorer", {}]},
        {"distribution": ["norm.rvs", {"tuple": []}, {"dict": []}]},
        {"distribution": ["distributions", {"tuple": []}, {"dict": []}]},
        {"distribution": ["ttest_1samp", {"tuple": [[1], 0]}, {"dict": []}]},
    ],
)
def test_forged_files_are_refused_and_run_nothing(record, tmp_path):
    save(embedder(), tmp_path / "model")
    forge(tmp_path / "model", record)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"Cannot load|refers|digest"
    ):
        load(tmp_path / "model")


class Evil(BaseEstimator):
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("run",)


def test_parts_of_unknown_types_are_not_loaded(tmp_path, capsys):
    skops = pytest.importorskip("skops.io")
    path = tmp_path / "model"
    with pytest.raises(ValueError, match=r"FrozenEstimator\.estimator|Evil"):
        save(make_pipeline(embedder(), Evil()), path)
    save(LogisticRegression(), path)
    content = np.frombuffer(skops.dumps(Evil()), dtype=np.uint8)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    arrays = {"0": content}
    metadata["sha256"] = _file._digest(metadata["document"], arrays)
    save_file(arrays, path, metadata)
    with pytest.raises(ValueError, match="Evil"):
        load(path)
    assert capsys.readouterr().out == ""


def test_routed_metadata_is_kept(tmp_path):
    with config_context(enable_metadata_routing=True):
        model = classifier().set_fit_request(sample_weight=True)
        found = there_and_back(model, tmp_path).get_metadata_routing()
    assert found.fit.requests == {"sample_weight": True, "groups": None}


def test_without_skops_it_says_what_to_install(tmp_path, monkeypatch):
    save(classifier(), tmp_path / "model")
    monkeypatch.setitem(sys.modules, "skops.io", None)
    load(tmp_path / "model")
    with pytest.raises(ImportError, match=r"pip install 'sktransfer\[skops\]'"):
        save(LogisticRegression(), tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("collections:OrderedDict", "a class of 'collections'"),
        ("os:system", "a class of 'os'"),
        ("sklearn.base:clone", "'clone', which is not an est"),
        ("sklearn.utils:Bunch", "'Bunch', which is not an est"),
        ("sklearn.conftest:pytest", "a class of 'sklearn.conftest'"),
        ("sklearn.tests.test_base:MyEstimator", "a class of 'sklearn.tests.test_base'"),
        ("sklearn.gone:Gone", "No module named 'sklearn.gone', in which 'Gone'"),
    ],
)
def test_a_file_names_estimators_of_two_packages_alone(name, what):
    module = name.partition(":")[0]
    before = module in sys.modules
    with pytest.raises(ValueError, match=what):
        find_class(name)
    assert (module in sys.modules) == before


def test_what_was_frozen_after_a_block_goes_on_from_a_file(task, tmp_path):
    X, y = task
    fitted = classifier(BLOCKS, freeze="b.1").fit(X, y)
    loaded = there_and_back(fitted, tmp_path)
    copied = pickle.loads(pickle.dumps(fitted))
    for other in (loaded, copied):
        assert other.frozen_stages_ == ("a", "b.0", "b.1")
        assert other.backbone_.digest == fitted.backbone_.digest
        assert other.source_ is other.backbone_.origin.source or other is copied
    # Neither holds what was frozen.
    assert "b.0" not in fitted.backbone_.origin.suffix._modules
    expected = outputs(fitted.partial_fit(X, y), X)
    np.testing.assert_array_equal(outputs(loaded.partial_fit(X, y), X), expected)
    again = classifier(loaded, freeze="b.0").fit(X, y)
    assert again.frozen_stages_ == ("a", "b.0")
    np.testing.assert_array_equal(
        outputs(there_and_back(again, tmp_path), X), outputs(again, X)
    )
