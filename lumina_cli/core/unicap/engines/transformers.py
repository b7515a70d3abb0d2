"""Captions by any image-text-to-text model that transformers can load, in batches."""

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import logging as transformers_logging

from lumina_cli.core.device import pick_device
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.unicap.stream import Answer

# OmniCaptioner's published settings: nearly greedy, so a retry with another seed differs but stays sober.
TEMPERATURE, TOP_K, TOP_P = 0.2, 10, 0.8


class Captioner:
    """An image-text-to-text model and its processor: `answer(pictures, question, seeds, max_tokens)`.

    `model` is a folder or a hub id, loaded in the number format of its weights, on a CUDA device if there is
    one and `device` names no other. Raises LuminaError where it cannot be loaded whole.
    """

    def __init__(self, model: str, device: str | None = None):
        self.name = model
        self.device = pick_device(device)
        with _quiet(), _one_line_errors(model):
            config = AutoConfig.from_pretrained(model)
            if type(config) not in AutoModelForImageTextToText._model_mapping:
                raise LuminaError(f"{model} is a {config.model_type} model, which reads no pictures")
            self.processor = _load_processor(model, config)
            self.model = _load_model(model).to(self.device).eval()
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    @torch.inference_mode()
    def answer(
        self, pictures: Sequence[Image.Image], question: str, seeds: Sequence[int], max_tokens: int
    ) -> list[Answer]:
        """Return an Answer for each RGB picture, each drawn with its own seed whatever its neighbours."""
        inputs = self._inputs(pictures, question).to(self.device, self.model.dtype)
        settings = copy.deepcopy(self.model.generation_config)
        settings.update(do_sample=False, temperature=None, top_k=None, top_p=None, num_beams=1)
        settings.update(max_new_tokens=max_tokens, max_length=None, pad_token_id=self.tokenizer.pad_token_id)
        draw = [TemperatureLogitsWarper(TEMPERATURE), TopKLogitsWarper(TOP_K), TopPLogitsWarper(TOP_P)]
        draw.append(DrawBySeed(seeds))
        tokens = self.model.generate(
            **inputs, generation_config=settings, logits_processor=LogitsProcessorList(draw)
        )
        if not self.model.config.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        finished = self._finished(tokens, max_tokens, settings.eos_token_id)
        return [Answer(text.strip(), bool(end)) for text, end in zip(texts, finished, strict=True)]

    def _inputs(self, pictures: Sequence[Image.Image], question: str) -> Any:
        """Return padded model inputs: by the chat template where there is one, else a plain prompt."""
        template = self.processor.chat_template or self.tokenizer.chat_template
        if template is None:
            token = getattr(self.processor, "image_token", None)
            prompt = f"{token}\n{question}\n" if token else question
            images = [[picture] for picture in pictures]
            return self.processor(
                images=images, text=[prompt] * len(images), padding=True, return_tensors="pt"
            )
        text = {"type": "text", "text": question}
        talks = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, text]}] for picture in pictures
        ]
        return self.processor.apply_chat_template(
            talks,
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _finished(self, tokens: Tensor, max_tokens: int, eos: int | list[int] | None) -> Tensor:
        """Return (B,) True where an answer ended by itself."""
        if tokens.shape[1] < max_tokens or eos is None:
            return torch.ones(len(tokens), dtype=torch.bool)
        ends = torch.as_tensor(eos, device=tokens.device).flatten()
        return torch.isin(tokens, ends).any(dim=1)


class DrawBySeed(LogitsProcessor):
    """Draw each row's next token with the row's own generator (Gumbel-max), leaving only it for the argmax.

    So a row's text depends on its seed alone, not on the batch, as it would with one generator for all.
    """

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        values, tokens = scores.float().topk(min(TOP_K, scores.shape[-1]))
        uniform = torch.stack([torch.rand(values.shape[1], generator=one) for one in self.generators])
        gumbel = -(-uniform.clamp(min=1e-9).log()).log().to(values.device)
        chosen = tokens.gather(1, (values + gumbel).argmax(dim=1, keepdim=True))  # (B, 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def _load_processor(model: str, config: Any) -> Any:
    """Return the model's processor; without torchvision those that also read videos are made to read none."""
    try:
        processor = AutoProcessor.from_pretrained(model)
    except ImportError:
        kind = PROCESSOR_MAPPING.get(type(config), None)
        if kind is None or "video_processor" not in kind.get_attributes():
            raise
        parts = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
        loaded = {name: part.from_pretrained(model) for name, part in parts.items()}
        processor = _without_videos(kind)(**loaded)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise LuminaError(f"{model} has no processor for pictures and text, only {type(processor).__name__}")
    return processor


def _without_videos(kind: type) -> type:
    """Return a class that accepts `video_processor=None`; transformers' own insists on torchvision."""

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        if name == "video_processor" and argument is None:
            return None
        return kind.check_argument_for_proper_class(self, name, argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check_argument_for_proper_class})


def _load_model(model: str) -> torch.nn.Module:
    """Return the model in its own number format; safetensors only, and every weight must be there."""
    network, report = AutoModelForImageTextToText.from_pretrained(
        model, dtype="auto", use_safetensors=True, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise LuminaError(f"{model} lacks {len(missing)} weights of its model, {missing[0]} among them")
    return network


@contextlib.contextmanager
def _one_line_errors(model: str) -> Iterator[None]:
    """Turn what transformers raises on a model it cannot load into one line that says what to do."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        reason = re.split(r"(?<=[.!?])\s|\n", str(error).strip())[0].rstrip(".")
        folder = Path(model).expanduser()
        if folder.exists():
            message = f"{model} is not a model folder that transformers can load ({reason})"
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith("."):
            message = (
                f"{model} is not on this machine and cannot be fetched from the hub; "
                "pass --model FOLDER of an image-text-to-text model"
            )
        else:
            message = f"{model}: no such folder, and not a hub id (owner/name)"
        raise LuminaError(message) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars off stderr meanwhile; the command line has its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
