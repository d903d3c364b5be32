"""Backbones of timm, which is imported only when one of them is asked for."""

import warnings
from difflib import get_close_matches

from torch import nn

from sktransfer.backbones._stages import split_stages
from sktransfer.backbones._weights import apply_file
from sktransfer.inputs._images import ImageReader

PACKAGE = "timm"


def kind_of(model) -> str:
    """Return what the samples of a model, or of a name, are."""
    return "image"


def load(name, weights) -> tuple[nn.Sequential, ImageReader]:
    """Load the stages and the reader of a model of timm."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"backbone='timm/{name}' needs the timm package. Install it by pip install "
            "'sktransfer[timm]'."
        ) from error
    if name not in timm.list_models():
        close = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f"Invalid backbone='timm/{name}': expected the name of a model of timm "
            f"{timm.__version__}. Close names are {close}."
        )
    model = timm.create_model(name, pretrained=weights == "default")
    with warnings.catch_warnings():
        # Every model of timm is one stage: a warning with each would say nothing new.
        warnings.simplefilter("ignore", UserWarning)
        stages = split_stages(model)
    if weights not in ("default", None):
        apply_file(model, stages, weights, f"timm/{name}")
    return stages, reader_of(model)


def reader_of(model) -> ImageReader:
    """Return the reader that timm's own configuration of a model means."""
    from timm.data import resolve_data_config

    return ImageReader.of_timm(resolve_data_config({}, model=model))
