"""Backbone: a network as named stages, with the reader of its samples."""

import copy
import functools
import hashlib
import numbers
from collections import OrderedDict
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import nn

from sktransfer.backbones._fingerprint import behaviour_digest
from sktransfer.backbones._fusion import fuse
from sktransfer.backbones._weights import WeightsMismatchError, module_digest
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Reader, input_shape


class Backbone:
    """A pretrained network without its classifier: named stages in a row.

    A backbone never changes, so that estimators, threads and processes can share it:
    `copy.deepcopy` returns the backbone itself, and cloning an estimator that holds one
    costs nothing.

    Parameters
    ----------
    stages : torch.nn.Sequential
        The named stages, as returned by `split_stages`. They are deep-copied. The last
        stage returns embeddings of shape (n, n_features).
    reader : ImageReader, optional
        How samples become the inputs of the first stage. If None, an `ImageReader` with
        the sizes, mean and standard deviation of ImageNet is used.
    name : str, default="custom"
        The name of the backbone in messages and representations.
    rebuild : callable, optional
        A function without arguments that loads the same backbone again. A pickle then
        holds this function instead of the weights, and their digest is checked when it
        is loaded.

    Attributes
    ----------
    stage_names : tuple of str
        The names of all stages, from first to last.
    shapes : list of tuple of int
        The shape of the output of each stage for one sample.
    n_features : int
        The number of features of an embedding.
    n_parameters : int
        The number of parameters of all stages.
    digest : str
        The SHA-256 of the structure and of all tensors, in hexadecimal digits.

    Raises
    ------
    TypeError
        If `stages` is not a non-empty `torch.nn.Sequential`, or `reader` not a reader.

    Examples
    --------
    >>> from torch import nn
    >>> from sktransfer import Backbone
    >>> stages = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    >>> backbone = Backbone(stages, name="mine")
    >>> backbone.stage_names, backbone.n_features
    (('0', '1'), 12)
    """

    def __init__(self, stages, reader=None, *, name="custom", rebuild=None):
        if not isinstance(stages, nn.Sequential) or not len(stages):
            raise TypeError(
                f"Invalid stages of type {type(stages).__name__}: expected a non-empty "
                "torch.nn.Sequential of stages. Use split_stages(network), or "
                "load_backbone(network)."
            )
        if not isinstance(reader, Reader | None):
            raise TypeError(
                f"Invalid reader={reader!r}: expected an instance of ImageReader, such "
                "as ImageReader(), or None."
            )
        self._assemble(_frozen(stages), rebuild)
        self.reader = ImageReader() if reader is None else reader
        self.name = name
        # By reader, since copies with other readers share it.
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
            f"{self.n_parameters:,} parameters, {self.reader}>"
        )

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        if self.origin is None:
            return _restore, (self.stages, self.reader, self.name)
        return _rebuild_checked, (self.origin, self.reader, self.digest)

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
            sides = ", ".join(map(str, input_shape(self.reader)))
            advice = f"Set {self.reader.size_parameter} to one it takes."
            raise ValueError(
                f"Backbone {self.name!r} cannot be run: {error}. Its inputs have shape "
                f"(n, {sides}), and nothing was computed. "
                f"{_about_channels(self.stages) or advice}"
            ) from error

    def _shapes_or_error(self):
        known, reader = self._shapes, self.reader
        if reader not in known:
            x = reader.normalise(reader.example(1))
            # Of copies: a forward pass may leave something in a module.
            try:
                known[reader] = _shapes(_without_data(self.stages), x.to("meta"))
            except (RuntimeError, NotImplementedError):
                # A stage that looks at its data, or is too small; that fails again.
                known[reader] = _shapes(copy.deepcopy(self.stages), x)
        return known[reader]

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
        """Hash all that decides what some leading stages compute.

        Parameters
        ----------
        depth : int
            Number of leading stages.

        Returns
        -------
        str
            SHA-256 in hex digits.
        """
        return _joined(stage.cause for stage in list(self._stages.values())[:depth])

    def depth(self, stage, *, parameter="stage"):
        """Find the number of leading stages that a specification means.

        Parameters
        ----------
        stage : int, str or None
            A number of leading stages (negative counts from the end), the name of
            the last of them, or "all" (None means the same).
        parameter : str, default="stage"
            What the specification is called in an error message.

        Returns
        -------
        int
            From 0 to the number of stages.

        Raises
        ------
        ValueError
            If there is no such stage.
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
        """Find the number of leading stages that ``freeze`` keeps as they are.

        Parameters
        ----------
        freeze : int or str
            As in `FineTuneClassifier`.

        Returns
        -------
        int
            All stages, where only such without parameters would be left to train.
        """
        depth = self.depth(freeze, parameter="freeze")
        trained = any(True for _ in self.stages[depth:].parameters())
        return depth if trained else len(self.stages)

    def at_size(self, side):
        """Return the same network for inputs of another size.

        Parameters
        ----------
        side : int
            Side of the square input in pixels, or whatever size its reader has.

        Returns
        -------
        Backbone
            It shares the stages with this one.

        Raises
        ------
        ValueError
            If the architecture cannot take that size.
        """
        parameter = self.reader.size_parameter
        if not isinstance(side, numbers.Integral) or isinstance(side, bool) or side < 1:
            raise ValueError(
                f"Invalid {parameter}={side!r}: expected None, for the size that the "
                "weights were made for, or a positive integer."
            )
        resized = self._with(reader=self.reader.resized_to(int(side)))
        advice = (
            f"Its own size is {self.reader}; leave {parameter}=None, or choose a "
            "convolutional network, which takes any size that is not too small."
        )
        try:
            resized._shapes_or_error()
        except Exception as error:
            raise ValueError(
                f"Backbone {self.name!r} cannot take {parameter}={side}: {error}. "
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

        Parameters
        ----------
        device : str, default="cpu"
            Where they are to run.

        Returns
        -------
        torch.nn.Sequential
            The same one in each call.
        """
        if device not in self._fastest:
            stages = [stage.fused(device) for stage in self._stages.values()]
            self._fastest[device] = nn.Sequential(*stages)
        return self._fastest[device]

    def tuned(self, depth, suffix):
        """Return this backbone with its stages from `depth` on replaced.

        It shares the others with this backbone, and all that is known of them. Its
        pickles hold the new stages and refer to this backbone for the rest.

        Parameters
        ----------
        depth : int
            Number of leading stages to keep.
        suffix : torch.nn.Sequential
            The stages after them, which are copied.

        Returns
        -------
        Backbone
            Its name says that it is tuned.
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


def _restore(stages, reader, name):
    return Backbone(stages, reader, name=name)


def _rebuild_checked(rebuild, reader, digest):
    return checked(rebuild(), reader, digest)


def checked(backbone: Backbone, reader: Reader, digest: str) -> Backbone:
    """Give a backbone that was made again its reader, if it is the one of then."""
    if backbone.digest != digest:
        raise WeightsMismatchError(
            f"The weights of backbone {backbone.name!r} are not those that the saved "
            f"estimator was made with: their digest is {backbone.digest[:12]}, not "
            f"{digest[:12]}. Nothing was loaded. Install the weights of then (the "
            "file, or the version of torchvision), or fit again."
        )
    return backbone._with(reader=reader)


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
    """What to do about a network that takes no colour images; empty for others."""
    first = next((m for m in stages.modules() if hasattr(m, "in_channels")), None)
    if first is None or first.in_channels == 3:
        return ""
    return (
        f"Its first layer has in_channels={first.in_channels}, and images are read "
        "in three channels, grey ones too. Put a module before it that converts "
        "them: nn.Sequential(convert, *split_stages(model)), where convert may be "
        "torchvision.transforms.v2.Grayscale() for a network of grey images."
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
