"""From what a user passes as ``backbone=`` and ``weights=`` to a `Backbone`."""

import copy
import fnmatch
import functools
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sktransfer.backbones import _timm, _tiny, _torchvision, _transformers
from sktransfer.backbones._backbone import Backbone
from sktransfer.backbones._names import asked, did_you_mean
from sktransfer.backbones._seeding import initialise, seeded
from sktransfer.backbones._stages import packages_of, split_stages
from sktransfer.backbones._weights import apply_file, file_stamp, unknown_weights
from sktransfer.inputs._reader import Reader

# Another library is one more module like `_timm`, and its prefix here: `load` gives the
# stages and the reader of a name, `reader_of` the reader of a model that a user made,
# and `kind_of` what the samples of either are. `stamp_of` tells when a folder changed,
# `pinned` gives a name that goes on meaning the same, and `licence` that of weights.
# `PACKAGE` is where its models come from.
_LIBRARIES = {"timm": _timm, "hf": _transformers}


def load_backbone(
    backbone="tiny",
    *,
    weights="default",
    image_size=None,
    max_length=None,
    sampling_rate=None,
    decoding="exact",
    random_state=None,
):
    """Load a network without its classifier, split into named stages.

    Parameters
    ----------
    backbone : str, callable, torch.nn.Module, Backbone or fitted estimator
        A name from `list_backbones`; ``"timm/<name>"`` with the ``timm`` extra; or,
        with the ``hf`` extra, ``"hf/<owner>/<name>[@<revision>]"`` or ``"hf/<folder>"``
        for an encoder of Hugging Face, of images, texts or sounds. A callable is called
        without arguments and returns a module or a backbone. A module is deep-copied
        and split by `split_stages`; a module of timm gets timm's own reader, and one of
        transformers that of the folder it was loaded from. A fitted
        `FineTuneClassifier` or `FineTuneRegressor` stands for its tuned backbone, also
        as the last step of a fitted pipeline or as the best estimator of a search.
    weights : str, enum member, path, (path, "sha256:...") or None, default="default"
        "default" stands for the weights of "tiny" that come with the package, for the
        ``DEFAULT`` entry of a builder of torchvision, and for the weights that a given
        module has. Also accepted are an entry of torchvision's weights enum or its name
        ("IMAGENET1K_V1"), and a ``.safetensors`` or state-dict (``.pth``, ``.pt``)
        file, which is read without executing code. A file gets the reader of the entry
        that has the same file name, otherwise the reader of the architecture's entry
        with the smallest input. None initialises the network at random: a module by
        the ``reset_parameters`` of its parts; a parameter that none of them sets (a
        class token, positions, layer scales) keeps only its mean and standard
        deviation; buffers that are no statistics stay as they are.
    image_size : int, optional
        For images: the side of the square input in pixels. None takes it from the
        weights.
    max_length : int or float, optional
        The length at which samples are cut: of texts in tokens, of sounds in seconds.
        None takes it from the weights.
    sampling_rate : int, optional
        The number of values per second of sounds that are arrays without a rate.
    decoding : {"exact", "fast"}, default="exact"
        For images: how they are decoded (`ImageReader`). "exact" leaves a backbone that
        was given with its own reader as it is.
    random_state : int, RandomState instance or None, default=None
        The seed of the random initialisation when ``weights=None``.

    Returns
    -------
    Backbone
        The network, split into named stages, with the reader of its samples.

    Raises
    ------
    ValueError
        If the name, the weights or the size are unknown or do not fit together.
    OSError
        If the weights are not on this machine and cannot be downloaded.

    Examples
    --------
    >>> from sktransfer import load_backbone
    >>> backbone = load_backbone("resnet18", weights=None, random_state=0)
    >>> backbone.stage_names
    ('stem', 'layer1', 'layer2', 'layer3', 'layer4', 'pool')
    >>> backbone.n_features
    512
    """
    seed = 0
    if weights is None:
        seed = int(check_random_state(random_state).randint(2**31 - 1))
    if isinstance(backbone, str):
        loaded = Named.of(backbone, weights, seed)()
    else:
        loaded = _load_given(backbone, weights, seed)
    if sampling_rate is not None:
        loaded = loaded.with_reader(loaded.reader.at_rate(sampling_rate))
    if decoding != "exact":
        loaded = loaded.with_reader(loaded.reader.decoded(decoding))
    sizes = {"image_size": image_size, "max_length": max_length}
    for parameter, size in sizes.items():
        if size is not None:
            _check_parameter(loaded, parameter, size)
            loaded = loaded.at_size(size)
    return loaded


def _check_parameter(backbone, parameter, size):
    reader = backbone.reader
    if parameter != reader.size_parameter:
        raise ValueError(
            f"Invalid {parameter}={size!r} of backbone {backbone.name!r}: expected "
            f"None, as its samples are {reader.kind}s, whose size is set by "
            f"{reader.size_parameter}."
        )


def kind_of(backbone) -> str:
    """Return what the samples of a specification are, without loading a network."""
    fitted = _fitted_within(backbone)
    reader = getattr(getattr(fitted, "backbone_", fitted), "reader", None)
    if isinstance(reader, Reader):
        return reader.kind
    if isinstance(backbone, nn.Module):
        library = _library_of(backbone)
        return "image" if library is None else library.kind_of(backbone)
    if isinstance(backbone, str):
        library, _, rest = backbone.partition("/")
        if library in _LIBRARIES and rest:
            return _LIBRARIES[library].kind_of(rest)
    # What a factory makes is not known before it is called.
    return "image"


def list_backbones(pattern="*"):
    """List the names of the backbones that can be loaded.

    Parameters
    ----------
    pattern : str, default="*"
        Names have to match this pattern of shell wildcards, such as ``"resnet*"``.

    Returns
    -------
    list of str
        The sorted names. A pattern that begins with ``"timm/"`` asks for the models of
        timm, if it is installed, and one that begins with ``"hf/"`` for the models of
        transformers in the local cache of Hugging Face's hub.

    Examples
    --------
    >>> from sktransfer import list_backbones
    >>> list_backbones("resnet1*")
    ['resnet101', 'resnet152', 'resnet18']
    """
    names = {"tiny", *_registered, *_torchvision.names()}
    for library in (_timm, _transformers):
        names.update(library.names(pattern))
    return sorted(fnmatch.filter(names, pattern))


_registered: dict[str, Callable] = {}


def register_backbone(name, factory=None):
    """Register a network under a name, as a function or as a decorator.

    Parameters
    ----------
    name : str
        The name to pass as ``backbone=``. It hides the same name of torchvision.
    factory : callable, optional
        A function without arguments that returns a `torch.nn.Module` with its weights,
        or a `Backbone`. Without it, a decorator is returned.

    Returns
    -------
    callable
        The factory.

    Notes
    -----
    A worker process knows a name only if it imports the module that registers it: put
    the call into an importable module if you search with ``n_jobs``.

    Examples
    --------
    >>> from torch import nn
    >>> from sktransfer import load_backbone, register_backbone
    >>> @register_backbone("grey-patches")
    ... def patches():
    ...     return nn.Sequential(nn.AvgPool2d(56), nn.Flatten())
    >>> load_backbone("grey-patches").n_features
    48
    """
    # Checked first, as "@register_backbone" without a name passes the function for it.
    if not isinstance(name, str) or not (factory is None or callable(factory)):
        raise ValueError(
            f"Invalid name={name!r} and factory={factory!r}: expected a str and a "
            "callable that returns a torch.nn.Module or a Backbone, or a str alone, as "
            "in @register_backbone('name'). Nothing was registered."
        )
    if factory is None:
        return functools.partial(register_backbone, name)
    _registered[name] = factory
    _load_named.cache_clear()
    return factory


@dataclass(frozen=True)
class Named:
    """How a backbone that has a name is loaded, and a key of those that were."""

    name: str
    weights: object
    seed: int
    stamp: tuple | None = None

    @classmethod
    def of(cls, name, weights, seed) -> "Named":
        """Take a file as it is now, in case it has changed since it was loaded."""
        # A configuration file gives a list, which cannot be looked up.
        weights = tuple(weights) if isinstance(weights, list) else weights
        if not isinstance(weights, Hashable):
            raise unknown_weights(f"a {type(weights).__name__}", name)
        library, _, rest = name.partition("/")
        own = _LIBRARIES[library].stamp_of(rest) if library in _LIBRARIES else ()
        return cls(name, weights, seed, (file_stamp(weights), own))

    def __call__(self) -> Backbone:
        return _load_named(self)


# Candidates and folds of a search load the same few backbones again and again; more of
# them, ViT-H for one, would fill the memory.
@functools.lru_cache(maxsize=4)
def _load_named(origin: Named) -> Backbone:
    name, weights, seed = origin.name, origin.weights, origin.seed
    if name in _registered:
        given = _load_given(_registered[name], weights, seed)
        stages, reader = given.stages, given.reader
    else:
        with seeded(seed):
            stages, reader = _stages_of(name, weights)
    return Backbone(stages, reader, name=name, rebuild=origin)


def _stages_of(name, weights):
    library, _, rest = name.partition("/")
    if library in _LIBRARIES and rest:
        return _LIBRARIES[library].load(rest, weights)
    if name == "tiny":
        return _tiny.load(weights)
    if name in _torchvision.names():
        return _torchvision.load(name, weights)
    prefixed = ", ".join(f"'{library}/<name>'" for library in _LIBRARIES)
    raise ValueError(
        f"Invalid backbone={name!r}: expected a name from list_backbones(), {prefixed},"
        f" 'hf/<folder>' or a torch.nn.Module.{_hint(name)} Register other names by "
        "register_backbone."
    )


def _hint(given) -> str:
    """Ask whether a similar name was meant, or the model in the folder of that name."""
    if not isinstance(given, str | os.PathLike):
        return ""
    path = os.path.expanduser(os.fspath(given))
    if os.path.isfile(os.path.join(path, "config.json")):
        return asked([f"hf/{os.fspath(given)}"])
    return did_you_mean(os.fspath(given), list_backbones())


def _load_given(backbone, weights, seed):
    given = _given(backbone, seed)
    if isinstance(given, Backbone):
        if weights == "default":
            return given
        model = stages = copy.deepcopy(given.stages)
        reader, name = given.reader, given.name
    else:
        model = copy.deepcopy(given)
        stages = split_stages(model)
        reader, name = _reader_of(model), type(model).__name__
    if weights is None:
        with seeded(seed):
            initialise(stages.cpu())
    elif weights != "default":
        apply_file(model, stages, weights, name)
    return Backbone(stages, reader, name=name)


def _given(backbone, seed) -> Backbone | nn.Module:
    """Return what was given, or the network that it makes or was fitted with."""
    given = backbone
    if hasattr(backbone, "get_params"):
        check_is_fitted(backbone)
        given = _fitted_within(backbone)
        given = getattr(given, "backbone_", given)
    elif callable(backbone) and not isinstance(backbone, nn.Module):
        with seeded(seed):
            given = backbone()
    if not isinstance(given, Backbone | nn.Module):
        raise ValueError(
            f"Invalid backbone={given!r}: expected a name from list_backbones(), "
            "'hf/<folder>', a torch.nn.Module, a callable that returns one, a "
            "Backbone, or a fitted FineTuneClassifier or FineTuneRegressor, also at "
            "the end of a pipeline or as the best estimator of a search."
            f"{_hint(given)}"
        )
    return given


def _fitted_within(estimator):
    """Return what a pipeline ends in, or what a search has found, however nested."""
    while True:
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline) and estimator.steps:
            estimator = estimator.steps[-1][1]
        else:
            return estimator


def _reader_of(model):
    """Return the reader of a module of one of the libraries, otherwise None."""
    library = _library_of(model)
    return None if library is None else library.reader_of(model)


def _library_of(model: nn.Module):
    found = (lib for lib in _LIBRARIES.values() if lib.PACKAGE in packages_of(model))
    return next(found, None)


def pinned(name: str) -> str:
    """Return a name that goes on meaning the same weights, to be saved in a file."""
    library, _, rest = name.partition("/")
    if library in _LIBRARIES and rest and name not in _registered:
        return f"{library}/{_LIBRARIES[library].pinned(rest)}"
    return name


def weights_licence(backbone, weights) -> str | None:
    """Licence of the weights of a specification, or None where it is not known."""
    named = isinstance(backbone, str) and backbone not in _registered
    if weights is None or not named:
        return None
    library, _, rest = backbone.partition("/")
    if library in _LIBRARIES and rest:
        return _LIBRARIES[library].licence(rest, weights)
    if backbone == "tiny" and weights == "default":
        return "BSD-3-Clause"
    if backbone in _torchvision.names():
        return _torchvision.licence(backbone, weights)
    return None
