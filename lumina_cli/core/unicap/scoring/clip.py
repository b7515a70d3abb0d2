"""How well captions fit their picture, by a model that embeds both; and which do not fit at all."""

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
    """Return the scorer that NAME[:MODEL][@LEAST] stands for; UsageError where it stands for none.

    With LEAST, a caption that scores less is no caption of its picture, and fails like any other check.
    """
    text, at, number = words.rpartition("@")
    name, _, model = (text if at else words).partition(":")
    try:
        least = float(number) if at else None
    except ValueError:
        raise UsageError(f"score {words!r}: {number!r} is not a number") from None
    return CAPTION_SCORERS.load(name)(model or None, least, device, stats)


class CaptionScorer:
    """What scorers have in common: a bar, and where a score goes.

    `judge(tasks)` puts a score of each task's text into its shot's `scores`, or a reason into the task.
    `bounded` names a scorer whose scores lie from 0 to 1; UsageError for a `least` outside.
    """

    bounded: str | None = None

    def __init__(
        self,
        model: str | None = None,
        least: float | None = None,
        device: str | None = None,
        stats: CaptionStats | None = None,
    ):
        if self.bounded and least is not None and not 0 <= least <= 1:
            raise UsageError(f"{self.bounded} scores lie from 0 to 1, so @{least:g} is none")
        self.least, self.stats = least, stats or CaptionStats()
        self.open(model, device)

    def settle(self, task: Any, scores: Sequence[float], reason: Callable[[int], str]) -> None:
        """Keep the mean of `scores`, or reject the text for `reason(place of the worst)` if that is low."""
        worst = min(scores)
        if self.least is not None and worst < self.least:
            task.reason = Reason("not there", reason(scores.index(worst)))
        else:
            self.keep(task, sum(scores) / len(scores))

    def keep(self, task: Any, score: float) -> None:
        """Put the score of a task's text into its shot."""
        task.item.scores.setdefault(task.lang, {})[task.level] = round(score, 4)


class ClipScorer(CaptionScorer):
    """The cosine between picture and text, -1 to 1, by CLIP or any model with its two methods.

    `model` is a folder or a hub id. A caption of several sentences is scored by each, since CLIP reads 77
    tokens at most: its score is their mean, and `least` is asked of the worst of them. Of a longer
    sentence the rest is not scored; how many there were is in `tally.counts["cut_scores"]`. LuminaError where
    the model cannot be loaded whole.
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
                    f"{self.name} is a {kind.model_type} model, which compares no texts with pictures"
                )
            if report["missing_keys"]:
                raise LuminaError(
                    f"{self.name} lacks weights of its model, {min(report['missing_keys'])} among them"
                )
            self.processor = AutoProcessor.from_pretrained(self.name, trust_remote_code=False)
        self.model.to(self.device).eval()
        self.longest = kind.text_config.max_position_embeddings
        self.torch = torch

    def judge(self, tasks: Sequence[Any]) -> None:
        """Put a score of each task's text into its shot's `scores`, or a reason into the task."""
        if not tasks:
            return
        self._look({id(task.item): task.item for task in tasks}.values())
        told = [[one for one in _SENTENCE.split(task.text.strip()) if one] for task in tasks]
        texts = iter(self._texts([sentence for sentences in told for sentence in sentences]))
        for task, sentences in zip(tasks, told, strict=True):
            scores = [float(task.item.features @ next(texts)) for _ in sentences]
            self.settle(task, scores, partial(self._reason, scores, sentences))

    def _reason(self, scores: list[float], sentences: list[str], at: int) -> str:
        said = f" ({sentences[at][:80]!r})" if len(sentences) > 1 else ""
        return f"scores {scores[at]:.4g} against its picture, less than {self.least:g}{said}"

    def _look(self, items: Any) -> None:
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
    """The share of the nano kinds named by a caption that the embedded detector sees in its picture, 0 to 1.

    A caption that names a kind which is not seen fails, or with `least` one that scores less. A caption that
    names none, or is in a language that reading.py does not know, has no score. `model` is a folder with a
    detector, or None for the one in the package; UsageError for a `least` outside 0 to 1.
    """

    bounded = "nano"

    def open(self, model: str | None, device: str | None) -> None:
        """Load the detector; it runs on the processor."""
        from lumina_cli.core.nano.detector import load_detector

        self.least = 1.0 if self.least is None else self.least
        self.detector = load_detector(Path(model) if model else ASSETS / "nano" / "detector")

    def judge(self, tasks: Sequence[Any]) -> None:
        """Put a score of each task's text into its shot's `scores`, or a reason into the task."""
        from lumina_cli.core.nano.caption_parser import order_of
        from lumina_cli.core.nano.captions import LANGUAGES

        self._look(list({id(task.item): task.item for task in tasks}.values()))
        for task in tasks:
            named = order_of(task.text, task.lang) if task.lang in LANGUAGES else []
            absent = [kind for kind in named if kind not in task.item.features]
            score = 1 - len(absent) / len(named) if named else 1.0
            if score < self.least:
                task.reason = Reason("not there", f"names what is not seen: {', '.join(absent)}")
            elif named:
                self.keep(task, score)

    def _look(self, items: Sequence[Any]) -> None:
        new = [item for item in items if item.features is None]
        bar = self.detector.thresholds.get("default", 0.3)
        for item, things in zip(new, self.detector.detect([item.image for item in new]), strict=True):
            item.features = frozenset(thing.kind for thing in things if thing.score >= bar)
