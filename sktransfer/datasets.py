"""Loading of folders of images, sounds and texts as scikit-learn data sets."""

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from sktransfer.embedding._check import check_images
from sktransfer.embedding._duplicates import find_duplicates
from sktransfer.inputs._decoding import readable_suffixes
from sktransfer.inputs._files import read_file
from sktransfer.inputs._torch_datasets import load_torch_dataset

__all__ = [
    "check_images",
    "find_duplicates",
    "list_images",
    "list_sounds",
    "load_image_folder",
    "load_sound_folder",
    "load_text_folder",
    "load_torch_dataset",
]

# The usual folder names of the subsets of a data set, such as "train", "validation_set"
# or "test-2". They are hardly ever names of classes.
_PART = re.compile(
    r"(train|val|valid|test|dev|eval)(ing|idation)?(set)?[-_ ]?\d*", re.I
)


def load_image_folder(folder, *, return_X_y=False, as_names=False):
    """Load the paths and classes of images stored in one folder per class.

    The images are not opened. Hidden files and folders are ignored, and so are files
    without the suffix of an image format. Images may be stored in subfolders of the
    folder of their class. Links to folders are followed, and each folder is visited
    once. Class folders without images are left out, and so are images that are in no
    class folder; a warning names them.

    Parameters
    ----------
    folder : str or path-like
        The folder that contains the class folders. Its images are stored as
        ``folder/<class>/.../<image>``.
    return_X_y : bool, default=False
        If True, returns ``(data, target)`` instead of a `Bunch` object.
    as_names : bool, default=False
        If True, ``target`` contains the names of the classes instead of their indices,
        so that a classifier trained on it predicts names.

    Returns
    -------
    sklearn.utils.Bunch
        ``data`` is an array of paths (str). ``target`` is an array of the classes of
        the images, as indices into ``target_names`` or, if `as_names` is True, as
        names. ``target_names`` is an array of the sorted names of the class folders.

    Raises
    ------
    ValueError
        If the folder does not exist, if it has no class folder that contains an image,
        or if its subfolders are the subsets of a data set (train, val, test), which
        contain the class folders.

    See Also
    --------
    list_images : Lists the images in a folder, regardless of their class.

    Examples
    --------
    >>> import tempfile, pathlib, PIL.Image
    >>> from sktransfer.datasets import load_image_folder
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ["ant", "bee"]:
    ...     (root / name).mkdir()
    ...     PIL.Image.new("RGB", (8, 8)).save(root / name / "1.png")
    >>> photos = load_image_folder(root)
    >>> photos.target, photos.target_names
    (array([0, 1]), array(['ant', 'bee'], dtype='<U3'))
    """
    found = _load(folder, _IMAGES, as_names)
    return (found.data, found.target) if return_X_y else found


def list_images(folder):
    """List the images in a folder, regardless of their class.

    This is useful for new images whose class is to be predicted. Files are selected as
    in `load_image_folder`: the images are not opened, hidden files and files without
    the suffix of an image format are ignored, and subfolders are included.

    Parameters
    ----------
    folder : str or path-like
        The folder that contains the images.

    Returns
    -------
    ndarray of shape (n_images,)
        The sorted paths of the images (str).

    Raises
    ------
    ValueError
        If the folder does not exist or contains no image.

    See Also
    --------
    load_image_folder : Loads images together with their classes.

    Examples
    --------
    >>> import tempfile, pathlib, PIL.Image
    >>> from sktransfer.datasets import list_images
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> PIL.Image.new("RGB", (8, 8)).save(root / "new.png")
    >>> [pathlib.Path(path).name for path in list_images(root)]
    ['new.png']
    """
    return _list(folder, _IMAGES)


def load_sound_folder(folder, *, return_X_y=False, as_names=False):
    """Load the paths and classes of sounds stored in one folder per class.

    The sounds are not opened. Files are selected as in `load_image_folder`, by the
    suffix of a sound format, such as ``.wav``, ``.flac``, ``.ogg`` or ``.mp3``.

    Parameters
    ----------
    folder : str or path-like
        The folder that contains the class folders. Its sounds are stored as
        ``folder/<class>/.../<sound>``.
    return_X_y : bool, default=False
        If True, returns ``(data, target)`` instead of a `Bunch` object.
    as_names : bool, default=False
        If True, ``target`` contains the names of the classes instead of their indices.

    Returns
    -------
    sklearn.utils.Bunch
        ``data`` (an array of paths), ``target`` and ``target_names``, as returned by
        `load_image_folder`.

    Raises
    ------
    ValueError
        If the folder does not exist, if it has no class folder that contains a sound,
        or if its subfolders are the subsets of a data set (train, val, test).

    See Also
    --------
    list_sounds : Lists the sounds in a folder, regardless of their class.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from scipy.io import wavfile
    >>> from sktransfer.datasets import load_sound_folder
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ["cat", "dog"]:
    ...     (root / name).mkdir()
    ...     wavfile.write(root / name / "1.wav", 8000, np.zeros(8, np.int16))
    >>> load_sound_folder(root).target_names
    array(['cat', 'dog'], dtype='<U3')
    """
    found = _load(folder, _SOUNDS, as_names)
    return (found.data, found.target) if return_X_y else found


def list_sounds(folder):
    """List the sounds in a folder, regardless of their class.

    Parameters
    ----------
    folder : str or path-like
        The folder that contains the sounds. Files are selected as in
        `load_sound_folder`, and subfolders are included.

    Returns
    -------
    ndarray of shape (n_sounds,)
        The sorted paths of the sounds (str).

    Raises
    ------
    ValueError
        If the folder does not exist or contains no sound.

    See Also
    --------
    load_sound_folder : Loads sounds together with their classes.
    """
    return _list(folder, _SOUNDS)


def load_text_folder(
    folder, *, encoding="utf-8", errors="strict", return_X_y=False, as_names=False
):
    """Load texts and their classes, stored as files in one folder per class.

    The texts themselves are returned, not their paths. Files are selected as in
    `load_image_folder`, by the suffix ``.txt``.

    Parameters
    ----------
    folder : str or path-like
        The folder that contains the class folders. Its texts are stored as
        ``folder/<class>/.../<text>.txt``.
    encoding : str, default="utf-8"
        The encoding of the files.
    errors : {"strict", "replace", "ignore"}, default="strict"
        What is done with bytes that are not valid in this encoding, as in
        `bytes.decode`.
    return_X_y : bool, default=False
        If True, returns ``(data, target)`` instead of a `Bunch` object.
    as_names : bool, default=False
        If True, ``target`` contains the names of the classes instead of their indices.

    Returns
    -------
    sklearn.utils.Bunch
        ``data`` is an array of texts (str), and ``filenames`` of their paths.
        ``target`` and ``target_names`` are as returned by `load_image_folder`.

    Raises
    ------
    ValueError
        If the folder does not exist, if it has no class folder that contains a text,
        if its subfolders are the subsets of a data set (train, val, test), or if a file
        cannot be read or decoded, which is named.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from sktransfer.datasets import load_text_folder
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ["bad", "good"]:
    ...     (root / name).mkdir()
    ...     _ = (root / name / "1.txt").write_text(f"a {name} film")
    >>> load_text_folder(root, return_X_y=True)
    (array(['a bad film', 'a good film'], dtype=object), array([0, 1]))
    """
    found = _load(folder, _TEXTS, as_names)
    texts = [_text(path, encoding, errors) for path in found.data]
    found.update(data=np.array(texts, dtype=object), filenames=found.data)
    return (found.data, found.target) if return_X_y else found


def _text(path: str, encoding: str, errors: str) -> str:
    try:
        return read_file(path, "text").decode(encoding, errors)
    except ValueError as error:
        raise ValueError(
            f"Cannot read the text {path!r} with encoding={encoding!r}: {error}. "
            "Nothing was returned. Pass the encoding that the files have, such as "
            "'latin-1', or errors='replace'."
        ) from error


@dataclass(frozen=True)
class _Kind:
    """What is looked for in folders, and how messages speak of it."""

    name: str
    a_name: str
    suffixes: Callable[[], set[str]]
    examples: str
    unlabelled: str


_IMAGES = _Kind(
    "image",
    "an image",
    readable_suffixes,
    ".jpg or .png",
    "use list_images(folder) for images without a class",
)
_SOUNDS = _Kind(
    "sound",
    "a sound",
    # Listed here, as libsndfile, which reads them, may not be installed.
    lambda: {
        *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
        *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"),
    },
    ".wav or .mp3",
    "use list_sounds(folder) for sounds without a class",
)
_TEXTS = _Kind(
    "text",
    "a text",
    lambda: {".txt"},
    ".txt",
    "read texts without a class by pathlib.Path.read_text",
)


def _load(folder, kind: _Kind, as_names: bool) -> Bunch:
    layout = f"folder/<class>/<{kind.name}>"
    root = _existing(folder, f"one folder for each class: {layout}")
    folders = [entry for entry in root.iterdir() if _is_open_folder(entry)]
    found = {entry.name: _files_below(entry, kind) for entry in folders}
    classes = sorted(name for name, paths in found.items() if paths)
    _refuse_parts(root, {name: found[name] for name in classes}, kind)
    if not classes:
        advice = f"Move the {kind.name}s into one folder for each class"
        if _files_below(root, kind):
            above = str(root.resolve().parent)
            advice = f"If it is the folder of one class, pass its parent, {above!r}"
        raise ValueError(
            f"Invalid folder={str(root)!r}: expected {layout}, but it has no class "
            f"folder with {kind.name}s ({_contents(root)}). Nothing was listed. "
            f"{advice}, or {kind.unlabelled}."
        )
    _warn_of_empty(root, sorted(found.keys() - classes), kind)
    _warn_of_loose(root, kind)
    data = np.array([path for name in classes for path in found[name]], dtype=object)
    target = np.repeat(np.arange(len(classes)), [len(found[name]) for name in classes])
    names = np.array(classes)
    target = names[target] if as_names else target
    return Bunch(data=data, target=target, target_names=names)


def _list(folder, kind: _Kind) -> np.ndarray:
    root = _existing(folder, f"{kind.name}s")
    paths = _files_below(root, kind)
    if not paths:
        raise ValueError(
            f"Invalid folder={str(root)!r}: expected files with the suffix of "
            f"{kind.a_name} format, such as {kind.examples}, but there is no "
            f"{kind.name} ({_contents(root)}). Nothing was listed. Pass the folder "
            f"that contains the {kind.name}s, or convert them."
        )
    return np.array(paths, dtype=object)


def _existing(folder, expected) -> Path:
    root = Path(folder).expanduser()
    if not root.is_dir():
        there = "is a file" if root.exists() else "does not exist"
        raise ValueError(
            f"Invalid folder={str(root)!r}: expected a folder with {expected}, but it "
            f"{there}. Nothing was listed."
        )
    return root


def _refuse_parts(root, found, kind) -> None:
    """Refuse a folder of train/ and val/, whose class folders are one level deeper."""
    parts = [
        name
        for name, paths in found.items()
        if _PART.fullmatch(name)
        and any(Path(path).parent != root / name for path in paths)
    ]
    # One folder named "test" among others may well be a class; two of them, or no other
    # folder, are the subsets of a data set.
    if parts and (len(parts) > 1 or len(found) == 1):
        raise ValueError(
            f"Invalid folder={str(root)!r}: expected folder/<class>/<{kind.name}>, but "
            f"the folders {parts} seem to be subsets of a data set that contain the "
            "class folders. Nothing was listed. Pass one subset at a time: "
            f"load_{kind.name}_folder({str(root / parts[0])!r})."
        )


def _warn_of_empty(root, empty, kind) -> None:
    if empty:
        kinds = "; ".join(f"{name}: {_contents(root / name)}" for name in empty[:5])
        more = f"; and {len(empty) - 5} more" if len(empty) > 5 else ""
        warnings.warn(
            f"Folders in {str(root)!r} that contain no {kind.name} were not listed as "
            f"classes: {len(empty)} ({kinds}{more}). If they are classes, add "
            f"{kind.name}s to them; if not, move them elsewhere.",
            UserWarning,
            # From here through `_load` and `load_image_folder` up to its caller.
            stacklevel=4,
        )


def _warn_of_loose(root, kind) -> None:
    names = sorted(
        entry.name
        for entry in root.iterdir()
        if entry.is_file() and _is_listed(entry.name, kind.suffixes())
    )
    if names:
        warnings.warn(
            f"Files in {str(root)!r} that are in no class folder were not listed: "
            f"{len(names)} ({', '.join(names[:5])}{', ...' if names[5:] else ''}). "
            "Move each into the folder of its class, or elsewhere.",
            UserWarning,
            # As above.
            stacklevel=4,
        )


def _is_listed(name: str, suffixes) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in suffixes and not name.startswith(".")


def _contents(folder: Path) -> str:
    """Describe what a folder contains that is not looked for, for messages."""
    names = (path for path in folder.rglob("*") if path.is_file())
    suffixes = sorted({path.suffix or path.name for path in names})
    return f"it has files of type {suffixes[:5]}" if suffixes else "it is empty"


def _is_open_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _files_below(folder: Path, kind: _Kind) -> list[str]:
    # torchvision's make_dataset would list hidden files, too, and follow a link to a
    # parent folder round and round until the path is too long.
    suffixes = kind.suffixes()
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            # os.walk visits the folders that are left in this list.
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(parent, name) for name in names if _is_listed(name, suffixes)
        ]
    return sorted(found)
