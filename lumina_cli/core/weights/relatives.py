"""Networks that people mistake for Lumina-Image 2.0, recognized by tensor names and class names.

Several share the body of Next-DiT, so part of their weights would load: they are refused by name, together
with the programs that read them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

PREFIX = re.compile(r"^(?:model\.diffusion_model|diffusion_model|_orig_mod|module|transformer|net)\.")


@dataclass(frozen=True)
class Relative:
    """Another network.

    name      what it is called
    readers   what reads its files
    needed    patterns of tensor names, without prefix; each must match one
    """

    name: str
    readers: str
    needed: tuple[str, ...]

    @property
    def refusal(self) -> str:
        """The end of a message: what the file is, and what reads it."""
        return f"of {self.name}, not of Lumina-Image 2.0; use {self.readers}"


COMFYUI = "ComfyUI"
LANGUAGE_MODEL = "it as the text encoder of a model folder: lumina needs a transformer here"
AUTOENCODER = "it as the autoencoder of a model folder: lumina needs a transformer here"
LLADA = r"(model\.)?(transformer\.)?"


def _either(pipeline: str) -> str:
    return f"diffusers ({pipeline}) or {COMFYUI}"


Z_IMAGE, FLUX = _either("ZImagePipeline"), _either("FluxPipeline")
SD, SDXL = _either("StableDiffusionPipeline"), _either("StableDiffusionXLPipeline")

# name, readers, patterns that each match a tensor name; the first row that fits counts
RELATIVES = tuple(
    Relative(*row)
    for row in (
        ("Z-Image-Omni", _either("ZImageOmniPipeline"), (r"siglip_(embedder|refiner)\.",)),
        ("Z-Image", Z_IMAGE, (r"(x|cap)_pad_token$",)),
        ("Z-Image", Z_IMAGE, (r"all_(x_embedder|final_layer)\.",)),
        ("Z-Image L2P", COMFYUI, (r"dec_net\.", r"cap_embedder\.")),
        ("Z-Image", Z_IMAGE, (r"cap_embedder\.1\.", r"layers\.\d+\.adaLN_modulation\.0\.")),
        ("NewBie-image", f"{COMFYUI} or its own repository", (r"clip_(text_pooled_proj|img_pooled_\w+)\.",)),
        ("Boogu-Image", f"{COMFYUI} or its own repository", (r"double_stream_layers\.",)),
        ("OmniGen2", f"{COMFYUI} or its own repository", (r"ref_image_(patch_embedder|refiner)\.",)),
        ("Lumina-Next", "diffusers (LuminaPipeline)", (r"layers\.\d+\.attention\.(wk_y|wq|gate)(\.|$)",)),
        ("Lumina-Next", "diffusers (LuminaPipeline)", (r"layers\.\d+\.attn2\.to_k\.", r"patch_embedder\.")),
        ("Lumina-DiMOO", "its own repository", (LLADA + r"blocks\.\d+\.ff_proj\.", LLADA + r"wte\.")),
        ("FLUX", FLUX, (r"double_blocks\.\d+\.img_attn\.",)),
        ("FLUX", FLUX, (r"single_transformer_blocks\.",)),
        ("Stable Diffusion 3", _either("StableDiffusion3Pipeline"), (r"joint_blocks\.\d+\.x_block\.",)),
        ("Qwen-Image", _either("QwenImagePipeline"), (r"transformer_blocks\.\d+\.img_mod\.",)),
        ("Anima or Cosmos", COMFYUI, (r"blocks\.\d+\.adaln_modulation_self_attn\.",)),
        ("Wan", _either("WanPipeline"), (r"blocks\.\d+\.cross_attn\.", r"text_embedding\.")),
        ("Stable Diffusion XL", SDXL, (r"input_blocks\.\d+\.", r"label_emb\.")),
        ("Stable Diffusion XL", SDXL, (r"down_blocks\.\d+\.attentions\.", r"add_embedding\.")),
        ("Stable Diffusion 1 or 2", SD, (r"input_blocks\.\d+\.",)),
        ("Stable Diffusion 1 or 2", SD, (r"down_blocks\.\d+\.attentions\.",)),
        (
            "a language model",
            LANGUAGE_MODEL,
            (r"(model\.|language_model\.)*layers\.\d+\.self_attn\.q_proj\.",),
        ),
        ("an autoencoder", AUTOENCODER, (r"(vae\.|first_stage_model\.)?decoder\.up(_blocks)?\.\d+\.",)),
    )
)
# start of the names of classes in configs
CLASSES = {
    "ZImageOmni": "Z-Image-Omni", "ZImage": "Z-Image", "Newbie": "NewBie-image", "NewBie": "NewBie-image",
    "Boogu": "Boogu-Image", "OmniGen2": "OmniGen2", "LuminaNext": "Lumina-Next",
    "LuminaPipeline": "Lumina-Next",
    "LuminaText2Img": "Lumina-Next", "LLaDA": "Lumina-DiMOO", "LuminaDiMOO": "Lumina-DiMOO", "Flux": "FLUX",
    "SD3": "Stable Diffusion 3", "StableDiffusion3": "Stable Diffusion 3", "QwenImage": "Qwen-Image",
    "Wan": "Wan", "StableDiffusionXL": "Stable Diffusion XL", "StableDiffusion": "Stable Diffusion 1 or 2",
    "UNet2DCondition": "Stable Diffusion 1 or 2",
}  # fmt: skip

# tensor names in LoRA files, with dots or with underscores
LORA_NAMES = (
    ("FLUX", r"(double|single)_blocks[._]\d|single_transformer_blocks[._]\d"),
    ("Z-Image-Omni", r"siglip_refiner[._]\d"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](attn[._]add_q_proj|img_mlp|txt_mlp|img_mod)"),
    ("Stable Diffusion 3", r"joint_(transformer_)?blocks[._]\d"),
    ("Wan", r"(?<!\w)blocks[._]\d+[._](cross_attn|self_attn)"),
    ("Stable Diffusion", r"(down|up|mid|input|output)_blocks?[._]\d"),
)
LORA_WIDTHS = {3840: "Z-Image", 2520: "OmniGen2", 3072: "FLUX"}  # inputs of the attention of its blocks


def find_relative(names: Iterable[str]) -> Relative | None:
    """Return the network that tensor names belong to; None if they may be those of Lumina-Image 2.0.

    An all-in-one file also contains a text encoder and an autoencoder: these names do not count if the file
    has a transformer of ours.
    """
    plain = set()
    for name in names:
        while (short := PREFIX.sub("", name)) != name:
            name = short
        plain.add(name)
    ours = any(name.startswith(("cap_embedder.", "time_caption_embed.")) for name in plain)
    text = "\n" + "\n".join(sorted(plain))
    for relative in RELATIVES:
        if ours and relative.name in ("a language model", "an autoencoder"):
            continue
        if all(re.search(rf"\n{pattern}", text + "\n") for pattern in relative.needed):
            return relative
    return None


def find_class(name: str) -> Relative | None:
    """Return the network whose config or pipeline has the class `name`; None if it is unknown."""
    found = next((relative for start, relative in CLASSES.items() if name.startswith(start)), None)
    return next((relative for relative in RELATIVES if relative.name == found), None)


def find_lora_base(names: Iterable[str], width: int | None = None) -> str | None:
    """Return the model that a LoRA was made for, if it is a known other one.

    width   inputs of its attention
    """
    text = "\n".join(names)
    found = next((name for name, pattern in LORA_NAMES if re.search(pattern, text)), None)
    return found or LORA_WIDTHS.get(width or 0)
