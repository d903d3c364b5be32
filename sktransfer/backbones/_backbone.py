"""Backbone: a network as named stages, with the reader of its samples."""

import copy
import functools
import hashlib
import itertools
from collections import OrderedDict

from torch import nn

from sktransfer.backbones._blocks import Stage
from sktransfer.backbones._fusion import fold_weight_norms
from sktransfer.backbones._names import StageNames, key_of, name_of, stage_of
from sktransfer.backbones._origins import Divided, Tuned
from sktransfer.backbones._shapes import (
    not_run,
    shapes_of,
    size_not_taken,
    without_data,
)
from sktransfer.backbones._weights import WeightsMismatchError
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Reader


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
    block_names : tuple of str
        The names of the blocks of all stages that can be divided: "layer4.1" is the
        second block of stage "layer4". They are accepted in place of those of stages.
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
                f"Invalid reader={reader!r}: expected a reader, such as ImageReader(), "
                "or None."
            )
        self._assemble(_frozen(stages), rebuild)
        self.reader = ImageReader() if reader is None else reader
        self.name = name
        self._shapes = {}  # by reader, since copies with other readers share it
        # The blocks that it was cut after, which divided and tuned copies share.
        self._cuts = {}

    def _assemble(self, stages: dict[str, "Stage"], origin) -> None:
        modules = OrderedDict((key_of(name), stages[name].module) for name in stages)
        self.stages = nn.Sequential(modules).eval()
        self.stage_names = tuple(stages)
        self.origin = origin
        self._stages = stages
        self._names = StageNames(stages)
        self._fastest = {}
        self._divided = {}

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
            raise not_run(self, error) from error

    def _shapes_or_error(self):
        known, reader = self._shapes, self.reader
        if reader not in known:
            x = reader.normalise(reader.example(1))
            # Of copies: a forward pass may leave something in a module.
            try:
                known[reader] = shapes_of(without_data(self.stages), x.to("meta"))
            except (RuntimeError, NotImplementedError):
                # A stage that looks at its data, or is too small; that fails again.
                known[reader] = shapes_of(copy.deepcopy(self.stages), x)
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

    def cause(self, depth, precision="float32"):
        """Return a digest of everything that the output of leading stages depends on.

        Parameters
        ----------
        depth : int
            The number of leading stages.
        precision : str, default="float32"
            The precision of the computation.

        Returns
        -------
        str
            The SHA-256 in hexadecimal digits.
        """
        causes = [stage.causes for stage in list(self._stages.values())[:depth]]
        # In float32 a divided stage computes what the whole one does, to the bit. Else
        # its outputs become float32 where it is cut, so that cuts change the rounding.
        if precision != "float32":
            causes = [[_joined(own)] if len(own) > 1 else own for own in causes]
        return _joined(itertools.chain(*causes))

    @property
    def block_names(self):
        return self._names.blocks()

    def cut(self, stage):
        """Return the backbone in which a stage is divided after one of its blocks.

        Its stages are those of this backbone, but for the stage "layer4", if it is cut
        at "layer4.1": its blocks up to there are the stages "layer4.0" and "layer4.1",
        and "layer4" is what remains, since the name of a stage stands for its end.

        Parameters
        ----------
        stage : int, str or None
            The name of a block, among `block_names`.

        Returns
        -------
        Backbone
            The divided backbone, which shares its modules with this one, or this one
            if `stage` is anything else than the name of a block inside a stage.

        Raises
        ------
        ValueError
            If the output of the block is no tensor, or the next block changes it in
            place.

        Examples
        --------
        >>> from sktransfer import load_backbone
        >>> backbone = load_backbone("resnet18", weights=None, random_state=0)
        >>> backbone.cut("layer4.0").stage_names
        ('stem', 'layer1', 'layer2', 'layer3', 'layer4.0', 'layer4', 'pool')
        """
        whole = stage_of(stage)
        blocks = self._names.blocks_of(whole) if whole in self._stages else []
        # The end of the last block is that of the stage.
        if stage not in blocks[:-1]:
            return self
        self._cuts[stage] = None
        if stage not in self._divided:
            self._divided[stage] = self._divide(whole, blocks, blocks.index(stage) + 1)
        return self._divided[stage].with_reader(self.reader)

    def finest(self):
        """Return the backbone divided at all blocks that it was cut after so far.

        In float32 it computes the same, to the bit, and can go on from more outputs.

        Returns
        -------
        Backbone
            The divided backbone.
        """
        backbone = self
        for block in list(self._cuts):
            backbone = backbone.cut(block)
        return backbone

    def _divide(self, whole, blocks, count) -> "Backbone":
        """Return the backbone in which the first blocks of a stage are stages."""
        stages = {}
        for name, stage in self._stages.items():
            if name == whole:
                stages.update(zip(blocks[:count], stage.blocks, strict=False))
                stage = stage.after(count)
            stages[name] = stage
        divided = self._with(_shapes={})
        divided._assemble(stages, Divided(self, blocks[count - 1]))
        divided._shapes_or_error()
        tuned = self.origin
        # A network that is tuned after this refers to the source alone, too.
        if isinstance(tuned, Tuned) and tuned.source.block_names == self.block_names:
            first = list(self._stages).index(whole)
            start = tuned.depth + (count if first < tuned.depth else 0)
            source = tuned.source.cut(blocks[count - 1])
            divided.origin = Tuned(source, start, divided.stages[start:])
        return divided

    def depth(self, stage, *, parameter="stage"):
        """Return the number of leading stages that a specification stands for.

        Parameters
        ----------
        stage : int, str or None
            A number of leading stages (negative numbers count from the end), the name
            of the last of these stages, or "all". None is equivalent to "all". A number
            counts whole stages, also where `cut` has divided some. A block has a depth
            once the backbone is cut there.
        parameter : str, default="stage"
            The name of the parameter in error messages.

        Returns
        -------
        int
            The depth, between 0 and the number of stages.

        Raises
        ------
        ValueError
            If the backbone has no such stage.
        """
        depth = self._names.depth(stage)
        if depth is None:
            raise ValueError(
                f"Invalid {parameter}={stage!r} of backbone {self.name!r}: expected "
                f"{self._names.accepted()}.{self._names.hint(stage)}"
            )
        return depth

    def freeze_depth(self, freeze):
        """Return the number of leading stages that ``freeze`` keeps unchanged.

        Parameters
        ----------
        freeze : int or str
            The freeze depth, as in `FineTuneClassifier`.

        Returns
        -------
        int
            The number of frozen stages. If only stages without parameters would be left
            to train, all stages are frozen.
        """
        depth = self.depth(freeze, parameter="freeze")
        trained = any(True for _ in self.stages[depth:].parameters())
        return depth if trained else len(self.stages)

    def at_size(self, side):
        """Return the same network for inputs of another size.

        Parameters
        ----------
        side : int or float
            The size of the input: for images the side length of the square in pixels,
            for texts the number of tokens, for sounds the number of seconds.

        Returns
        -------
        Backbone
            A backbone that shares its stages with this one.

        Raises
        ------
        ValueError
            If the architecture does not accept that size.
        """
        self.reader.check_size(side)
        resized = self.with_reader(self.reader.resized_to(side))
        try:
            resized._shapes_or_error()
        except Exception as error:
            raise size_not_taken(self, side, error) from error
        return resized

    def with_reader(self, reader):
        """Return the same network with another reader.

        Parameters
        ----------
        reader : Reader
            How samples become the inputs of the first stage.

        Returns
        -------
        Backbone
            A backbone that shares its stages with this one.
        """
        return self._with(reader=reader)

    def _with(self, **changes):
        other = object.__new__(Backbone)
        vars(other).update(vars(self), **changes)
        return other

    def inference_stages(self, device="cpu"):
        """Return the stages in the form that is fastest for inference on a device.

        Batch norms are folded into the convolutions, and the memory layout is channels
        last. The outputs are equal to those of `stages` up to rounding.

        Parameters
        ----------
        device : str, default="cpu"
            The device to run the stages on.

        Returns
        -------
        torch.nn.Sequential
            The stages, in evaluation mode. Each call returns the same object.
        """
        if device not in self._fastest:
            stages = [stage.fused(device) for stage in self._stages.values()]
            self._fastest[device] = nn.Sequential(*stages)
        return self._fastest[device]

    def tuned(self, depth, suffix):
        """Return a backbone in which the stages from `depth` on are replaced.

        The leading stages are shared with this backbone. A pickle contains the new
        stages, and refers to this backbone for the others.

        Parameters
        ----------
        depth : int
            The number of leading stages to keep.
        suffix : torch.nn.Sequential
            The stages that follow them, which are copied.

        Returns
        -------
        Backbone
            The tuned backbone, whose name says so.
        """
        stages = {**dict(list(self._stages.items())[:depth]), **_frozen(suffix)}
        # A network that is tuned repeatedly refers only to the first one.
        source, start = self, depth
        if isinstance(self.origin, Tuned):
            source, start = self.origin.source, min(depth, self.origin.depth)
        name = f"{source.name} (tuned)" if start < len(stages) else source.name
        tuned = self._with(name=name)
        tuned._assemble(stages, None)
        tuned.origin = Tuned(source, start, tuned.stages[start:])
        return tuned


def _joined(digests) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _frozen(stages: nn.Sequential) -> dict[str, Stage]:
    """Return copies of stages in float32, which nobody else holds."""
    stages = copy.deepcopy(stages).cpu().float().eval().requires_grad_(False)
    fold_weight_norms(stages)
    # `named_children` would list only one use of a module that is used twice.
    return {name_of(key): Stage(module) for key, module in stages._modules.items()}


def _restore(stages, reader, name):
    return Backbone(stages, reader, name=name)


def _rebuild_checked(rebuild, reader, digest):
    return checked(rebuild(), reader, digest)


def checked(backbone: Backbone, reader: Reader, digest: str) -> Backbone:
    """Return a rebuilt backbone with the saved reader, or refuse other weights."""
    if backbone.digest != digest:
        raise WeightsMismatchError(
            f"The weights of backbone {backbone.name!r} are not those that the saved "
            f"estimator was made with: their digest is {backbone.digest[:12]}, not "
            f"{digest[:12]}. Nothing was loaded. Restore the original weights (the "
            "file, or the version of torchvision), or fit again."
        )
    return backbone.with_reader(reader)
