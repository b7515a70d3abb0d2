"""Network and processor of the nano captioner: a small LLaVA that transformers loads without custom code.

An image of 128 pixels becomes 64 tokens (LeViT: four strided convolutions, then attention), which precede the
question in a small Llama. Each known question is a single token, which keeps the sequence short.
"""

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessorPil,
    LevitConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from lumina_cli.core.nano.captions import LANGUAGES
from lumina_cli.core.nano.templates import TEMPLATES

SIZE, PATCH = 128, 16  # pixels
GRID = SIZE // PATCH
IMAGE, ANSWER = "<image>", "<caption>"
VISION, TEXT = 192, 192  # widths of the image tokens and of the text model
# Settings for callers, stored in config.json: plain instructions, in the five languages of nano.
CAPTIONING = {
    "domain": "synthetic",
    "languages": list(LANGUAGES),
    "heeds_hints": False,
    "structured": None,
}
# Images precede the question, regardless of their order in the message.
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] in ('image', 'image_url') %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] | trim }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% elif not loop.last or add_generation_prompt %}<caption>{% endif %}{% endfor %}"
)


def add_questions(tokenizer: Any, questions: Iterable[str]) -> None:
    """Add one token each for the image, the start of an answer, and every question.

    The style sentences of detailed captions become tokens too, without their first letter, whose case varies.
    """
    styles = [sentence[1:] for frames in TEMPLATES.values() for sentence in frames["style"]]
    marks = [AddedToken(mark, normalized=False, special=True) for mark in (IMAGE, ANSWER)]
    texts = [
        AddedToken(text, normalized=False, special=False) for text in dict.fromkeys([*questions, *styles])
    ]
    tokenizer.add_tokens(marks + texts)
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 1024


def build_processor(tokenizer: Any) -> LlavaProcessor:
    """Return the processor of images (any size) and chat messages; uses Pillow, not torchvision."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
        chat_template=TEMPLATE,
    )


def build_captioner(tokenizer: Any, vision_layers: int, text_layers: int) -> LlavaForConditionalGeneration:
    """Return an untrained captioner for a tokenizer to which `add_questions` was applied."""
    vision = LevitConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=VISION,  # LLaVA reads the width from here
        hidden_sizes=[VISION, VISION],
        num_attention_heads=[8],
        depths=[vision_layers],
        key_dim=[24],
        mlp_ratio=[2],
        attention_ratio=[2],
        down_ops=[[""]],  # one stage, so the 64 tokens are never downsampled
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT,
        intermediate_size=512,
        num_hidden_layers=text_layers,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=GRID * GRID,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        captioning=CAPTIONING,
    )
    return LlavaForConditionalGeneration(config)
