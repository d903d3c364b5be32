"""ImageReader: how images become the inputs of a network."""

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2 import functional as F

from sktransfer.inputs._augment import resolve_augment
from sktransfer.inputs._containers import image_samples
from sktransfer.inputs._content import image_content
from sktransfer.inputs._decoding import as_tensor, decode
from sktransfer.inputs._image_tables import table_images
from sktransfer.inputs._reader import Reader, Samples
from sktransfer.inputs._resizing import GAP, Reduced, centre_of, resize, size_of

# Beyond this aspect ratio, the ends of an image are cropped before it is resized; the
# centre crop would remove them anyway. An image of 1 x 60,000 pixels would otherwise be
# resized to 224 x 13.4 M.
MAX_ASPECT = 16
# Side of the images of which the pixels are features of a linear model: as in CIFAR-10,
# large enough to tell things apart, small enough for a linear model.
_PLAIN_SIDE = 32


@dataclass(frozen=True)
class ImageReader(Reader):
    """Convert images to the inputs of a network, as torchvision's presets do.

    Images are given as paths, open files, PIL images, arrays, tensors or encoded bytes.
    The content of an image is its encoded bytes or an array, a draft is an image whose
    shorter side has the length `resize`, and an input is a square crop of its centre.

    Parameters
    ----------
    resize : int, default=256
        The length in pixels to which the shorter side of an image is resized, with
        antialiasing.
    crop : int, default=224
        The side length in pixels of the square that is cropped from the centre.
    mean, std : tuple of float
        The mean and standard deviation of the three channels, on the scale [0, 1],
        which inputs are normalised by. The default values are those of ImageNet.
    interpolation : {"bilinear", "bicubic"}, default="bilinear"
        The interpolation used for resizing.
    decoding : {"exact", "fast"}, default="exact"
        "exact" decodes all pixels and resizes them in one step. "fast" lets the decoder
        of a JPEG leave out details as long as three times the size is left, and
        averages the pixels of other large images of 8 bits before they are resized.

    Examples
    --------
    >>> from torch import nn
    >>> from sktransfer import Backbone, ImageReader
    >>> stages = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    >>> Backbone(stages, ImageReader(resize=36, crop=32), name="mine")
    <Backbone 'mine': 2 stages, 0 parameters, 32 pixels>
    """

    kind: ClassVar[str] = "image"
    one_by_one: ClassVar[bool] = False
    accepted: ClassVar[str] = (
        "An image is a path, an open file, encoded bytes, a PIL image, or an array or "
        "tensor of shape (H, W), (H, W, 1|3|4) or (3, H, W) of dtype uint8, uint16 or "
        "float in [0, 1]."
    )
    interpolations: ClassVar[tuple[str, ...]] = ("bilinear", "bicubic")
    decodings: ClassVar[tuple[str, ...]] = ("exact", "fast")

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    # Readers that decode exactly have the keys of before there was another way.
    decoding: str = field(default="exact", repr=False)

    def __post_init__(self):
        sizes = {"resize": self.resize, "crop": self.crop}
        for name, size in sizes.items():
            if not isinstance(size, numbers.Integral) or size < 1:
                self._refuse(name, "a number of pixels, a positive int")
        for name, values in {"mean": self.mean, "std": self.std}.items():
            if not isinstance(values, tuple) or len(values) != 3:
                self._refuse(name, "a tuple of three numbers, one for each channel")
        if min(self.std) <= 0:
            self._refuse("std", "positive numbers, since images are divided by them")
        if self.interpolation not in self.interpolations:
            self._refuse("interpolation", " or ".join(map(repr, self.interpolations)))
        if self.decoding not in self.decodings:
            self._refuse("decoding", " or ".join(map(repr, self.decodings)))

    def _refuse(self, name: str, expected: str) -> None:
        value = getattr(self, name)
        raise ValueError(
            f"Invalid {name}={value!r} of an ImageReader: expected {expected}."
        )

    def __str__(self):
        return f"{self.crop} pixels"

    @classmethod
    def of(cls, transforms) -> "ImageReader":
        """Return the reader that is equivalent to a torchvision preset."""
        return cls(
            resize=transforms.resize_size[0],
            crop=transforms.crop_size[0],
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
        )

    @classmethod
    def of_timm(cls, config: dict) -> "ImageReader":
        """Read the fields off a configuration of timm."""
        side = config["input_size"][-1]
        return cls(
            resize=round(side / config["crop_pct"]),
            crop=side,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
        )

    @classmethod
    def whole(cls, side: int, **fields) -> "ImageReader":
        """Return a reader that cuts nothing off a square image."""
        return cls(resize=side, crop=side, **fields)

    @property
    def size(self) -> int:
        """Side of the square, in pixels."""
        return self.crop

    def samples(self, X) -> Sequence | None:
        """Return the images of `X`, or None where `X` is a table of numbers."""
        return image_samples(X)

    def content(self, sample) -> bytes | np.ndarray:
        """Return the encoded bytes or the array by which an image is hashed."""
        return image_content(sample)

    def table(self, X, image_shape, value_range) -> Samples:
        """Read the rows of a table as flattened images."""
        images, content = table_images(X, image_shape, value_range)
        return Samples(images, self, content)

    def draft(self, content) -> torch.Tensor:
        """Decode an image and resize its shorter side; return it as (3, H, W)."""
        return as_tensor(self._resized(self._decoded(content)))

    def finish(self, draft: torch.Tensor) -> torch.Tensor:
        """Crop the centre of an image, which augmentation may have changed."""
        height, width = draft.shape[1:]
        if height == width == self.crop:
            return draft
        # A draft has the right size already, but augmentation may return any other.
        if not self.fits(height, width):
            draft = as_tensor(self._resized(draft))
        return self.cut(draft)

    def read(self, content) -> torch.Tensor:
        """Decode, resize and crop an image; return it as (3, crop, crop)."""
        # The result is that of `finish` after `draft`, but the pixels outside the crop
        # are not copied to a tensor.
        return as_tensor(self.cut(self._resized(self._decoded(content))))

    def _decoded(self, content):
        return decode(content, GAP * self.resize if self.decoding == "fast" else None)

    def _resized(self, image):
        # Images of 8 bits are resized by Pillow, as in the preset. Tensors are resized
        # in half the time but rounded differently, which moves the embeddings of
        # MobileNetV2 by 3e-5 (cosine distance).
        if isinstance(image, torch.Tensor) and image.dtype == torch.uint8:
            image = PIL.Image.fromarray(image.permute(1, 2, 0).numpy())
        if self.decoding == "fast" and isinstance(image, PIL.Image.Image):
            image = Reduced.whole(image)
        return self.to_size(image, self.interpolation)

    def fits(self, height: int, width: int) -> bool:
        """Whether an image has the size of a draft."""
        return min(height, width) == self.resize

    def to_size(self, image, interpolation: str):
        """Resize an image by its shorter side."""
        height, width = size_of(image)
        most = MAX_ASPECT * min(height, width)
        if max(height, width) > most:
            image = centre_of(image, (min(height, most), min(width, most)))
        shorter, longer = sorted(size_of(image))
        sides = self.resize, int(self.resize * longer / shorter)
        size = sides if height < width else sides[::-1]
        return resize(image, size, interpolation)

    def cut(self, image):
        """Cut out the centre."""
        return F.center_crop(image, [self.crop, self.crop])

    def stack(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stack inputs; if any of them is float, all are scaled to float32."""
        if any(x.dtype != torch.uint8 for x in inputs):
            inputs = [
                x.float().div_(255) if x.dtype == torch.uint8 else x for x in inputs
            ]
        return torch.stack(list(inputs))

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Scale a batch to [0, 1] if it is uint8, then normalise its channels."""
        # Inputs stay uint8 until they are on the device, as float32 would have four
        # times the bytes to copy there.
        if batch.dtype == torch.uint8:
            batch = batch.float().div_(255)
        shape = (1, 3, 1, 1)
        options = {"dtype": torch.float32, "device": batch.device}
        mean = torch.tensor(self.mean, **options).view(shape)
        std = torch.tensor(self.std, **options).view(shape)
        return (batch - mean) / std

    def decoded(self, decoding: str) -> "ImageReader":
        """Return the same reader with another way of decoding."""
        return replace(self, decoding=decoding)

    def augmentation(self, augment) -> Callable | None:
        """Return the function of an image that an ``augment=`` parameter names."""
        return resolve_augment(augment, self.crop)

    def resized_to(self, size: int) -> "ImageReader":
        """Return the reader for another crop size, with the same proportions."""
        resize = round(self.resize * size / self.crop)
        return replace(self, crop=int(size), resize=resize)

    def example(self, n: int) -> torch.Tensor:
        """Return `n` inputs of random noise."""
        # A generator of its own: the state of the global one must not change.
        own = torch.Generator().manual_seed(0)
        shape = (n, 3, self.crop, self.crop)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=own)

    def plain(self) -> "tuple[str, ImageReader]":
        """Return what a linear model without a network is given: the pixels."""
        own = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "decoding": self.decoding}
        return "pixels", ImageReader.whole(_PLAIN_SIDE, **own)

    def cause(self) -> str:
        """Return what the inputs depend on, including the version of Pillow."""
        way = "" if self.decoding == "exact" else f", decoded {self.decoding}"
        return f"{self!r}, Pillow {PIL.__version__}{way}"
