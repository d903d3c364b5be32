"""A backbone specification -> Backbone: names, modules, weights and fitted models."""

import copy
import fnmatch
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from difflib import get_close_matches

from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sktransfer.backbones import _timm, _tiny, _torchvision
from sktransfer.backbones._backbone import Backbone
from sktransfer.backbones._seeding import initialise, seeded
from sktransfer.backbones._stages import split_stages
from sktransfer.backbones._weights import apply_file, file_stamp, unknown_weights

# Another library is one more module like `_timm`, and its prefix here: `load` gives the
# stages and the recipe of a name, `recipe_of` the recipe of a model that a user made.
# The prefix is the name of the package that its models come from.
_LIBRARIES = {"timm": _timm}


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
    names = {"tiny", *_registered, *_torchvision.names()}
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
            raise unknown_weights(f"a {type(weights).__name__}", name)
        return cls(name, weights, seed, file_stamp(weights))

    def __call__(self) -> Backbone:
        return _load_named(self)


@functools.lru_cache(maxsize=4)
def _load_named(origin: Named) -> Backbone:
    name, weights, seed = origin.name, origin.weights, origin.seed
    if name in _registered:
        given = _load_given(_registered[name], weights, seed)
        stages, recipe = given.stages, given.recipe
    else:
        with seeded(seed):
            stages, recipe = _stages_of(name, weights)
    return Backbone(stages, recipe, name=name, rebuild=origin)


def _stages_of(name, weights):
    library, _, rest = name.partition("/")
    if library in _LIBRARIES and rest:
        return _LIBRARIES[library].load(rest, weights)
    if name == "tiny":
        return _tiny.load(weights)
    if name in _torchvision.names():
        return _torchvision.load(name, weights)
    names = list_backbones()
    close = get_close_matches(name.lower(), names, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"backbone={name!r} is not known.{hint} Accepted are the names that "
        "sktransfer.list_backbones() lists, 'timm/<name>', or a torch.nn.Module; "
        "register_backbone makes others known."
    )


def _load_given(backbone, weights, seed):
    given = _given(backbone, seed)
    if isinstance(given, Backbone):
        if weights == "default":
            return given
        model = stages = copy.deepcopy(given.stages)
        recipe, name = given.recipe, given.name
    else:
        model = copy.deepcopy(given)
        stages = split_stages(model)
        recipe, name = _recipe_of(model), type(model).__name__
    if weights is None:
        with seeded(seed):
            initialise(stages.cpu())
    elif weights != "default":
        apply_file(model, stages, weights, name)
    return Backbone(stages, recipe, name=name)


def _given(backbone, seed) -> Backbone | nn.Module:
    """What was given itself, or what it makes or was fitted with."""
    given = backbone
    if hasattr(backbone, "get_params"):
        check_is_fitted(backbone)
        given = getattr(backbone, "best_estimator_", backbone)
        given = getattr(given, "backbone_", given)
    elif callable(backbone) and not isinstance(backbone, nn.Module):
        with seeded(seed):
            given = backbone()
    if not isinstance(given, Backbone | nn.Module):
        raise ValueError(
            f"backbone={given!r} is no backbone. Accepted are a name from "
            "list_backbones(), a torch.nn.Module, a callable that returns one, a "
            "Backbone, or a fitted FineTuneClassifier or FineTuneRegressor."
        )
    return given


def _recipe_of(model):
    """Recipe of a module of one of the libraries, if it is."""
    packages = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    for package in packages & _LIBRARIES.keys():
        return _LIBRARIES[package].recipe_of(model)
    return None


def weights_licence(backbone, weights) -> str | None:
    """Licence of the weights that a specification means, where it is known."""
    if weights is None or not isinstance(backbone, str):
        return None
    if backbone == "tiny" and weights == "default":
        return "BSD-3-Clause"
    if backbone in _torchvision.names():
        return _torchvision.licence(backbone, weights)
    return None
