"""Names of stages and of their blocks, such as "layer4" and "layer4.1"."""

import numbers
from collections.abc import Iterable
from difflib import get_close_matches

# In place of the dot of a block, which torch allows in no name of a module.
_DOT = "\u2024"


def key_of(name: str) -> str:
    """Return the name that the module of a stage or block has in its parent."""
    return name.replace(".", _DOT)


def name_of(key: str) -> str:
    """Return the name of a stage or block from that of its module."""
    return key.replace(_DOT, ".")


def stage_of(block) -> str | None:
    """Return the stage that a block is of by its name, None for anything else."""
    return block.rpartition(".")[0] or None if isinstance(block, str) else None


def did_you_mean(given: str, names: Iterable[str], n=3, cutoff=0.6) -> str:
    """Ask whether one of the names was meant; empty if none of them is similar.

    Case is not distinguished.
    """
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(given.lower(), by_lower, n, cutoff)
    return asked([by_lower[name] for name in close])


def asked(meant: list[str]) -> str:
    """Ask whether one of these names was meant; empty without any."""
    return f" Did you mean {' or '.join(map(repr, meant))}?" if meant else ""


class StageNames:
    """The names of stages and blocks, and the depths that they stand for.

    Parameters
    ----------
    stages : dict of str to Stage
        The stages in the order in which they run.
    """

    def __init__(self, stages: dict):
        self._stages = stages
        self._names = list(stages)
        # A number counts whole stages. Those before "layer4" in "layer4.0", "layer4.1",
        # "layer4" are parts of it.
        ends = (i for i, name in enumerate(stages, start=1) if "." not in name)
        self._depths = [0, *ends]

    def blocks(self) -> tuple[str, ...]:
        """Return the names of all blocks."""
        return tuple(name for stage in self._names for name in self.blocks_of(stage))

    def blocks_of(self, stage: str) -> list[str]:
        """Return the names of the blocks of a stage, none if it cannot be divided."""
        if "." in stage:
            return [stage]
        blocks = self._stages[stage].blocks
        # What a division has left of a stage keeps its name.
        first = sum(name.startswith(f"{stage}.") for name in self._names)
        names = [f"{stage}.{first + number}" for number in range(len(blocks))]
        return names if len(blocks) > 1 or first else []

    def depth(self, stage) -> int | None:
        """Return the number of stages up to a name or number, None if it is unknown."""
        if stage is None or isinstance(stage, str):
            return self._depth_of_name(stage)
        if isinstance(stage, numbers.Integral) and not isinstance(stage, bool):
            count = len(self._depths) - 1
            number = int(stage) + (count if stage < 0 else 0)
            if 0 <= number <= count:
                return self._depths[number]
        return None

    def _depth_of_name(self, stage: str | None) -> int | None:
        if stage in (None, "all"):
            return len(self._names)
        if stage not in self._names:
            # The end of the last block is that of the stage.
            whole = stage_of(stage)
            if whole not in self._names or stage not in self.blocks_of(whole)[-1:]:
                return None
            stage = whole
        return self._names.index(stage) + 1

    def accepted(self) -> str:
        """Say which names and numbers stand for a depth."""
        count = len(self._depths) - 1
        return (
            f"one of the stages {self._names}, a number of leading stages from "
            f"{-count} to {count}, or 'all'"
        )

    def hint(self, stage) -> str:
        """Say what an unknown name may mean, and why there may be few stages."""
        whole, hint = stage_of(stage), ""
        if whole in self._names:
            blocks = self.blocks_of(whole)
            found = f"the blocks {blocks}" if blocks else "no blocks to be cut after"
            hint = f" Stage {whole!r} has {found}."
        elif isinstance(stage, str):
            hint = did_you_mean(stage, (*self._names, "all"), n=1)
        return hint + _why_one(self._names)


def _why_one(stage_names: list[str]) -> str:
    """Explain why a network has a single stage; empty if it was split."""
    if stage_names != ["all"]:
        return ""
    return (
        " It has a single stage because this process does not know how to split it. "
        "Register a function with split_stages.register, in a module that worker "
        "processes import if you use n_jobs, or pass "
        "backbone=Backbone(split_stages(model))."
    )
