"""The steps of a fitted pipeline as modules of torch, to be exported."""

import json
import warnings

import numpy as np
import torch
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    ARDRegression,
    BayesianRidge,
    ElasticNet,
    ElasticNetCV,
    HuberRegressor,
    Lasso,
    LassoCV,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC, LinearSVR
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sktransfer.finetuning._network import Standardise

_CLASSIFIERS = (
    *(LogisticRegression, LogisticRegressionCV, LinearDiscriminantAnalysis),
    *(LinearSVC, RidgeClassifier, RidgeClassifierCV, SGDClassifier, Perceptron),
)
_REGRESSORS = (
    *(LinearRegression, Ridge, RidgeCV, Lasso, LassoCV, ElasticNet, ElasticNetCV),
    *(BayesianRidge, ARDRegression, HuberRegressor, SGDRegressor, LinearSVR),
)
# How far a converted step may be from the original, relative to its largest output.
_ROUNDING = 1e-4


def steps_of(estimator, name: str) -> list[tuple[str, object]]:
    """Return the fitted steps of an estimator, each with its name.

    The steps of a search are those of its best estimator.
    """
    if isinstance(estimator, BaseSearchCV):
        check_is_fitted(estimator)
        if not hasattr(estimator, "best_estimator_"):
            raise ValueError(
                f"export_onnx expects a search with a best estimator, but this "
                f"{type(estimator).__name__} has refit={estimator.refit!r}. Nothing "
                "was written. Fit it with refit=True, or export an estimator that is "
                "fitted with its best parameters."
            )
        return steps_of(estimator.best_estimator_, name)
    if isinstance(estimator, FrozenEstimator):
        return steps_of(estimator.estimator, name)
    if isinstance(estimator, Pipeline):
        check_is_fitted(estimator)
        parts = [
            part for part in estimator.steps if part[1] not in (None, "passthrough")
        ]
        return [step for name, part in parts for step in steps_of(part, name)]
    return [(name, estimator)]


def refusal(name: str, step) -> ValueError:
    """Return the error for a step that cannot be exported."""
    known = (*_TRANSFORMERS, *_CLASSIFIERS, *_REGRESSORS)
    *most, last = (kind.__name__ for kind in known)
    return ValueError(
        f"export_onnx cannot export {name!r}, a {type(step).__name__}. Accepted are a "
        "fitted PretrainedFeatureExtractor, BackboneSelector, FineTuneClassifier or "
        "FineTuneRegressor; a pipeline whose first step is one of these, followed by "
        f"feature selection, {', '.join(most)} or {last}; and a search over such "
        "estimators. Nothing was written. Replace that step; or export the first step "
        "alone, and the others by the skl2onnx package."
    )


def transformer(name: str, step) -> nn.Module:
    """Return the module that computes ``step.transform``."""
    if type(step) in _TRANSFORMERS:
        module = _TRANSFORMERS[type(step)](step)
    elif isinstance(step, SelectorMixin) and type(step).__module__[:8] == "sklearn.":
        module = _Columns(step.get_support(indices=True))
    else:
        raise refusal(name, step)
    return _checked(module, name, step, step.transform)


def predictor(name: str, step) -> tuple[nn.Module, str, dict[str, str]]:
    """Return the module of the predictions, the name of its output, and metadata."""
    if type(step) in _REGRESSORS:
        module = _linear(step.coef_, step.intercept_)
        return _checked(module, name, step, step.predict), "values", {}
    # One that was fitted on several labels for each sample has no single prediction.
    if type(step) not in _CLASSIFIERS or _is_multilabel(step):
        raise refusal(name, step)
    if hasattr(step, "predict_proba"):
        module = _checked(_probabilities(step), name, step, step.predict_proba)
        return module, "probabilities", classes_of(step)
    coef, intercept = np.atleast_2d(step.coef_), np.ravel(step.intercept_)
    if len(coef) == 1:
        # So that the largest score is that of the predicted class, as with more.
        coef, intercept = np.vstack([-coef, coef]), np.hstack([-intercept, intercept])

    def scores(Z):
        found = step.decision_function(Z)
        return np.column_stack([-found, found]) if found.ndim == 1 else found

    module = _checked(_linear(coef, intercept), name, step, scores)
    return module, "scores", classes_of(step)


def _is_multilabel(step) -> bool:
    binarizer = getattr(step, "_label_binarizer", None)
    return binarizer is not None and binarizer.y_type_.startswith("multilabel")


def classes_of(estimator) -> dict[str, str]:
    # Labels that are not JSON, such as dates, are written as text.
    classes = np.asarray(estimator.classes_).tolist()
    return {"classes": json.dumps(classes, default=str)}


def _probabilities(step) -> nn.Module:
    coef, intercept = np.atleast_2d(step.coef_), np.ravel(step.intercept_)
    if len(coef) == 1:
        # The softmax of 0 and a logit has the logistic function of the logit.
        coef = np.vstack([0 * coef, coef])
        intercept = np.hstack([0.0, intercept])
        return nn.Sequential(_linear(coef, intercept), nn.Softmax(dim=1))
    solver = getattr(step, "solver", None)
    one_by_one = isinstance(step, SGDClassifier) or solver == "liblinear"
    kind = _Shares() if one_by_one else nn.Softmax(dim=1)
    return nn.Sequential(_linear(coef, intercept), kind)


class Affine(nn.Module):
    """Multiply by a scale, then add a mean."""

    def __init__(self, mean, scale):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def forward(self, x):
        return x * self.scale + self.mean


class _Columns(nn.Module):
    """Keep some columns."""

    def __init__(self, kept):
        super().__init__()
        self.register_buffer("kept", torch.tensor(kept))

    def forward(self, x):
        return x[:, self.kept]


class _Clip(nn.Module):
    """Restrict values to a range."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low, self.high = float(low), float(high)

    def forward(self, x):
        return x.clamp(self.low, self.high)


class _Unit(nn.Module):
    """Divide rows by their norm; a row of zeros stays as it is."""

    def __init__(self, norm: str):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        size = x.abs()
        if self.norm == "max":
            norm = size.amax(1, keepdim=True)
        elif self.norm == "l1":
            norm = size.sum(1, keepdim=True)
        else:
            norm = (x * x).sum(1, keepdim=True).sqrt()
        return x / torch.where(norm == 0, torch.ones_like(norm), norm)


class _Shares(nn.Module):
    """Divide the logistic functions of the scores of each class by their sum."""

    def forward(self, x):
        each = x.sigmoid()
        return each / each.sum(1, keepdim=True)


def _linear(coef, intercept) -> nn.Linear:
    coef = np.atleast_2d(coef)
    layer = nn.Linear(coef.shape[1], coef.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(coef))
        layer.bias.copy_(torch.as_tensor(np.broadcast_to(intercept, len(coef)).copy()))
    return layer.float()


def _scaler(step, centre, scale) -> nn.Module:
    nothing = Standardise.nothing(step.n_features_in_)
    return Standardise(
        nothing.mean.numpy() if centre is None else centre,
        nothing.scale.numpy() if scale is None else scale,
    )


def _min_max(step) -> nn.Module:
    module = Affine(step.min_, step.scale_)
    return nn.Sequential(module, _Clip(*step.feature_range)) if step.clip else module


def _max_abs(step) -> nn.Module:
    module = _scaler(step, None, step.scale_)
    # A parameter of later versions of scikit-learn.
    clips = getattr(step, "clip", False)
    return nn.Sequential(module, _Clip(-1, 1)) if clips else module


def _pca(step) -> nn.Module:
    rotation = np.asarray(step.components_, dtype=float)
    if step.whiten:
        least = np.finfo(step.explained_variance_.dtype).eps
        rotation = rotation / np.sqrt(step.explained_variance_).clip(least)[:, None]
    return nn.Sequential(_scaler(step, step.mean_, None), _linear(rotation, 0.0))


_TRANSFORMERS = {
    StandardScaler: lambda step: _scaler(
        step, step.mean_ if step.with_mean else None, step.scale_
    ),
    RobustScaler: lambda step: _scaler(step, step.center_, step.scale_),
    MinMaxScaler: _min_max,
    MaxAbsScaler: _max_abs,
    Normalizer: lambda step: _Unit(step.norm),
    PCA: _pca,
    TruncatedSVD: lambda step: _linear(step.components_, 0.0),
}


def _checked(module, name: str, step, method) -> nn.Module:
    """Return a module if it computes what a method of a step does."""
    n_features = step.n_features_in_
    inputs = np.random.default_rng(0).normal(size=(16, n_features)).astype(np.float32)
    with warnings.catch_warnings():
        # Columns may have had names.
        warnings.simplefilter("ignore")
        expected = np.asarray(method(inputs)).reshape(len(inputs), -1)
    with torch.inference_mode():
        found = module(torch.from_numpy(inputs)).numpy()
    if found.shape != expected.shape or not np.allclose(
        found, expected, rtol=0, atol=_ROUNDING * np.abs(expected).max()
    ):
        raise refusal(name, step)
    return module
