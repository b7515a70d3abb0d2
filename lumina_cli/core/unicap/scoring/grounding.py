"""Mention of what is not there: a detector that takes words is asked for every thing that a caption names."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.unicap.scoring.clip import CaptionScorer
from lumina_cli.core.unicap.scoring.noun_phrases import find_noun_phrases

OWL = "google/owlv2-base-patch16-ensemble"
BY_PHRASE = ("owlvit", "owlv2")  # models with a score of each box for each phrase
BY_TOKEN = ("grounding-dino", "mm-grounding-dino")  # with one for each token of a text of all phrases


class GroundingScorer(CaptionScorer):
    """The mean, over the noun phrases of a caption, of the score of each one's best box, 0 to 1.

    With `least`, a caption fails that names something whose best box scores less. `model` is a folder or a
    hub id of OWL-ViT, OWLv2, Grounding DINO or MM Grounding DINO: transformers prepares pictures for these
    without torchvision. LuminaError for another kind (OmDet-Turbo, which wants timm) and for a model that
    cannot be loaded whole; UsageError for a `least` outside 0 to 1.

    Only English is read: captions in other languages have no score, and how many there were is in
    `tally.counts["unread_scores"]`; phrases that are too long for the model in "cut_scores". A caption that
    names nothing has no score, either. Each caption is asked for by itself, so that its score depends on no
    other.
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
        """Put a score of each task's text into its shot's `scores`, or a reason into the task."""
        for task in tasks:
            if task.lang != "en":
                self.stats.counts["unread_scores"] += 1
                continue
            named = find_noun_phrases(task.text, tags=task.level == "tags")
            if not named:
                continue
            scores = self.seen(task.item, named)
            self.settle(task, scores, partial(self._reason, scores, named))

    def _reason(self, scores: list[float], named: list[str], at: int) -> str:
        box = f"whose best box scores {scores[at]:.4g}, less than {self.least:g}"
        return f"names {named[at]!r}, {box}"

    def seen(self, item: Any, phrases: list[str]) -> list[float]:
        """Return the score of the best box for each phrase, 0 to 1."""
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
        return logits[0].float().sigmoid().amax(dim=0).tolist()  # of (boxes, phrases)

    def _by_token(self, phrases: list[str], pixels: dict[str, Any]) -> list[float]:
        """Return the scores of phrases in one text, "red car. floor."; as many texts as it takes.

        A box's score for a phrase is the mean over the phrase's tokens.
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
        """Return texts of phrases that fit into the model, with the characters where each phrase stands."""
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
    """Return a detector's kind, the model with every weight, and what prepares pictures and texts for it."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForZeroShotObjectDetection,
        AutoTokenizer,
    )

    kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    if kind not in BY_PHRASE + BY_TOKEN:
        raise LuminaError(
            f"{name} is a {kind} model; --score objects takes {', '.join(BY_PHRASE + BY_TOKEN)}"
        )
    model, report = AutoModelForZeroShotObjectDetection.from_pretrained(
        name, use_safetensors=True, output_loading_info=True, trust_remote_code=False
    )
    if report["missing_keys"]:
        raise LuminaError(f"{name} lacks weights of its model, {min(report['missing_keys'])} among them")
    pixels = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
    return kind, model, pixels, AutoTokenizer.from_pretrained(name, trust_remote_code=False)
