"""From a weights specification to verified tensors and their digest.

The one place where weight files are read: no code in them is ever executed.
"""

import hashlib
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sktransfer.inputs._reader import WeightsMismatchError

_PICKLED = (".pth", ".pt", ".bin", ".ckpt")
_HASH = re.compile(r"sha256:([0-9a-f]{8,64})", re.IGNORECASE)


def read_weights(path: str | os.PathLike, sha256: str | None = None) -> dict:
    """Read a file of weights without executing code.

    Parameters
    ----------
    path : str or path-like
        A ``.safetensors`` file, or a state dict saved by `torch.save` (``.pth``,
        ``.pt``), which is read with ``weights_only=True``.
    sha256 : str, optional
        What the hash of the file must begin with, as ``"sha256:<hex digits>"`` with at
        least 8 digits.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    WeightsMismatchError
        If the hash is not the demanded one.
    ValueError
        If the file is truncated, of another kind, or holds more than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no weights file {str(path)!r}. Pass the path of a .safetensors "
            "file or of a state dict saved by torch.save (.pth, .pt)."
        )
    if sha256 is not None:
        _demand_hash(path, sha256)
    try:
        state = _load(path)
    except (SafetensorError, UnpicklingError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise _unreadable(path, error) from error
    return _state_dict(state, path)


def _load(path: Path):
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in _PICKLED:
        with warnings.catch_warnings():
            # About unusual pickle protocols: such a file loads, or is refused by name.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    raise ValueError(f"its suffix is {path.suffix!r}")


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return ValueError(
        f"Cannot read weights from {str(path)!r}: {reason}. Accepted are complete "
        ".safetensors files and state dicts of tensors alone (.pth, .pt); nothing was "
        "executed or loaded. Copy the file again, or save it anew with "
        "safetensors.torch.save_file(model.state_dict(), path)."
    )


def _state_dict(state, path: Path) -> dict:
    # Training scripts often wrap the state dict beside their optimizer's.
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise _unreadable(path, ValueError("it holds no state dict"))
    return {name.removeprefix("module."): value for name, value in state.items()}


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hex digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _demand_hash(path: Path, demanded: str) -> None:
    match = _HASH.fullmatch(demanded)
    if match is None:
        raise ValueError(
            f"Invalid hash {demanded!r} of weights: expected 'sha256:' and 8 to 64 hex "
            "digits."
        )
    found = file_sha256(path)
    if not found.startswith(match[1].lower()):
        raise WeightsMismatchError(
            f"The weights file {str(path)!r} has SHA-256 {found}, but {match[1]!r} was "
            "demanded. Nothing was loaded. It is another file, was changed, or was cut "
            "short on the way: copy it again from where it came from."
        )


def weights_path(weights) -> str | None:
    """Path of a weights specification, or None if it does not mean a file."""
    if isinstance(weights, tuple) and len(weights) == 2:
        weights = weights[0]
    is_path = isinstance(weights, os.PathLike) or (
        isinstance(weights, str)
        and (os.sep in weights or weights.endswith((".safetensors", *_PICKLED)))
    )
    return os.fspath(weights) if is_path else None


def file_stamp(weights) -> tuple | None:
    """Time and size by which a changed weights file is noticed."""
    path = os.path.expanduser(weights_path(weights) or "")
    if not os.path.exists(path):
        return None
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


def unknown_weights(what: str, name: str) -> ValueError:
    return ValueError(
        f"Invalid weights={what} for backbone {name!r}: expected 'default', the path "
        "of a .safetensors or .pth file, a tuple of such a path and "
        "'sha256:<hex digits>', or None for random weights."
    )


def apply_file(model: nn.Module, stages: nn.Module, weights, name: str) -> None:
    """Load the file of a weights specification into the stages of a model."""
    path = weights_path(weights)
    if path is None:
        raise unknown_weights(repr(weights), name)
    demanded = weights[1] if isinstance(weights, tuple) else None
    apply_weights(model, stages, read_weights(path, demanded), repr(path))


def apply_weights(
    model: nn.Module, stages: nn.Module, state: Mapping, origin: str
) -> None:
    """Load a state dict into the stages of a model, and account for every name.

    The classifier, which the stages leave out, may be missing from the state dict or
    have another number of classes.

    Raises
    ------
    WeightsMismatchError
        If names or shapes differ. The message says which.
    """
    # A counter may be written as a vector of one number, as torch itself accepts.
    state = {
        name: tensor.reshape(()) if tensor.shape == (1,) and _counts(name) else tensor
        for name, tensor in state.items()
    }
    everything = model.state_dict(keep_vars=True)
    kept = {id(tensor) for tensor in stages.state_dict(keep_vars=True).values()}
    own = {name: value for name, value in everything.items() if id(value) in kept}
    problems = _mismatches(own, state, known=everything)
    if problems:
        raise WeightsMismatchError(
            f"The weights from {origin} do not belong to this network: "
            f"{'; '.join(problems)}. Nothing was loaded. Pass the weights of this "
            "architecture, or the backbone that these weights belong to."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in state:
                tensor.copy_(state[name])


def _mismatches(own: Mapping, state: Mapping, known: Mapping) -> list[str]:
    # Files older than PyTorch 0.4.1 have no counters, and evaluation needs none.
    missing = [name for name in own if name not in state and not _counts(name)]
    unknown = [name for name in state if name not in known]
    shapes = [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    found = [("it lacks", missing), ("it has unknown", unknown), ("", shapes)]
    return [f"{what} {_some(names)}".strip() for what, names in found if names]


def _counts(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def module_digest(module: nn.Module) -> str:
    """SHA-256, in hex digits, of a module's structure and of all its tensors."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(
            value.view(torch.uint8).numpy() if value.dim() else bytes(value.numpy())
        )
    return digest.hexdigest()
