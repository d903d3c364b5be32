"""Values <-> JSON and arrays, without pickle, on which `save` and `load` are based.

Numbers, strings, booleans and None are themselves in JSON, and a list is a list. Every
other value is an object with a single tag, such as ``{"tuple": [1, 2]}`` or
``{"array": "7"}``, where "7" is a name among the arrays.

skops alone would not suffice. It stores no tensors, and it stores an object completely
or not at all, so that a network could not be stored as a name and a digest with only
its tuned stages.
"""

import copy
import importlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils import Bunch
from torch import nn
from torchvision.models import WeightsEnum, get_weight

from sktransfer._tables import Table
from sktransfer.backbones._backbone import Backbone, checked
from sktransfer.backbones._load import Named, pinned
from sktransfer.backbones._origins import Divided, Tuned
from sktransfer.backbones._weights import weights_path
from sktransfer.embedding._cache import EmbeddingCache
from sktransfer.finetuning._network import Standardise
from sktransfer.finetuning._parts import parts_of
from sktransfer.saving._skops import HARMLESS, import_skops, loads

_LAYERS = {kind.__name__: kind for kind in (nn.Linear, nn.ReLU, nn.Dropout)}
# The skorch net used for training is not needed to predict or to continue training.
_LEFT_OUT = ("net_",)
_ROUTED = "_metadata_request"
# Modules of scikit-learn that do more than define classes when they are imported.
_CODE_TO_RUN = {"tests", "conftest", "experimental", "externals"}
# Parameters that files of earlier versions do not have, and their default values.
_ADDED = {
    "max_length": None,
    "sampling_rate": None,
    "on_error": "raise",
    "decoding": "exact",
}


def _random_state(state) -> np.random.RandomState:
    generator = np.random.RandomState()
    generator.set_state(state)
    return generator


# For each tag: a type, a function that turns its values into simpler ones to encode in
# their place, and its inverse. A subclass comes before its base class, as the first
# match counts.
_SIMPLE = {
    "scalar": (np.generic, np.asarray, lambda array: array[()]),
    "float": (float, str, float),
    "table": (Table, list, Table),
    "tuple": (tuple, list, tuple),
    "bunch": (Bunch, dict, lambda content: Bunch(**content)),
    "slice": (slice, lambda s: [s.start, s.stop, s.step], lambda ends: slice(*ends)),
    "path": (Path, str, Path),
    "weights": (WeightsEnum, str, get_weight),
    "random_state": (np.random.RandomState, lambda r: r.get_state(), _random_state),
    "cache": (
        EmbeddingCache,
        lambda cache: [cache.location and os.fspath(cache.location), cache.max_bytes],
        lambda content: EmbeddingCache(content[0], max_bytes=content[1]),
    ),
}


@dataclass
class Encoder:
    """Encode values as JSON, and collect their arrays."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)
    # An id is unique only while its object lives: numbered values are kept alive.
    _held: list = field(default_factory=list)

    def encode(self, value, where: str):
        """Encode a value, which errors call `where`."""
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float and math.isfinite(value):
            return value
        if id(value) in self._numbers:
            return {"same": self._numbers[id(value)]}
        record = self._record(value, where)
        if isinstance(record, dict) and not _NUMBERED.isdisjoint(record):
            self._numbers[id(value)] = len(self._numbers)
            self._held.append(value)
        return record

    def _record(self, value, where):
        """Encode a value that is not plain, by the first rule for its type."""
        for tag, (kind, simplify, _) in _SIMPLE.items():
            if isinstance(value, kind):
                return {tag: self.encode(simplify(value), where)}
        for kind, encode in _ENCODERS:
            if isinstance(value, kind):
                return encode(self, value, where)
        # What contains parts of this package is not for skops, which stores no tensors.
        kinds = map(type, parts_of(value))
        ours = next(filter(_is_ours, kinds), None)
        if ours is None:
            return self.other(value, where)
        if isinstance(value, BaseSearchCV):
            raise ValueError(
                f"A search cannot be saved, since the scorers and folds of {where} can "
                "be any code. Nothing was written. Save its best_estimator_ instead."
            )
        if isinstance(value, BaseEstimator):
            return self.estimator(value, where)
        raise ValueError(
            f"{where} is a {type(value).__name__} that contains a {ours.__name__} but "
            "is not an estimator: of objects that contain parts of sktransfer, a file "
            "without code can hold only estimators, lists and dicts. Nothing was "
            "written. Save the estimator around it before it is fitted, and fit it "
            "once it is loaded; or save it with joblib.dump, whose files run code when "
            "they are loaded."
        )

    def array(self, value: np.ndarray, where: str):
        # safetensors has numbers and booleans of up to 64 bits; strings and objects go
        # into the JSON, item by item.
        if value.dtype.kind in "OU":
            items = self.items(value.ravel().tolist(), where)
            return {"objects": [items, value.dtype.str, list(value.shape)]}
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise _refusal(where, f"an array of {value.dtype}")
        name = str(len(self.arrays))
        # safetensors writes the bytes as they are, in the order of the machine.
        native = value.dtype.newbyteorder("=")
        self.arrays[name] = np.asarray(value, dtype=native, order="C")
        return {"array": name}

    def items(self, values, where) -> list:
        return [self.encode(v, f"{where}[{i}]") for i, v in enumerate(values)]

    def mapping(self, value, where):
        pairs = [
            [self.encode(key, where), self.encode(v, f"{where}[{key!r}]")]
            for key, v in value.items()
        ]
        return {"dict": pairs}

    def tensors(self, state: dict, where) -> dict:
        return {name: self.array(v.cpu().numpy(), where) for name, v in state.items()}

    def head(self, value, where):
        layers = [type(layer).__name__ for layer in value]
        if not {*layers} <= {*_LAYERS, Standardise.__name__}:
            raise _refusal(where, f"a module of {sorted({*layers})}")
        rates = [getattr(layer, "p", None) for layer in value]
        return {"head": [layers, rates, self.tensors(value.state_dict(), where)]}

    def backbone(self, value, where):
        origin, reader = value.origin, value.reader.to_record()
        if isinstance(origin, Named):
            weights = self.encode(_with_whole_path(origin.weights), where)
            spec = [pinned(origin.name), weights, origin.seed]
            return {"named": [*spec, reader, value.digest]}
        if isinstance(origin, Divided):
            source = self.encode(origin.source, where)
            return {"divided": [source, origin.block, reader, value.digest]}
        if isinstance(origin, Tuned):
            source = self.encode(origin.source, where)
            changed = self.tensors(_changed(origin, where), where)
            return {"tuned": [source, origin.depth, changed, reader, value.digest]}
        raise ValueError(
            f"{where}, the backbone {value.name!r}, was given as a module, and a file "
            "without code cannot hold its architecture. Nothing was written. Register "
            "it under a name, register_backbone('<name>', <function that makes it>), "
            "and fit with backbone='<name>'; or save the estimator with joblib.dump, "
            "whose files run code when they are loaded."
        )

    def estimator(self, value, where):
        # Requests of metadata routing are stored as arguments of set_fit_request etc.
        state = {k: v for k, v in vars(value).items() if k not in _LEFT_OUT}
        routed = state.pop(_ROUTED, None)
        requests = {} if routed is None else routed._serialize()
        encoded = {name: self.encode(v, f"{where}.{name}") for name, v in state.items()}
        return {"estimator": [_class_name(type(value), where), encoded, requests]}

    def other(self, value, where):
        """Encode an optimizer class, or store an object of scikit-learn by skops."""
        if isinstance(value, type) and getattr(torch.optim, value.__name__, 0) is value:
            return {"optimizer": value.__name__}
        skops = import_skops(where, type(value).__name__)
        # skops raises errors of many types for what it cannot store, and they name
        # neither the parameter nor what to do.
        try:
            content = skops.dumps(value)
            unknown = set(skops.get_untrusted_types(data=content)) - HARMLESS
        except Exception as error:
            raise _refusal(where, repr(value)) from error
        if unknown:
            raise _refusal(where, f"{value!r}, made of {sorted(unknown)}")
        content = np.frombuffer(content, dtype=np.uint8)
        return {"skops": self.array(content, where)}


_ENCODERS = [
    (np.ndarray, Encoder.array),
    (list, Encoder.items),
    (dict, Encoder.mapping),
    (nn.Sequential, Encoder.head),
    (Backbone, Encoder.backbone),
]


@dataclass
class Decoder:
    """Decode values from JSON and arrays, without executing code from them.

    Parameters
    ----------
    arrays : dict of str to ndarray
        The arrays of the file.
    folder : Path
        The folder of the file, in which its weights files and the folders of its
        models are looked for first.
    """

    arrays: dict[str, np.ndarray]
    folder: Path
    _numbered: list = field(default_factory=list)

    def decode(self, record):
        """Decode a value by the fixed table of tags, the only code a file can name."""
        if isinstance(record, list):
            return [self.decode(item) for item in record]
        if not isinstance(record, dict):
            return record
        ((tag, content),) = record.items()
        if tag in _SIMPLE:
            value = _SIMPLE[tag][2](self.decode(content))
        else:
            value = _DECODERS[tag](self, content)
        if tag in _NUMBERED:
            self._numbered.append(value)
        return value

    def array(self, name):
        return self.arrays[name].copy()

    def objects(self, content):
        items, dtype, shape = content
        if np.dtype(dtype).kind not in "OU":
            raise ValueError(f"objects of dtype {dtype!r}")
        flat = np.empty(len(items), dtype=dtype)
        for i, item in enumerate(items):
            flat[i] = self.decode(item)
        return flat.reshape(shape)

    def mapping(self, content):
        return {self.decode(key): self.decode(value) for key, value in content}

    def same(self, number):
        return self._numbered[number]

    def optimizer(self, name):
        # The name comes from the file, and torch.optim has more than optimizers.
        kind = getattr(torch.optim, name)
        if not issubclass(kind, torch.optim.Optimizer):
            raise ValueError(f"optimizer {name!r}")
        return kind

    def tensors(self, content) -> dict:
        return {name: torch.from_numpy(self.decode(v)) for name, v in content.items()}

    def head(self, content):
        names, rates, content = content
        state, layers = self.tensors(content), []
        for i, (name, rate) in enumerate(zip(names, rates, strict=True)):
            if name == "Standardise":
                layers.append(Standardise.nothing(len(state[f"{i}.mean"])))
            elif name == "Linear":
                layers.append(nn.Linear(*state[f"{i}.weight"].shape[::-1]))
            else:
                layers.append(_LAYERS[name](**({} if rate is None else {"p": rate})))
        head = nn.Sequential(*layers)
        head.load_state_dict(state)
        return head.eval()

    def named(self, content):
        name, weights, seed, reader, digest = content
        weights = self._found_weights(self.decode(weights))
        origin = Named.of(self._found_name(name), weights, seed)
        return _as_then(origin(), reader, digest)

    def tuned(self, content):
        source, depth, changed, reader, digest = content
        source = self.decode(source)
        # The source may be shared with other parts of the file.
        suffix = copy.deepcopy(source.stages[depth:])
        # All tensors are in files of format 1. What lacks one that differs from the
        # source has another digest.
        suffix.load_state_dict(suffix.state_dict() | self.tensors(changed))
        return _as_then(source.tuned(depth, suffix), reader, digest)

    def divided(self, content):
        source, block, reader, digest = content
        return _as_then(self.decode(source).cut(block), reader, digest)

    def estimator(self, content):
        kind, state, requests = content
        kind = _find_class(kind)
        state = {name: self.decode(value) for name, value in state.items()}
        missing = set(kind._get_param_names()) - set(state)
        if missing - _ADDED.keys():
            raise ValueError(f"{kind.__name__} without {sorted(missing)}")
        state |= {name: _ADDED[name] for name in missing}
        # As in unpickling, parameters and fitted attributes are set alike.
        estimator = kind.__new__(kind)
        vars(estimator).update(state)
        with sklearn.config_context(enable_metadata_routing=True):
            for method, wanted in requests.items():
                getattr(estimator, f"set_{method}_request")(**wanted)
        return estimator

    def skops(self, content):
        return loads(self.decode(content).tobytes())

    def _found_weights(self, weights):
        path = weights_path(weights)
        if path is None:
            return weights
        path = self._found(path, "weights file", os.path.isfile)
        return (path, weights[1]) if isinstance(weights, tuple) else path

    def _found_name(self, name):
        library, _, path = name.partition("/")
        # Other names of models of Hugging Face are ids on the hub.
        if library != "hf" or not os.path.isabs(path):
            return name
        return f"hf/{self._found(path, 'folder', _is_model_folder)}"

    def _found(self, path, what, is_there):
        """Find a path beside the saved file or, else, where it was."""
        beside = os.path.join(self.folder.absolute(), Path(path).name)
        if is_there(beside):
            return beside
        if os.path.isabs(path) and is_there(path):
            return path
        raise FileNotFoundError(
            f"The saved estimator refers to the {what} {path!r}, which does not exist. "
            f"Copy it to {beside!r}, where it is looked for first."
        )


_DECODERS = {
    "array": Decoder.array,
    "objects": Decoder.objects,
    "dict": Decoder.mapping,
    "same": Decoder.same,
    "optimizer": Decoder.optimizer,
    "head": Decoder.head,
    "named": Decoder.named,
    "divided": Decoder.divided,
    "tuned": Decoder.tuned,
    "estimator": Decoder.estimator,
    "skops": Decoder.skops,
}

# Values of these tags are numbered, so that an object that occurs twice is one object
# again after loading: a generator or a network may be shared.
_NUMBERED = {"path", "random_state", "cache", "named", "divided", "tuned", "estimator"}


def _refusal(where: str, what: str) -> ValueError:
    return ValueError(
        f"{where} is {what}, which a file without code cannot hold. Accepted are "
        "estimators of sktransfer and scikit-learn whose parameters are numbers, "
        "strings, paths, lists, dicts and arrays of these, classes of torch.optim, or "
        "an EmbeddingCache. Nothing was written. Change that parameter, or save the "
        "estimator with joblib.dump, whose files run code when they are loaded."
    )


def _changed(origin: Tuned, where: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a tuned backbone that its source does not have."""
    try:
        return origin.changed()
    except ValueError as error:
        raise ValueError(
            f"{where} cannot be saved: {error} Nothing was written. Register the whole "
            "network under a name by register_backbone, and fit with that name; or "
            "save the estimator with joblib.dump, whose files run code when they are "
            "loaded."
        ) from error


def _is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "sktransfer"


def _class_name(kind: type, where: str) -> str:
    """Return the name by which `_find_class` finds a class, or refuse the class."""
    # The public name of a class of this package survives a move between its modules.
    module = "sktransfer" if _is_ours(kind) else kind.__module__
    name = f"{module}:{kind.__name__}"
    try:
        known = _find_class(name)
    except (ValueError, AttributeError, ImportError):
        known = None
    if known is not kind:
        raise _refusal(where, f"a {kind.__module__}.{kind.__qualname__}")
    return name


def _find_class(name: str) -> type:
    """Import an estimator class of this package or scikit-learn, and nothing else."""
    module, _, name = name.partition(":")
    package, *parts = module.split(".")
    if package not in ("sktransfer", "sklearn") or not _CODE_TO_RUN.isdisjoint(parts):
        raise ValueError(f"a class of {module!r}")
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(f"{error}, in which {name!r} is looked for") from error
    if not (isinstance(kind, type) and issubclass(kind, BaseEstimator)):
        raise ValueError(f"{name!r}, which is not an estimator")
    return kind


def _is_model_folder(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "config.json"))


def _with_whole_path(weights):
    """Make the path of a weights file absolute, as `load` may run in another folder."""
    path = weights_path(weights)
    if path is None:
        return weights
    path = os.path.abspath(path)
    return (path, weights[1]) if isinstance(weights, tuple) else path


def _as_then(backbone: Backbone, reader: dict, digest: str) -> Backbone:
    """Give a backbone the saved reader, and check that it has the saved digest."""
    return checked(backbone, backbone.reader.from_record(reader), digest)
