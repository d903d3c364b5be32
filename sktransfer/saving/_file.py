"""save and load: an estimator in one file, without pickle."""

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
_VERSION = 2
_PACKAGES = ("scikit-learn", "torch", "torchvision", "numpy")


def save(estimator, path):
    """Save an estimator, fitted or not, to a single file that contains no code.

    The file is in the safetensors format and has the structure of the estimator as JSON
    in its header. Of a network, it contains only the tensors that fine-tuning has
    changed. The others are stored as the name of their weights and a digest, by which
    `load` finds them again. A classifier on frozen stages is therefore small, however
    large its network is.

    Parameters
    ----------
    estimator : estimator
        The estimator to save: one of this package, or a pipeline, ensemble, search or
        other estimator of scikit-learn, with or without parts of this package.
        Estimators of scikit-learn that contain no part of this package are stored by
        skops, which requires the ``skops`` extra. It cannot store decision trees and
        forests safely, so that these are refused.
    path : str or path-like
        The path of the file. An existing file is replaced once the new one has been
        written completely.

    Raises
    ------
    ValueError
        If a parameter is something that a file without code cannot hold, such as a
        function, a scorer that is one, a class of another package, or a network that
        was given as a module. The error names the parameter.

    See Also
    --------
    load : Loads the estimator from the file.

    Notes
    -----
    Everything is saved except ``net_``, the skorch net used for training, and callbacks
    of scikit-learn. Objects and arrays that several parts share are stored once. The
    loaded estimator can predict, be cloned and continue training (``warm_start``,
    ``partial_fit``) as before.

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
            "save expects an estimator of sktransfer or scikit-learn, got a "
            f"{type(estimator).__name__}. Nothing was written."
        )
    # Everything is encoded before the file is opened, so that what cannot be saved is
    # found before anything is written.
    encoder = Encoder()
    document = {
        "estimator": encoder.encode(estimator, type(estimator).__name__),
        "versions": {name: version(name) for name in _PACKAGES},
    }
    # JSON has no NaN. The encoder turns it into text; any that is left is a bug.
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
    """Load an estimator that `save` wrote, without executing code from the file.

    Parameters
    ----------
    path : str or path-like
        The path of a file that `save` wrote.

    Returns
    -------
    estimator
        The estimator as it was saved.

    Raises
    ------
    FileNotFoundError
        If the file, or a weights file or folder that it refers to, does not exist.
    OSError
        If weights that it refers to cannot be downloaded.
    ImportError
        If a package that the estimator needs, such as skops, is not installed.
    WeightsMismatchError
        If the weights that the file refers to have changed since it was saved.
    ValueError
        If the file is damaged, was not written by `save`, or was written by a later
        version of this package.

    See Also
    --------
    save : Saves an estimator to a file.

    Notes
    -----
    Weights files, and folders of ``"hf/<folder>"``, that the saved file refers to are
    looked for in its folder, then at their path at the time of saving. Weights of
    torchvision are looked for among the downloads of torch, which announces what it has
    to download. Weights are used only if their digest is the one that was saved.

    Files from untrusted sources can be loaded safely, but nothing is known about what
    the loaded estimator predicts.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {str(path)!r}. load reads files that sktransfer.save "
            "wrote."
        )
    metadata, arrays = _read(path)
    if int(metadata["version"]) > _VERSION:
        raise ValueError(
            f"{str(path)!r} was written by a later version of sktransfer, in format "
            f"{metadata['version']}; this version reads formats up to {_VERSION}. "
            "Nothing was loaded. Upgrade: pip install --upgrade sktransfer."
        )
    text = metadata["document"]
    if _digest(text, arrays) != metadata["sha256"]:
        raise _unreadable(path, "it was changed or damaged after it was written")
    try:
        record = json.loads(text)["estimator"]
        return Decoder(arrays, path.parent).decode(record)
    except (WeightsMismatchError, OSError, ImportError):
        # These say what to do already: the file itself is sound.
        raise
    # What a damaged file makes fail cannot be listed: torch raises RuntimeError for
    # tensors that do not fit a module, NumPy MemoryError for shapes that are too large.
    except Exception as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error


def _read(path: Path) -> tuple[dict, dict]:
    """Return the header and the arrays of a file."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT or not metadata["version"].isdigit():
                raise _unreadable(path, "it contains only tensors")
            if missing := {"document", "sha256"} - metadata.keys():
                raise _unreadable(path, f"its header lacks {sorted(missing)}")
            names = file.keys()
            return metadata, {name: file.get_tensor(name) for name in names}
    # KeyError: a header without a version; TypeError: a dtype that NumPy does not have.
    except (SafetensorError, KeyError, TypeError) as error:
        raise _unreadable(path, str(error).split("\n")[0]) from error


def _digest(text: str, arrays: dict[str, np.ndarray]) -> str:
    """Return a digest of all that a file holds, to detect any change of it."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        # The same bytes could be divided into arrays of other names and shapes.
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"Cannot load an estimator from {str(path)!r}: {reason}. load reads files that "
        "sktransfer.save wrote. Nothing was loaded. Copy the file again, or save the "
        "estimator again."
    )
