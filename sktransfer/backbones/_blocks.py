"""Stage: a step of a backbone, and the blocks after which it can be cut as well."""

import functools
from collections import OrderedDict

import torch
from torch import nn

from sktransfer.backbones._fingerprint import behaviour_digest
from sktransfer.backbones._fusion import fuse, has_hooks
from sktransfer.backbones._weights import module_digest


class Stage:
    """A stage, which never changes, with what needs to be computed only once."""

    def __init__(self, module: nn.Module):
        self.module = module
        self._fused = {}
        self._rests = {}

    @functools.cached_property
    def digest(self) -> str:
        return module_digest(self.module)

    @functools.cached_property
    def _cause(self) -> str:
        return self.digest + behaviour_digest(self.module)

    @property
    def causes(self) -> list[str]:
        """The causes of its blocks in a row, which say together what it computes."""
        return [block._cause for block in self.blocks]

    @functools.cached_property
    def blocks(self) -> "list[Stage]":
        """Its blocks in a row: only itself, if it cannot be divided."""
        blocks = [Stage(_only(self.module, paths)) for paths in self._paths]
        # What is shared by two blocks could not be frozen in one and trained in the
        # other.
        count = sum(_n_tensors(block.module) for block in blocks)
        return blocks if blocks and count == _n_tensors(self.module) else [self]

    @functools.cached_property
    def _paths(self) -> list[list[tuple]]:
        return _paths_of_blocks(self.module)

    def after(self, count: int) -> "Stage":
        """Return the stage without its first blocks, the same object at each call."""
        if count == len(self.blocks) - 1:
            return self.blocks[-1]
        if count not in self._rests:
            rest = Stage(_only(self.module, sum(self._paths[count:], [])))
            # The same objects, whose digests may be known.
            rest.blocks = self.blocks[count:]
            self._rests[count] = rest
        return self._rests[count]

    def fused(self, device) -> nn.Module:
        if device not in self._fused:
            self._fused[device] = fuse(self.module).to(
                device, memory_format=torch.channels_last
            )
        return self._fused[device]


def _paths_of_blocks(module: nn.Module) -> list[list[tuple]]:
    """Return the paths of the modules that make up each block; none if undivided.

    A block is a module with parameters and modules of its own in a row of modules.
    What stands before it in the row, such as downsampling, belongs to it. What follows
    the last block belongs to that one.
    """
    groups, last = [[]], []
    for path, step in _steps(module) if _is_row(module) else ():
        groups[-1].append(path)
        last.append(step)
        if _is_block(step):
            groups.append([])
            last = []
    *groups, rest = groups
    # Others, such as torchvision's Permute, may bring back a layout in which the stage
    # before its end is not.
    plain = all(type(step).__module__.startswith("torch.nn.") for step in last)
    if len(groups) < 2 or not plain:
        return []
    groups[-1] += rest
    return groups


def _steps(row: nn.Module) -> list[tuple[tuple, nn.Module]]:
    """Return the modules of a row with their paths."""
    steps = []
    for name, child in row._modules.items():
        inner = _steps(child) if _is_row(child) else []
        # A row inside it is taken apart only if it has blocks.
        if not any(_is_block(step) for _, step in inner):
            inner = [((), child)]
        steps += [((name, *path), step) for path, step in inner]
    return steps


def _is_row(module: nn.Module) -> bool:
    """Whether a module calls its children one after another, and does nothing else."""
    inherited = all(
        getattr(type(module), name, None) is getattr(nn.Sequential, name)
        for name in ("forward", "__call__", "__iter__")
    )
    return inherited and "forward" not in vars(module) and not has_hooks(module)


def _is_block(module: nn.Module) -> bool:
    return not _is_row(module) and bool(module._modules) and _n_tensors(module) > 0


def _n_tensors(module: nn.Module) -> int:
    return len({id(t) for t in (*module.parameters(), *module.buffers())})


def _only(row: nn.Module, paths: list[tuple]) -> nn.Sequential:
    """Return the part of a row that consists of the modules with these paths."""
    children = OrderedDict()
    for name, child in row._modules.items():
        inner = [path[1:] for path in paths if path[0] == name]
        if inner:
            children[name] = child if inner == [()] else _only(child, inner)
    # With the nesting and the names of the row, as its blocks would be fused otherwise
    # if they had other neighbours.
    return nn.Sequential(children)
