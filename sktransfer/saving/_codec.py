"""Values <-> JSON and arrays, without pickle, on which `save` and `load` are based.

Numbers, strings, booleans and None are themselves in JSON, and a list is a list. Every
other value is an object with a single tag, such as ``{"tuple": [1, 2]}`` or
``{"array": "7"}``, where "7" is a name among the arrays.

skops alone would not suffice. It stores no tensors, and it stores an object completely
or not at all, so that a network could not be stored as a name and a digest with only
its tuned stages.
"""

import copy
import hashlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sklearn
import torch
from scipy import stats
from scipy.stats._distn_infrastructure import rv_frozen
from sklearn.base import BaseEstimator
from torch import nn

from sktransfer.backbones._backbone import Backbone, checked
from sktransfer.backbones._load import Named, pinned
from sktransfer.backbones._origins import Divided, Tuned
from sktransfer.backbones._weights import weights_path
from sktransfer.finetuning._network import Standardise
from sktransfer.saving._names import (
    class_name,
    find_class,
    find_holder,
    holder_name,
    is_ours,
    ours_in,
    refusal,
)
from sktransfer.saving._simple import SIMPLE
from sktransfer.saving._skops import HARMLESS, import_skops, loads

_LAYERS = {kind.__name__: kind for kind in (nn.Linear, nn.ReLU, nn.Dropout)}
# The skorch net used for training is not needed to predict or to continue training, and
# callbacks of scikit-learn are objects of any kind.
_LEFT_OUT = ("net_", "_skl_callbacks")
_ROUTED = "_metadata_request"
# Parameters that files of earlier versions do not have, and their default values.
_ADDED = {
    "max_length": None,
    "sampling_rate": None,
    "on_error": "raise",
    "decoding": "exact",
    "train_only": "all",
}


@dataclass
class Encoder:
    """Encode values as JSON, and collect their arrays."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)
    # An id is unique only while its object lives: numbered values are kept alive.
    _held: list = field(default_factory=list)
    # The values that are being encoded, and the names of arrays by their content.
    _open: set[int] = field(default_factory=set)
    _names: dict[tuple, str] = field(default_factory=dict)

    def encode(self, value, where: str):
        """Encode a value, which errors call `where`."""
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float and math.isfinite(value):
            return value
        if id(value) in self._numbers:
            return {"same": self._numbers[id(value)]}
        if id(value) in self._open:
            raise refusal(where, f"a {type(value).__name__} that holds itself")
        self._open.add(id(value))
        record = self._record(value, where)
        self._open.remove(id(value))
        if isinstance(record, dict) and not _NUMBERED.isdisjoint(record):
            self._numbers[id(value)] = len(self._numbers)
            self._held.append(value)
        return record

    def _record(self, value, where):
        """Encode a value that is not plain, by the first rule for its type."""
        for tag, (kind, simplify, _) in SIMPLE.items():
            if isinstance(value, kind):
                return {tag: self.encode(simplify(value), where)}
        for kind, encode in _ENCODERS:
            if isinstance(value, kind):
                return encode(self, value, where)
        ours = ours_in(value)
        record = None if ours else self.stored(value, where)
        if record is not None:
            return record
        if isinstance(value, BaseEstimator):
            return self.estimator(value, where)
        if holder := holder_name(type(value)):
            return {"holder": [holder, self.state(vars(value), where)]}
        if ours:
            what = f"a {type(value).__name__} that contains a {ours.__name__}"
            raise refusal(where, what)
        raise refusal(where, f"{value!r:.200}")

    def array(self, value: np.ndarray, where: str):
        # safetensors has numbers and booleans of up to 64 bits; strings and objects go
        # into the JSON, item by item.
        if value.dtype.kind in "OU":
            items = self.items(value.ravel().tolist(), where)
            return {"objects": [items, value.dtype.str, list(value.shape)]}
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise refusal(where, f"an array of {value.dtype}")
        # safetensors writes the bytes as they are, in the order of the machine.
        native = value.dtype.newbyteorder("=")
        value = np.asarray(value, dtype=native, order="C")
        # The members of an ensemble that was fitted by several processes have copies
        # of what they share.
        content = hashlib.sha256(value.reshape(-1).view(np.uint8)).digest()
        key = content, value.dtype.str, value.shape
        name = self._names.setdefault(key, str(len(self._names)))
        self.arrays[name] = value
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
            raise refusal(where, f"a module of {sorted({*layers})}")
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

    def state(self, attributes: dict, where) -> dict:
        return {k: self.encode(v, f"{where}.{k}") for k, v in attributes.items()}

    def estimator(self, value, where):
        # Requests of metadata routing are stored as arguments of set_fit_request etc.
        state = {k: v for k, v in vars(value).items() if k not in _LEFT_OUT}
        routed = state.pop(_ROUTED, None)
        requests = {} if routed is None else routed._serialize()
        name = class_name(type(value), where)
        return {"estimator": [name, self.state(state, where), requests]}

    def kind(self, value, where):
        if getattr(torch.optim, value.__name__, None) is value:
            return {"optimizer": value.__name__}
        record = self.stored(value, where)
        if record is None:
            raise refusal(where, repr(value))
        return record

    def distribution(self, value, where):
        name, kind = value.dist.name, type(value.dist)
        if type(getattr(stats, name, None)) is not kind:
            raise refusal(where, f"a distribution of {kind.__module__}.{kind.__name__}")
        content = [name, value.args, value.kwds]
        return {"distribution": self.items(content, where)}

    def stored(self, value, where) -> dict | None:
        """Store an object of scikit-learn by skops, or return None if that cannot."""
        skops = import_skops(where, type(value).__name__)
        # skops raises errors of many types, which name neither the parameter nor what
        # to do.
        try:
            content = skops.dumps(value)
            unknown = set(skops.get_untrusted_types(data=content)) - HARMLESS
        except Exception:
            return None
        if unknown:
            return None
        return {"sklearn": self.array(np.frombuffer(content, dtype=np.uint8), where)}


_ENCODERS = [
    (np.ndarray, Encoder.array),
    (list, Encoder.items),
    (dict, Encoder.mapping),
    (nn.Sequential, Encoder.head),
    (Backbone, Encoder.backbone),
    (type, Encoder.kind),
    (rv_frozen, Encoder.distribution),
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
        if tag in SIMPLE:
            value = SIMPLE[tag][2](self.decode(content))
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
            # Any other object would be converted to what it is printed as.
            if flat.dtype.kind == "U" and not isinstance(item, str):
                raise ValueError(f"a string of type {type(item).__name__}")
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
        kind = find_class(kind)
        state = {name: self.decode(value) for name, value in state.items()}
        known = set(kind._get_param_names())
        missing = known - set(state)
        if missing - _ADDED.keys():
            raise ValueError(f"{kind.__name__} without {sorted(missing)}")
        # Names of what is fitted or private end or begin with an underscore.
        unknown = {name for name in state if name == name.strip("_")} - known
        if unknown and is_ours(kind):
            raise ValueError(
                f"{kind.__name__} with {sorted(unknown)}, which this version of "
                "sktransfer does not have. Upgrade it"
            )
        state |= {name: _ADDED[name] for name in missing}
        # As in unpickling, parameters and fitted attributes are set alike.
        estimator = kind.__new__(kind)
        vars(estimator).update(state)
        with sklearn.config_context(enable_metadata_routing=True):
            for method, wanted in requests.items():
                getattr(estimator, f"set_{method}_request")(**wanted)
        return estimator

    def holder(self, content):
        name, state = content
        kind = find_holder(name)
        holder = kind.__new__(kind)
        vars(holder).update({name: self.decode(value) for name, value in state.items()})
        return holder

    def distribution(self, content):
        name, args, kwds = content
        kind = getattr(stats, name)
        if not isinstance(kind, stats.rv_continuous | stats.rv_discrete):
            raise ValueError(f"distribution {name!r}")
        return kind(*self.decode(args), **self.decode(kwds))

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
    "holder": Decoder.holder,
    "distribution": Decoder.distribution,
    "sklearn": Decoder.skops,
    # In files of format 1, whose parts of scikit-learn are not numbered.
    "skops": Decoder.skops,
}

# Values of these tags are numbered, so that an object that occurs twice is one object
# again after loading: a generator or a network may be shared.
_NUMBERED = {"path", "random_state", "cache", "named", "divided", "tuned"}
_NUMBERED |= {"estimator", "holder", "sklearn"}


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
