"""Prefix: the leading stages of a backbone, and all that their outputs depend on."""

import functools
import hashlib
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from sktransfer.backbones._backbone import Backbone
from sktransfer.embedding._cache import EmbeddingCache
from sktransfer.inputs._reader import (
    PADDING,
    input_shape,
    lengthened,
    pad_outputs,
    unpadded,
)

# A part of every key, to be changed when the meaning of stored values changes.
_KEY_FORMAT = "sktransfer-1"
_DEFAULT_BATCH = {"cuda": 128, "mps": 64}
# More than 8 inputs of 224 x 224, or 32 small ones, would not fit in the caches of a
# CPU. Smaller batches of small inputs would be slower, as each batch reorders weights.
_CPU_BATCH, _CPU_PLACES = 32, 8 * 224**2
# In smaller batches, torch computes 1 x 1 convolutions by a slower algorithm if it has
# a single thread, as each of our lanes does.
_POINTWISE_BATCH = 16
POOLINGS = ("avg", "max", "avgmax", "none")


@functools.cache
def process_cache() -> EmbeddingCache:
    """Return the cache in memory that all estimators of the process share."""
    return EmbeddingCache()


def resolve_cache(cache) -> EmbeddingCache | None:
    """Return the cache that a ``cache=`` parameter names, or None for no caching."""
    if cache is None or isinstance(cache, EmbeddingCache):
        return cache
    if isinstance(cache, str) and cache == "auto":
        return process_cache()
    if isinstance(cache, str | os.PathLike):
        return EmbeddingCache(cache)
    raise ValueError(
        f"Invalid cache={cache!r}: expected 'auto', None, a folder or an "
        "EmbeddingCache."
    )


def resolve_device(device) -> str:
    """Return the name of the available device that a ``device=`` parameter means."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    expected = (
        f"Invalid device={device!r}: expected 'auto', 'cpu', 'cuda', 'cuda:<number>' "
        "or 'mps'"
    )
    if not _is_device(device):
        raise ValueError(f"{expected}. It is not a device that torch knows.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # Only the first sentence, as a list of all operators may follow it.
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
        raise ValueError(
            f"{expected}. It cannot be used on this machine: {reason}."
        ) from error
    return str(device)


def _is_cpu(device: str) -> bool:
    return torch.device(device).type == "cpu"


def _is_device(device) -> bool:
    try:
        return isinstance(device, str | torch.device) and bool(torch.device(device))
    except RuntimeError:
        return False


def resolve_precision(precision: str, device: str) -> str:
    """Return the precision, or refuse bfloat16 if the hardware only emulates it."""
    if precision == "bfloat16" and not _has_bfloat16(torch.device(device)):
        raise ValueError(
            "Invalid precision='bfloat16': expected 'float32', as bfloat16 is slower "
            f"on this {device}, which has no instructions for it (a CPU needs "
            "avx512_bf16 or amx, a GPU compute capability 8.0)."
        )
    return precision


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    # The first of Apple's GPUs emulate it, and torch does not tell which one it is.
    return device.type != "mps" and torch.amp.is_autocast_available(device.type)


@functools.cache
def _without_gradients(device: str) -> type:
    """Return the fastest mode without gradients that a device has."""
    other = torch.zeros(2, device=device)
    try:
        with torch.inference_mode():
            # XLA has no views, in this mode, of tensors from outside, such as weights.
            other[:1]
    except RuntimeError:
        return torch.no_grad
    return torch.inference_mode


def _roundings(kind: str) -> tuple:
    """Return torch's settings of what float32 may be computed in, such as TF32."""
    backends = torch.backends
    if not hasattr(backends.mkldnn, "matmul"):  # torch before 2.9
        return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    units = {
        "cuda": (backends.cudnn.conv, backends.cuda.matmul),
        "cpu": (backends.mkldnn.conv, backends.mkldnn.matmul),
    }
    # "none" means that nothing was set, for which "ieee" is the default.
    return tuple(
        unit.fp32_precision.replace("none", "ieee") for unit in units.get(kind, ())
    )


@dataclass(frozen=True)
class Prefix:
    """The leading stages of a backbone, and how samples are run through them.

    Parameters
    ----------
    backbone : Backbone
        The backbone that the stages belong to.
    depth : int
        The number of leading stages.
    pooling : str
        How feature maps and tokens are reduced to one vector per sample: "avg", "max",
        "avgmax" (both, concatenated), or "none", which leaves them unchanged.
    batch_size : int or None
        The size of every batch. The last batch is padded to it, so that a row does not
        depend on its neighbours, to the last bit. If None, it is chosen according to
        the device.
    device, precision : str
        The device and the precision used for computation.
    """

    backbone: Backbone
    depth: int
    pooling: str = "none"
    batch_size: int | None = None
    device: str = "cpu"
    precision: str = "float32"

    @functools.cached_property
    def size(self) -> int:
        """The number of rows of a batch."""
        if self.alone:
            return 1
        if self.batch_size is not None:
            return self.batch_size
        few = _CPU_PLACES // math.prod(input_shape(self.backbone.reader)[1:])
        if self.backbone.has_pointwise and few >= _POINTWISE_BATCH // 4:
            few = max(few, _POINTWISE_BATCH)
        on_cpu = min(_CPU_BATCH, max(1, few))
        return _DEFAULT_BATCH.get(torch.device(self.device).type, on_cpu)

    @property
    def alone(self) -> bool:
        """Whether each row is computed by itself.

        On a CPU this takes less time than padding texts to the longest of a batch, or
        few sounds to its size, and a row has the same bits in any company.
        """
        return self.backbone.reader.one_by_one and _is_cpu(self.device)

    @property
    def varies(self) -> bool:
        """Whether rows differ in length."""
        return self.backbone.reader.padding is not None

    def place(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the size that rows of a size are padded to.

        A GPU computes batches of few different shapes, so that a row has the same bits
        in any company although most of them are padded.
        """
        reader = self.backbone.reader
        if not size or self.alone or reader.exact:
            return size
        length, *channels = size
        # A network may have no position beyond the length that its reader cuts at.
        longest = max(length, input_shape(reader)[0])
        return (min(1 << (length - 1).bit_length(), longest), *channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row of the output."""
        shape = (
            self.backbone.shapes[self.depth - 1]
            if self.depth
            else input_shape(self.backbone.reader)
        )
        if self.pooling == "none" or len(shape) == 1:
            return shape
        width = shape[-1] if len(shape) == 2 else shape[0]
        return (2 * width if self.pooling == "avgmax" else width,)

    def keys(self, digests: Iterable[bytes]) -> list[bytes]:
        """Return the cache keys of the outputs for samples with these digests.

        A key is a digest of everything that an output depends on.
        """
        # Outputs that are already flat are not pooled, and share their entries.
        pooling = "none" if self.shape == self.at(self.depth).shape else self.pooling
        cause = (
            _KEY_FORMAT,
            torch.__version__,
            torch.device(self.device).type,
            _roundings(torch.device(self.device).type),
            self.precision,
            self.size,
            self.backbone.reader.cause(),
            self.backbone.cause(self.depth, self.precision),
            pooling,
        )
        # The common part is hashed once, and a copy of it extended for each sample.
        head = hashlib.sha256(repr(cause).encode())
        return [_extended(head, digest) for digest in digests]

    def at(self, depth: int) -> "Prefix":
        """Return the same prefix with another depth and without pooling."""
        return replace(self, depth=depth, pooling="none")

    def within(self, backbone: Backbone) -> "Prefix":
        """Return the same prefix in its backbone when that is divided further."""
        # In bfloat16, outputs are rounded otherwise where the backbone is cut.
        if backbone is self.backbone or self.precision != "float32":
            return self
        last = self.backbone.stage_names[: self.depth][-1:]
        depth = backbone.depth(*last) if last else 0
        return replace(self, backbone=backbone, depth=depth)

    def whole(self) -> "Prefix":
        """Return the same prefix with all stages, whose output is an embedding."""
        return replace(self, depth=len(self.backbone.stages), pooling="avg")

    def run_within_memory(
        self, batch, start: int, wanted: Iterable[tuple[int, str]], kept=frozenset()
    ) -> tuple["Prefix", dict]:
        """Run one batch through the stages, in smaller parts if memory runs out.

        Parameters
        ----------
        batch : Tensor of at most `size` rows
            The inputs or, if `start` is not 0, the outputs of the stage before it.
        start : int
            The number of stages that the batch has already been run through.
        wanted : iterable of (depth, pooling)
            The outputs to return, from `start` to the depth of the prefix.
        kept : set of (depth, pooling)
            The outputs to be left on the device; the others are copied to the host.

        Returns
        -------
        prefix : Prefix
            This prefix, or the one with a smaller batch size that was used instead.
        found : dict of (depth, pooling) to Tensor
            The wanted outputs.
        """
        prefix, wanted = self, list(wanted)
        while True:
            try:
                parts = [
                    prefix._run(rows, start, wanted, kept)
                    for rows in batch.split(prefix.size)
                ]
                break
            except torch.OutOfMemoryError as error:
                # The next attempt is made after this block, since the traceback of the
                # error keeps tensors in memory within it.
                text = str(error).split("\n")[0]
            prefix = prefix._halved(text)
        if prefix is self:
            return prefix, parts[0]
        warnings.warn(
            f"Batches of {self.size} {self.backbone.reader.kind}s do not fit in the "
            f"memory of {self.device!r}; {prefix.size} do. Set "
            f"batch_size={prefix.size}.",
            UserWarning,
            stacklevel=2,
        )
        return prefix, {one: torch.cat([part[one] for part in parts]) for one in wanted}

    def _halved(self, reason: str) -> "Prefix":
        if self.size == 1:
            reader = self.backbone.reader
            raise RuntimeError(
                f"One {reader.kind} of {reader} does not fit in the memory of "
                f"{self.device!r} ({reason}). Use a smaller "
                f"{reader.size_parameter}, another network, or device='cpu'."
            )
        return replace(self, batch_size=self.size // 2)

    def _run(self, batch, start: int, wanted: list, kept) -> dict:
        count = len(batch)
        if count < self.size:
            filler = batch[-1:].expand(self.size - count, *batch.shape[1:])
            batch = torch.cat([batch, filler])
        kind, low = torch.device(self.device).type, self.precision == "bfloat16"
        if kind == "cuda":
            # Only copies from pinned memory are asynchronous.
            batch = batch.pin_memory()
        x = batch.to(self.device, non_blocking=True)
        stages = self.backbone.inference_stages(self.device)
        found = {}
        mode = _without_gradients(self.device)
        with mode(), torch.autocast(kind, torch.bfloat16, enabled=low):
            if not start and self.depth:
                x = self.backbone.reader.normalise(x)
            if x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            for depth in range(start, self.depth + 1):
                if depth > start:
                    # Outputs are stored as float32, so the next stage gets float32
                    # here, too: starting from a stored output makes no difference.
                    x = stages[depth - 1](x).float()
                for one, pooling in wanted:
                    if one == depth:
                        # Copied, as the next stage may compute in place.
                        rows = pool(x, pooling, self.varies)[:count]
                        found[one, pooling] = rows.clone()
        return {
            one: rows.contiguous() if one in kept else rows.contiguous().cpu()
            for one, rows in found.items()
        }


def stacked(rows: list, base: Prefix, depth: int) -> torch.Tensor:
    """Stack inputs, or outputs of a stage, padded to the size of their batch.

    The outputs are tensors, or arrays as a cache returns them.
    """
    reader = base.backbone.reader
    if isinstance(rows[0], np.ndarray):
        if not base.varies or rows[0].ndim == 1:
            return torch.from_numpy(np.stack(rows))
        # Copied, as what a cache returns cannot be written to.
        rows = [torch.from_numpy(row.copy()) for row in rows]
    if not base.varies or (depth and rows[0].ndim == 1):
        return torch.stack(rows) if depth else reader.stack(rows)
    batch = pad_outputs(rows) if depth else reader.stack(rows)
    length, *_ = base.place(tuple(batch.shape[1:]))
    return lengthened(batch, length, PADDING if depth else reader.padding)


def values_of(outputs: torch.Tensor, prefix: Prefix) -> np.ndarray | list[np.ndarray]:
    """Return rows as arrays, without the padding of their batch."""
    if prefix.alone or not prefix.varies or outputs.ndim != 3:
        return outputs.numpy()
    # Copied, or a row would keep its whole batch in memory.
    return [row.numpy().copy() for row in unpadded(outputs, PADDING)]


def _extended(head, digest: bytes) -> bytes:
    key = head.copy()
    key.update(digest)
    return key.digest()


def pool(x: torch.Tensor, pooling: str, padded: bool = False) -> torch.Tensor:
    """Reduce feature maps (n, c, h, w) or tokens (n, t, c) to one vector each.

    Tokens of NaN are left out if they are `padded`.
    """
    if pooling == "none" or x.dim() == 2:
        return x
    dims = (1,) if x.dim() == 3 else (2, 3)
    mean, least = x.mean, x
    if padded and x.dim() == 3:
        mean, least = x.nanmean, x.masked_fill(x.isnan(), -math.inf)
    parts = {"avg": [mean(dims)], "max": [least.amax(dims)]}
    parts["avgmax"] = parts["avg"] + parts["max"]
    return torch.cat(parts[pooling], dim=1)
