"""The shapes of the outputs of stages, found without computing them."""

import copy

import torch
from torch import nn

from sktransfer.backbones._names import name_of
from sktransfer.inputs._reader import input_shape


def not_run(backbone, error: Exception) -> ValueError:
    """Return the error of a backbone that cannot be run on inputs of its own size."""
    reader = backbone.reader
    sides = ", ".join(map(str, input_shape(reader)))
    advice = f"Set {reader.size_parameter} to one it takes."
    return ValueError(
        f"Backbone {backbone.name!r} cannot be run: {_clause(error)}. Its inputs have "
        f"shape (n, {sides}), and nothing was computed. "
        f"{_about_channels(backbone) or advice}"
    )


def size_not_taken(backbone, size, error: Exception) -> ValueError:
    """Return the error of a backbone that cannot be run on inputs of another size."""
    reader, other = backbone.reader, ""
    if reader.kind == "image":
        other = (
            ", or choose a convolutional network, which takes any size that is not too "
            "small"
        )
    parameter = reader.size_parameter
    advice = f"Its own size is {reader}; leave {parameter}=None{other}."
    return ValueError(
        f"Backbone {backbone.name!r} cannot take {parameter}={size}: {_clause(error)}. "
        f"{_about_channels(backbone) or advice}"
    )


def _clause(error: Exception) -> str:
    # A sentence of ours goes on after it.
    return str(error).rstrip(". ")


def _about_channels(backbone) -> str:
    """Advise on a network that does not take colour images; empty for others."""
    modules = backbone.stages.modules()
    first = next((m for m in modules if hasattr(m, "in_channels")), None)
    if backbone.reader.kind != "image" or first is None or first.in_channels == 3:
        return ""
    return (
        f"Its first layer has in_channels={first.in_channels}, but all images, also "
        "grey ones, are read with three channels. Convert them in a first stage: "
        "nn.Sequential(convert, *split_stages(model)), where convert is for example "
        "torchvision.transforms.v2.Grayscale() for a network of grey images."
    )


def without_data(stages: nn.Sequential) -> nn.Sequential:
    """Return copies of stages whose tensors have shapes but no data."""
    memo = {id(p): nn.Parameter(p.to("meta"), False) for p in stages.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in stages.buffers()}
    return copy.deepcopy(stages, memo)


def shapes_of(stages, x) -> list[tuple[int, ...]]:
    """Return the shapes of the outputs of all stages."""
    shapes, before = [], ""
    # In inference mode, tensors would not know that they were changed.
    with torch.no_grad():
        for key, stage in stages._modules.items():
            name, given, version = name_of(key), x, x._version
            x = stage(x)
            if "." in before and given._version != version:
                raise ValueError(
                    f"The network cannot be cut after {before!r}, as what follows "
                    "changes its output in place. Choose another block, or a stage."
                )
            before = name
            if not isinstance(x, torch.Tensor) or x.ndim < 2:
                kind = f"shape {tuple(x.shape)}" if hasattr(x, "shape") else type(x)
                raise ValueError(
                    f"Stage {name!r} returns {kind}, but a tensor of shape (n, ...) is "
                    "needed. Split the network elsewhere (split_stages.register), or "
                    "wrap it in a module that returns its embeddings."
                )
            shapes.append(tuple(x.shape[1:]))
            # Older versions of torch accept empty outputs of tensors without data.
            if min(shapes[-1]) < 1:
                raise RuntimeError(f"a stage's output would have shape {shapes[-1]}")
    return shapes
