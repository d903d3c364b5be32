"""Resizing of images, which may have been decoded to less than their size."""

from dataclasses import dataclass, replace

import PIL.Image
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

# By how much an image that is resized in two steps exceeds the size that it is resized
# to. From three times that size on, Pillow calls the result close to that of full
# resampling.
GAP = 3


@dataclass(frozen=True)
class Reduced:
    """An image that may be resized in two steps, of which decoding can be the first.

    Parameters
    ----------
    image : PIL.Image.Image
        The decoded pixels.
    size : tuple of int
        The height and width of the image before it was reduced.
    box : tuple of float
        The left, upper, right and lower edge of the image, in pixels of `image`. An odd
        number of pixels is reduced to half a pixel more, of which a part is not there.
    """

    image: PIL.Image.Image
    size: tuple[int, int]
    box: tuple[float, float, float, float]

    @classmethod
    def whole(cls, image: PIL.Image.Image) -> "Reduced":
        """Return an image as it is."""
        width, height = image.size
        return cls(image, (height, width), (0, 0, width, height))

    def centre(self, size: tuple[int, int]) -> "Reduced":
        """Return the centre of the given height and width."""
        left, upper, right, lower = self.box
        across, along = ((right - left) / self.size[1], (lower - upper) / self.size[0])
        row, column = (
            round((whole - part) / 2)
            for whole, part in zip(self.size, size, strict=True)
        )
        left, upper = left + across * column, upper + along * row
        box = left, upper, left + across * size[1], upper + along * size[0]
        return replace(self, size=size, box=box)

    def resize(self, size: tuple[int, int], interpolation: str) -> PIL.Image.Image:
        """Resize the image to a height and width."""
        resample = PIL.Image.Resampling[interpolation.upper()]
        options = {"box": self.box, "reducing_gap": GAP}
        return self.image.resize(size[::-1], resample, **options)


def size_of(image: PIL.Image.Image | torch.Tensor | Reduced) -> tuple[int, int]:
    """Return the height and width of an image."""
    return image.size if isinstance(image, Reduced) else tuple(F.get_size(image))


def centre_of(image, size: tuple[int, int]):
    """Cut the centre of the given height and width out of an image."""
    if isinstance(image, Reduced):
        return image.centre(size)
    return F.center_crop(image, list(size))


def resize(
    image: PIL.Image.Image | torch.Tensor | Reduced,
    size: tuple[int, int],
    interpolation: str,
) -> PIL.Image.Image | torch.Tensor:
    """Resize an image to a height and width, with antialiasing."""
    if isinstance(image, Reduced):
        return image.resize(size, interpolation)
    mode = InterpolationMode(interpolation)
    return F.resize(image, size, interpolation=mode, antialias=True)
