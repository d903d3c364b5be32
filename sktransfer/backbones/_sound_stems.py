"""First stages of encoders of spectrograms, which take fewer frames than their own.

transformers refuses spectrograms of another length than that of training, 30 seconds
for Whisper, although only the positions depend on it. These stems add the positions of
as many frames as there are, and compute the same as the model for its own length.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WhisperStem(nn.Module):
    """Convolutions and positions of an encoder of Whisper."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.model.conv1, self.model.conv2):
            x = F.gelu(convolution(x))
        h = x.permute(0, 2, 1)
        h = h + self.model.embed_positions.weight[: h.shape[1]]
        return F.dropout(h, self.model.dropout, self.training)


class PatchStem(nn.Module):
    """Patches and positions of AST, an encoder of spectrograms as images."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        own, config = self.model.embeddings, self.model.config
        patches = own.patch_embeddings(x)
        rows, columns = own.get_shape(config)
        # Positions are those of two tokens, and of patches in rows of a frequency.
        tokens, grid = own.position_embeddings.tensor_split([2], dim=1)
        grid = grid.unflatten(1, (rows, columns))[:, :, : patches.shape[1] // rows]
        tokens = tokens + torch.cat([own.cls_token, own.distillation_token], dim=1)
        patches = patches + grid.flatten(1, 2)
        h = torch.cat([tokens.expand(len(x), -1, -1), patches], dim=1)
        return own.dropout(h)


SOUND_STEMS = {"WhisperEncoder": WhisperStem, "ASTModel": PatchStem}
