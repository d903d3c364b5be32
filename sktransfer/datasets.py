"""Folders of images as scikit-learn data sets."""

import os
from pathlib import Path

import numpy as np
import PIL.Image
from sklearn.utils import Bunch

from sktransfer._decoding import readable_formats

__all__ = ["load_image_folder"]


def load_image_folder(folder, *, return_X_y=False):
    """List the images of a folder that has one folder for each class.

    No image is opened. What is hidden, and files whose suffix is none of an image, are
    left out; images may lie deeper within the folder of their class, and links to
    folders are followed, each folder once.

    Parameters
    ----------
    folder : str or path-like
        ``folder/<class>/.../<image>``.
    return_X_y : bool, default=False
        Return ``(data, target)`` in place of the bunch.

    Returns
    -------
    sklearn.utils.Bunch
        ``data``, an array of paths (str); ``target``, an array of int, their classes
        as indices into ``target_names``; and ``target_names``, an array of str, the
        sorted names of the class folders. ``target_names[target]`` are the labels.

    Raises
    ------
    ValueError
        If there is no such folder, or no class folder with an image in it.

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
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"There is no folder {str(root)!r}. Pass a folder that has one folder for "
            "each class: folder/<class>/<image>."
        )
    found = {entry.name: _images_below(entry) for entry in root.iterdir()}
    classes = sorted(name for name, paths in found.items() if paths)
    if not classes:
        suffixes = sorted({path.suffix for path in root.glob("*.*")})[:5]
        raise ValueError(
            f"The folder {str(root)!r} has no class folder with images in it (it "
            f"holds files of the kinds {suffixes}). Expected is "
            "folder/<class>/<image>; move the images into one folder for each class."
        )
    data = np.array([path for name in classes for path in found[name]], dtype=object)
    target = np.repeat(np.arange(len(classes)), [len(found[name]) for name in classes])
    if return_X_y:
        return data, target
    return Bunch(data=data, target=target, target_names=np.array(classes))


def _images_below(folder: Path) -> list[str]:
    if not folder.is_dir() or folder.name.startswith("."):
        return []
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        # A link may lead back to where it is.
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, name) for name in names if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    kind = PIL.Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    return not name.startswith(".") and kind in readable_formats()
