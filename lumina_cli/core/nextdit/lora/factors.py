"""The factors of a LoRA, per linear layer, and how those of queries, keys and values are fused and split.

Factors belong to one of our linear layers, or to the queries, keys or values within `attention.qkv`:
diffusers' files have these three, ComfyUI's and kohya's the fused layer. Three factors with one `down` are
fused at the same rank, others at the sum of the ranks, as a block matrix. The product up @ down stays exactly
the same, and fusing then splitting returns the same matrices; only if the three have different scales, these
are multiplied in.

r rank, i inputs, o outputs of a layer.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nextdit.dialects import QKV

QKV_PARTS = ("q", "k", "v")
Site = tuple[str, str | None]  # (layer, "q", "k" or "v" within a fused layer)


@dataclass(frozen=True)
class LoraFactors:
    """The change of one layer's weight: alpha / r * up @ down (arXiv 2106.09685), with a magnitude for DoRA.

    down        (r, i)
    up          (o, r)
    alpha       None means r
    magnitude   DoRA (arXiv 2402.09353): (o, 1), the norm of each row of the changed weight, or (1, i), of
                each column; None: not a DoRA
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """r."""
        return len(self.down)

    @property
    def own_alpha(self) -> float:
        """alpha, or r if it is None."""
        return self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.own_alpha / self.rank


Pairs = dict[Site, LoraFactors]


def fuse(pairs: Pairs) -> Pairs:
    """Return the same LoRA with fused queries, keys and values, as ComfyUI and kohya store it.

    Raises:
        LuminaError: if a DoRA does not have the row magnitudes of all three, or the widths are unknown.
    """
    whole, groups = {}, {}
    for (name, part), pair in pairs.items():
        if part is None:
            whole[name, None] = pair
        else:
            whole[name, None] = None  # keeps the order
            groups.setdefault(name, {})[part] = pair
    widths = _widths(groups)
    return {site: pair or _fuse(site[0], groups[site[0]], widths) for site, pair in whole.items()}


def _widths(groups: dict[str, dict[str, LoraFactors]]) -> dict[str, int]:
    """Return the outputs of queries, keys and values, as far as known; keys and values have equally many."""
    widths = {part: len(pair.up) for group in groups.values() for part, pair in group.items()}
    for part, other in (("k", "v"), ("v", "k")):
        if other in widths:
            widths.setdefault(part, widths[other])
    if groups:
        widths.setdefault("q", next(iter(next(iter(groups.values())).values())).down.shape[1])
    return widths


def _fuse(name: str, group: dict[str, LoraFactors], widths: dict[str, int]) -> LoraFactors:
    if len(widths) < 3:
        raise LuminaError(
            f"{name}: cannot fuse q, k and v: the LoRA contains only q, so the width of k and v is unknown"
        )
    magnitudes = [pair.magnitude for pair in group.values() if pair.magnitude is not None]
    if magnitudes and (len(magnitudes) < 3 or any(size.shape[1] != 1 for size in magnitudes)):
        raise LuminaError(
            f"{name}: cannot fuse q, k and v: a DoRA needs a magnitude per output row of all three"
        )
    first = next(iter(group.values()))
    same_scale = all(pair.scale == first.scale for pair in group.values())
    shared = all(torch.equal(pair.down, first.down) for pair in group.values()) and same_scale
    # different scales are multiplied into the matrices, since the fused layer has one alpha
    ups = {part: pair.up if same_scale else pair.up.float() * pair.scale for part, pair in group.items()}
    ranks = {part: pair.rank for part, pair in group.items()}
    rank = first.rank if shared else sum(ranks.values())
    up = next(iter(ups.values())).new_zeros(sum(widths.values()), rank)
    row = column = 0
    for part in QKV_PARTS:
        if part in ups:
            start = 0 if shared else column
            up[row : row + widths[part], start : start + ranks[part]] = ups[part]
            column += ranks[part]
        row += widths[part]
    down = first.down if shared else torch.cat([group[part].down for part in QKV_PARTS if part in group])
    # the sum of the alphas over the sum of the ranks is the common scale again
    alphas = [first.own_alpha] if shared else [pair.own_alpha for pair in group.values()]
    alpha = sum(alphas) if same_scale else rank
    ordered = [group[part].magnitude for part in QKV_PARTS] if magnitudes else None
    return LoraFactors(down, up, None if alpha == rank else alpha, torch.cat(ordered) if ordered else None)


def split(pairs: Pairs) -> Pairs:
    """Return the same LoRA with separate queries, keys and values, as diffusers stores it.

    Factors that `fuse` built as a block matrix are separated again; others share their `down`.

    Raises:
        LuminaError: if the shape is not that of a fused layer, or a DoRA has column magnitudes.
    """
    apart = {}
    for (name, part), pair in pairs.items():
        if part is None and name.endswith(QKV):
            apart |= {(name, own): piece for own, piece in _split(name, pair).items()}
        else:
            apart[name, part] = pair
    return apart


def _split(name: str, pair: LoraFactors) -> dict[str, LoraFactors]:
    rows, width = len(pair.up), pair.down.shape[1]
    if rows <= width or (rows - width) % 2:
        raise LuminaError(f"{name}: {width} inputs and {rows} outputs do not fit a fused q, k and v layer")
    if pair.magnitude is not None and pair.magnitude.shape[1] != 1:
        raise LuminaError(f"{name}: diffusers does not support DoRA magnitudes per input column")
    sizes = [width, (rows - width) // 2, (rows - width) // 2]
    ups = dict(zip(QKV_PARTS, pair.up.split(sizes), strict=True))
    used = {part: up.ne(0).any(0) for part, up in ups.items()}  # the columns that a part uses
    blocks = _blocks(used)
    pieces = {}
    for part, columns in blocks.items():
        piece = LoraFactors(pair.down[columns].clone(), ups[part][:, columns].clone())
        alpha = pair.own_alpha * piece.rank / pair.rank
        pieces[part] = replace(piece, alpha=None if alpha == piece.rank else alpha)
    if pair.magnitude is not None:
        if len(pieces) < 3:
            pieces = {part: LoraFactors(pair.down, up.clone(), pair.alpha) for part, up in ups.items()}
        magnitudes = zip(QKV_PARTS, pair.magnitude.split(sizes), strict=True)
        pieces = {part: replace(pieces[part], magnitude=rows.clone()) for part, rows in magnitudes}
    return pieces


def _blocks(used: dict[str, Tensor]) -> dict[str, slice]:
    """Return the columns of each part: adjacent blocks if each column serves one part, else all for each.

    used   part -> (r,), True for columns that are not zero

    A part without columns is omitted, unless no part has any.
    """
    table = torch.stack(list(used.values()))  # (3, r)
    if not table.any():
        return dict.fromkeys(QKV_PARTS, slice(None))
    served = {part: columns.nonzero().flatten() for part, columns in used.items() if columns.any()}
    owner = table.int().argmax(0)
    if len(served) > 1 and bool((table.sum(0) == 1).all()) and bool((owner.diff() >= 0).all()):
        return {part: slice(int(columns[0]), int(columns[-1]) + 1) for part, columns in served.items()}
    return dict.fromkeys(served, slice(None))
