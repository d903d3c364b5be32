"""save and load: a fitted estimator in one file, without pickle."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.base import BaseEstimator

from sktransfer.backbones._weights import WeightsMismatchError
from sktransfer.saving._atomic import whole_file
from sktransfer.saving._codec import Decoder, Encoder

_FORMAT = "sktransfer"
_VERSION = 1
_PACKAGES = ("scikit-learn", "torch", "torchvision", "numpy")


def save(estimator, path):
    """Write an estimator, fitted or not, to one file that holds no code.

    The file is in the safetensors format, its structure as JSON in the header. Of a
    network it holds the stages that were tuned; the others are referred to, by the
    name of their weights and a digest, and `load` finds them again. So a classifier
    on frozen stages is small, whatever the network.

    Parameters
    ----------
    estimator : estimator
        Of this package; or a `Pipeline`, `ColumnTransformer` or other estimator of
        scikit-learn, with or without parts of this package (of a search over such
        parts, its ``best_estimator_``). Parts of scikit-learn are stored by skops,
        with the ``skops`` extra.
    path : str or path-like
        A file there is replaced, once the new one is whole.

    Raises
    ------
    ValueError
        If a parameter is something that a file without code cannot hold, such as a
        function or a network that was given as a module: names the parameter.

    See Also
    --------
    load : Reads the file.

    Notes
    -----
    All is kept but ``net_``, the skorch net of the training: what was loaded predicts,
    is cloned and continues to learn (``warm_start``, ``partial_fit``) as before.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import FineTuneClassifier, load, save
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> model = FineTuneClassifier(freeze="all", random_state=0).fit(X[:40], y[:40])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "digits.sktransfer")
    ...     save(model, path)
    ...     loaded = load(path)
    >>> bool((loaded.predict_proba(X) == model.predict_proba(X)).all())
    True
    """
    if not isinstance(estimator, BaseEstimator):
        raise ValueError(
            f"save takes an estimator of sktransfer or scikit-learn, and got a "
            f"{type(estimator).__name__}."
        )
    encoder = Encoder()
    document = {
        "estimator": encoder.encode(estimator, type(estimator).__name__),
        "versions": {name: version(name) for name in _PACKAGES},
    }
    text = json.dumps(document, allow_nan=False)
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "document": text,
        "sha256": _digest(text, encoder.arrays),
    }
    with whole_file(path) as partial:
        save_file(encoder.arrays, partial, metadata)


def load(path):
    """Read an estimator that `save` wrote, without executing anything of the file.

    Parameters
    ----------
    path : str or path-like
        A file that `save` wrote.

    Returns
    -------
    estimator
        As it was saved.

    Raises
    ------
    FileNotFoundError
        If the file, or a file of weights that it refers to, is not there.
    WeightsMismatchError
        If the weights that it refers to are not those of then.
    ValueError
        If the file is damaged, of another kind, or from a later version of this
        package.

    See Also
    --------
    save : Writes the file.

    Notes
    -----
    Weights that the file refers to are looked for beside it, then at the path that
    they had; those of torchvision where torch keeps its downloads, which announces
    what it must fetch. They are used only if they have the digest of then.

    A file that is made by someone else can be read safely. What it predicts is
    theirs.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {str(path)!r}. load reads what sktransfer.save wrote."
        )
    metadata, arrays = _read(path)
    if int(metadata["version"]) > _VERSION:
        raise ValueError(
            f"{str(path)!r} was written by a later version of sktransfer, in format "
            f"{metadata['version']}; this one reads up to {_VERSION}. Nothing was "
            "loaded. Upgrade: pip install --upgrade sktransfer."
        )
    text = metadata["document"]
    if _digest(text, arrays) != metadata["sha256"]:
        raise _unreadable(path, "it was changed or damaged since it was written")
    try:
        record = json.loads(text)["estimator"]
        return Decoder(arrays, path.parent).decode(record)
    except WeightsMismatchError:
        raise
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    except (RuntimeError, RecursionError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error


def _read(path: Path) -> tuple[dict, dict]:
    """Header and arrays of a file."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT or not metadata["version"].isdigit():
                raise _unreadable(path, "it holds tensors alone")
            if missing := {"document", "sha256"} - metadata.keys():
                raise _unreadable(path, f"its header lacks {sorted(missing)}")
            names = file.keys()
            return metadata, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, TypeError) as error:
        raise _unreadable(path, str(error).split("\n")[0]) from error


def _digest(text: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"Cannot load an estimator from {str(path)!r}: {reason}. load reads what "
        "sktransfer.save wrote; nothing was loaded. Copy the file again, or save the "
        "estimator anew."
    )
