"""How a backbone that was made from another one is made again."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Divided:
    """How a divided backbone is rebuilt: its source, and the block it is cut after.

    The source is a backbone.
    """

    source: Any
    block: str

    def __call__(self):
        return self.source.cut(self.block)


@dataclass(frozen=True)
class Tuned:
    """How a tuned backbone is rebuilt: its source, and the stages that differ."""

    source: Any
    depth: int
    suffix: nn.Sequential

    def __call__(self):
        return self.source.tuned(self.depth, self.suffix)

    def changed(self) -> dict[str, torch.Tensor]:
        """Return the tensors that differ from those of the source, by their names.

        Raises
        ------
        ValueError
            If the stages have another architecture than those of the source.
        """
        before = self.source.stages[self.depth :]
        if repr(before) != repr(self.suffix):
            raise ValueError(
                f"The stages of backbone {self.source.name!r} from "
                f"{self.source.stage_names[self.depth]!r} on were replaced by another "
                "architecture, of which no tensor can be compared."
            )
        known = before.state_dict()
        return {
            name: tensor
            for name, tensor in self.suffix.state_dict().items()
            if not _same_bits(tensor, known[name])
        }


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    # Zeros of both signs are equal numbers, and NaN differs from itself.
    one, other = (t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(one, other)
