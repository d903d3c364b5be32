"""Transfer learning for images, texts and sounds with scikit-learn estimators."""

from sktransfer import datasets
from sktransfer._version import __version__ as __version__
from sktransfer.backbones._backbone import Backbone
from sktransfer.backbones._check import check_backbone
from sktransfer.backbones._load import list_backbones, load_backbone, register_backbone
from sktransfer.backbones._stages import split_stages
from sktransfer.backbones._weights import WeightsMismatchError
from sktransfer.choosing._ranking import rank_backbones
from sktransfer.choosing._report import TransferReport, transfer_report
from sktransfer.choosing._scores import h_score, knn_score, logme_score
from sktransfer.choosing._search_cost import SearchCost, search_cost
from sktransfer.choosing._selector import BackboneSelector
from sktransfer.displays._attribution import AttributionDisplay
from sktransfer.displays._charts import (
    BackboneRankingDisplay,
    FreezeDepthDisplay,
    TrainingHistoryDisplay,
    TransferReportDisplay,
)
from sktransfer.displays._pictures import TopLossesDisplay
from sktransfer.embedding._cache import EmbeddingCache
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.finetuning._classifier import FineTuneClassifier
from sktransfer.finetuning._regressor import FineTuneRegressor
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._sound import SpectrogramReader, WaveReader
from sktransfer.inputs._text import TextReader
from sktransfer.saving._card import model_card
from sktransfer.saving._file import load, save
from sktransfer.saving._onnx import export_onnx

__all__ = [
    "AttributionDisplay",
    "Backbone",
    "BackboneRankingDisplay",
    "BackboneSelector",
    "EmbeddingCache",
    "FineTuneClassifier",
    "FineTuneRegressor",
    "FreezeDepthDisplay",
    "ImageReader",
    "PretrainedFeatureExtractor",
    "SearchCost",
    "SpectrogramReader",
    "TextReader",
    "TopLossesDisplay",
    "TrainingHistoryDisplay",
    "TransferReport",
    "TransferReportDisplay",
    "WaveReader",
    "WeightsMismatchError",
    "check_backbone",
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
