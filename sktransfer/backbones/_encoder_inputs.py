"""What an encoder is called with: from padded inputs to its arguments."""

import copy
import inspect

import torch
from torch import Tensor, nn


def model_inputs(model: nn.Module, form: str, x: Tensor) -> tuple[dict, Tensor | None]:
    """Return the arguments that an encoder is called with, and what is no padding."""
    named = inspect.signature(model.forward).parameters
    if form == "fixed":
        inputs = {model.main_input_name: x}
        if "interpolate_pos_encoding" in named:
            # It changes nothing for images of the model's own size.
            inputs["interpolate_pos_encoding"] = True
        return inputs, None
    there = x >= 0 if form == "tokens" else ~x.isnan()
    pad = getattr(model.config, "pad_token_id", None) if form == "tokens" else 0.0
    inputs = {model.main_input_name: x.masked_fill(~there, pad or 0)}
    if "attention_mask" in named:
        inputs["attention_mask"] = there.long()
    return inputs, there


def for_frames(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a model of spectrograms with the positions that an input has.

    Whisper and the audio spectrogram transformer take inputs of one length, but only
    because they add positions to all frames. Shorter ones have the first of them. The
    model itself is not changed, as other threads may be using it.
    """
    config = model.config
    if hasattr(config, "max_source_positions"):
        count = x.shape[-1] // (model.conv1.stride[0] * model.conv2.stride[0])
        if count >= config.max_source_positions:
            return model
        positions = _changed(model.embed_positions, num_embeddings=count)
        shorter = copy.copy(config)
        shorter.max_source_positions = count
        return _changed(model, {"embed_positions": positions}, config=shorter)
    if hasattr(config, "time_stride") and x.shape[1] < config.max_length:
        own = model.embeddings
        rows, columns = own.get_shape(config)
        count = (x.shape[1] - config.patch_size) // config.time_stride + 1
        positions = own.position_embeddings
        grid = positions[:, 2:].unflatten(1, (rows, columns))[:, :, :count]
        own = _changed(
            own,
            parameters={
                "position_embeddings": torch.cat(
                    [positions[:, :2], grid.flatten(1, 2)], 1
                )
            },
        )
        return _changed(model, {"embeddings": own})
    return model


def _changed(module: nn.Module, modules=(), parameters=(), **attributes) -> nn.Module:
    """Return a module that shares all with another but what is given."""
    other = copy.copy(module)
    other._modules = {**module._modules, **dict(modules)}
    other._parameters = {**module._parameters, **dict(parameters)}
    vars(other).update(attributes)
    return other


def frames(model: nn.Module, there: Tensor, count: int) -> Tensor:
    """Return which frames of a waveform are no padding."""
    return model._get_feature_vector_attention_mask(count, there.long()).bool()
