"""Any transformer encoder as stages: stem, layer1 ... layerN, pool.

What passes from one stage to the next is one float tensor (n, length, channels) whose
padding is NaN. Which tokens are padding can thus be seen in the tensor itself, wherever
it was cut, stored or stacked.
"""

import contextlib
import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sktransfer.backbones._encoder_inputs import for_frames, frames, model_inputs
from sktransfer.backbones._encoder_trace import (
    CannotSplit,
    Sources,
    Trace,
    hidden,
    tail_of,
    trace,
)
from sktransfer.inputs._callers import level_of_the_caller
from sktransfer.inputs._reader import PADDING

# The largest difference that is rounding, in units of the precision: between stages and
# whole, where another kernel is used without a mask, and between a text that is alone
# and one that is padded, where sums run over another number of terms.
_ROUNDING, _OF_PADDING = 8, 500


def split_encoder(model: nn.Module, form: str, examples: list, pooling: str):
    """Split an encoder, or leave it in one stage where that would not be the same.

    Parameters
    ----------
    model : PreTrainedModel
        An encoder without a head.
    form : {"tokens", "wave", "fixed"}
        What its inputs are: token ids padded with -1, waveforms padded with NaN, or
        tensors of one shape, which have no padding.
    examples : list of Tensor
        Batches of inputs, on which stages and whole are compared. The first one is
        traced; it should have padding.
    pooling : {"mean", "first", "last"}
        How the tokens become an embedding.

    Returns
    -------
    torch.nn.Sequential

    Warns
    -----
    UserWarning
        If the model cannot be split and is one stage, "all".
    """
    model = _with_same_tensors(model)
    _without_pretraining(model)
    whole = Whole(model, form, pooling)
    # Models of masks or of random parts may report and draw numbers of their own.
    with warnings.catch_warnings(), torch.random.fork_rng([]), torch.no_grad():
        warnings.simplefilter("ignore")
        expected = _expected(whole, examples)
        try:
            if form == "tokens":
                _check_padding(whole, examples[0], expected[0])
            # The model loses its layers, and is needed as it is if they turn out wrong.
            stages = _split(_with_same_tensors(model), form, examples[0], pooling)
            _check(stages, examples, expected)
            return stages
        except Exception as error:
            # Models do anything around their layers, and fail in any way without them.
            reason = _reason(error)
    warnings.warn(
        f"{type(model).__name__} is one stage, 'all': only freeze=0 and freeze='all' "
        f"make sense. It cannot be split, as {reason}.",
        UserWarning,
        stacklevel=level_of_the_caller(),
    )
    return nn.Sequential(OrderedDict(all=whole))


def _expected(whole: "Whole", examples: list) -> list[tuple]:
    """Return the states that a model computes, or refuse one that is no backbone."""
    name = type(whole.model).__name__
    try:
        expected = [whole.state(x) for x in examples]
        again, _ = whole.state(examples[0])
    except Exception as error:
        # Many models take more than one sample of one kind.
        raise ValueError(
            f"{name} cannot be a backbone: it cannot be run on {examples[0].dtype} "
            f"inputs of shape {tuple(examples[0].shape)} alone "
            f"({type(error).__name__}: {_first_line(error)}). Nothing was loaded."
        ) from error
    if again.dim() < 3:
        raise ValueError(
            f"{name} cannot be a backbone: expected the states of tokens, but it "
            f"returns a tensor of shape {tuple(again.shape)}. Nothing was loaded."
        )
    if not again.isfinite().all():
        raise ValueError(
            f"{name} cannot be a backbone: it computes NaN or infinity of ordinary "
            "inputs, so that its weights must be damaged. Nothing was loaded."
        )
    if not torch.equal(again, expected[0][0]):
        raise ValueError(
            f"{name} cannot be a backbone: it computes another result each time that "
            "it is given the same input. Nothing was loaded."
        )
    return expected


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _reason(error: Exception) -> str:
    text = _first_line(error)
    if isinstance(error, CannotSplit):
        return text
    return f"it does not run without its layers ({type(error).__name__}: {text})"


def _with_same_tensors(model: nn.Module) -> nn.Module:
    """Copy a model, but not its tensors, in evaluation mode."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared).eval()


def _without_pretraining(model: nn.Module) -> None:
    """Remove what only pretraining and generation use of an encoder."""
    for module in model.modules():
        for name in ("mask_token", "masked_spec_embed"):
            # Many files lack them.
            if module._parameters.get(name) is not None:
                module._parameters[name] = None
    # A cache would be of no use. SpecAugment takes the generator of NumPy, and fails
    # for short sounds.
    model.config.use_cache = model.config.apply_spec_augment = False
    # Where it came from decides nothing of what it computes, and is part of digests.
    vars(model.config).update(_name_or_path="", architectures=None, dtype=None)
    for module in model.modules():
        for name in ("name_or_path", "_use_kernels"):
            vars(module).pop(name, None)
    if hasattr(model, "set_attention_type"):
        # BigBird would choose by the longest text so far.
        model.set_attention_type("original_full")


def _split(model: nn.Module, form: str, x: Tensor, pooling: str) -> nn.Sequential:
    inputs, there = model_inputs(model, form, x)
    with _narrow_windows(model.config):
        run = trace(model, inputs)
        tail, norm = tail_of(run), _norm_after(run, pooling)
        if there is not None and form == "wave":
            there = frames(model, there, run.last.shape[1])
        sources = Sources(model.config, run, there, x if form == "fixed" else None)
        layers = [
            _layer(*of, sources) for of in zip(run.layers, run.calls, strict=True)
        ]
    names = [f"layer{number}" for number in range(1, len(layers) + 1)]
    stages = OrderedDict(zip(names, layers, strict=True))
    stages["pool"] = Pool(pooling, tail, norm, padded=there is not None)
    _remove_layers(model, run, inputs, [*tail, norm])
    stages["stem"] = Stem(model, form)
    stages.move_to_end("stem", last=False)
    return nn.Sequential(stages)


def _layer(layer: nn.Module, call: dict, sources: Sources) -> "Layer":
    state, *extras = call
    sources.shape = call[state].shape[1:]
    extras = {name: sources.of(call[name]) for name in extras}
    return Layer(layer, extras, padded=sources.there is not None)


@contextlib.contextmanager
def _narrow_windows(config) -> Iterator[None]:
    """Make the windows of attention narrow enough to be seen in short texts.

    The mask of a window of 4,096 tokens is else that of a layer without one.
    """
    windows = {}
    for name in ("sliding_window", "local_attention", "attention_chunk_size"):
        if type(getattr(config, name, None)) is int:
            windows[name] = getattr(config, name)
    try:
        for name in windows:
            with contextlib.suppress(AttributeError):
                setattr(config, name, 4)
        yield
    finally:
        for name, window in windows.items():
            with contextlib.suppress(AttributeError):
                setattr(config, name, window)


def _norm_after(run: Trace, pooling: str) -> nn.Module | None:
    """Return the norm that the model itself applies to the pooled tokens, or None."""
    pooled = pool_tokens(run.output, None, pooling)
    for given, module, _ in run.after:
        same = given.shape == pooled.shape and torch.allclose(given, pooled)
        if same and isinstance(module, nn.LayerNorm):
            return module
    return None


def _remove_layers(model: nn.Module, run: Trace, inputs: dict, kept: list) -> None:
    """Leave of a model what runs before its layers."""
    owner, _, name = run.path.rpartition(".")
    model.get_submodule(owner)._modules[name] = nn.ModuleList()
    # Nothing uses what poolers and heads return. They are taken out as if the model
    # had been made without them, so that it has one digest, if it runs then.
    after = [module for _, module, _ in run.after]
    unused = [m for m in after if not any(m is k for k in (*run.before, *kept))]
    places = _places(model, unused)
    for owner, name in (*_places(model, kept), *places):
        owner._modules[name] = _Through()
    _take_out(model, places, inputs)


def _take_out(model: nn.Module, places: list, inputs: dict) -> None:
    """Set modules to None, where a model runs without them."""
    for owner, name in places:
        through = owner._modules.pop(name)
        setattr(owner, name, None)
        try:
            model(**inputs)
        except Exception:
            delattr(owner, name)
            owner._modules[name] = through


def _places(model: nn.Module, wanted: list) -> list[tuple[nn.Module, str]]:
    """Return where modules are: their owners, and their names there."""
    return [
        (owner, name)
        for owner in model.modules()
        for name, child in owner._modules.items()
        if any(child is one for one in wanted)
    ]


def _check(stages: nn.Sequential, examples: list, expected: list) -> None:
    """Raise CannotSplit unless stages compute what the model does."""
    parameters = [id(p) for stage in stages for p in {*stage.parameters()}]
    if len(parameters) != len({*parameters}):
        raise CannotSplit("its layers share parameters")
    for x, (state, there) in zip(examples, expected, strict=True):
        for stage in stages[:-1]:
            x = _unchanged(stage, x)
        h = x if there is None else _opened(x)[0]
        _compare(stages[-1].tail(h), state, there)


def _check_padding(whole, x: Tensor, expected: tuple) -> None:
    """Raise CannotSplit if a text has another result where it is padded."""
    state, there = expected
    for row, length in enumerate(there.sum(1).tolist()):
        alone, _ = whole.state(x[row : row + 1, :length])
        _compare(alone, state[row : row + 1, :length], None, _OF_PADDING)


def _unchanged(stage: nn.Module, x: Tensor) -> Tensor:
    """Run a stage, which must not change what it is given."""
    before = x.clone()
    output = stage(x)
    if not torch.equal(before.nan_to_num(), x.nan_to_num()):
        raise CannotSplit("its layers change what they are given")
    return output


def _compare(
    ours: Tensor, state: Tensor, there: Tensor | None, rounding: int = _ROUNDING
) -> None:
    if there is not None:
        ours, state = ours[there], state[there]
    if ours.shape != state.shape:
        raise CannotSplit(f"its layers give {tuple(ours.shape)}")
    gap, scale = (ours - state).abs().max().item(), state.abs().max().item()
    if not gap <= rounding * torch.finfo(state.dtype).eps * scale:
        raise CannotSplit(f"its layers alone differ by {gap / scale:.0e}")


def _opened(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a state with zeros as padding, and which of its tokens are none."""
    there = ~x[..., 0].isnan()
    return x.masked_fill(~there[..., None], 0.0), there


def _closed(h: Tensor, there: Tensor) -> Tensor:
    return h.masked_fill(~there[..., None], PADDING)


class _Through(nn.Module):
    """In the place of a module that runs after the layers, or not at all."""

    def forward(self, x, *args, **kwargs):
        return x


class Stem(nn.Module):
    """What a model computes before its layers: the model with an empty list of them."""

    def __init__(self, model: nn.Module, form: str):
        super().__init__()
        self.model, self.form = model, form

    def forward(self, x: Tensor) -> Tensor:
        model = for_frames(self.model, x) if self.form == "fixed" else self.model
        inputs, there = model_inputs(model, self.form, x)
        h = hidden(model(**inputs))
        if there is None:
            return h
        if self.form == "wave":
            there = frames(self.model, there, h.shape[1])
        return _closed(h, there)


class Layer(nn.Module):
    """One layer, which is given again what the model gives it beside the state."""

    def __init__(self, layer: nn.Module, extras: dict, padded: bool):
        super().__init__()
        self.layer, self.extras, self.padded = layer, nn.ModuleDict(extras), padded

    def forward(self, x: Tensor) -> Tensor:
        h, there = _opened(x) if self.padded else (x, None)
        extras = {name: source(h, there) for name, source in self.extras.items()}
        h = hidden(self.layer(h, **extras))
        return _closed(h, there) if self.padded else h


class Pool(nn.Module):
    """From the tokens after the last layer to the embedding."""

    def __init__(self, pooling: str, tail: list, norm: nn.Module | None, padded: bool):
        super().__init__()
        self.pooling, self.padded = pooling, padded
        self.tail, self.norm = nn.Sequential(*tail), norm or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h, there = _opened(x) if self.padded else (x, None)
        return self.norm(pool_tokens(self.tail(h), there, self.pooling))


class Whole(nn.Module):
    """A model that cannot be split, and the pooling of its tokens."""

    def __init__(self, model: nn.Module, form: str, pooling: str):
        super().__init__()
        self.model, self.form, self.pooling = model, form, pooling

    def state(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the last state of the tokens, and which of them are no padding."""
        inputs, there = model_inputs(self.model, self.form, x)
        h = hidden(self.model(**inputs))
        if self.form == "wave":
            there = frames(self.model, there, h.shape[1])
        return h, there

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "fixed":
            return pool_tokens(*self.state(x), self.pooling)
        # Each length by itself, as some models do not ignore padding.
        lengths = (x >= 0).sum(1) if self.form == "tokens" else (~x.isnan()).sum(1)
        rows = torch.empty(0)
        for length in lengths.unique().tolist():
            chosen = lengths == length
            inputs, _ = model_inputs(self.model, self.form, x[chosen, :length])
            # All are there, and some models warn of masks that say so.
            inputs.pop("attention_mask", None)
            h = hidden(self.model(**inputs))
            pooled = pool_tokens(h, None, self.pooling)
            if not len(rows):
                rows = pooled.new_empty(len(x), pooled.shape[1])
            rows[chosen] = pooled
        return rows


def pool_tokens(h: Tensor, there: Tensor | None, pooling: str) -> Tensor:
    """Reduce tokens (n, length, channels) or maps (n, channels, ...) to one vector."""
    if h.dim() > 3:
        return h.flatten(2).mean(2)
    if there is None:
        there = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
    if pooling == "first":
        return h[:, 0]
    if pooling == "last":
        return h[torch.arange(len(h), device=h.device), there.sum(1) - 1]
    weight = there[..., None].to(h.dtype)
    return (h * weight).sum(1) / weight.sum(1)
