"""Hallucination check: an open-vocabulary detector looks for every object that a caption names."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.unicap.scoring.clip import CaptionScorer
from lumina_cli.core.unicap.scoring.noun_phrases import find_noun_phrases

OWL = "google/owlv2-base-patch16-ensemble"
BY_PHRASE = ("owlvit", "owlv2")  # models with one score per box and phrase
BY_TOKEN = ("grounding-dino", "mm-grounding-dino")  # models with one score per box and token


class GroundingScorer(CaptionScorer):
    """Mean score of the best box of each noun phrase of a caption, 0 to 1.

    With `least`, a caption is rejected if the best box of any phrase scores below it. `model` is a folder or
    a hub id of OWL-ViT, OWLv2, Grounding DINO or MM Grounding DINO, whose image processors do not need
    torchvision. Only English captions are scored; others are counted in `stats.counts["unread_scores"]`, and
    phrases that are too long for the model in "cut_scores". Captions without noun phrases have no score. Each
    caption is processed separately, so its score does not depend on the batch.

    Raises:
        LuminaError: if the model is of another type, cannot be loaded, or has missing weights.
        UsageError: if `least` is outside [0, 1].
    """

    bounded = "objects"

    def open(self, model: str | None, device: str | None) -> None:
        """Load the model."""
        import torch

        from lumina_cli.core.device import pick_device
        from lumina_cli.core.unicap.engines.transformers import one_line_errors, quiet

        self.name, self.torch, self.device = model or OWL, torch, pick_device(device)
        with quiet(), one_line_errors(self.name, "--score objects:FOLDER of a detector that takes words"):
            self.kind, self.model, self.pixels, self.tokenizer = _load(self.name)
        self.model.to(self.device).eval()
        text = self.model.config.text_config
        self.longest = min(
            getattr(self.model.config, "max_text_len", text.max_position_embeddings),
            text.max_position_embeddings,
        )

    def judge(self, tasks: Sequence[Any]) -> None:
        """Store the score of each task in its item, or reject the task."""
        for task in tasks:
            if task.lang != "en":
                self.stats.counts["unread_scores"] += 1
                continue
            named = find_noun_phrases(task.text, tags=task.level == "tags")
            if not named:
                continue
            scores = self.best_box_scores(task.item, named)
            self.accept_or_reject(task, scores, partial(self._reason, scores, named))

    def _reason(self, scores: list[float], named: list[str], at: int) -> str:
        box = f"whose best box scores {scores[at]:.4g}, less than {self.least:g}"
        return f"names {named[at]!r}, {box}"

    def best_box_scores(self, item: Any, phrases: list[str]) -> list[float]:
        """Return the score of the best box of each phrase, 0 to 1."""
        if item.features is None:
            item.features = dict(self.pixels(images=[item.image.convert("RGB")], return_tensors="pt"))
        pixels = {name: value.to(self.device) for name, value in item.features.items()}
        with self.torch.inference_mode():
            by = self._by_phrase if self.kind in BY_PHRASE else self._by_token
            return by(phrases, pixels)

    def _by_phrase(self, phrases: list[str], pixels: dict[str, Any]) -> list[float]:
        self._count_cut(len(self.tokenizer(phrase)["input_ids"]) > self.longest for phrase in phrases)
        tokens = self.tokenizer(
            phrases, padding="max_length", truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.device)
        logits = self.model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **pixels
        ).logits
        return logits[0].float().sigmoid().amax(dim=0).tolist()  # maximum over the boxes of (boxes, phrases)

    def _by_token(self, phrases: list[str], pixels: dict[str, Any]) -> list[float]:
        """Score phrases that are joined to texts such as "red car. floor.".

        The score of a box for a phrase is the mean over the tokens of the phrase.
        """
        scores = []
        for text, spans in self._texts(phrases):
            tokens = self.tokenizer(
                text,
                truncation=True,
                max_length=self.longest,
                return_tensors="pt",
                return_offsets_mapping=True,
            )
            offsets = tokens.pop("offset_mapping")[0].tolist()
            found = self.model(**tokens.to(self.device), **pixels).logits[0].float().sigmoid()
            for begin, end in spans:
                own = [place for place, (a, b) in enumerate(offsets) if a < end and b > begin]
                self._count_cut([not own or offsets[own[-1]][1] < end])
                scores.append(found[:, own].mean(dim=1).amax().item() if own else 0.0)
        return scores

    def _texts(self, phrases: list[str]) -> list[tuple[str, list[tuple[int, int]]]]:
        """Join phrases to texts that fit the model; return each text with the spans of its phrases."""
        texts: list[tuple[str, list[tuple[int, int]]]] = []
        for phrase in phrases:
            text, spans = texts.pop() if texts else ("", [])
            longer = f"{text} {phrase}.".lstrip()
            if spans and len(self.tokenizer(longer)["input_ids"]) > self.longest:
                texts.append((text, spans))
                longer, spans = f"{phrase}.", []
            end = len(longer) - 1
            texts.append((longer, [*spans, (end - len(phrase), end)]))
        return texts

    def _count_cut(self, cut: Any) -> None:
        self.stats.counts["cut_scores"] += sum(cut)


def _load(name: str) -> tuple[str, Any, Any, Any]:
    """Load a detector: model type, model, image processor and tokenizer."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForZeroShotObjectDetection,
        AutoTokenizer,
    )

    kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    if kind not in BY_PHRASE + BY_TOKEN:
        raise LuminaError(
            f"{name} is a {kind} model; --score objects supports {', '.join(BY_PHRASE + BY_TOKEN)}"
        )
    model, report = AutoModelForZeroShotObjectDetection.from_pretrained(
        name, use_safetensors=True, output_loading_info=True, trust_remote_code=False
    )
    if report["missing_keys"]:
        raise LuminaError(f"{name} has missing weights, such as {min(report['missing_keys'])}")
    pixels = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
    return kind, model, pixels, AutoTokenizer.from_pretrained(name, trust_remote_code=False)
