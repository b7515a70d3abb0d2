"""The nano captioner's network and processor: LLaVA's architecture, small, as transformers opens it unaided.

A picture of 128 pixels becomes 64 tokens (LeViT: four strided convolutions, then attention), which a small
Llama reads before the question. Every question that the captioner knows is one token of its own, so that a
question costs no more to read than a word.

B pictures, N image tokens (8 x 8, row by row), C their width.
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
# How it wants to be asked, for whoever opens the folder: by plain instructions, in its own languages.
CAPTIONING = {
    "domain": "synthetic",
    "languages": list(LANGUAGES),
    "heeds_hints": False,
    "structured": None,
}
# Pictures come before the question, however the asker ordered them.
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
    """Give the picture, the start of an answer and every question a token each.

    So gets what every detailed caption says of its style, but for the first letter, which may be a capital.
    """
    styles = [sentence[1:] for frames in TEMPLATES.values() for sentence in frames["style"]]
    marks = [AddedToken(mark, normalized=False, special=True) for mark in (IMAGE, ANSWER)]
    asked = [
        AddedToken(text, normalized=False, special=False) for text in dict.fromkeys([*questions, *styles])
    ]
    tokenizer.add_tokens(marks + asked)
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 1024


def build_processor(tokenizer: Any) -> LlavaProcessor:
    """Return what turns pictures of any size and a talk into inputs; needs Pillow, not torchvision."""
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
        chat_template=TEMPLATE,
    )


def build_captioner(tokenizer: Any, vision_layers: int, text_layers: int) -> LlavaForConditionalGeneration:
    """Return an untrained captioner whose vocabulary is that of a tokenizer with its questions added."""
    vision = LevitConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=VISION,  # where LLaVA looks for it
        hidden_sizes=[VISION, VISION],
        num_attention_heads=[8],
        depths=[vision_layers],
        key_dim=[24],
        mlp_ratio=[2],
        attention_ratio=[2],
        down_ops=[[""]],  # one stage: its 64 tokens are never thinned out
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
