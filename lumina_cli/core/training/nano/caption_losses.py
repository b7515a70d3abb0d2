"""Losses of the captioner: dense predictions of the vision encoder, and next tokens of the captions.

B images or rows, N image tokens, C width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lumina_cli.core.nano.captioner import GRID, VISION
from lumina_cli.core.nano.scene import BACKDROPS, KINDS, LIGHTS, TINTS, Scene
from lumina_cli.core.training.nano.detector import targets


class DenseHead(nn.Module):
    """Predicts the contents of each image token from its features, an auxiliary task of the vision encoder.

    The predictions are, per token, the heat of each kind, tint, box, column and row; per image, backdrop and
    light. Column and row are required because the attention bias of LeViT depends on distances only: without
    this task, left and right have the same features.
    """

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(VISION)
        self.there = nn.Linear(VISION, len(KINDS) + len(TINTS) + 4)
        self.around = nn.Linear(VISION, len(BACKDROPS) + len(LIGHTS))
        self.where = nn.Linear(VISION, 2 * GRID)
        nn.init.constant_(self.there.bias[: len(KINDS)], -4.0)

    def loss(self, features: Tensor, scenes: Sequence[Scene], boxes: np.ndarray) -> Tensor:
        """Return the loss of features (B, N, C) of images of scenes with boxes (B, MOST, 4) in pixels."""
        heat, cells, tints, offsets = targets(
            scenes, boxes / 2, GRID
        )  # the detector's stride is half of ours
        features = self.norm(features)
        maps = self.there(features).float().transpose(1, 2).unflatten(2, (GRID, GRID))
        logits, tint, box = maps.split([len(KINDS), len(TINTS), 4], dim=1)
        p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
        focal = torch.where(heat == 1, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log())
        i, row, column = cells.T
        columns, rows = self.where(features).float().split(GRID, dim=2)
        places = torch.arange(GRID * GRID).repeat(len(features))
        ground, light = self.around(features.mean(1)).float().split([len(BACKDROPS), len(LIGHTS)], dim=1)
        return (
            -focal.sum() / len(cells)
            + cross_entropy(tint[i, :, row, column], tints)
            + 0.3 * (box[i, :, row, column] - offsets).abs().mean()
            + cross_entropy(columns.flatten(0, 1), places % GRID)
            + cross_entropy(rows.flatten(0, 1), places // GRID)
            + 0.3 * cross_entropy(ground, torch.tensor([BACKDROPS.index(s.backdrop) for s in scenes]))
            + 0.3 * cross_entropy(light, torch.tensor([LIGHTS.index(s.light) for s in scenes]))
        )


def words_loss(
    model: nn.Module, batch: dict[str, Tensor], features: Sequence[Tensor] | None = None
) -> Tensor:
    """Return the mean next-token loss of the caption tokens of a batch of `CaptionWriter`.

    `features` are the projected features (N, C) of the image of each row; None: rows without images.
    """
    tokens, spoken = batch["tokens"], batch["spoken"]
    embedded = model.get_input_embeddings()(tokens)
    if features is not None:
        images = torch.stack(list(features)).to(embedded.dtype)
        # Each row begins with <bos> and the placeholders of its image tokens.
        embedded = torch.cat([embedded[:, :1], images, embedded[:, 1 + images.shape[1] :]], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=batch["mask"],
        position_ids=batch["places"],
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][spoken[:, 1:]])
    return cross_entropy(logits.float(), tokens[:, 1:][spoken[:, 1:]])
