"""A backbone specification -> Backbone: names, modules, weights and fitted models."""

import contextlib
import copy
import fnmatch
import functools
import os
import threading
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torchvision import models

from sktransfer.backbones._backbone import Backbone, Recipe
from sktransfer.backbones._stages import split_stages
from sktransfer.backbones._tiny import WEIGHTS, tiny
from sktransfer.backbones._weights import (
    apply_weights,
    download_weights,
    find_entry,
    initialise,
    is_weights_path,
    read_weights,
)


def load_backbone(
    backbone="tiny", *, weights="default", image_size=None, random_state=None
):
    """Load a network without its classifier, split into named stages.

    Parameters
    ----------
    backbone : str, callable, torch.nn.Module, Backbone or fitted estimator
        A name from `list_backbones`, or ``"timm/<name>"`` with the ``timm`` extra. A
        callable is called without arguments for a module or backbone. A module is
        deep-copied and split by `split_stages`; one of timm gets timm's own recipe. Of
        a fitted `FineTuneClassifier` or `FineTuneRegressor`, the tuned backbone is
        taken.
    weights : str, enum member, path, (path, "sha256:...") or None, default="default"
        "default" are the weights of "tiny" that come with the package, torchvision's
        ``DEFAULT`` entry of its builders, and the module's own where a module is given.
        Else an entry of torchvision's weights enum or its name ("IMAGENET1K_V1"), or a
        ``.safetensors`` or state-dict (``.pth``, ``.pt``) file, read without executing
        code. A file gets the recipe of the entry whose file name it bears, otherwise
        that of the architecture's first entry. None initialises at random: a module
        by its parts' ``reset_parameters``; a parameter that none of them sets (a class
        token, positions, layer scales) keeps its mean and standard deviation, and
        nothing else; buffers that are no statistics stay as they are.
    image_size : int, optional
        Side of the square input in pixels; None is the recipe of the weights.
    random_state : int, RandomState instance or None, default=None
        Seed of the random initialisation when ``weights=None``.

    Returns
    -------
    Backbone

    Raises
    ------
    ValueError
        If the name, weights or size are not known or do not fit together.
    OSError
        If weights are neither on this machine nor to be downloaded.

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
    return loaded if image_size is None else loaded.at_size(image_size)


def list_backbones(pattern="*"):
    """List the names of the backbones that can be loaded.

    Parameters
    ----------
    pattern : str, default="*"
        With shell wildcards, as in ``"resnet*"``.

    Returns
    -------
    list of str
        Sorted. Names of the timm package work as ``"timm/<name>"`` and are not listed.

    Examples
    --------
    >>> from sktransfer import list_backbones
    >>> list_backbones("resnet1*")
    ['resnet101', 'resnet152', 'resnet18']
    """
    names = {"tiny", *_registered, *models.list_models(module=models)}
    return sorted(fnmatch.filter(names, pattern))


_registered: dict[str, Callable] = {}


def register_backbone(name, factory=None):
    """Make a network known under a name, as a function or as a decorator.

    Parameters
    ----------
    name : str
        What ``backbone=`` is then called. A registered name hides torchvision's.
    factory : callable, optional
        Takes nothing, returns a `torch.nn.Module` with its weights, or a `Backbone`.
        None returns a decorator.

    Returns
    -------
    callable
        The factory.

    Notes
    -----
    Worker processes know the names that the modules they import register: keep the
    call in an importable module if you search with ``n_jobs``.

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
    if factory is None:
        return functools.partial(register_backbone, name)
    if not isinstance(name, str) or not callable(factory):
        raise ValueError(
            f"register_backbone takes a name and a callable; got {name!r}, {factory!r}."
        )
    _registered[name] = factory
    _load_named.cache_clear()
    return factory


@dataclass(frozen=True)
class Named:
    """How a backbone that has a name is loaded; made anew, it is only looked up."""

    name: str
    weights: object
    seed: int
    stamp: tuple | None = None

    @classmethod
    def of(cls, name, weights, seed) -> "Named":
        """Take a file as it is now, in case that it changed since it was loaded."""
        weights = tuple(weights) if isinstance(weights, list) else weights
        if not isinstance(weights, Hashable):
            raise _unknown_weights(f"a {type(weights).__name__}", name)
        return cls(name, weights, seed, _file_stamp(weights))

    def __call__(self) -> Backbone:
        return _load_named(self)


@functools.lru_cache(maxsize=4)
def _load_named(origin: Named) -> Backbone:
    name, weights, seed = origin.name, origin.weights, origin.seed
    if name in _registered:
        given = _load_given(_registered[name], weights, seed)
        return Backbone(given.stages, given.recipe, name=name, rebuild=origin)
    with seeded(seed):
        if name == "tiny":
            stages, recipe = _load_tiny(weights)
        elif name.startswith("timm/"):
            stages, recipe = _load_timm(name.removeprefix("timm/"), weights)
        else:
            stages, recipe = _load_torchvision(name, weights)
    return Backbone(stages, recipe, name=name, rebuild=origin)


def _load_given(backbone, weights, seed):
    if hasattr(backbone, "get_params"):
        check_is_fitted(backbone)
        backbone = getattr(backbone, "best_estimator_", backbone)
        backbone = getattr(backbone, "backbone_", backbone)
    elif callable(backbone) and not isinstance(backbone, nn.Module):
        with seeded(seed):
            backbone = backbone()
    recipe, name = None, type(backbone).__name__
    if isinstance(backbone, Backbone):
        if weights == "default":
            return backbone
        recipe, name = backbone.recipe, backbone.name
        model = copy.deepcopy(backbone.stages)
    elif isinstance(backbone, nn.Module):
        model = copy.deepcopy(backbone)
        if any(kind.__module__.startswith("timm.") for kind in type(model).__mro__):
            recipe = _timm_recipe(model)
    else:
        raise ValueError(
            f"backbone={backbone!r} is no backbone. Accepted are a name from "
            "list_backbones(), a torch.nn.Module, a callable that returns one, a "
            "Backbone, or a fitted FineTuneClassifier or FineTuneRegressor."
        )
    stages = model if isinstance(backbone, Backbone) else split_stages(model)
    if weights is None:
        with seeded(seed):
            initialise(stages.cpu())
    elif weights != "default":
        apply_weights(model, stages, *_read_file(weights, name))
    return Backbone(stages, recipe, name=name)


def _load_tiny(weights):
    stages = tiny()
    if weights is not None:
        given = WEIGHTS if weights == "default" else weights
        apply_weights(stages, stages, *_read_file(given, "tiny"))
    return stages, Recipe(resize=64, crop=64)


def _load_torchvision(name, weights):
    names = list_backbones()
    if name not in names:
        close = get_close_matches(name.lower(), names, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"backbone={name!r} is not known.{hint} Accepted are the names that "
            "sktransfer.list_backbones() lists, 'timm/<name>', or a torch.nn.Module; "
            "register_backbone makes others known."
        )
    entries = models.get_model_weights(name)
    path = weights_path(weights)
    entry = _recipe_entry(entries, path)
    if weights is not None and path is None:
        entry = find_entry(entries, weights)
    recipe = Recipe.of(entry.transforms())
    model = _build_torchvision(name, recipe)
    # Networks that came from another framework normalise their input once more.
    if hasattr(model, "transform_input"):
        model.transform_input = weights is not None
    stages = split_stages(model)
    if path is not None:
        apply_weights(model, stages, *_read_file(weights, name))
    elif weights is not None:
        apply_weights(model, stages, download_weights(entry), str(entry))
    return stages, recipe


def _build_torchvision(name, recipe):
    builder = models.get_model_builder(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = builder(weights=None)
        if getattr(model, "image_size", recipe.crop) != recipe.crop:
            model = builder(weights=None, image_size=recipe.crop)
    return model


def _recipe_entry(entries, path):
    """Entry of a weights file's own name, else the first at the smallest input."""
    for entry in entries:
        if path is not None and entry.url.endswith(f"/{os.path.basename(path)}"):
            return entry
    return min(entries, key=lambda entry: entry.transforms().crop_size[0])


def _load_timm(name, weights):
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"backbone='timm/{name}' needs the timm package: pip install "
            "'sktransfer[timm]'."
        ) from error
    if name not in timm.list_models():
        close = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm knows no model {name!r}. Close names: {close}.")
    model = timm.create_model(name, pretrained=weights == "default")
    with warnings.catch_warnings():
        # timm's own split is not known to us: one stage is what there is to say.
        warnings.simplefilter("ignore", UserWarning)
        stages = split_stages(model)
    if weights not in ("default", None):
        apply_weights(model, stages, *_read_file(weights, f"timm/{name}"))
    return stages, _timm_recipe(model)


def _timm_recipe(model) -> Recipe:
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    crop = config["input_size"][-1]
    return Recipe(
        resize=round(crop / config["crop_pct"]),
        crop=crop,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def weights_licence(backbone, weights) -> str | None:
    """Licence of the weights that a specification means, where it is known."""
    if weights is None or not isinstance(backbone, str):
        return None
    if backbone == "tiny" and weights == "default":
        return "BSD-3-Clause"
    if backbone not in models.list_models(module=models) or weights_path(weights):
        return None
    entry = find_entry(models.get_model_weights(backbone), weights)
    return entry.meta.get("license", "as torchvision's (BSD-3-Clause) and ImageNet's")


_generators = threading.RLock()


@contextlib.contextmanager
def seeded(seed, device="cpu"):
    """Run with torch's generators seeded, and leave them as they were.

    One thread at a time: the generators are those of the whole process.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with _generators, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def weights_path(weights) -> str | None:
    """Path of a weights specification, if it means a file."""
    if isinstance(weights, tuple) and len(weights) == 2:
        weights = weights[0]
    return os.fspath(weights) if is_weights_path(weights) else None


def _unknown_weights(what: str, name: str) -> ValueError:
    return ValueError(
        f"weights={what} is not known for backbone {name!r}. Accepted are 'default', "
        "the path of a .safetensors or .pth file, a tuple of such a path and "
        "'sha256:<hex digits>', or None for random weights."
    )


def _read_file(weights, name):
    path = weights_path(weights)
    if path is None:
        raise _unknown_weights(repr(weights), name)
    demanded = weights[1] if isinstance(weights, tuple) else None
    return read_weights(path, demanded), repr(path)


def _file_stamp(weights):
    """What tells that a file was changed since it was loaded."""
    path = os.path.expanduser(weights_path(weights) or "")
    if not os.path.exists(path):
        return None
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size
