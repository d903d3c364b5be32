"""A way through a backbone: which stages, on what device, and the key of its values."""

import functools
import hashlib
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

import PIL
import torch

from sktransfer.backbones._backbone import Backbone
from sktransfer.embedding._cache import EmbeddingCache

_KEY_FORMAT = "sktransfer-1"
_DEFAULT_BATCH = {"cuda": 128, "mps": 64}
# On a CPU, more than 8 images of 224 pixels, or 32 small ones, would not stay in its
# caches. Of small ones fewer would be slower: each batch reorders the weights.
_CPU_BATCH, _CPU_PIXELS = 32, 8 * 224**2
# Of fewer, torch computes 1 x 1 convolutions another way, and slowly, where it has one
# thread, as each of our lanes does.
_POINTWISE_BATCH = 16
POOLINGS = ("avg", "max", "avgmax", "none")


@functools.cache
def process_cache() -> EmbeddingCache:
    """The store in memory that all estimators of the process share."""
    return EmbeddingCache()


def resolve_cache(cache) -> EmbeddingCache | None:
    """Turn a ``cache=`` parameter into a store, or None for no caching."""
    if cache is None or isinstance(cache, EmbeddingCache):
        return cache
    if isinstance(cache, str) and cache == "auto":
        return process_cache()
    if isinstance(cache, str | os.PathLike):
        return EmbeddingCache(cache)
    raise ValueError(
        f"cache={cache!r} is no cache. Accepted are 'auto', None, a folder's path and "
        "an EmbeddingCache."
    )


def resolve_device(device) -> str:
    """Turn a ``device=`` parameter into the name of a device that is there."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    accepted = "Accepted are 'auto', 'cpu', 'cuda', 'cuda:<number>' and 'mps'."
    if not _is_device(device):
        raise ValueError(f"device={device!r} is no device that torch knows. {accepted}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # Of some devices, torch goes on with a list of all that it has code for.
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
        raise ValueError(
            f"device={device!r} cannot be used on this machine: {reason}. {accepted}"
        ) from error
    return str(device)


def _is_device(device) -> bool:
    try:
        return isinstance(device, str | torch.device) and bool(torch.device(device))
    except RuntimeError:
        return False


def resolve_precision(precision: str, device: str) -> str:
    """Refuse bfloat16 where the hardware only emulates it, which is slower."""
    if precision == "bfloat16" and not _has_bfloat16(torch.device(device)):
        raise ValueError(
            f"precision='bfloat16' is slower than 'float32' on this {device}, which "
            "has no instructions for it (a CPU needs avx512_bf16 or amx, a GPU compute "
            "capability 8.0). Use precision='float32'."
        )
    return precision


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _roundings(kind: str) -> tuple:
    """What torch's own switches let float32 be computed in, such as TF32."""
    backends = torch.backends
    if not hasattr(backends.mkldnn, "matmul"):  # torch before 2.9
        return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    units = {
        "cuda": (backends.cudnn.conv, backends.cuda.matmul),
        "cpu": (backends.mkldnn.conv, backends.mkldnn.matmul),
    }
    # "none": nothing was set.
    return tuple(
        unit.fp32_precision.replace("none", "ieee") for unit in units.get(kind, ())
    )


@dataclass(frozen=True)
class Pass:
    """A way through the leading stages of a backbone: all that decides its values.

    Parameters
    ----------
    backbone : Backbone
    depth : int
        How many leading stages.
    pooling : str
        How feature maps and tokens become one row: "avg", "max", "avgmax" (both, one
        after the other), or "none", which leaves them as they are.
    batch_size : int or None
        Every batch has exactly this size, the last one is filled up: then a row does
        not depend on its neighbours, to the last bit. None chooses by the device.
    device, precision : str
    """

    backbone: Backbone
    depth: int
    pooling: str = "none"
    batch_size: int | None = None
    device: str = "cpu"
    precision: str = "float32"

    @property
    def size(self) -> int:
        if self.batch_size is not None:
            return self.batch_size
        few = _CPU_PIXELS // self.backbone.recipe.crop**2
        if self.backbone.has_pointwise and few >= _POINTWISE_BATCH // 4:
            few = max(few, _POINTWISE_BATCH)
        on_cpu = min(_CPU_BATCH, max(1, few))
        return _DEFAULT_BATCH.get(torch.device(self.device).type, on_cpu)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row of the result."""
        crop = self.backbone.recipe.crop
        shape = self.backbone.shapes[self.depth - 1] if self.depth else (3, crop, crop)
        if self.pooling == "none" or len(shape) == 1:
            return shape
        width = shape[-1] if len(shape) == 2 else shape[0]
        return (2 * width if self.pooling == "avgmax" else width,)

    def keys(self, digests: Iterable[bytes]) -> list[bytes]:
        """Keys of the results for images of these digests: hashes of the full cause."""
        # What is flat already is not pooled, and shares its entries.
        pooling = "none" if self.shape == self.at(self.depth).shape else self.pooling
        cause = (
            _KEY_FORMAT,
            torch.__version__,
            PIL.__version__,
            torch.device(self.device).type,
            _roundings(torch.device(self.device).type),
            self.precision,
            self.size,
            self.backbone.recipe,
            self.backbone.cause(self.depth),
            pooling,
        )
        head = hashlib.sha256(repr(cause).encode())
        return [_extended(head, image) for image in digests]

    def at(self, depth: int) -> "Pass":
        """Return the same way to another depth, unpooled there."""
        return replace(self, depth=depth, pooling="none")

    def whole(self) -> "Pass":
        """Return the same way through all stages, to an embedding."""
        return replace(self, depth=len(self.backbone.stages), pooling="avg")

    def read(self, source) -> torch.Tensor:
        """Turn an image's source into the square of pixels that the way starts from."""
        return self.backbone.recipe.read(source)

    def run_fitting(self, batch, start=0, keep=None) -> tuple["Pass", dict]:
        """Run one batch through the stages, in parts if the memory is too small.

        Parameters
        ----------
        batch : Tensor of at most `size` rows
            Squares of pixels or, from a later start, outputs of the stage before it.
        start : int
            How many stages the batch has behind it.
        keep : dict of int to str, optional
            Depths on the way whose outputs are wanted, too, and how they are pooled.

        Returns
        -------
        way : Pass
            This one, or the one of a smaller batch size that was used.
        found : dict of int to Tensor
            The rows at depth `self.depth` and at the depths of `keep`.
        """
        poolings, way = {**(keep or {}), self.depth: self.pooling}, self
        while True:
            try:
                parts = [
                    way._run(rows, start, poolings) for rows in batch.split(way.size)
                ]
                break
            except torch.OutOfMemoryError as error:
                # Tried again outside of this block: the traceback holds tensors.
                text = str(error).split("\n")[0]
            way = way._halved(text)
        if way is self:
            return way, parts[0]
        warnings.warn(
            f"Batches of {self.size} images do not fit in the memory of "
            f"{self.device!r}; {way.size} do. Set batch_size={way.size}.",
            UserWarning,
            stacklevel=2,
        )
        return way, {d: torch.cat([part[d] for part in parts]) for d in poolings}

    def _halved(self, reason: str) -> "Pass":
        if self.size == 1:
            raise RuntimeError(
                f"One image of {self.backbone.recipe.crop} pixels is more than the "
                f"memory of {self.device!r} holds ({reason}). Use a smaller "
                "image_size, another network, or device='cpu'."
            )
        return replace(self, batch_size=self.size // 2)

    def _run(self, batch, start: int, poolings: dict) -> dict:
        count = len(batch)
        if count < self.size:
            filler = batch[-1:].expand(self.size - count, *batch.shape[1:])
            batch = torch.cat([batch, filler])
        kind, low = torch.device(self.device).type, self.precision == "bfloat16"
        if kind == "cuda":
            # From pinned memory alone is a copy asynchronous.
            batch = batch.pin_memory()
        x = batch.to(self.device, non_blocking=True)
        stages = self.backbone.inference_stages(self.device)
        found = {}
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=low):
            if not start and self.depth:
                x = self.backbone.recipe.normalise(x)
            if x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            for depth in range(start, self.depth + 1):
                if depth > start:
                    # float32 between stages: a later start makes no difference.
                    x = stages[depth - 1](x).float()
                if depth in poolings:
                    # A copy: the next stage may compute in place.
                    found[depth] = pool(x, poolings[depth])[:count].clone()
        return {depth: rows.contiguous().cpu() for depth, rows in found.items()}


def _extended(head, image: bytes) -> bytes:
    key = head.copy()
    key.update(image)
    return key.digest()


def pool(x: torch.Tensor, pooling: str) -> torch.Tensor:
    """Make one row of feature maps (n, c, h, w) or tokens (n, t, c)."""
    if pooling == "none" or x.dim() == 2:
        return x
    dims = (1,) if x.dim() == 3 else (2, 3)
    parts = {"avg": [x.mean(dims)], "max": [x.amax(dims)]}
    parts["avgmax"] = parts["avg"] + parts["max"]
    return torch.cat(parts[pooling], dim=1)
