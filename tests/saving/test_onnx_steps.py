import json

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.decomposition import PCA, KernelPCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import VotingClassifier
from sklearn.feature_selection import (
    SelectKBest,
    VarianceThreshold,
    mutual_info_classif,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    ElasticNet,
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeClassifier,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC, LinearSVR

from sktransfer import (
    BackboneSelector,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    export_onnx,
)
from sktransfer.saving._onnx import _parts_of
from sktransfer.saving._onnx_steps import predictor, transformer
from tests.small_network import small_backbone

N = 60
rng = np.random.default_rng(0)
THREE = np.array(["ants", "bees", "wasps"])[np.arange(N) % 3]
TWO = np.array(["ants", "bees"])[np.arange(N) % 2]
# Embeddings as they are after a ReLU: positive, of several scales, one of them zero.
Z = np.abs(rng.normal(size=(N, 8)) + np.eye(8)[np.arange(N) % 3])
Z = (Z * np.logspace(-2, 1, 8) * (np.arange(8) != 5)).astype(np.float32)
VALUES = Z @ rng.normal(size=8) + 100


def outputs(module, rows=Z):
    with torch.inference_mode():
        return module.eval()(torch.from_numpy(rows)).numpy()


# Without these, scikit-learn 1.8 and later warn.
NEW = {"l1_ratios": (0,), "use_legacy_attributes": False}
if "use_legacy_attributes" not in LogisticRegressionCV().get_params():
    NEW = {}


@pytest.mark.parametrize(
    "step",
    [
        StandardScaler(),
        StandardScaler(with_mean=False),
        StandardScaler(with_std=False),
        RobustScaler(),
        RobustScaler(with_centering=False),
        MinMaxScaler((-1, 2)),
        MinMaxScaler(clip=True),
        MaxAbsScaler(),
        Normalizer(),
        Normalizer("l1"),
        Normalizer("max"),
        PCA(3),
        PCA(3, whiten=True),
        TruncatedSVD(3),
        SelectKBest(mutual_info_classif, k=4),
        VarianceThreshold(),
    ],
    ids=repr,
)
def test_a_transformer_is_a_module(step):
    step.fit(Z, THREE)
    rows = np.vstack([2 * Z[:9], 0 * Z[:1]])
    found = outputs(transformer("step", step), rows)
    expected = step.transform(rows.copy())
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert found.dtype == np.float32


@pytest.mark.parametrize("y", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(),
        LogisticRegressionCV(cv=2, scoring="accuracy", **NEW),
        LinearDiscriminantAnalysis(),
        SGDClassifier(loss="log_loss", random_state=0),
        SGDClassifier(random_state=0),
        LinearSVC(),
        RidgeClassifier(),
    ],
    ids=repr,
)
def test_a_classifier_is_a_module(model, y):
    scaled = StandardScaler().fit_transform(Z)
    model.fit(scaled, y)
    module, output, properties = predictor("model", model)
    found = outputs(module, scaled)
    if hasattr(model, "predict_proba"):
        assert output == "probabilities"
        np.testing.assert_allclose(found, model.predict_proba(scaled), atol=1e-5)
    else:
        assert output == "scores"
        scores = model.decision_function(scaled)
        largest = np.abs(scores).max()
        both = scores if scores.ndim == 2 else np.column_stack([-scores, scores])
        np.testing.assert_allclose(found, both, atol=1e-5 * largest)
    classes = np.array(json.loads(properties["classes"]))
    np.testing.assert_array_equal(classes[found.argmax(1)], model.predict(scaled))


@pytest.mark.parametrize("n_targets", [1, 2])
@pytest.mark.parametrize(
    "model",
    [
        LinearRegression(),
        Ridge(),
        RidgeCV(),
        ElasticNet(),
        HuberRegressor(max_iter=1000),
        SGDRegressor(random_state=0),
        LinearSVR(max_iter=100_000),
    ],
    ids=repr,
)
def test_a_regressor_is_a_module(model, n_targets):
    y = VALUES if n_targets == 1 else np.column_stack([VALUES, -VALUES])
    scaled = StandardScaler().fit_transform(Z)
    if n_targets > 1 and isinstance(model, HuberRegressor | SGDRegressor | LinearSVR):
        return
    module, output, _ = predictor("model", model.fit(scaled, y))
    found = outputs(module, scaled)
    assert (output, found.shape) == ("values", (N, n_targets))
    expected = model.predict(scaled).reshape(N, -1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class Own(LogisticRegression):
    """A subclass may predict anything."""


def odd_probabilities():
    model = LogisticRegression().fit(Z, TWO)
    # As older versions of scikit-learn do with multi_class="multinomial".
    found = model.decision_function
    model.predict_proba = lambda Z: 1 / (1 + np.exp(np.outer(-found(Z), [-2, 2])))
    return model


@pytest.mark.parametrize(
    "model",
    [
        SVC().fit(Z, TWO),
        Own().fit(Z, TWO),
        odd_probabilities(),
        RidgeClassifier().fit(Z, np.eye(2, dtype=int)[np.arange(N) % 2]),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_model_that_is_not_known_is_refused(model):
    with pytest.raises(ValueError, match=r"cannot export 'last', a .*Ridge.*skl2onnx"):
        predictor("last", model)


def photos(n=N):
    """Images of the size that the reader resizes to, so that no pixel is rounded."""
    small = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    sizes = [PIL.Image.fromarray(x).resize((18, 18)) for x in small]
    return np.stack([np.asarray(image) for image in sizes])


def probe(*steps):
    return make_pipeline(PretrainedFeatureExtractor(small_backbone()), *steps)


MODELS = {
    "pipeline": lambda: probe(StandardScaler(), LogisticRegression()),
    "nested": lambda: Pipeline(
        [
            ("features", probe(MinMaxScaler(), "passthrough")),
            ("nothing", None),
            ("reduced", PCA(4)),
            ("last", FrozenEstimator(RidgeClassifier().fit(np.eye(4), [0, 1, 2, 2]))),
        ]
    ),
    "search": lambda: GridSearchCV(
        probe(StandardScaler(), LinearSVC()), {"linearsvc__C": [0.01, 1]}, cv=2
    ),
    "search in a pipeline": lambda: probe(
        StandardScaler(), GridSearchCV(Ridge(), {"alpha": [1, 10]}, cv=2)
    ),
    "fine-tuned search": lambda: GridSearchCV(
        FineTuneClassifier(small_backbone(), freeze="all", random_state=0),
        {"C": [0.1, 1]},
        cv=2,
    ),
    "selector": lambda: make_pipeline(
        BackboneSelector([small_backbone()], scoring="knn"), LogisticRegression()
    ),
    "embeddings": lambda: probe(StandardScaler()),
}


def fitted(kind):
    """A fitted model, and what the graph is to compute."""
    model, images = MODELS[kind](), photos()
    model.fit(list(images), VALUES if "search in" in kind else THREE)
    if hasattr(model, "predict_proba"):
        return model, model.predict_proba(list(images))
    if hasattr(model, "decision_function"):
        return model, model.decision_function(list(images))
    if hasattr(model, "predict"):
        return model, model.predict(list(images)).reshape(N, -1)
    return model, model.transform(list(images))


@pytest.mark.parametrize("kind", MODELS)
def test_the_network_computes_what_the_model_does(kind):
    model, expected = fitted(kind)
    network, reader, _, properties = _parts_of(model)
    inputs = torch.stack([reader.read(image) for image in photos()])
    with torch.inference_mode():
        found = network.eval()(reader.normalise(inputs)).numpy()
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
    if "classes" in properties:
        classes = np.array(json.loads(properties["classes"]))
        labels = classes[found.argmax(1)]
        np.testing.assert_array_equal(labels, model.predict(list(photos())))


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.9", reason="its exporter is not enough")
@pytest.mark.parametrize("kind", ["pipeline", "search", "search in a pipeline"])
def test_the_graph_computes_what_the_model_does(kind, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, expected = fitted(kind)
    path = str(tmp_path / "model.onnx")
    export_onnx(model, path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (slice(0, N), slice(3, 4)):
        (found,) = session.run(None, {"images": photos()[rows]})
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(found, expected[rows], rtol=0, atol=1e-5 * scale)
    if "search in" not in kind:
        properties = session.get_modelmeta().custom_metadata_map
        classes = np.array(json.loads(properties["classes"]))
        labels = classes[session.run(None, {"images": photos()})[0].argmax(1)]
        np.testing.assert_array_equal(labels, model.predict(list(photos())))
        assert properties["estimator"] in ("LogisticRegression", "LinearSVC")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: probe(SVC()), "cannot export 'svc', a SVC"),
        (
            lambda: probe(FunctionTransformer(np.sqrt), LogisticRegression()),
            "cannot export 'functiontransformer', a FunctionTransformer",
        ),
        (
            lambda: probe(KernelPCA(2), LogisticRegression()),
            "'kernelpca', a KernelPCA. Accepted",
        ),
        (
            lambda: VotingClassifier([("a", probe(LogisticRegression()))]),
            "'VotingClassifier', a VotingClassifier",
        ),
        (
            lambda: GridSearchCV(
                probe(LogisticRegression()),
                {"logisticregression__C": [1]},
                cv=2,
                refit=False,
            ),
            "has refit=False",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(make, message, tmp_path):
    model = make().fit(list(photos()), THREE)
    with pytest.raises(ValueError, match=message):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_pipeline_has_to_begin_with_a_network(tmp_path):
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(Z, TWO)
    with pytest.raises(ValueError, match="'standardscaler', a StandardScaler"):
        export_onnx(model, tmp_path / "model.onnx")
    for unfitted in (probe(LogisticRegression()), MODELS["search"]()):
        with pytest.raises(ValueError, match="not fitted"):
            export_onnx(unfitted, tmp_path / "model.onnx")
