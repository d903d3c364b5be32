"""How a backbone that was made from another one is made again."""

from dataclasses import dataclass
from typing import Any

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
