"""Engine for image-text-to-text models of transformers, in batches."""

import contextlib
import copy
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import logging as hub_logging
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
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import logging as transformers_logging

from lumina_cli.core.device import pick_device
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.unicap.engines import florence
from lumina_cli.core.unicap.protocol import Answer, Engine, Question

DEFAULT = "U4R/OmniCaptioner"
# OmniCaptioner's published settings, nearly greedy; retries sample at a higher temperature.
TEMPERATURE, TOP_K, TOP_P = 0.2, 10, 0.8
RETRY_TEMPERATURE = 0.3  # added to the temperature at each retry


class Captioner(Engine):
    """An image-text-to-text model and its processor.

        model     folder or hub id; loaded in the dtype of its weights
        device    device; None is CUDA if available

    Raises:
        LuminaError: if the model cannot be loaded, or has missing weights.
    """

    structured: str | None = "asked"

    def __init__(self, model: str | None = None, device: str | None = None):
        self.found = None if model else DEFAULT
        model = model or DEFAULT
        self.name = model
        self.device = pick_device(device)
        with quiet(), one_line_errors(model):
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            if type(config) not in AutoModelForImageTextToText._model_mapping:
                raise LuminaError(f"{model} is a {config.model_type} model, which does not take images")
            self.processor = _load_processor(model, config)
            self.model = _load_model(model).to(self.device).eval()
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tasks = florence.TASKS if config.model_type == "florence2" else None
        self.apply_model_settings(model, getattr(config, "captioning", None))
        self.longest = sys.maxsize
        if self.tasks:  # Florence-2 follows task tokens only, and its answers have a maximum length
            self.longest = config.text_config.max_position_embeddings - 1
            self.structured, self.reads_text, self.heeds_hints, self.languages = None, False, False, ("en",)
            self.takes_instructions = False

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer the questions, each sampled with its own seed, independent of the batch."""
        answers: dict[int, Answer] = {}
        for numbers in self._groups(questions):
            group = [questions[number] for number in numbers]
            answers |= dict(zip(numbers, self._generate(group), strict=True))
        return [answers[number] for number in range(len(questions))]

    def _groups(self, questions: Sequence[Question]) -> list[list[int]]:
        """Group the questions of a call: all on a GPU; by token limit on a CPU, where padding costs time."""
        groups: dict[tuple, list[int]] = {}
        for number, question in enumerate(questions):
            length = question.max_tokens if self.device.type == "cpu" else 0
            groups.setdefault((question.image is None, length), []).append(number)
        return list(groups.values())

    @torch.inference_mode()
    def _generate(self, questions: Sequence[Question]) -> list[Answer]:
        inputs = self._inputs(questions).to(self.device, self.model.dtype)
        limits = [min(question.max_tokens, self.longest) for question in questions]
        settings = copy.deepcopy(self.model.generation_config)
        settings.update(do_sample=False, temperature=None, top_k=None, top_p=None, num_beams=1)
        settings.update(max_new_tokens=max(limits), max_length=None, pad_token_id=self.tokenizer.pad_token_id)
        sampling = SeededSampling(
            [q.seed for q in questions], [TEMPERATURE + RETRY_TEMPERATURE * q.attempt for q in questions]
        )
        tokens = self.model.generate(
            **inputs,
            generation_config=settings,
            logits_processor=LogitsProcessorList([sampling]),
            stopping_criteria=StoppingCriteriaList([RowLimits(limits)]),
        )
        skip = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        rows = zip(tokens[:, skip:], questions, strict=True)
        return [self._read(row, question, settings.eos_token_id) for row, question in rows]

    def _read(self, tokens: Tensor, question: Question, eos: int | list[int] | None) -> Answer:
        """Decode new tokens (M,) up to the end token or the limit of the question."""
        tokens = tokens[: min(question.max_tokens, self.longest)]
        ends = torch.isin(tokens, torch.as_tensor(eos if eos is not None else [], device=tokens.device))
        finished = bool(ends.any())
        tokens = tokens[: int(ends.int().argmax()) + 1] if finished else tokens
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        if self.tasks:
            text = florence.read(self.tokenizer.decode(tokens, skip_special_tokens=False), question.level)
        return Answer(text.strip(), finished or eos is None, len(tokens))

    def _inputs(self, questions: Sequence[Question]) -> Any:
        """Return padded model inputs, from the chat template if there is one, else from plain prompts."""
        texts = [self.tasks[question.level] if self.tasks else question.text for question in questions]
        images = [[question.image] for question in questions] if questions[0].image else None
        template = self.processor.chat_template or self.tokenizer.chat_template
        if template is None:
            token = None if self.tasks else getattr(self.processor, "image_token", None)
            prompts = [f"{token}\n{text}\n" if token and images else text for text in texts]
            return self.processor(images=images, text=prompts, padding=True, return_tensors="pt")
        conversations = []
        for text, question in zip(texts, questions, strict=True):
            image = [{"type": "image", "image": question.image}] if question.image else []
            conversations.append([{"role": "user", "content": [*image, {"type": "text", "text": text}]}])
        return self.processor.apply_chat_template(
            conversations,
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )


class SeededSampling(LogitsProcessor):
    """Sample the next token of each batch entry with its own generator, by the Gumbel-max trick.

    All other logits are masked, so greedy decoding picks the sampled token. With one generator for the batch,
    the text of an entry would depend on the other entries.
    """

    def __init__(self, seeds: Sequence[int], temperatures: Sequence[float]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperatures = torch.tensor(temperatures)[:, None]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        values, tokens = scores.float().topk(min(TOP_K, scores.shape[-1]))
        values = values / self.temperatures.to(values.device)
        before = values.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)  # mass of likelier tokens
        before[:, 0] = 0
        values = values.masked_fill(before >= TOP_P, -torch.inf)
        uniform = torch.stack([torch.rand(values.shape[1], generator=one) for one in self.generators])
        gumbel = -(-uniform.clamp(min=1e-9).log()).log().to(values.device)
        chosen = tokens.gather(1, (values + gumbel).argmax(dim=1, keepdim=True))  # (B, 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


class RowLimits(StoppingCriteria):
    """Stop each batch entry at its own number of new tokens."""

    def __init__(self, limits: Sequence[int]):
        self.limits, self.start = torch.tensor(limits), None

    def __call__(self, input_ids: Tensor, scores: Tensor, **_) -> Tensor:
        if self.start is None:
            self.start = input_ids.shape[1] - 1
        return (input_ids.shape[1] - self.start >= self.limits).to(input_ids.device)


def _load_processor(model: str, config: Any) -> Any:
    """Return the processor of a model; without torchvision, its video processor is omitted."""
    try:
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
    except ImportError:
        kind = PROCESSOR_MAPPING.get(type(config), None)
        if kind is None or "video_processor" not in kind.get_attributes():
            raise
        parts = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
        loaded = {name: part.from_pretrained(model, trust_remote_code=False) for name, part in parts.items()}
        processor = _without_videos(kind)(**loaded)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise LuminaError(f"{model} has no processor of images and text, only {type(processor).__name__}")
    return processor


def _without_videos(kind: type) -> type:
    """Return a processor class that accepts `video_processor=None`, which would require torchvision."""

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        if name == "video_processor" and argument is None:
            return None
        return kind.check_argument_for_proper_class(self, name, argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check_argument_for_proper_class})


def _load_model(model: str) -> torch.nn.Module:
    """Load a model in the dtype of its weights, from safetensors only.

    Raises:
        LuminaError: if weights are missing.
    """
    network, report = AutoModelForImageTextToText.from_pretrained(
        model, dtype="auto", use_safetensors=True, output_loading_info=True, trust_remote_code=False
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise LuminaError(f"{model} has {len(missing)} missing weights, such as {missing[0]}")
    return network


@contextlib.contextmanager
def one_line_errors(
    model: str, remedy: str = "--model FOLDER of an image-text-to-text model, or --engine nano or openai"
) -> Iterator[None]:
    """Convert the exceptions of loading a model to a one-line error with a remedy."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        reason = re.split(r"(?<=[.!?])\s|\n", str(error).strip())[0].rstrip(".")
        folder = Path(model).expanduser()
        if "custom code" in reason:
            message = f"{model} requires custom code, which lumina never runs; pass {remedy}"
        elif folder.exists():
            message = f"{model} is not a model folder that transformers can load ({reason})"
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith("."):
            wait = "" if constants.HF_HUB_OFFLINE else "; set HF_HUB_OFFLINE=1 to skip the hub"
            message = (
                f"{model} is not on this machine and cannot be downloaded from the hub; pass {remedy}{wait}"
            )
        else:
            message = f"{model}: no such folder, and not a hub id (owner/name)"
        raise LuminaError(message) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress bars of transformers and the warnings of the hub within the block.

    The command line shows its own progress bar and one-line errors.
    """
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), hub_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
