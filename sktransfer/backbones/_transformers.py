"""Backbones of transformers, which is imported only when one of them is asked for."""

import contextlib
import inspect
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from sktransfer.backbones._encoder_stages import split_encoder
from sktransfer.backbones._hub import (
    cached_folder,
    cached_names,
    folder_of,
    folder_stamp,
    licence_of,
    pinned_name,
    read_json,
)
from sktransfer.backbones._stages import LIBRARY_SPLITS
from sktransfer.backbones._weights import (
    WeightsMismatchError,
    read_weights,
    unknown_weights,
    weights_path,
)
from sktransfer.inputs._processor import ProcessorReader
from sktransfer.inputs._reader import Reader

PACKAGE = "transformers"
# What only the configurations of models of sounds and of images have. Those of some of
# them have the vocabulary of what they were trained to predict, too.
_OF_SOUNDS = {"conv_dim", "num_mel_bins", "feature_projection_input_dim"}
_OF_IMAGES = {"vision_config", "image_size", "num_channels"}
# The longest texts that are read if nothing is said: attention to many more tokens is
# slow, and few embeddings were trained on longer texts.
_MAX_LENGTH = 512
# The lengths of the texts on which stages are compared with the whole.
_LENGTHS = (40, 24, 7, 1)
_SAMPLING_RATE = 16_000


def names(pattern: str) -> list[str]:
    """Return the names of the models in the hub's cache, if a pattern asks for them."""
    return [f"hf/{n}" for n in cached_names()] if pattern.startswith("hf/") else []


def stamp_of(name: str) -> tuple:
    """Return times and sizes by which a changed folder is noticed."""
    return folder_stamp(cached_folder(name))


def licence(name: str, weights) -> str | None:
    """Return the licence of the weights of a name, or None where it is not known."""
    return licence_of(name) if weights == "default" else None


def pinned(name: str) -> str:
    """Return a name that goes on meaning the same weights."""
    return pinned_name(name)


def kind_of(model) -> str:
    """Return what the samples of a model, or of a name, are."""
    if isinstance(model, nn.Module):
        config = model.config.to_dict()
    else:
        config = read_json(cached_folder(model), "config.json")
    keys = {key for key, value in config.items() if value is not None}
    if keys & _OF_SOUNDS:
        return "sound"
    if "vocab_size" in keys and not keys & _OF_IMAGES:
        return "text"
    return "image"


def load(name: str, weights) -> tuple[nn.Sequential, Reader]:
    """Load the stages and the reader of a model of transformers.

    Parameters
    ----------
    name : str
        A folder, or ``"<owner>/<name>[@<revision>]"``.
    weights : "default", path, (path, "sha256:...") or None
        The weights of the folder, a file with the names of the model's own, or random
        weights.

    Raises
    ------
    WeightsMismatchError
        If the weights lack a tensor that is used, or have further layers.
    """
    _check_installed(name)
    folder = folder_of(name, with_weights=weights == "default")
    with _quiet():
        model, missing, unexpected = _model(name, folder, weights)
        reader = _reader(model, folder)
        stages = _split(model, folder, reader)
    _refuse_missing(name, model, stages, missing)
    _refuse_further_layers(name, model, unexpected)
    return stages, reader


def reader_of(model: nn.Module) -> Reader:
    """Return the reader of a model that a user made, from the folder it came from."""
    with _quiet():
        return _reader(model, _folder_of(model))


def split(model: nn.Module) -> nn.Sequential:
    """Split a model of transformers, without its head."""
    with _quiet():
        return _split(model, _folder_of(model), None)


LIBRARY_SPLITS[PACKAGE] = split


def _check_installed(name: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"backbone='hf/{name}' needs the transformers package. Install it by pip "
            "install 'sktransfer[hf]'."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from reporting and warning on its own."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _folder_of(model: nn.Module) -> Path | None:
    return cached_folder(getattr(model.config, "_name_or_path", ""))


def _model(name: str, folder: Path, weights) -> tuple[nn.Module, set, set]:
    """Return a model in evaluation mode, and what its weights lack and have besides."""
    from transformers import AutoConfig, AutoModel

    own = {"local_files_only": True, "trust_remote_code": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = AutoConfig.from_pretrained(folder, **own)
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"Invalid backbone='hf/{name}': transformers cannot read the "
                f"config.json in {str(folder)!r} ({str(error).splitlines()[0]})."
            ) from error
        if weights is None:
            model = AutoModel.from_config(config, dtype=torch.float32)
            return model.eval(), set(), set()
        source, made_by = {"pretrained_model_name_or_path": folder}, AutoModel
        if weights != "default":
            source = {"pretrained_model_name_or_path": None}
            source["state_dict"] = _state(name, weights)
            with torch.device("meta"):
                made_by = type(AutoModel.from_config(config))
        try:
            model, about = made_by.from_pretrained(
                **source,
                **own,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                # Refused below, where the tensors can be named.
                ignore_mismatched_sizes=True,
            )
        # That of safetensors for a file that is damaged is of a type of its own.
        except Exception as error:
            raise WeightsMismatchError(
                f"The weights of backbone 'hf/{name}' cannot be loaded from "
                f"{os.fspath(folder)!r}: {str(error).splitlines()[0].rstrip('.')}. "
                "Nothing was loaded. A file that was not downloaded completely, or is "
                "only a pointer of Git LFS to it, has to be downloaded again."
            ) from error
    shapes = {key for key, *_ in about["mismatched_keys"]}
    missing = {*about["missing_keys"]} | shapes
    return model.eval(), missing, {*about["unexpected_keys"]}


def _state(name: str, weights) -> dict:
    path = weights_path(weights)
    if path is None:
        raise unknown_weights(repr(weights), f"hf/{name}")
    return read_weights(path, weights[1] if isinstance(weights, tuple) else None)


def _refuse_missing(name, model, stages, missing) -> None:
    """Refuse random numbers in the place of what a file lacks, if stages have them.

    Tensors of another shape count as missing.
    """
    kept = {id(tensor) for tensor in stages.state_dict(keep_vars=True).values()}
    own = model.state_dict(keep_vars=True)
    lacking = sorted(key for key in missing if key in own and id(own[key]) in kept)
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise WeightsMismatchError(
            f"The weights of backbone 'hf/{name}' lack {', '.join(lacking[:3])}{more}, "
            "or have another shape of it than config.json says. "
            "transformers would take random numbers instead. Nothing was loaded. The "
            "file is incomplete, or config.json is that of another network."
        )


def _refuse_further_layers(name, model, unexpected) -> None:
    """Refuse weights with more layers of a kind than config.json says.

    Heads, decoders and others that the model has not are left out of it on purpose.
    """
    prefix = f"{model.base_model_prefix}."
    own = {_without_numbers(key) for key in model.state_dict()}
    further = sorted(
        key
        for key in unexpected
        if _without_numbers(key.removeprefix(prefix)) in own and re.search(r"\d", key)
    )
    if further:
        more = f" and {len(further) - 3} more" if len(further) > 3 else ""
        raise WeightsMismatchError(
            f"The weights of backbone 'hf/{name}' have layers that are not in its "
            f"config.json: {', '.join(further[:3])}{more}. A smaller network would "
            "compute something else. Nothing was loaded. Use the config.json that "
            "belongs to the weights."
        )


def _without_numbers(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def _encoder(model: nn.Module) -> nn.Module:
    """Return the part of a model that makes embeddings: no head, no decoder."""
    body = model.base_model if _takes_samples(model.base_model) else model
    if body.config.is_encoder_decoder:
        body = body.get_encoder()
    for name in ("vision_model", "vision_tower", "encoder"):
        if _takes_samples(getattr(body, name, None)):
            return getattr(body, name)
    return body


def _takes_samples(part) -> bool:
    """Whether a part of a model is one itself, not what follows the stem of one."""
    own = getattr(part, "main_input_name", "hidden_states")
    named = inspect.signature(part.forward).parameters if part is not None else ()
    return own != "hidden_states" and own in named


def _split(model: nn.Module, folder, reader: Reader | None) -> nn.Sequential:
    encoder = _encoder(model)
    form, pooling = _form(encoder), "mean"
    if form == "tokens":
        pooling = _text_pooling(folder)
    elif _is_of_images(encoder) and _has_class_token(encoder):
        pooling = "first"
    return split_encoder(encoder, form, _examples(encoder, form, reader), pooling)


def _is_of_images(encoder: nn.Module) -> bool:
    # Those of texts and sounds have input_ids, input_values or input_features.
    return not encoder.main_input_name.startswith("input_")


def _form(encoder: nn.Module) -> str:
    if encoder.main_input_name == "input_ids":
        return "tokens"
    return "wave" if hasattr(encoder.config, "conv_dim") else "fixed"


def _text_pooling(folder) -> str:
    """Return the pooling that sentence-transformers would use, or the mean.

    Its norm is left out: the features of a vector of length one are so small that the
    penalty of a linear model means something else, and a pipeline can have a
    `Normalizer`.
    """
    given = read_json(folder, "1_Pooling/config.json")
    if given.get("pooling_mode_cls_token") or given.get("pooling_mode") == "cls":
        return "first"
    if given.get("pooling_mode_lasttoken") or given.get("pooling_mode") == "lasttoken":
        return "last"
    return "mean"


def _has_class_token(encoder: nn.Module) -> bool:
    names = {name.rpartition(".")[2] for name, _ in encoder.named_parameters()}
    return not names.isdisjoint({"cls_token", "class_embedding", "class_token"})


def _examples(encoder: nn.Module, form: str, reader) -> list[torch.Tensor]:
    """Return batches on which stages are compared with the whole."""
    own = torch.Generator().manual_seed(0)
    if form == "tokens":
        examples = _texts(encoder, own)
    elif form == "wave":
        waves = torch.randn(2, _SAMPLING_RATE // 2, generator=own)
        waves[1, _SAMPLING_RATE // 3 :] = torch.nan
        examples = [waves, torch.randn(1, _SAMPLING_RATE, generator=own)]
    else:
        shape = _fixed_shape(encoder, reader)
        examples = [torch.randn(2, *shape, generator=own)]
    like = next(encoder.parameters())
    return [
        x.to(like.device, like.dtype if x.is_floating_point() else None)
        for x in examples
    ]


def _texts(encoder: nn.Module, own: torch.Generator) -> list[torch.Tensor]:
    config, longest = encoder.config, min(_longest(encoder), max(_LENGTHS))
    shape = (len(_LENGTHS), longest)
    ids = torch.randint(0, getattr(config, "vocab_size", 256), shape, generator=own)
    # Padding has a meaning of its own.
    pad = getattr(config, "pad_token_id", None)
    ids[ids == pad] = 1 if pad == 0 else 0
    padded = ids.clone()
    for row, length in enumerate(_LENGTHS):
        padded[row, length:] = -1
    return [padded, ids[1:2, :3], ids[2:3]]


def _fixed_shape(encoder: nn.Module, reader) -> tuple[int, ...]:
    config = encoder.config
    if not _is_of_images(encoder):
        bins = getattr(config, "num_mel_bins", None)
        positions = getattr(config, "max_source_positions", None)
        frames = getattr(config, "max_length", None)
        if bins is None or (positions or frames) is None:
            raise ValueError(
                f"{type(encoder).__name__} cannot be a backbone: the shape of its "
                "inputs is not known. Nothing was loaded."
            )
        return (bins, 2 * positions) if positions else (frames, bins)
    side = getattr(config, "image_size", None)
    if reader is not None:
        side = reader.size
    elif isinstance(side, list | tuple):
        side = side[0]
    return getattr(config, "num_channels", 3), side or 224, side or 224


def _longest(encoder: nn.Module) -> int:
    """Return the largest number of tokens that a model has positions for."""
    limit = getattr(encoder.config, "max_position_embeddings", None) or 10**6
    for name, module in encoder.named_modules():
        learned = isinstance(module, nn.Embedding) and "position" in name
        if learned and module.padding_idx is not None:
            # As in RoBERTa: positions are counted from the one after padding.
            return min(limit, module.num_embeddings - module.padding_idx - 1)
    return limit if limit > 0 else 10**6


def _reader(model: nn.Module, folder: Path | None) -> Reader:
    """Return the reader of the inputs of a model, by the files beside its weights."""
    encoder = _encoder(model)
    if encoder.main_input_name == "input_ids":
        return _text_reader(encoder, folder)
    recipe = read_json(folder, "preprocessor_config.json", "processor_config.json")
    for part in ("image_processor", "feature_extractor"):
        recipe = recipe.get(part, recipe)
    if _is_of_images(encoder):
        return ProcessorReader.of_processor(recipe, _fixed_shape(encoder, None)[-1])
    if not recipe:
        raise _no_file(model, folder, "preprocessor_config.json")
    from sktransfer.inputs._sound import sound_reader

    return sound_reader(recipe, encoder.config.to_dict())


def _text_reader(encoder: nn.Module, folder: Path | None) -> Reader:
    from transformers import AutoTokenizer

    from sktransfer.inputs._text import TextReader

    files = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
    if folder is None or not any(True for f in files for _ in folder.glob(f)):
        raise _no_file(encoder, folder, "tokenizer.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise ValueError(
                f"The tokenizer in {str(folder)!r} cannot be read "
                f"({type(error).__name__}: {str(error).splitlines()[0]}). Nothing was "
                "loaded. Copy its files again."
            ) from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(
            f"A {type(tokenizer).__name__} cannot be the tokenizer of a backbone: "
            "expected a fast tokenizer, one with a tokenizer.json."
        )
    longest = min(_longest(encoder), tokenizer.model_max_length)
    own = read_json(folder, "sentence_bert_config.json").get("max_seq_length")
    return TextReader(
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        max_length=min(longest, own or _MAX_LENGTH),
        longest=longest,
    )


def _no_file(model: nn.Module, folder: Path | None, file: str) -> ValueError:
    where = "known" if folder is None else f"{str(folder)!r}, which has no {file}"
    return ValueError(
        f"How the samples of a {type(model).__name__} are read is not known: expected "
        f"{file} in the folder that it was loaded from, which is {where}. Pass the "
        "folder by its name, backbone='hf/<folder>', or a reader: "
        "Backbone(split_stages(model), reader)."
    )
