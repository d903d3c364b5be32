"""Random changes of training images, the same ones for the same seed."""

import functools
import inspect
from collections.abc import Callable

import torch
from torchvision.transforms import v2

AUGMENTS = ("mild", "light", "strong")


def resolve_augment(augment, side: int) -> Callable | None:
    """Turn an ``augment=`` parameter into a function of an image.

    Parameters
    ----------
    augment : None, "mild", "light", "strong" or callable
    side : int
        Of the network's input, in pixels.

    Returns
    -------
    callable or None
        Takes an image, a tensor of shape (3, H, W), and returns one.
    """
    if augment is None:
        return None
    if callable(augment):
        _check_takes_an_image(augment)
        return functools.partial(_checked, augment)
    if augment not in AUGMENTS:
        raise ValueError(
            f"augment={augment!r} is not known. Accepted are None, 'mild' (crop), "
            "'light' (crop and flip), 'strong' (TrivialAugmentWide as well) and any "
            "callable that takes and returns an image, a tensor of shape (3, H, W)."
        )
    if augment == "mild":
        return v2.RandomResizedCrop(
            side, scale=(0.7, 1.0), ratio=(0.9, 1.1), antialias=True
        )
    steps = [
        v2.RandomResizedCrop(side, scale=(0.5, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    if augment == "strong":
        # It counts colours, and so works on 8 bits.
        steps.append(v2.ToDtype(torch.uint8, scale=True))
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
    return v2.Compose(steps)


def _check_takes_an_image(augment: Callable) -> None:
    try:
        signature = inspect.signature(augment)
    except (TypeError, ValueError):
        return  # what is written in C may not tell
    try:
        signature.bind(None)
    except TypeError as error:
        raise ValueError(
            f"augment={_name_of(augment)} takes the arguments {signature}, where it is "
            "called with one. Accepted is what takes an image, a tensor of shape "
            "(3, H, W), and returns one. Nothing was trained. Bind what else it needs "
            "with functools.partial."
        ) from error


def _checked(augment: Callable, image: torch.Tensor) -> torch.Tensor:
    """Augment an image, and refuse what is returned if it is none."""
    # A copy: what augments may do so in place.
    x = augment(image.clone())
    if isinstance(x, torch.Tensor) and x.ndim == 3 and x.shape[0] == 3:
        return x
    shape = f" and shape {tuple(x.shape)}" if hasattr(x, "shape") else ""
    raise ValueError(
        f"augment={_name_of(augment)} returned a value of type {type(x).__name__}"
        f"{shape}. Accepted is an image, a tensor of shape (3, H, W). Nothing was "
        "fitted. A function that changes its image in place has to return it, too."
    )


def _name_of(augment: Callable) -> str:
    return getattr(augment, "__name__", repr(augment))
