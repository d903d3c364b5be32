"""Names of stages and of their blocks, such as "layer4" and "layer4.1"."""

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


def why_one(stage_names: tuple[str, ...]) -> str:
    """Explain why a network has a single stage; empty if it was split."""
    if stage_names != ("all",):
        return ""
    return (
        " It has a single stage because this process does not know how to split it. "
        "Register a function with split_stages.register, in a module that worker "
        "processes import if you use n_jobs, or pass "
        "backbone=Backbone(split_stages(model))."
    )
