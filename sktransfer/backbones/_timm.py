"""Backbones of timm, which is imported only when one of them is asked for."""

import contextlib
import urllib.error
import urllib.request
import warnings
from collections import OrderedDict

from torch import nn

from sktransfer.backbones._names import did_you_mean
from sktransfer.backbones._stages import LIBRARY_SPLITS, without_classifier
from sktransfer.backbones._timm_parts import shell
from sktransfer.backbones._timm_stages import NotCutError, cut
from sktransfer.backbones._weights import apply_file
from sktransfer.inputs._images import ImageReader

PACKAGE = "timm"
# What timm and the client of the hub look for, the first that is there.
_FILES = ("model.safetensors", "pytorch_model.bin")
_SECONDS = 5


def kind_of(model) -> str:
    """Return what the samples of a model, or of a name, are."""
    return "image"


def licence(name: str, weights) -> str | None:
    """Return the licence of the weights of a name, or None where it is not known."""
    if weights != "default":
        return None
    from timm.models import get_pretrained_cfg

    return getattr(get_pretrained_cfg(name), "license", None)


def stamp_of(name: str) -> tuple:
    """Return times and sizes by which a changed folder is noticed: there is none."""
    return ()


def pinned(name: str) -> str:
    """Return a name that goes on meaning the same weights."""
    return name


def names(pattern: str) -> list[str]:
    """Return the names of timm's models, if a pattern asks for them."""
    if not pattern.startswith("timm/"):
        return []
    try:
        import timm
    except ImportError:
        return []
    return [f"timm/{name}" for name in timm.list_models()]


def load(name, weights) -> tuple[nn.Sequential, ImageReader]:
    """Load the stages and the reader of a model of timm."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"backbone='timm/{name}' needs the timm package. Install it by pip install "
            "'sktransfer[timm]'."
        ) from error
    # The tag after a name chooses among the weights of a model, and their recipe.
    all_names = {*timm.list_models(), *timm.list_models(include_tags=True)}
    if name not in all_names:
        raise ValueError(
            f"Invalid backbone='timm/{name}': expected the name of a model of timm "
            f"{timm.__version__}, '<model>' or '<model>.<tag of its weights>'."
            f"{did_you_mean(name, sorted(all_names))}"
        )
    if weights == "default":
        model = _pretrained(name)
    else:
        model = timm.create_model(name, pretrained=False)
    stages = split(model)
    if weights not in ("default", None):
        apply_file(model, stages, weights, f"timm/{name}")
    return stages, reader_of(model)


def reader_of(model) -> ImageReader:
    """Return the reader that timm's own configuration of a model means."""
    from timm.data import resolve_data_config

    return ImageReader.of_timm(resolve_data_config({}, model=model))


def split(model: nn.Module) -> nn.Sequential:
    """Cut a model of timm without its classifier, or warn that it is one stage."""
    config = getattr(model, "pretrained_cfg", None) or {}
    body = shell(without_classifier(model), {})
    for origin in ("pretrained_cfg", "default_cfg"):
        # Where weights were found does not decide what is computed.
        vars(body).pop(origin, None)
    try:
        return cut(body, config)
    except NotCutError as why:
        name = type(model).__name__
        warnings.warn(
            f"This {name} of timm is one stage, 'all', as {why}: only freeze=0 and "
            "freeze='all' make sense. Its classifier is left out. To cut it yourself, "
            "register a function that takes the model and returns an nn.Sequential of "
            "named stages, the last of which gives (n, n_features): "
            f"@split_stages.register({name})",
            UserWarning,
            stacklevel=4,
        )
        return nn.Sequential(OrderedDict(all=body))


LIBRARY_SPLITS[PACKAGE] = split


def _pretrained(name):
    """Create a model with its weights, from the local store or the network."""
    import timm

    config = timm.get_pretrained_cfg(name)
    hub, url = config.hf_hub_id, config.url
    if not (hub or url):
        raise ValueError(
            f"Invalid weights='default' for backbone 'timm/{name}': timm has no "
            "weights of it. Pass the path of a file, or None for random weights."
        )
    file = _stored(hub, config.hf_hub_filename) if hub else None
    if file is not None:
        # Without a question to the hub, which takes long where there is no network.
        overlay = {"file": file, "custom_load": False}
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    try:
        if hub or not _is_downloaded(url):
            _reach(hub, url)
        return timm.create_model(name, pretrained=True)
    except OSError as error:
        raise _unavailable(name, hub, url, error) from error


def _stored(hub, filename):
    """Return the path of a file of the hub that is on this machine, or None."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = hub.partition("@")
    for file in [filename] if filename else _FILES:
        found = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(found, str):
            return found
    return None


def _is_downloaded(url):
    from timm.models._hub import check_cached_file

    return check_cached_file(url)


def _reach(hub, url):
    """Raise an OSError soon where a host cannot be reached.

    The client of the hub tries again for most of a minute, file by file.
    """
    from huggingface_hub import constants

    if hub and constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    request = urllib.request.Request(constants.ENDPOINT if hub else url, method="HEAD")
    # An error of HTTP is an answer as well.
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=_SECONDS).close()


def _unavailable(name, hub, url, error):
    from huggingface_hub import constants

    where, kept = url, "torch's store of downloads"
    if hub:
        where = f"{constants.ENDPOINT}/{hub}"
        kept = f"HF_HOME ({constants.HF_HOME})"
    return OSError(
        f"The weights of backbone 'timm/{name}' are not in {kept} and could not be "
        f"downloaded from {where} ({error}). Nothing was loaded. With a network, fetch "
        "the file there and pass weights='<path to model.safetensors>'; weights=None "
        "is a network with random weights."
    )
