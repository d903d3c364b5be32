"""Backbones of torchvision: its builders, and the entries of their weights."""

import os
import warnings
import zipfile
from enum import Enum
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn
from torchvision import models

from sktransfer.backbones._names import did_you_mean
from sktransfer.backbones._stages import split_stages
from sktransfer.backbones._weights import apply_file, apply_weights, weights_path
from sktransfer.inputs._images import ImageReader


def names() -> list[str]:
    return models.list_models(module=models)


def load(name, weights) -> tuple[nn.Sequential, ImageReader]:
    """Load the stages and the reader of a builder."""
    entries = models.get_model_weights(name)
    path = weights_path(weights)
    entry = _reader_entry(entries, path)
    if weights is not None and path is None:
        entry = find_entry(entries, weights)
    reader = ImageReader.of(entry.transforms())
    model = _build(name, reader)
    # Weights that came from another framework were trained on inputs of its own range;
    # a network from scratch has no such past.
    if hasattr(model, "transform_input"):
        model.transform_input = weights is not None
    stages = split_stages(model)
    if path is not None:
        apply_file(model, stages, weights, name)
    elif weights is not None:
        apply_weights(model, stages, download_weights(entry), str(entry))
    return stages, reader


def _build(name, reader):
    builder = models.get_model_builder(name)
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce another default initialisation.
        warnings.simplefilter("ignore", FutureWarning)
        model = builder(weights=None)
        if getattr(model, "image_size", reader.size) != reader.size:
            # Vision transformers have positions for one size of input only.
            model = builder(weights=None, image_size=reader.size)
    return model


def _reader_entry(entries, path):
    """Entry with the file name of a weights file, otherwise with the smallest input."""
    for entry in entries:
        if path is not None and entry.url.endswith(f"/{os.path.basename(path)}"):
            return entry
    return min(entries, key=lambda entry: ImageReader.of(entry.transforms()).size)


def licence(name, weights) -> str | None:
    """Licence of the weights of a specification, or None where it is not known."""
    if weights_path(weights):
        return None
    entry = find_entry(models.get_model_weights(name), weights)
    return entry.meta.get("license", "as torchvision's (BSD-3-Clause) and ImageNet's")


def find_entry(entries: type[Enum], weights) -> Enum:
    """Find a member of a builder's weights enum by itself, its name or "default"."""
    if isinstance(weights, entries):
        return weights
    names = list(entries.__members__)
    if weights == "default":
        return entries.DEFAULT
    name = weights.rpartition(".")[2] if isinstance(weights, str) else str(weights)
    if name in names:
        return entries[name]
    hint = did_you_mean(name, names, cutoff=0.4)
    raise ValueError(
        f"Invalid weights={weights!r} for this backbone: expected one of "
        f"{['default', *names]}, the path of a .safetensors or .pth file, or None for "
        f"random weights.{hint}"
    )


def download_weights(entry: Enum) -> dict:
    """Read a weights entry of torchvision from torch's local store or the network.

    torch.hub announces a download on standard error, checks the hash that is part of
    the file name, and renames the complete file into place.
    """
    target = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
    try:
        return entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        raise OSError(
            f"The weights {entry} are not on this machine and could not be downloaded "
            f"({error}). Nothing was loaded. With a network, fetch {entry.url} and "
            f"place it at {str(target)!r}, or pass its local path as weights=."
        ) from error
    except (RuntimeError, EOFError, UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"The weights {entry} cannot be read from {str(target)!r} ({error}). "
            "Nothing was loaded. Delete that file, so that it is fetched again."
        ) from error
