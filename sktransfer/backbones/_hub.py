"""The folder of a model of Hugging Face: the user's own, or one in the hub's cache."""

import json
import os
import re
from pathlib import Path

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# What a model consists of. The folder of a model on the hub often holds the same
# weights in several other formats.
_PATTERNS = ("*.json", "*.txt", "*.model", "model*.safetensors", "README.md")
_OTHERS = ("onnx/*", "openvino/*", "*/model*.safetensors")
# Seconds until a hub that does not answer counts as out of reach.
_PATIENCE = 5


def folder_of(name: str, with_weights: bool = True) -> Path:
    """Return the folder of a model, which is downloaded if it is not on this machine.

    Parameters
    ----------
    name : str
        A folder, or the id of a model on the hub, ``"<owner>/<name>[@<revision>]"``.
    with_weights : bool, default=True
        Whether its weights are needed, too.

    Raises
    ------
    OSError
        If there is no such model on this machine and none can be downloaded.
    ValueError
        If it has no weights as safetensors, or needs code of its own.
    """
    folder = cached_folder(name)
    if folder is None or not (_is_own(name) or _is_complete(folder, with_weights)):
        folder = _downloaded(name)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"Invalid backbone='hf/{name}': expected the folder of a model, as written "
            f"by save_pretrained, but there is no config.json in {str(folder)!r}."
        )
    _check_code(name, folder)
    if with_weights:
        _check_weights(name, folder)
    return folder


def cached_folder(name: str) -> Path | None:
    """Return the folder of a model on this machine, or None. Never uses the network."""
    if not name:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import try_to_load_from_cache

        model, _, revision = name.partition("@")
        file = try_to_load_from_cache(model, "config.json", revision=revision or None)
    except (ImportError, ValueError):
        # Not installed, or not the form of an id.
        return None
    return Path(file).parent if isinstance(file, str) else None


def cached_names() -> list[str]:
    """Return the ids of the models whose weights are in the hub's local cache."""
    try:
        from huggingface_hub import CacheNotFound, scan_cache_dir
    except ImportError:
        return []
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    names = [repo.repo_id for repo in repositories if repo.repo_type == "model"]
    folders = {name: cached_folder(name) for name in names}
    return [name for name, folder in folders.items() if folder and _is_complete(folder)]


def pinned_name(name: str) -> str:
    """Return a name that goes on meaning the same model: a whole path, or a commit."""
    if _is_own(name):
        # Another process may run in another working folder.
        return os.path.abspath(Path(name).expanduser())
    folder = cached_folder(name)
    # Each commit has a folder of its own.
    if folder is None or folder.parent.name != "snapshots":
        return name
    return f"{name.partition('@')[0]}@{folder.name}"


def licence_of(name: str) -> str | None:
    """Return the licence that the page of a model gives, if it is on this machine."""
    folder = cached_folder(name)
    try:
        page = (folder / "README.md").read_text(encoding="utf-8") if folder else ""
    except (OSError, ValueError):
        return None
    # The page begins with its properties as YAML, between lines of three dashes.
    head = page.split("\n---", 1)[0] if page.startswith("---") else ""
    found = re.search(r"^license: *['\"]?([^'\"\s]+)", head, re.M)
    return found and found[1]


def folder_stamp(folder: Path | None) -> tuple:
    """Return the names, times and sizes of the files in a folder."""
    if folder is None:
        return ()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat()) for path in files]
    return (str(folder), *((n, s.st_mtime_ns, s.st_size) for n, s in stats))


def read_json(folder: Path | None, *names: str) -> dict:
    """Return the content of the first of some files that is in a folder, else {}."""
    for name in names if folder is not None else ():
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return content
    return {}


def _is_own(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _is_complete(folder: Path, with_weights: bool = True) -> bool:
    """Whether all files that a model needs have been downloaded."""
    if not with_weights or (folder / _WEIGHTS[0]).is_file():
        return True
    shards = read_json(folder, _WEIGHTS[1]).get("weight_map", {})
    return bool(shards) and all((folder / f).is_file() for f in {*shards.values()})


def _downloaded(name: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError

    model, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            model,
            revision=revision or None,
            allow_patterns=_PATTERNS,
            ignore_patterns=_OTHERS,
            etag_timeout=_PATIENCE,
            tqdm_class=_silent_bar(),
        )
    except HFValidationError as error:
        raise FileNotFoundError(
            f"Invalid backbone='hf/{name}': there is no such folder, and an id on the "
            "hub has the form '<owner>/<name>[@<revision>]'."
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise OSError(
            f"Cannot load backbone='hf/{name}': there is no such folder, it is not in "
            f"the hub's cache on this machine, {constants.HF_HUB_CACHE!r} (which "
            "HF_HOME sets), and it cannot be downloaded from "
            f"https://huggingface.co/{model} ({str(error).splitlines()[0]}). Check the "
            "name and the network, or copy the files of that page into a folder and "
            "pass backbone='hf/<folder>'."
        ) from error
    return Path(folder)


def _silent_bar():
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args, **kwargs):
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def _check_code(name: str, folder: Path) -> None:
    config = read_json(folder, "config.json")
    if "auto_map" in config:
        raise ValueError(
            f"Invalid backbone='hf/{name}': its config.json has an 'auto_map', which "
            "names Python code that comes with the weights. Such code is never run; "
            "nothing was loaded. If transformers itself has models of type "
            f"{config.get('model_type')!r}, pass a copy of the folder without that "
            "entry. Otherwise build the network yourself and pass the module."
        )


def _check_weights(name: str, folder: Path) -> None:
    if _is_complete(folder):
        return
    pickled = sorted(p.name for p in folder.glob("*.bin"))
    found = f"only {', '.join(pickled)}" if pickled else "none"
    code = " A .bin file may hold code, and is not read." if pickled else ""
    raise ValueError(
        f"Invalid backbone='hf/{name}': expected the weights as model.safetensors, or "
        f"the files named in model.safetensors.index.json, in {os.fspath(folder)!r}, "
        f"but found {found}.{code} Nothing was loaded. Convert them where you trust "
        "them: AutoModel.from_pretrained(folder).save_pretrained(new_folder)."
    )
