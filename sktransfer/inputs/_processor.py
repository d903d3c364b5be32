"""ProcessorReader: images as the image processors of transformers convert them."""

from dataclasses import dataclass
from typing import ClassVar

import PIL.Image
import torch
from torchvision.transforms.v2 import functional as F

from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._resizing import resize

# By Pillow's numbers.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# torch has only these filters for images that are float.
_FOR_FLOAT = {"nearest": "nearest-exact", "bilinear": "bilinear"}
# Processors that keep the proportions of images where the size is a single number.
_PROPORTIONAL = ("CLIP", "ConvNext", "Levit", "MobileNet", "MobileViT", "PoolFormer")


@dataclass(frozen=True)
class ProcessorReader(ImageReader):
    """Convert images to the inputs of a network as its image processor does.

    It differs from `ImageReader` in the rounding of the crop, and has more ways to
    resize.

    Parameters
    ----------
    resize, crop, mean, std, decoding : int, tuple or str
        See `ImageReader`.
    interpolation : str, default="bilinear"
        The name of a filter of Pillow, such as "bicubic" or "lanczos".
    squash : bool, default=False
        Whether images are resized to squares, whatever their proportions are, rather
        than by their shorter side.
    """

    interpolations: ClassVar[tuple[str, ...]] = _FILTERS

    squash: bool = False

    @classmethod
    def of_processor(cls, config: dict, side: int) -> "ProcessorReader":
        """Read the fields off a preprocessor_config.json.

        Parameters
        ----------
        config : dict
            The content of the file, which may be empty.
        side : int
            The side of the input that the network was made for.
        """
        if not config:
            return cls(resize=side, crop=side, squash=True)
        if not config.get("do_resize", True):
            raise _unknown(
                "do_resize", False, "true, as networks take images of a size"
            )
        mean, std = _normalisation(config)
        number = config.get("resample", PIL.Image.Resampling.BILINEAR)
        return cls(
            **_sizes(config, side), mean=mean, std=std, interpolation=_FILTERS[number]
        )

    def fits(self, height: int, width: int) -> bool:
        """Whether an image has the size of a draft."""
        if self.squash:
            return height == width == self.resize
        return super().fits(height, width)

    def to_size(self, image, interpolation: str):
        """Resize an image by its shorter side, or to a square."""
        if isinstance(image, torch.Tensor):
            interpolation = _FOR_FLOAT.get(interpolation, "bicubic")
        if not self.squash:
            return super().to_size(image, interpolation)
        return resize(image, (self.resize, self.resize), interpolation)

    def cut(self, image):
        """Cut out the centre, half a pixel towards the first row and column."""
        height, width = F.get_size(image)
        if min(height, width) < self.crop:
            return super().cut(image)
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        return F.crop(image, top, left, self.crop, self.crop)


def _sizes(config: dict, side: int) -> dict:
    """Return how images are resized and cropped."""
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    size, crop = config.get("size", side), config.get("crop_size")
    if isinstance(size, int):
        keep = str(kind).startswith(_PROPORTIONAL)
        size = {"shortest_edge": size} if keep else {"height": size, "width": size}
    squash = "shortest_edge" not in size
    resize = _square(size) if squash else size["shortest_edge"]
    if str(kind).startswith("Levit"):
        return {"resize": int(256 / 224 * resize), "crop": resize}
    part = config.get("crop_pct", 224 / 256)
    if str(kind).startswith("ConvNext") and resize >= 384:
        return {"resize": resize, "crop": resize, "squash": True}
    if str(kind).startswith(("ConvNext", "PoolFormer")):
        return {"resize": int(resize / part), "crop": resize}
    cropped = crop is not None and config.get("do_center_crop", True)
    return {
        "resize": resize,
        "crop": _square(crop) if cropped else resize,
        "squash": squash,
    }


def _square(size) -> int:
    if isinstance(size, int):
        return size
    sides = {size.get("height"), size.get("width")}
    side = sides.pop()
    if sides or not isinstance(side, int):
        raise _unknown("size", size, "a square")
    return side


def _normalisation(config: dict) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation on the scale [0, 1] of the image."""
    mean, std = (0.0,) * 3, (1.0,) * 3
    if config.get("do_normalize", True):
        for name in ("image_mean", "image_std"):
            if not isinstance(config.get(name), list) or len(config[name]) != 3:
                raise _unknown(name, config.get(name), "three numbers")
        mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
    # What the processors compute of x on the scale [0, 1]: (scale x + offset - mean) /
    # std, and EfficientNet's divides twice.
    factor = config.get("rescale_factor", 1 / 255)
    scale = round(255 * factor, 9) if config.get("do_rescale", True) else 255
    offset = -1 if config.get("rescale_offset") else 0
    power = 2 if config.get("include_top") else 1
    return (
        tuple((m - offset) / scale for m in mean),
        tuple(s**power / scale for s in std),
    )


def _unknown(name: str, value, expected: str) -> ValueError:
    return ValueError(
        f"Invalid {name}={value!r} in preprocessor_config.json: expected {expected}. "
        "Other images cannot be made; pass a reader of your own: "
        "Backbone(split_stages(model), reader)."
    )
