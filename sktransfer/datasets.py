"""Loading of image folders as scikit-learn data sets."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from sktransfer.inputs._decoding import readable_suffixes

__all__ = ["list_images", "load_image_folder"]

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
    once. Class folders without images are left out, and a warning is issued.

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
    root = _existing(folder, "one folder for each class: folder/<class>/<image>")
    folders = [entry for entry in root.iterdir() if _is_open_folder(entry)]
    found = {entry.name: _images_below(entry) for entry in folders}
    classes = sorted(name for name, paths in found.items() if paths)
    _refuse_parts(root, {name: found[name] for name in classes})
    if not classes:
        advice = "Move the images into one folder for each class"
        if _images_below(root):
            above = str(root.resolve().parent)
            advice = f"If it is the folder of one class, pass its parent, {above!r}"
        raise ValueError(
            f"Invalid folder={str(root)!r}: expected folder/<class>/<image>, but it "
            f"has no class folder with images ({_kinds(root)}). Nothing was listed. "
            f"{advice}, or use list_images(folder) for images without a class."
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
    root = _existing(folder, "images")
    paths = _images_below(root)
    if not paths:
        raise ValueError(
            f"Invalid folder={str(root)!r}: expected files with the suffix of an image "
            f"format, such as .jpg or .png, but there is no image ({_kinds(root)}). "
            "Nothing was listed. Pass the folder that contains the images, or convert "
            "them."
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


def _refuse_parts(root, found) -> None:
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
            f"Invalid folder={str(root)!r}: expected folder/<class>/<image>, but the "
            f"folders {parts} seem to be subsets of a data set that contain the class "
            "folders. Nothing was listed. Pass one subset at a time: "
            f"load_image_folder({str(root / parts[0])!r})."
        )


def _warn_of_empty(root, empty) -> None:
    if empty:
        kinds = "; ".join(f"{name}: {_kinds(root / name)}" for name in empty[:5])
        more = f"; and {len(empty) - 5} more" if len(empty) > 5 else ""
        warnings.warn(
            f"{len(empty)} of the folders in {str(root)!r} contain no image and were "
            f"not listed as classes ({kinds}{more}). If they are classes, add images "
            "to them; if not, move them elsewhere.",
            UserWarning,
            # From here through `load_image_folder` up to its caller.
            stacklevel=3,
        )


def _kinds(folder: Path) -> str:
    """Describe the contents of a folder without images, for messages."""
    names = (path for path in folder.rglob("*") if path.is_file())
    suffixes = sorted({path.suffix or path.name for path in names})
    return f"it has files of type {suffixes[:5]}" if suffixes else "it is empty"


def _is_open_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _images_below(folder: Path) -> list[str]:
    # torchvision's make_dataset would list hidden files, too, and follow a link to a
    # parent folder round and round until the path is too long.
    suffixes = readable_suffixes()
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
            os.path.join(parent, name)
            for name in names
            if not name.startswith(".")
            and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)
