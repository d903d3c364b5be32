"""Transfer learning on images as plain scikit-learn estimators."""

from sktransfer import datasets
from sktransfer._attribution import AttributionDisplay
from sktransfer._backbones import Backbone
from sktransfer._cache import EmbeddingCache
from sktransfer._cards import model_card
from sktransfer._classifier import FineTuneClassifier
from sktransfer._costs import SearchCost, search_cost
from sktransfer._displays import (
    BackboneRankingDisplay,
    FreezeDepthDisplay,
    TrainingHistoryDisplay,
    TransferReportDisplay,
)
from sktransfer._extractor import PretrainedFeatureExtractor
from sktransfer._loading import list_backbones, load_backbone, register_backbone
from sktransfer._onnx import export_onnx
from sktransfer._persistence import load, save
from sktransfer._pictures import TopLossesDisplay
from sktransfer._ranking import rank_backbones
from sktransfer._regressor import FineTuneRegressor
from sktransfer._report import TransferReport, transfer_report
from sktransfer._scores import h_score, knn_score, logme_score
from sktransfer._selector import BackboneSelector
from sktransfer._stages import split_stages
from sktransfer._version import __version__ as __version__
from sktransfer._weights import WeightsMismatchError

__all__ = [
    "AttributionDisplay",
    "Backbone",
    "BackboneRankingDisplay",
    "BackboneSelector",
    "EmbeddingCache",
    "FineTuneClassifier",
    "FineTuneRegressor",
    "FreezeDepthDisplay",
    "PretrainedFeatureExtractor",
    "SearchCost",
    "TopLossesDisplay",
    "TrainingHistoryDisplay",
    "TransferReport",
    "TransferReportDisplay",
    "WeightsMismatchError",
    "datasets",
    "export_onnx",
    "h_score",
    "knn_score",
    "list_backbones",
    "load",
    "load_backbone",
    "logme_score",
    "model_card",
    "rank_backbones",
    "register_backbone",
    "save",
    "search_cost",
    "split_stages",
    "transfer_report",
]
