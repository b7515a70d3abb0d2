"""Tensor names in LoRA files: which layer a name stands for, and which methods other than LoRA it shows.

Reading accepts every prefix with every naming scheme, since tools mix them.
"""

import re
from collections.abc import Iterable

from lumina_cli.core.nextdit.dialects import BLOCK_LINEAR, LINEAR, QKV, QKV_IN_DIFFUSERS, STACKS
from lumina_cli.core.nextdit.lora.factors import Site

# names in files -> sites: our own and diffusers' names, and those that other programs give the same layers
SITES: dict[str, Site] = {name: (pair[0], None) for pair in LINEAR.items() for name in pair}
ATTENTIONS = ("attention", "attn", "self_attn")
FEED_FORWARDS = ("feed_forward", "ff", "ffn", "mlp")
OUTPUTS = ("out", "to_out.0", "to_out", "out_proj", "o_proj", "wo", "proj")
PROJECTIONS: dict[str, Site] = {
    **dict.fromkeys(("qkv", "to_qkv", "qkv_proj", "Wqkv"), (QKV, None)),
    **{
        name.format(part): (QKV, part)
        for part in QKV_IN_DIFFUSERS
        for name in ("to_{}", "{}_proj", "w{}", "{}")
    },
    **dict.fromkeys(
        ("out", "to_out.0", "to_out", "out_proj", "o_proj", "wo", "proj"), ("attention.out", None)
    ),
}
MATRICES = {"w1": ("linear_1", "gate_proj"), "w2": ("linear_2", "down_proj"), "w3": ("linear_3", "up_proj")}
BLOCK_SITES: dict[str, Site] = {
    **{f"{module}.{name}": site for module in ATTENTIONS for name, site in PROJECTIONS.items()},
    **{
        f"{module}.{name}": (f"feed_forward.{ours}", None)
        for module in FEED_FORWARDS
        for ours, others in MATRICES.items()
        for name in (ours, *others)
    },
    **{name: (pair[0], None) for pair in BLOCK_LINEAR.items() for name in pair},
}
# the same tables for names with dots, and for names in which kohya replaced the dots by underscores
TABLES = {
    dot: [{name.replace(".", dot): site for name, site in table.items()} for table in (SITES, BLOCK_SITES)]
    for dot in "._"
}

PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "unet.",
    "_orig_mod.", "module.",
)  # fmt: skip
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lora_dit_", "lycoris_")
TEXT_ENCODER = re.compile(r"(lora_te|text_encoder|te\d?_|te\.|conditioner)")
LEAVES = {
    "lora_A": "down", "lora_down": "down", "lora.down": "down", "lora_linear_layer.down": "down",
    "lora_B": "up", "lora_up": "up", "lora.up": "up", "lora_linear_layer.up": "up",
    "alpha": "alpha", "dora_scale": "magnitude", "lora_magnitude_vector": "magnitude",
}  # fmt: skip
LEAF = re.compile(rf"^(.+?)\.({'|'.join(map(re.escape, LEAVES))})(?:\.(?!bias$|weight$)\w+)?(?:\.weight)?$")
BLOCK = re.compile(rf"^({'|'.join(STACKS)})[._](\d+)[._](.+)$")

# leaves of other methods; their tensors change layers in another way than LoRA and DoRA
METHODS = {
    "LoKr": re.compile(r"\.lokr_(w1|w2|t2)(_[ab])?$"),
    "LoHa": re.compile(r"\.hada_(w[12]_[ab]|t[12])$"),
    "OFT": re.compile(r"\.(oft_(blocks|diag|R)|boft_\w+)(\.\w+)*$"),
    "IA3": re.compile(r"\.(on_input|ia3_l)(\.\w+)*$"),
    "GLoRA": re.compile(r"\.(a1|a2|b1|b2|bm)\.weight$"),
    "LoCon of convolutions": re.compile(r"\.lora_mid\.weight$"),
    "VeRA": re.compile(r"\.vera_lambda_[bd](\.\w+)*$"),
    "whole-network difference": re.compile(r"\.(diff|diff_b|set_weight|reshape_weight)$"),
    "difference of norms": re.compile(r"\.(w_norm|b_norm)$"),
    "LoRA with biases": re.compile(r"\.(lora_(A|B|up|down)(\.\w+)?\.bias|bias_b)$"),
}


def find_site(module: str) -> Site | None:
    """Return the layer that a name in a file stands for, in any naming scheme; None if unknown."""
    flat = next((prefix for prefix in FLAT_PREFIXES if module.startswith(prefix)), None)
    if flat is not None:
        return _site(module.removeprefix(flat), "_")
    while prefix := next((prefix for prefix in PREFIXES if module.startswith(prefix)), None):
        module = module.removeprefix(prefix)
    return _site(module, ".")


def _site(module: str, dot: str) -> Site | None:
    """Return the site of a name without prefix; `dot` is its separator."""
    whole, inner = TABLES[dot]
    if module in whole:
        return whole[module]
    found = BLOCK.match(module)
    if found is None or found[3] not in inner:
        return None
    name, part = inner[found[3]]
    return f"{found[1]}.{int(found[2])}.{name}", part


def find_methods(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the tensor names of each method other than LoRA and DoRA, without those of a text encoder."""
    found: dict[str, list[str]] = {}
    for name in names:
        method = next((method for method, leaf in METHODS.items() if leaf.search(name)), None)
        if method is not None and not TEXT_ENCODER.match(name):
            found.setdefault(method, []).append(name)
    return found


def is_adapter(names: Iterable[str]) -> bool:
    """Whether the tensor names in a file are those of a LoRA or a similar adapter, not of a network."""
    names = list(names)
    if any((found := LEAF.match(name)) and found[2] != "alpha" for name in names):
        return True
    return bool(find_methods(names))


def count_layers(names: Iterable[str]) -> int:
    """Return the number of different layers that tensor names of LoRAs mention."""
    return len({found[1] if (found := LEAF.match(name)) else name for name in names})
