"""Folders of images as scikit-learn data sets."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from sktransfer.inputs._decoding import readable_suffixes

__all__ = ["list_images", "load_image_folder"]

# Names of the parts of a data set, which are seldom those of classes.
_PART = re.compile(
    r"(train|val|valid|test|dev|eval)(ing|idation)?(set)?[-_ ]?\d*", re.I
)


def load_image_folder(folder, *, return_X_y=False, as_names=False):
    """List the images of a folder that has one folder for each class.

    No image is opened. What is hidden, and files whose suffix is none of an image, are
    left out; images may lie deeper within the folder of their class, and links to
    folders are followed, each folder once. A class folder without an image is left out
    with a warning.

    Parameters
    ----------
    folder : str or path-like
        ``folder/<class>/.../<image>``.
    return_X_y : bool, default=False
        Return ``(data, target)`` in place of the bunch.
    as_names : bool, default=False
        Give the names of the classes as ``target``, in place of their indices: then
        an estimator predicts names too.

    Returns
    -------
    sklearn.utils.Bunch
        ``data``, an array of paths (str); ``target``, an array of int, their classes
        as indices into ``target_names`` (or, with `as_names`, the names); and
        ``target_names``, an array of str, the sorted names of the class folders.

    Raises
    ------
    ValueError
        If there is no such folder, no class folder with an image in it, or if its
        folders are the parts of a data set (train, val, test) that have class folders
        in them.

    See Also
    --------
    list_images : The images of a folder, whatever their class.

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
    root = _existing(folder, "one folder for each class: folder/<class>/<image>")
    folders = [entry for entry in root.iterdir() if _is_open_folder(entry)]
    found = {entry.name: _images_below(entry) for entry in folders}
    classes = sorted(name for name, paths in found.items() if paths)
    _refuse_parts(root, {name: found[name] for name in classes})
    if not classes:
        advice = "Move the images into one folder for each class"
        if _images_below(root):
            above = str(root.resolve().parent)
            advice = f"If it is the folder of one class, pass the one above, {above!r}"
        raise ValueError(
            f"The folder {str(root)!r} has no class folder with images in it "
            f"({_kinds(root)}). Expected is folder/<class>/<image>; nothing was "
            f"listed. {advice}, or use list_images(folder) for images without a class."
        )
    _warn_of_empty(root, sorted(found.keys() - classes))
    data = np.array([path for name in classes for path in found[name]], dtype=object)
    target = np.repeat(np.arange(len(classes)), [len(found[name]) for name in classes])
    names = np.array(classes)
    target = names[target] if as_names else target
    if return_X_y:
        return data, target
    return Bunch(data=data, target=target, target_names=names)


def list_images(folder):
    """List the images of a folder, whatever their class: new ones to predict, say.

    The rules are those of `load_image_folder`: no image is opened, what is hidden or
    has no suffix of an image is left out, deeper folders are gone through.

    Parameters
    ----------
    folder : str or path-like
        The folder to go through.

    Returns
    -------
    ndarray of shape (n_images,)
        The sorted paths (str).

    Raises
    ------
    ValueError
        If there is no such folder, or no image in it.

    See Also
    --------
    load_image_folder : Images and their classes.

    Examples
    --------
    >>> import tempfile, pathlib, PIL.Image
    >>> from sktransfer.datasets import list_images
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> PIL.Image.new("RGB", (8, 8)).save(root / "new.png")
    >>> [pathlib.Path(path).name for path in list_images(root)]
    ['new.png']
    """
    root = _existing(folder, "images")
    paths = _images_below(root)
    if not paths:
        raise ValueError(
            f"The folder {str(root)!r} has no image in it ({_kinds(root)}). Accepted "
            "are files with the suffix of an image, as .jpg or .png; nothing was "
            "listed. Pass the folder that holds them, or convert them."
        )
    return np.array(paths, dtype=object)


def _existing(folder, content) -> Path:
    root = Path(folder).expanduser()
    if not root.is_dir():
        there = "is a file" if root.exists() else "does not exist"
        raise ValueError(
            f"There is no folder {str(root)!r} (it {there}). Nothing was listed. Pass "
            f"a folder that has {content}."
        )
    return root


def _refuse_parts(root, found) -> None:
    """Refuse the parent of train/ and val/, whose classes lie a folder deeper."""
    parts = [
        name
        for name, paths in found.items()
        if _PART.fullmatch(name)
        and any(Path(path).parent != root / name for path in paths)
    ]
    if parts and (len(parts) > 1 or len(found) == 1):
        raise ValueError(
            f"The folder {str(root)!r} has the folders {parts}, which are the parts of "
            "a data set, with the class folders in them. Expected is "
            "folder/<class>/<image>; nothing was listed. Pass one part at a time: "
            f"load_image_folder({str(root / parts[0])!r})."
        )


def _warn_of_empty(root, empty) -> None:
    if empty:
        kinds = "; ".join(f"{name}: {_kinds(root / name)}" for name in empty[:5])
        more = f"; and {len(empty) - 5} more" if len(empty) > 5 else ""
        warnings.warn(
            f"{len(empty)} of the folders in {str(root)!r} have no image in them and "
            f"are no classes of what was listed ({kinds}{more}). If they are classes, "
            "put images into them; if not, move them elsewhere.",
            UserWarning,
            stacklevel=3,
        )


def _kinds(folder: Path) -> str:
    """What a folder without images holds, in words."""
    names = (path for path in folder.rglob("*") if path.is_file())
    suffixes = sorted({path.suffix or path.name for path in names})
    return f"it has files of the kinds {suffixes[:5]}" if suffixes else "it is empty"


def _is_open_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _images_below(folder: Path) -> list[str]:
    # torchvision's make_dataset would list what is hidden, and go round in a link that
    # leads back until the path is too long.
    suffixes = readable_suffixes()
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(parent, name)
            for name in names
            if not name.startswith(".")
            and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)
