"""Augmentation: random changes of training images."""

import functools
import inspect
from collections.abc import Callable

import torch
from torchvision.transforms import v2

AUGMENTS = ("mild", "light", "strong")
_IMAGE = "image, a tensor of shape (3, H, W)"


def resolve_augment(augment, side: int) -> Callable | None:
    """Return the function of an image that an ``augment=`` parameter names.

    Parameters
    ----------
    augment : None, "mild", "light", "strong" or callable
        The value of the parameter.
    side : int
        The side length in pixels of the network's input.

    Returns
    -------
    callable or None
        A function that takes an image, a tensor of shape (3, H, W), and returns an
        augmented one. None if images are not augmented.
    """
    if augment is None:
        return None
    if callable(augment):
        check_takes_one(augment, _IMAGE)
        return functools.partial(_checked, augment)
    if augment not in AUGMENTS:
        raise ValueError(
            f"Invalid augment={augment!r}: expected None, 'mild' (crop), 'light' (crop "
            "and flip), 'strong' (crop, flip and TrivialAugmentWide) or a callable "
            f"that takes and returns an {_IMAGE}."
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
        # TrivialAugmentWide equalizes histograms of colours, so it is given 8 bits.
        steps.append(v2.ToDtype(torch.uint8, scale=True))
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
    return v2.Compose(steps)


def check_takes_one(augment: Callable, what: str) -> None:
    """Refuse a function that cannot be called with one sample alone."""
    try:
        signature = inspect.signature(augment)
    except (TypeError, ValueError):
        return  # a function written in C may have no signature
    try:
        signature.bind(None)
    except TypeError as error:
        raise ValueError(
            f"Invalid augment={name_of(augment)}: expected a callable that takes one "
            f"{what}, and returns one, but its arguments are {signature}. Nothing was "
            "trained. Bind its other arguments with functools.partial."
        ) from error


def _checked(augment: Callable, image: torch.Tensor) -> torch.Tensor:
    """Augment an image, and raise an error if the result is not an image."""
    # The function gets a copy, as it may change its argument in place.
    x = augment(image.clone())
    if isinstance(x, torch.Tensor) and x.ndim == 3 and x.shape[0] == 3:
        return x
    shape = f" and shape {tuple(x.shape)}" if hasattr(x, "shape") else ""
    raise ValueError(
        f"Invalid augment={name_of(augment)}: expected it to return an {_IMAGE}, "
        f"but it returned a value of type {type(x).__name__}{shape}. Nothing was "
        "fitted. A function that changes its image in place must return it, too."
    )


def name_of(augment: Callable) -> str:
    return getattr(augment, "__name__", repr(augment))
