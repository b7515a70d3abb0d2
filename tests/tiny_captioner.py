"""Tiny image-text-to-text models for the tests of `lumina caption`, built in seconds."""

import json

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from lumina_cli.cli.app import run
from lumina_cli.core.unicap.prompts import LANGS, LEVELS, instruction

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
# What the tiny LLaVA learns by heart: {(language, level): {colour: caption}}.
LEARNT = {
    ("en", "short"): {"red": "a plain red picture", "blue": "a plain blue picture"},
    ("en", "tags"): {"red": "red, plain", "blue": "blue, plain"},
    ("de", "short"): {"red": "ein rotes Bild", "blue": "ein blaues Bild"},
}
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><image>"
    "<|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
)
TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def plain_picture(colour: str, size: tuple[int, int] = (40, 32)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour])


def make_tokenizer(**settings) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [instruction(level, lang) for level in LEVELS for lang in LANGS] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **settings
    )


def save_llava(folder, steps: int = 400) -> None:
    """Write a LLaVA folder that knows LEARNT by heart; it has no chat template."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = LlamaConfig(**TEXT, num_key_value_heads=1, vocab_size=len(tokenizer), **TOKENS)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    )
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(**size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    learn(model, processor, steps)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def learn(model, processor, steps: int) -> None:
    items = [
        (colour, f"<image>\n{instruction(level, lang, 'auto')}\n", text)
        for (lang, level), by_colour in LEARNT.items()
        for colour, text in by_colour.items()
    ]
    processor.tokenizer.padding_side = "right"
    batch = processor(
        images=[plain_picture(colour) for colour, _, _ in items],
        text=[prompt + text + "</s>" for _, prompt, text in items],
        padding=True,
        return_tensors="pt",
    )
    asked = [len(processor(images=plain_picture(c), text=p)["input_ids"][0]) for c, p, _ in items]
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, start in zip(labels, asked, strict=True):
        row[:start] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.05, loss.item()


def save_qwen2_vl(folder) -> None:
    """Write an untrained Qwen2-VL folder with a chat template; transformers' own processor wants torchvision."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(extra_special_tokens={"image_token": "<image>"})
    tokenizer.chat_template = TEMPLATE
    rope = {"rope_type": "default", "mrope_section": [4, 4, 4], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config=TEXT
        | TOKENS
        | {"num_key_value_heads": 1, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=3,
        video_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=4 * 28 * 28).save_pretrained(folder)


def save_clip(folder) -> None:
    """Write an untrained CLIP folder; its texts have 24 tokens at most."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | TOKENS | {"vocab_size": len(tokenizer), "max_position_embeddings": 24}
    vision = size | {"image_size": 28, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    pixels = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPProcessor(CLIPImageProcessorPil(**pixels), tokenizer).save_pretrained(folder)


def save_florence(folder) -> None:
    """Write an untrained Florence-2 folder."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(extra_special_tokens={"image_token": "<image>"})
    vision = {
        "embed_dim": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "num_groups": [1, 2], "window_size": 4,
        "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
        "projection_dim": 32,
    }  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
        "forced_eos_token_id": None, "max_position_embeddings": 256,
    }  # fmt: skip
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=3)
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    pixels = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    pixels.image_seq_length = 17
    Florence2Processor(pixels, tokenizer).save_pretrained(folder)


def run_caption(capsys, *words):
    """Run `lumina caption`: (exit code, rows, lines on stderr but that of statistics)."""
    code = run(["caption", *map(str, words)])
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if "images/s" not in line]
    return code, [json.loads(line) for line in out.splitlines()], said
