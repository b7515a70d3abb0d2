"""What a LoRA learned of each layer, and queries, keys and values put together or taken apart.

A pair belongs to one of our linear layers, or to the queries, keys or values within `attention.qkv`:
diffusers has those apart, ComfyUI and kohya together. Three pairs with one `down` become one of the same
rank, others one of the summed rank, block by block. The product is the same exactly, and so are the matrices
that come back; only where the three have different scales, these are multiplied in.

r rank, i inputs, o outputs of a layer.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lumina_cli.core.errors import LuminaError

QKV = "attention.qkv"
PARTS = ("q", "k", "v")
Site = tuple[str, str | None]  # the name of one of our layers; "q", "k" or "v" within a qkv, else None


@dataclass(frozen=True)
class LoraFactors:
    """What one layer learned: `alpha / r * up @ down`, and for DoRA the size of each row of the result.

    down (r, i); up (o, r); alpha None: r; magnitude (o, 1), or (1, i) where columns have the sizes; or None.
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
        """alpha as a number, whether it was said or not."""
        return self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.own_alpha / self.rank


Pairs = dict[Site, LoraFactors]


def joined(pairs: Pairs) -> Pairs:
    """The same LoRA with queries, keys and values together: what ComfyUI and kohya write.

    LuminaError where a DoRA does not say the sizes of all three.
    """
    whole, groups = {}, {}
    for (name, part), pair in pairs.items():
        if part is None:
            whole[name, None] = pair
        else:
            whole[name, None] = None  # keeps the place
            groups.setdefault(name, {})[part] = pair
    widths = _widths(groups)
    return {site: pair or _join(site[0], groups[site[0]], widths) for site, pair in whole.items()}


def _widths(groups: dict[str, dict[str, LoraFactors]]) -> dict[str, int]:
    """How many outputs queries, keys and values have; keys and values have the same number."""
    widths = {part: len(pair.up) for group in groups.values() for part, pair in group.items()}
    for part, other in (("k", "v"), ("v", "k")):
        if other in widths:
            widths.setdefault(part, widths[other])
    if groups:
        widths.setdefault("q", next(iter(next(iter(groups.values())).values())).down.shape[1])
    return widths


def _join(name: str, group: dict[str, LoraFactors], widths: dict[str, int]) -> LoraFactors:
    if len(widths) < 3:
        raise LuminaError(f"{name}: with queries alone nothing tells how many keys and values there are")
    magnitudes = [pair.magnitude for pair in group.values() if pair.magnitude is not None]
    if magnitudes and (len(magnitudes) < 3 or any(size.shape[1] != 1 for size in magnitudes)):
        raise LuminaError(
            f"{name} is a DoRA of some of q, k and v or of columns; it cannot become one of qkv"
        )
    first = next(iter(group.values()))
    same_scale = all(pair.scale == first.scale for pair in group.values())
    shared = all(torch.equal(pair.down, first.down) for pair in group.values()) and same_scale
    # where the scales differ they go into the matrices: one alpha is left for all
    ups = {part: pair.up if same_scale else pair.up.float() * pair.scale for part, pair in group.items()}
    ranks = {part: pair.rank for part, pair in group.items()}
    rank = first.rank if shared else sum(ranks.values())
    up = next(iter(ups.values())).new_zeros(sum(widths.values()), rank)
    row = column = 0
    for part in PARTS:
        if part in ups:
            start = 0 if shared else column
            up[row : row + widths[part], start : start + ranks[part]] = ups[part]
            column += ranks[part]
        row += widths[part]
    down = first.down if shared else torch.cat([group[part].down for part in PARTS if part in group])
    # a sum of alphas over a sum of ranks is the one scale again
    alphas = [first.own_alpha] if shared else [pair.own_alpha for pair in group.values()]
    alpha = sum(alphas) if same_scale else rank
    ordered = [group[part].magnitude for part in PARTS] if magnitudes else None
    return LoraFactors(down, up, None if alpha == rank else alpha, torch.cat(ordered) if ordered else None)


def split(pairs: Pairs) -> Pairs:
    """The same LoRA with queries, keys and values apart: what diffusers writes.

    A pair that `joined` put together block by block comes apart again; any other shares its `down`.
    LuminaError where a DoRA has sizes of columns.
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
        raise LuminaError(f"{name} goes from {width} to {rows}, which are not queries, keys and values")
    if pair.magnitude is not None and pair.magnitude.shape[1] != 1:
        raise LuminaError(f"{name} is a DoRA of columns, which diffusers does not know")
    sizes = [width, (rows - width) // 2, (rows - width) // 2]
    ups = dict(zip(PARTS, pair.up.split(sizes), strict=True))
    used = {part: up.ne(0).any(0) for part, up in ups.items()}  # which columns a part reads
    blocks = _blocks(used)
    pieces = {}
    for part, columns in blocks.items():
        piece = LoraFactors(pair.down[columns].clone(), ups[part][:, columns].clone())
        alpha = pair.own_alpha * piece.rank / pair.rank
        pieces[part] = replace(piece, alpha=None if alpha == piece.rank else alpha)
    if pair.magnitude is not None:
        if len(pieces) < 3:
            pieces = {part: LoraFactors(pair.down, up.clone(), pair.alpha) for part, up in ups.items()}
        magnitudes = zip(PARTS, pair.magnitude.split(sizes), strict=True)
        pieces = {part: replace(pieces[part], magnitude=rows.clone()) for part, rows in magnitudes}
    return pieces


def _blocks(used: dict[str, Tensor]) -> dict[str, slice]:
    """The columns of each part: neighbouring blocks if each column serves one part, else all for each.

    A part that reads nothing is left out, unless none reads anything.
    """
    table = torch.stack(list(used.values()))  # (3, r)
    if not table.any():
        return dict.fromkeys(PARTS, slice(None))
    served = {part: columns.nonzero().flatten() for part, columns in used.items() if columns.any()}
    owner = table.int().argmax(0)
    if len(served) > 1 and bool((table.sum(0) == 1).all()) and bool((owner.diff() >= 0).all()):
        return {part: slice(int(columns[0]), int(columns[-1]) + 1) for part, columns in served.items()}
    return dict.fromkeys(served, slice(None))
