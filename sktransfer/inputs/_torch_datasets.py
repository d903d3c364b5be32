"""Datasets of torch and torchvision as `X` and `y`."""

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset

from sktransfer.inputs._content import to_numpy
from sktransfer.inputs._reader import DatasetItem

# The number of items, spread over the dataset, that are looked at in advance.
_LOOKED_AT = 8
# Where datasets have their targets, so that no image need be decoded for its own.
_TARGETS = ("targets", "labels", "_labels")


def load_torch_dataset(dataset):
    """Return the images and targets of a dataset of torch or torchvision.

    The images are not decoded, or only a few of them. They are read from the dataset
    each time that an estimator needs them, so that a dataset may be larger than memory.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        A dataset whose items are pairs ``(image, target)`` that can be accessed by
        their number. Leave out the transforms that prepare images for a network, above
        all ``Normalize``, since every backbone has its own preprocessing. Random
        transforms are refused: the same item would be another image each time; to
        augment images, use the parameter `augment` of `FineTuneClassifier`.

    Returns
    -------
    X : ndarray of shape (n_images,)
        The paths of the images if the dataset is an
        `torchvision.datasets.ImageFolder` without transforms, or a subset of one.
        Otherwise objects that read their item when they are used. They can be indexed,
        split and pickled as paths can.
    y : ndarray of shape (n_images,) or (n_images, n_targets)
        The targets. They are taken from an attribute ``targets`` or ``labels`` where it
        agrees with the items; otherwise all items are read once.

    Raises
    ------
    ValueError
        If the items are not pairs, if they differ from one access to the next, if the
        images were normalised, or if the targets are not labels or numbers.

    See Also
    --------
    load_image_folder : Loads a folder that has a folder for each class.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from sktransfer import FineTuneClassifier
    >>> from sktransfer.datasets import load_torch_dataset
    >>> images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 0, 1, 0, 1])
    >>> dataset = TensorDataset(images, labels)
    >>> X, y = load_torch_dataset(dataset)
    >>> X[3], y
    (<item 3 of TensorDataset>, array([0, 1, 0, 1, 0, 1]))
    >>> FineTuneClassifier(freeze="all").fit(X, y).predict(X[:2]).shape
    (2,)
    """
    if type(dataset) is ConcatDataset:
        parts = [load_torch_dataset(part) for part in dataset.datasets]
        X, y = zip(*parts, strict=True)
        return np.concatenate(X), np.concatenate(y)
    dataset, rows = _base_and_rows(dataset)
    files = _files(dataset)
    if files is not None:
        paths, classes = zip(*files, strict=True)
        return np.array(paths, dtype=object)[rows], np.array(classes)[rows]
    looked_at = rows[np.unique(np.linspace(0, len(rows) - 1, _LOOKED_AT, dtype=int))]
    found = {row: _checked_target(dataset, row) for row in looked_at.tolist()}
    X = np.empty(len(rows), dtype=object)
    X[:] = [DatasetItem(dataset, row) for row in rows.tolist()]
    return X, _targets(dataset, rows, found)


def _base_and_rows(dataset) -> tuple:
    """Return the dataset that subsets are taken from, and the rows that they have."""
    _check_access(dataset)
    rows = np.arange(len(dataset))
    while type(dataset) is Subset:
        dataset, rows = dataset.dataset, np.asarray(dataset.indices)[rows]
    if not len(rows):
        raise ValueError("Invalid dataset: expected at least one item; it is empty.")
    return dataset, rows


def _check_access(dataset) -> None:
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return
    # A DataLoader has its dataset.
    inner = " Pass its .dataset." if hasattr(dataset, "dataset") else ""
    raise ValueError(
        f"Invalid dataset of type {type(dataset).__name__}: expected a dataset with a "
        f"length whose items can be accessed by their number.{inner}"
    )


def _files(dataset) -> list | None:
    """Return the paths and classes of a dataset that only opens files, else None."""
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import default_loader

    plain = (
        isinstance(dataset, DatasetFolder)
        and type(dataset).__getitem__ is DatasetFolder.__getitem__
        and dataset.loader is default_loader
        and dataset.transform is None
        and dataset.target_transform is None
    )
    return dataset.samples if plain else None


def _checked_target(dataset, row: int):
    """Return the target of an item, or refuse the item."""
    item = _item(dataset, row)
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = f"is of type {type(item).__name__}"
        if isinstance(item, dict):
            what = (
                f"has the keys {list(item)} (pass such columns as X and y themselves)"
            )
        elif isinstance(item, tuple | list):
            what = f"has {len(item)} parts"
        raise ValueError(
            f"Invalid dataset: expected items that are pairs (image, target), but item "
            f"{row} {what}. Nothing was loaded."
        )
    image, target = item
    _refuse_normalised(image, row)
    if not np.array_equal(_as_array(image), _as_array(dataset[row][0])):
        raise ValueError(
            f"Invalid dataset: expected the same image at each access, but item {row} "
            "has changed, by a random transform as it seems. Nothing was loaded. Set "
            "dataset.transform = None; to augment images while training, use augment= "
            "of FineTuneClassifier."
        )
    return target


def _item(dataset, row: int):
    try:
        return dataset[row]
    except Exception as error:
        raise ValueError(
            f"Cannot read item {row} of the dataset, a {type(dataset).__name__}: "
            f"{str(error) or type(error).__name__}. Nothing was loaded. Repair it, or "
            "leave it out with torch.utils.data.Subset(dataset, rows)."
        ) from error


def _refuse_normalised(image, row: int) -> None:
    values = _as_array(image)
    # Sounds have fewer dimensions, and values around 0.
    if values.dtype.kind != "f" or values.ndim != 3 or not values.size:
        return
    low, high = values.min(), values.max()
    if low < 0 or high > 1:
        raise ValueError(
            f"Invalid dataset: expected images as they are in their files, but item "
            f"{row} has values from {low:.4g} to {high:.4g}, outside [0, 1], as "
            "Normalize gives them. Nothing was loaded. Each backbone normalises images "
            "itself: set dataset.transform = None, or remove Normalize from it."
        )


def _as_array(value) -> np.ndarray:
    return to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)


def _targets(dataset, rows: np.ndarray, found: dict) -> np.ndarray:
    """Return the targets of rows, of some of which they are found already."""
    for name in _TARGETS:
        known = getattr(dataset, name, None)
        if hasattr(known, "__len__") and len(known) == len(dataset):
            shown = [_as_array(known[row]) for row in found]
            if all(map(np.array_equal, shown, map(_as_array, found.values()))):
                return _as_targets(known)[rows]
    return _as_targets([_item(dataset, row)[1] for row in rows.tolist()])


def _as_targets(values) -> np.ndarray:
    if isinstance(values, list | tuple):
        values = [_as_array(value) for value in values]
    try:
        targets = _as_array(values)
    except ValueError:  # rows of unequal lengths
        targets = np.empty(0, dtype=object)
    if targets.dtype.kind == "O":
        raise ValueError(
            "Invalid dataset: expected the target of each item to be a label, a number "
            f"or as many numbers as any other, but the first is {values[0]!r:.80}. "
            "Nothing was loaded."
        )
    return targets
