"""Module names of Next-DiT in weight and LoRA files: the official names, which are ours, and diffusers'.

`layers.0.attention.out.weight` is stack, index, module within a block, and leaf. ComfyUI's names are the
official ones after COMFYUI_PREFIX. diffusers splits the fused `attention.qkv` into three layers.
"""

STACKS = ("layers", "noise_refiner", "context_refiner")
COMFYUI_PREFIX = "model.diffusion_model."
UNUSED = "norm_final.weight"  # in official files; the forward pass does not use it
QKV = "attention.qkv"
QKV_IN_DIFFUSERS = {"q": "attn.to_q", "k": "attn.to_k", "v": "attn.to_v"}

# official -> diffusers: linear layers and norms outside the blocks, then within a block
LINEAR = {
    "x_embedder": "x_embedder",
    "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
    "cap_embedder.1": "time_caption_embed.caption_embedder.1",
    "final_layer.linear": "norm_out.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear_1",
}
NORMS = {"cap_embedder.0": "time_caption_embed.caption_embedder.0"}
BLOCK_LINEAR = {
    "attention.out": "attn.to_out.0",
    "feed_forward.w1": "feed_forward.linear_1",
    "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3",
    "adaLN_modulation.1": "norm1.linear",
}
BLOCK_NORMS = {
    "attention.q_norm": "attn.norm_q",
    "attention.k_norm": "attn.norm_k",
    "attention_norm1": "norm1.norm",
    "attention_norm2": "norm2",
}
PLAIN_NORM1 = "norm1"  # diffusers' attention_norm1 in blocks without modulation

TO_DIFFUSERS = LINEAR | NORMS, BLOCK_LINEAR | BLOCK_NORMS
FROM_DIFFUSERS = (
    {theirs: ours for ours, theirs in TO_DIFFUSERS[0].items()},
    {theirs: ours for ours, theirs in TO_DIFFUSERS[1].items()} | {PLAIN_NORM1: "attention_norm1"},
)


def rename(name: str, tables: tuple[dict[str, str], dict[str, str]]) -> str:
    """Translate a tensor name with TO_DIFFUSERS or FROM_DIFFUSERS; unknown names stay unchanged.

    An unknown name is reported later, when the weights are compared with the network.
    """
    outside, within_block = tables
    module, _, leaf = name.rpartition(".")
    stack, _, rest = module.partition(".")
    if stack in STACKS:
        index, _, inner = rest.partition(".")
        return f"{stack}.{index}.{within_block.get(inner, inner)}.{leaf}"
    return f"{outside.get(module, module)}.{leaf}" if module else name
