import io
import pathlib
import pickle

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from sktransfer import PretrainedFeatureExtractor, load_backbone
from tests.small_tasks import make_picture

# Of tables whose rows are hardly pictures, as those of most checks are.
ONE_ROW = "ignore:Rows of .* values? are:UserWarning"


@pytest.mark.filterwarnings(ONE_ROW)
@parametrize_with_checks([PretrainedFeatureExtractor()])
def test_scikit_learns_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_checks_that_scikit_learn_keeps_for_itself():
    from sklearn.utils import estimator_checks as checks

    extractor = PretrainedFeatureExtractor()
    for name in [
        "check_dataframe_column_names_consistency",
        "check_transformer_get_feature_names_out",
        "check_transformer_get_feature_names_out_pandas",
        "check_set_output_transform",
        "check_set_output_transform_pandas",
        "check_set_output_transform_polars",
        "check_global_output_transform_pandas",
        "check_global_set_output_transform_polars",
        "check_inplace_ensure_writeable",
        "check_param_validation",
    ]:
        getattr(checks, name)("PretrainedFeatureExtractor", clone(extractor))


@pytest.fixture
def files(tmp_path, pictures):
    paths = []
    for row, picture in enumerate(pictures):
        paths.append(str(tmp_path / f"{row}.png"))
        PIL.Image.fromarray(picture).save(paths[-1])
    return paths


def test_the_same_picture_in_every_form_has_the_same_embedding(files, pictures):
    extractor = PretrainedFeatureExtractor(cache=None)
    expected = extractor.transform(files)
    assert expected.dtype == np.float32
    encoded = [pathlib.Path(path).read_bytes() for path in files]
    tensors = [torch.from_numpy(np.moveaxis(p, 2, 0).copy()) for p in pictures]
    mixed = [files[0], encoded[1], tensors[2], *pictures[3:]]
    frame = pd.DataFrame({"image": files})
    images = [PIL.Image.open(path) for path in files]
    for X in [encoded, tensors, pictures, mixed, frame, images, np.stack(pictures)]:
        np.testing.assert_array_equal(extractor.transform(X), expected)


def test_it_is_stateless_and_fit_changes_nothing(files):
    extractor = PretrainedFeatureExtractor()
    before = extractor.transform(files)
    np.testing.assert_array_equal(extractor.fit(files).transform(files), before)
    np.testing.assert_array_equal(extractor.fit_transform(files), before)
    assert extractor.n_features_out_ == before.shape[1]


def test_new_parameters_take_effect(files):
    extractor = PretrainedFeatureExtractor(image_size=64).fit(files)
    tiny = extractor.transform(files)
    extractor.set_params(backbone="mobilenet_v3_small", weights=None)
    other = extractor.transform(files)
    assert other.shape == (6, 576)
    assert tiny.shape != other.shape
    extractor.set_params(random_state=1)
    assert not np.array_equal(extractor.transform(files), other)


def test_nothing_of_a_given_network_changes(files):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    net.append(nn.Flatten()).train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    extractor = PretrainedFeatureExtractor(net).fit(files)
    first = extractor.transform(files)
    np.testing.assert_array_equal(extractor.transform(files), first)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert net.training


def test_stage_and_pooling(files):
    extractor = PretrainedFeatureExtractor(stage="layer1", pooling="avgmax")
    backbone = load_backbone("tiny")
    depth = backbone.depth("layer1")
    assert extractor.fit_transform(files).shape[1] == 2 * backbone.shapes[depth - 1][0]
    assert extractor.get_feature_names_out()[0] == "pretrainedfeatureextractor0"
    with pytest.raises(ValueError, match="Choose pooling='avg'"):
        extractor.set_params(pooling="none").transform(files)
    with pytest.raises(ValueError, match="Invalid stage='layer99'"):
        extractor.set_params(stage="layer99").transform(files)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pooling": "mean"}, "pooling"),
        ({"backbone": "tinny"}, "Did you mean 'tiny'"),
        ({"image_size": -3}, "image_size"),
        ({"device": "gpu"}, "Invalid device='gpu': expected 'auto'"),
        ({"on_error": "skip"}, "on_error"),
        ({"cache": 3}, "Invalid cache=3: expected 'auto'"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters, message, files):
    for method in ["fit", "transform"]:
        with pytest.raises(ValueError, match=message):
            getattr(PretrainedFeatureExtractor(**parameters), method)(files)


def test_bad_images_follow_on_error(files, tmp_path):
    bad = [*files, str(tmp_path / "missing.png")]
    with pytest.raises(ValueError, match=r"row 6 \(.*missing\.png.*Nothing was ret"):
        PretrainedFeatureExtractor().transform(bad)
    with pytest.warns(UserWarning, match=r"rows \[6\]"):
        rows = PretrainedFeatureExtractor(on_error="nan").transform(bad)
    assert np.isnan(rows[6]).all()
    assert not np.isnan(rows[:6]).any()


def two_classes(n=24):
    rng = np.random.default_rng(0)
    X = [make_picture(seed) for seed in range(n)]
    y = np.where(np.arange(n) % 2, "dark", "light")
    for row in range(n):
        X[row] = (X[row] * (0.25 if y[row] == "dark" else 1.0)).astype(np.uint8)
    return X, y, rng.normal(size=n)


def test_pipelines_searches_and_column_transformers(tmp_path):
    X, y, number = two_classes()
    probe = make_pipeline(
        PretrainedFeatureExtractor(cache=tmp_path / "cache", image_size=64),
        StandardScaler(),
        LogisticRegression(),
    )
    grid = {
        "pretrainedfeatureextractor__backbone": ["tiny", "squeezenet1_1"],
        "pretrainedfeatureextractor__weights": [None],
        "pretrainedfeatureextractor__stage": [2, None],
        "logisticregression__C": [0.1, 1],
    }
    search = GridSearchCV(probe, grid, cv=2).fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert len(scores) == 8
    assert np.isfinite(scores).all()
    assert cross_val_predict(probe, X, y, cv=2).shape == y.shape
    frame = pd.DataFrame({"number": number})
    frame["image"] = [png(x) for x in X]
    columns = make_column_transformer(
        (PretrainedFeatureExtractor(), ["image"]), (StandardScaler(), ["number"])
    )
    table = columns.set_output(transform="pandas").fit_transform(frame)
    assert table.shape == (24, load_backbone("tiny").n_features + 1)
    by_series = make_column_transformer((PretrainedFeatureExtractor(), "image"))
    np.testing.assert_array_equal(
        by_series.fit_transform(frame), table.to_numpy()[:, :-1].astype(np.float32)
    )


def png(array):
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_pickle_is_small_and_embeds_the_same(files):
    extractor = PretrainedFeatureExtractor().fit(files)
    data = pickle.dumps(extractor)
    assert len(data) < 3000
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.transform(files), extractor.transform(files))


def test_no_images_and_no_fit():
    with pytest.raises(ValueError, match="0 images"):
        PretrainedFeatureExtractor().fit([])
    with pytest.raises(NotFittedError):
        PretrainedFeatureExtractor().get_feature_names_out()


@pytest.mark.slow
def test_hymenoptera_with_real_weights(real_data):
    from sktransfer.datasets import load_image_folder

    parts = [
        load_image_folder(real_data / f"data/hymenoptera/{p}") for p in ("train", "val")
    ]
    probe = make_pipeline(
        PretrainedFeatureExtractor(
            "mobilenet_v2",
            weights=real_data / "weights/mobilenet_v2_imagenet.safetensors",
        ),
        StandardScaler(),
        LogisticRegression(C=0.01),
    )
    train, val = parts
    assert probe.fit(train.data, train.target).score(val.data, val.target) >= 0.95
