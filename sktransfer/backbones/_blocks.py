"""Stage: a step of a backbone, with what needs to be computed only once."""

import functools

import torch
from torch import nn

from sktransfer.backbones._fingerprint import behaviour_digest
from sktransfer.backbones._fusion import fuse
from sktransfer.backbones._weights import module_digest


class Stage:
    """A stage, which never changes, with what needs to be computed only once."""

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
