"""Backbone: a network as named stages, with the recipe of its input."""

import copy
import functools
import hashlib
import numbers
from collections import OrderedDict
from dataclasses import dataclass, replace
from difflib import get_close_matches

import PIL.Image
import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from sktransfer.backbones._fingerprint import behaviour_digest
from sktransfer.backbones._fusion import fuse
from sktransfer.backbones._weights import WeightsMismatchError, module_digest
from sktransfer.inputs._decoding import as_pixels, decode

# Beyond this aspect ratio the ends of a picture, which the centre crop would cut
# anyway, are cut before the resize: 1 x 60,000 pixels would else become 224 x 13.4 M.
MAX_ASPECT = 16


@dataclass(frozen=True)
class Recipe:
    """How a picture becomes the input of a network, as in torchvision's presets.

    Parameters
    ----------
    resize : int
        Length in pixels that the shorter side is resized to, antialiased.
    crop : int
        Side of the square that is cut from the centre.
    mean, std : tuple of float
        Of the three channels, on the scale [0, 1].
    interpolation : str
        "bilinear" or "bicubic".
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, transforms) -> "Recipe":
        """Read the recipe off a torchvision preset."""
        return cls(
            resize=transforms.resize_size[0],
            crop=transforms.crop_size[0],
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
        )

    def at_size(self, side: int) -> "Recipe":
        """Return the recipe at another size, its proportions kept."""
        return replace(self, crop=side, resize=round(self.resize * side / self.crop))

    def read(self, source) -> torch.Tensor:
        """Decode a source; give its square of pixels, (3, crop, crop)."""
        return self.square(decode(source))

    def square(self, picture) -> torch.Tensor:
        """Resize and cut a picture; give its square of pixels, dtype kept."""
        return as_pixels(self.cut(self._resized(picture)))

    def resized(self, picture) -> torch.Tensor:
        """Resize a picture, so that its shorter side is `resize`; give its pixels.

        Parameters
        ----------
        picture : PIL.Image.Image, or Tensor of shape (3, H, W)
            RGB; a tensor of uint8, or of float32 in [0, 1].
        """
        return as_pixels(self._resized(picture))

    def _resized(self, picture):
        # 8 bits by Pillow, as in the preset. Tensors are resized in half the time, but
        # with other roundings: they move embeddings of MobileNetV2 by 3e-5 (cosine).
        if isinstance(picture, torch.Tensor) and picture.dtype == torch.uint8:
            picture = PIL.Image.fromarray(picture.permute(1, 2, 0).numpy())
        height, width = F.get_size(picture)
        most = MAX_ASPECT * min(height, width)
        if max(height, width) > most:
            picture = F.center_crop(picture, [min(height, most), min(width, most)])
        mode = InterpolationMode(self.interpolation)
        return F.resize(picture, [self.resize], interpolation=mode, antialias=True)

    def cut(self, picture):
        """Cut the square from the centre of a resized picture, or of its pixels."""
        return F.center_crop(picture, [self.crop, self.crop])

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Scale a batch of squares to [0, 1] if it is uint8, then by mean and std."""
        if batch.dtype == torch.uint8:
            batch = batch.float().div_(255)
        shape = (1, 3, 1, 1)
        options = {"dtype": torch.float32, "device": batch.device}
        mean = torch.tensor(self.mean, **options).view(shape)
        std = torch.tensor(self.std, **options).view(shape)
        return (batch - mean) / std


class Backbone:
    """A pretrained network without its classifier: named stages in a row.

    A backbone is never changed, so that it can be shared by estimators, threads and
    processes: `copy.deepcopy` gives the backbone itself, cloning an estimator that
    holds one costs nothing.

    Parameters
    ----------
    stages : torch.nn.Sequential
        Named stages, the last of which gives embeddings of shape (n, n_features), as
        `split_stages` makes them. They are deep-copied.
    recipe : Recipe, optional
        How pictures are resized, cropped and normalised; ImageNet's by default.
    name : str, default="custom"
        For messages and reprs.
    rebuild : callable, optional
        Takes nothing and loads the same backbone again. A pickle then holds this
        callable in place of the weights, and checks their digest when loaded.

    Attributes
    ----------
    stage_names : tuple of str
        Of all stages, first to last.
    shapes : list of tuple of int
        Of one image's output of each stage.
    n_features : int
        Length of an embedding.
    n_parameters : int
        Of all stages.
    digest : str
        SHA-256 of the structure and of all tensors, in hex digits.

    Examples
    --------
    >>> from torch import nn
    >>> from sktransfer import Backbone
    >>> stages = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    >>> backbone = Backbone(stages, name="mine")
    >>> backbone.stage_names, backbone.n_features
    (('0', '1'), 12)
    """

    def __init__(self, stages, recipe=None, *, name="custom", rebuild=None):
        self._assemble(_frozen(stages), rebuild)
        self.recipe = Recipe() if recipe is None else recipe
        self.name = name
        # By the side of the input.
        self._shapes = {}

    def _assemble(self, stages: dict[str, "_Stage"], origin) -> None:
        modules = OrderedDict((name, stage.module) for name, stage in stages.items())
        self.stages = nn.Sequential(modules).eval()
        self.stage_names = tuple(stages)
        self.origin = origin
        self._stages = stages
        self._fastest = {}

    def __repr__(self):
        return (
            f"<Backbone {self.name!r}: {len(self.stages)} stages, "
            f"{self.n_parameters:,} parameters, {self.recipe.crop} px>"
        )

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        if self.origin is None:
            return _restore, (self.stages, self.recipe, self.name)
        return _rebuild_checked, (self.origin, self.recipe, self.digest)

    @property
    def n_parameters(self):
        return sum(p.numel() for p in self.stages.parameters())

    @property
    def n_features(self):
        shape = self.shapes[-1]
        return shape[-1] if len(shape) == 2 else shape[0]

    @property
    def shapes(self):
        try:
            return self._shapes_or_error()
        except (RuntimeError, AssertionError) as error:
            side = self.recipe.crop
            raise ValueError(
                f"Backbone {self.name!r} cannot be run: {error}. Pictures are given to "
                f"it as (n, 3, {side}, {side}), and nothing was computed. "
                f"{_about_channels(self.stages) or 'Set image_size to one it takes.'}"
            ) from error

    def _shapes_or_error(self):
        side = self.recipe.crop
        if side not in self._shapes:
            x = torch.zeros(1, 3, side, side, dtype=torch.float32)
            # Of copies: a forward pass may leave something in a module.
            try:
                self._shapes[side] = _shapes(_without_data(self.stages), x.to("meta"))
            except (RuntimeError, NotImplementedError):
                # A stage that looks at its data, or is too small; that fails again.
                self._shapes[side] = _shapes(copy.deepcopy(self.stages), x)
        return self._shapes[side]

    @functools.cached_property
    def has_pointwise(self):
        """Whether there are 1 x 1 convolutions, without stride or groups."""
        return any(
            type(module) is nn.Conv2d
            and (*module.kernel_size, *module.stride, module.groups) == (1,) * 5
            for module in self.stages.modules()
        )

    @property
    def digest(self):
        return _joined(stage.digest for stage in self._stages.values())

    def cause(self, depth):
        """SHA-256, in hex digits, of all that decides what `depth` stages compute."""
        return _joined(stage.cause for stage in list(self._stages.values())[:depth])

    def depth(self, stage, *, parameter="stage"):
        """Number of leading stages that a specification means.

        Parameters
        ----------
        stage : int, str or None
            A number of leading stages (negative counts from the end), the name of
            the last of them, or "all" (None means the same).
        parameter : str, default="stage"
            What the specification is called in an error message.
        """
        count = len(self.stages)
        if stage is None or isinstance(stage, str):
            if stage in (None, "all"):
                return count
            if stage in self.stage_names:
                return self.stage_names.index(stage) + 1
        elif isinstance(stage, numbers.Integral) and not isinstance(stage, bool):
            depth = int(stage) + (count if stage < 0 else 0)
            if 0 <= depth <= count:
                return depth
        what, hint = "no number of stages", ""
        if isinstance(stage, str):
            names = {name.lower(): name for name in (*self.stage_names, "all")}
            close = get_close_matches(stage.lower(), names, n=1)
            what = "no stage"
            hint = f" Did you mean {names[close[0]]!r}?" if close else ""
        raise ValueError(
            f"{parameter}={stage!r} is {what} of backbone {self.name!r}.{hint} "
            f"Accepted are the names {list(self.stage_names)}, a number of leading "
            f"stages from {-count} to {count}, or 'all'.{_why_one(self.stage_names)}"
        )

    def freeze_depth(self, freeze):
        """Number of leading stages that a ``freeze`` parameter keeps as they are.

        Where only stages without parameters would be left to train, it is all of them.
        """
        depth = self.depth(freeze, parameter="freeze")
        trained = any(True for _ in self.stages[depth:].parameters())
        return depth if trained else len(self.stages)

    def at_size(self, side):
        """Return the same network for inputs of another size, in pixels.

        Raises
        ------
        ValueError
            If the architecture cannot take that size.
        """
        if not isinstance(side, numbers.Integral) or isinstance(side, bool) or side < 1:
            raise ValueError(
                f"image_size={side!r} is no size. Accepted are None, for the size of "
                "the weights' own recipe, or the side of the input in pixels."
            )
        resized = self._with(recipe=self.recipe.at_size(int(side)))
        advice = (
            f"Its own size is {self.recipe.crop}; leave image_size=None, or choose a "
            "convolutional network, which takes any size that is not too small."
        )
        try:
            resized._shapes_or_error()
        except Exception as error:
            raise ValueError(
                f"Backbone {self.name!r} cannot take image_size={side}: {error}. "
                f"{_about_channels(self.stages) or advice}"
            ) from error
        return resized

    def _with(self, **changes):
        other = object.__new__(Backbone)
        vars(other).update(vars(self), **changes)
        return other

    def inference_stages(self, device="cpu"):
        """Return the stages as they compute fastest, on a device.

        In evaluation mode, batch norm folded into the convolutions and channels last:
        equal to `stages` up to rounding.
        """
        if device not in self._fastest:
            stages = [stage.fused(device) for stage in self._stages.values()]
            self._fastest[device] = nn.Sequential(*stages)
        return self._fastest[device]

    def tuned(self, depth, suffix):
        """Return this backbone with its stages from `depth` on replaced.

        It shares the others with this backbone, and all that is known of them. Its
        pickles hold the new stages and refer to this backbone for the rest.
        """
        stages = {**dict(list(self._stages.items())[:depth]), **_frozen(suffix)}
        # Tuned again and again, a network refers to the first one alone.
        source, start = self, depth
        if isinstance(self.origin, Tuned):
            source, start = self.origin.source, min(depth, self.origin.depth)
        name = f"{source.name} (tuned)" if start < len(stages) else source.name
        tuned = self._with(name=name)
        tuned._assemble(stages, None)
        tuned.origin = Tuned(source, start, tuned.stages[start:])
        return tuned


class _Stage:
    """A stage that is never changed, and what is worked out about it once."""

    def __init__(self, module: nn.Module):
        self.module = module
        self._fused = {}

    @functools.cached_property
    def digest(self) -> str:
        return module_digest(self.module)

    @functools.cached_property
    def cause(self) -> str:
        return self.digest + behaviour_digest(self.module)

    def fused(self, device) -> nn.Module:
        if device not in self._fused:
            self._fused[device] = fuse(self.module).to(
                device, memory_format=torch.channels_last
            )
        return self._fused[device]


def _joined(digests) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _frozen(stages: nn.Sequential) -> dict[str, _Stage]:
    """Copy stages, to keep, in float32."""
    stages = copy.deepcopy(stages).cpu().float().eval().requires_grad_(False)
    # Of a module that is used twice, named_children would list one use only.
    return {name: _Stage(module) for name, module in stages._modules.items()}


@dataclass(frozen=True)
class Tuned:
    """How a tuned backbone is made again: its source, and the stages that differ."""

    source: Backbone
    depth: int
    suffix: nn.Sequential

    def __call__(self) -> Backbone:
        return self.source.tuned(self.depth, self.suffix)


def _restore(stages, recipe, name):
    return Backbone(stages, recipe, name=name)


def _rebuild_checked(rebuild, recipe, digest):
    return checked(rebuild(), recipe, digest)


def checked(backbone: Backbone, recipe: Recipe, digest: str) -> Backbone:
    """Give a backbone that was made again its recipe, if it is the one of then."""
    if backbone.digest != digest:
        raise WeightsMismatchError(
            f"The weights of backbone {backbone.name!r} are not those that the saved "
            f"estimator was made with: their digest is {backbone.digest[:12]}, not "
            f"{digest[:12]}. Nothing was loaded. Install the weights of then (the "
            "file, or the version of torchvision), or fit again."
        )
    return backbone._with(recipe=recipe)


def _why_one(stage_names: tuple[str, ...]) -> str:
    """Why a network that could not be split has one stage; empty for others."""
    if stage_names != ("all",):
        return ""
    return (
        " It is one stage because this process knows no way to split it. Register one "
        "(split_stages.register), for n_jobs in a module that worker processes import, "
        "or pass backbone=Backbone(split_stages(model))."
    )


def _about_channels(stages: nn.Sequential) -> str:
    """What to do about a network that takes no colour pictures; empty for others."""
    first = next((m for m in stages.modules() if hasattr(m, "in_channels")), None)
    if first is None or first.in_channels == 3:
        return ""
    return (
        f"Its first layer has in_channels={first.in_channels}, and pictures are read "
        "in three channels, grey ones too. Put a module before it that converts "
        "them: nn.Sequential(convert, *split_stages(model)), where convert may be "
        "torchvision.transforms.v2.Grayscale() for a network of grey pictures."
    )


def _without_data(stages: nn.Sequential) -> nn.Sequential:
    """Copy stages, with tensors that have shapes and no numbers."""
    memo = {id(p): nn.Parameter(p.to("meta"), False) for p in stages.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in stages.buffers()}
    return copy.deepcopy(stages, memo)


def _shapes(stages, x) -> list[tuple[int, ...]]:
    """Shapes of the outputs of all stages."""
    shapes = []
    with torch.inference_mode():
        for name, stage in stages._modules.items():
            x = stage(x)
            if not isinstance(x, torch.Tensor) or x.ndim < 2:
                kind = f"shape {tuple(x.shape)}" if hasattr(x, "shape") else type(x)
                raise ValueError(
                    f"Stage {name!r} gives {kind}, where a tensor of shape (n, ...) is "
                    "needed. Cut the network elsewhere (split_stages.register), or "
                    "wrap it in a module that gives its embeddings."
                )
            shapes.append(tuple(x.shape[1:]))
            # What has no data is computed without complaint by older versions of torch.
            if min(shapes[-1]) < 1:
                raise RuntimeError(f"a stage's output would have shape {shapes[-1]}")
    return shapes
