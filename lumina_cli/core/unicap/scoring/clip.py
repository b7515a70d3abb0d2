"""Scorers of captions: CLIP similarity, and the detector of nano's synthetic scenes."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.registry import ASSETS, CAPTION_SCORERS
from lumina_cli.core.unicap.checks.rules import Reason
from lumina_cli.core.unicap.stats import CaptionStats

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
CLIP = "openai/clip-vit-large-patch14"


def open_scorer(words: str, device: str | None = None, stats: CaptionStats | None = None) -> Any:
    """Open the scorer NAME[:MODEL][@LEAST]; a caption that scores below LEAST is rejected.

    Raises:
        UsageError: if the name is unknown or LEAST is not a number.
    """
    text, at, number = words.rpartition("@")
    name, _, model = (text if at else words).partition(":")
    try:
        least = float(number) if at else None
    except ValueError:
        raise UsageError(f"score {words!r}: {number!r} is not a number") from None
    return CAPTION_SCORERS.load(name)(model or None, least, device, stats)


def open_own_check(engine: Any) -> Any:
    """Open the scorer with which an engine checks its captions, without storing scores, or return None."""
    name = getattr(engine, "own_check", None)
    if name is None:
        return None
    scorer = open_scorer(name)
    scorer.stores = False
    return scorer


class CaptionScorer:
    """Base class of scorers; `judge(tasks)` stores a score in the item of each task, or rejects the task.

    bounded    name of a scorer with scores in [0, 1]; None for other ranges
    stores     whether scores are stored, rather than only used to reject

    Raises:
        UsageError: if `least` is outside the range.
    """

    bounded: str | None = None
    stores = True

    def __init__(
        self,
        model: str | None = None,
        least: float | None = None,
        device: str | None = None,
        stats: CaptionStats | None = None,
    ):
        if self.bounded and least is not None and not 0 <= least <= 1:
            raise UsageError(f"{self.bounded} scores are between 0 and 1, so @{least:g} is invalid")
        self.least, self.stats = least, stats or CaptionStats()
        self.open(model, device)

    def accept_or_reject(self, task: Any, scores: Sequence[float], reason: Callable[[int], str]) -> None:
        """Store the mean of `scores`, or reject the task with `reason(index)` if the worst is too low."""
        worst = min(scores)
        if self.least is not None and worst < self.least:
            task.reason = Reason("not there", reason(scores.index(worst)))
        else:
            self.store(task, sum(scores) / len(scores))

    def store(self, task: Any, score: float) -> None:
        """Store the score of a task in its item."""
        if not self.stores:
            return
        task.item.scores.setdefault(task.lang, {})[task.level] = round(score, 4)


class ClipScorer(CaptionScorer):
    """Cosine similarity of image and text, -1 to 1, by CLIP or a model with the same two methods.

    `model` is a folder or a hub id. The sentences of a caption are scored separately, because CLIP reads at
    most 77 tokens; the score is their mean, and `least` applies to the lowest. Longer sentences are truncated
    and counted in `stats.counts["cut_scores"]`.

    Raises:
        LuminaError: if the model cannot be loaded, or has missing weights.
    """

    def open(self, model: str | None, device: str | None) -> None:
        """Load the model."""
        import torch
        from transformers import AutoConfig, AutoModel, AutoProcessor

        from lumina_cli.core.device import pick_device
        from lumina_cli.core.unicap.engines.transformers import one_line_errors, quiet

        self.name, self.device = model or CLIP, pick_device(device)
        with quiet(), one_line_errors(self.name, "--score clip:FOLDER of a CLIP model"):
            kind = AutoConfig.from_pretrained(self.name, trust_remote_code=False)
            self.model, report = AutoModel.from_pretrained(
                self.name, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
            if not hasattr(self.model, "get_text_features") or not hasattr(self.model, "get_image_features"):
                raise LuminaError(
                    f"{self.name} is a {kind.model_type} model, which does not compare text with images"
                )
            if report["missing_keys"]:
                raise LuminaError(f"{self.name} has missing weights, such as {min(report['missing_keys'])}")
            self.processor = AutoProcessor.from_pretrained(self.name, trust_remote_code=False)
        self.model.to(self.device).eval()
        self.longest = kind.text_config.max_position_embeddings
        self.torch = torch

    def judge(self, tasks: Sequence[Any]) -> None:
        """Store the score of each task in its item, or reject the task."""
        if not tasks:
            return
        self._embed_images({id(task.item): task.item for task in tasks}.values())
        sentences_per_task = [[one for one in _SENTENCE.split(task.text.strip()) if one] for task in tasks]
        texts = iter(self._texts([sentence for sentences in sentences_per_task for sentence in sentences]))
        for task, sentences in zip(tasks, sentences_per_task, strict=True):
            scores = [float(task.item.features @ next(texts)) for _ in sentences]
            self.accept_or_reject(task, scores, partial(self._reason, scores, sentences))

    def _reason(self, scores: list[float], sentences: list[str], at: int) -> str:
        said = f" ({sentences[at][:80]!r})" if len(sentences) > 1 else ""
        return f"scores {scores[at]:.4g} against its image, less than {self.least:g}{said}"

    def _embed_images(self, items: Any) -> None:
        new = [item for item in items if item.features is None]
        if new:
            pixels = self.processor.image_processor([item.image for item in new], return_tensors="pt").to(
                self.device
            )
            for item, features in zip(new, self._unit(self.model.get_image_features, pixels), strict=True):
                item.features = features

    def _texts(self, texts: list[str]) -> Any:
        tokenizer = self.processor.tokenizer
        lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
        self.stats.counts["cut_scores"] += sum(length > self.longest for length in lengths)
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.longest, return_tensors="pt"
        )
        return self._unit(self.model.get_text_features, tokens.to(self.device))

    def _unit(self, method: Any, inputs: Any) -> Any:
        with self.torch.inference_mode():
            found = method(**inputs)
        found = getattr(found, "pooler_output", found)
        return found.float() / found.float().norm(dim=-1, keepdim=True)


class NanoScorer(CaptionScorer):
    """Fraction of the nano kinds in a caption that the bundled detector finds in the image, 0 to 1.

    Without `least`, a caption with any kind that is not detected is rejected. Captions without nano kinds, or
    in other languages than the five of nano, have no score. `model` is a folder with a detector; None is the
    bundled one.
    """

    bounded = "nano"

    def open(self, model: str | None, device: str | None) -> None:
        """Load the detector, on the CPU."""
        from lumina_cli.core.nano.detector import load_detector

        self.least = 1.0 if self.least is None else self.least
        self.detector = load_detector(Path(model) if model else ASSETS / "nano" / "detector")

    def judge(self, tasks: Sequence[Any]) -> None:
        """Store the score of each task in its item, or reject the task."""
        from lumina_cli.core.nano.caption_parser import order_of
        from lumina_cli.core.nano.captions import LANGUAGES

        self._embed_images(list({id(task.item): task.item for task in tasks}.values()))
        for task in tasks:
            named = order_of(task.text, task.lang) if task.lang in LANGUAGES else []
            absent = [kind for kind in named if kind not in task.item.features]
            score = 1 - len(absent) / len(named) if named else 1.0
            if score < self.least:
                task.reason = Reason("not there", f"names objects that are not detected: {', '.join(absent)}")
            elif named:
                self.store(task, score)

    def _embed_images(self, items: Sequence[Any]) -> None:
        new = [item for item in items if item.features is None]
        threshold = self.detector.thresholds.get("default", 0.3)
        for item, things in zip(new, self.detector.detect([item.image for item in new]), strict=True):
            item.features = frozenset(thing.kind for thing in things if thing.score >= threshold)
