"""Trains nano's text encoder: a byte-pair tokenizer and a tiny Gemma-2, on captions of nano scenes.

Two losses: next-token prediction on parallel captions of one scene in several languages, and the recognition
of the scene from the features that the transformer will receive (the input of the last layer), by a small
head that is discarded after training.

B texts, M tokens, D width.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer

from lumina_cli.core.encoders.prompts import SYSTEM_PROMPTS, full_prompt
from lumina_cli.core.nano.captions import LANGUAGES, LEVELS, all_captions, describe_scene
from lumina_cli.core.nano.scene import BACKDROPS, KINDS, TINTS, Scene, draw_scene
from lumina_cli.core.training.config import Count, Rate, Seed, Weight
from lumina_cli.core.training.nano.fit import cosine_rate, descend, fit
from lumina_cli.core.training.progress import TrainingProgress
from lumina_cli.core.weights.json_files import declare_float32
from lumina_cli.core.weights.run_folder import staged_folder

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
MARKED = tuple(full_prompt("", name) for name in SYSTEM_PROMPTS if name != "empty")
# Merges never cross a word. Chinese and Japanese have no spaces, so they are split at common particles.
PARTICLES = "的是在有和与个只一两二三四のはがとにをもで"
STOPS = "，。、：；,.:;"
WORD = (
    rf"▁?[\p{{Latin}}\p{{M}}'-]+|▁?\p{{Cyrillic}}+|▁?\d|[{PARTICLES}]|▁|[{STOPS}]"
    rf"|[^▁\p{{Latin}}\p{{Cyrillic}}{PARTICLES}{STOPS}]+"
)


class Settings(BaseModel):
    """Settings of `lumina train nano-text`."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    part: str = "text_encoder"
    """The part that the recipe trains."""
    vocabulary: Annotated[int, Field(ge=len(SPECIAL) + 256)] = 2_000
    """Tokens of the byte-pair vocabulary; it includes a token for every byte."""
    seed: Seed = 0
    """Random seed of the scenes, the weights and the batches."""
    steps: Count = 1_500
    """Optimizer steps."""
    batch: Count = 32
    """Scenes per step."""
    lr: Rate = 2e-3
    """Peak learning rate; it falls to 0 along a cosine."""
    translations: Annotated[int, Field(ge=1, le=len(LANGUAGES))] = 2
    """Languages per training text: parallel captions of one scene."""
    language_loss: Weight = 0.5
    """Weight of the next-token loss, added to the loss on the facts of the scene."""
    save_every: Count = 200
    """Steps between checkpoints."""


SCHEMA = Settings


def build_tokenizer(vocabulary: int, seed: int, scenes: int = 2_000) -> GemmaTokenizer:
    """Train a byte-pair tokenizer on the captions of `scenes` scenes drawn with `seed`.

    `vocabulary` is its size; one token per system prompt is added to it, because system prompts are long and
    the same in each text.
    """
    captions = (all_captions(draw_scene(seed, i), i) for i in range(scenes))
    corpus = (text for caption in captions for levels in caption.values() for text in levels.values())
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="isolated")
    octets = [f"<0x{octet:02X}>" for octet in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL, *octets], max_token_length=16, show_progress=False
    )
    learner.train_from_iterator(corpus, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True, padding_side="right")
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in MARKED])
    tokenizer.model_max_length = 256
    return tokenizer


def build_text_encoder(vocabulary: int) -> Gemma2ForCausalLM:
    """Return an untrained Gemma-2 of about 3.7M parameters."""
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=1024,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    config._attn_implementation = "eager"  # the only implementation with the soft cap of Gemma-2
    return Gemma2ForCausalLM(config)


class SceneReader(nn.Module):
    """Predicts the scene from the features of a caption: one query per kind, and one for the backdrop.

    features (B, M, D), mask (B, M) -> (B, KINDS, 1 + TINTS + 4 counts + 3 coordinates) and (B, BACKDROPS).
    It is small on purpose: the features themselves must contain the facts.
    """

    def __init__(self, width: int):
        super().__init__()
        self.questions = nn.Parameter(torch.randn(len(KINDS) + 1, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mix = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width), nn.SiLU())
        self.objects = nn.Linear(2 * width, 1 + len(TINTS) + 4 + 3)
        self.backdrop = nn.Linear(2 * width, len(BACKDROPS))
        # A first estimate from the mean of all tokens: it provides a gradient before the attention does.
        self.mentioned = nn.Linear(width, len(KINDS))

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predictions per kind and the logits of the backdrop."""
        features = self.norm(features)
        questions = self.questions.expand(len(features), -1, -1)
        found, _ = self.attention(questions, features, features, key_padding_mask=~mask, need_weights=False)
        answers = self.mix(torch.cat([found * 4, questions], dim=-1))
        mean = (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        objects = self.objects(answers[:, :-1])
        present = objects[..., :1] + self.mentioned(mean)[..., None]
        return torch.cat([present, objects[..., 1:]], dim=-1), self.backdrop(answers[:, -1])


def scene_targets(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the facts of scenes: present, tint and count - 1 of each kind (B, KINDS), place, and backdrop.

    The place (B, KINDS, 3) is the mean position of the objects of a kind; the backdrop is (B,).
    """
    present, tint, count = (torch.zeros(len(scenes), len(KINDS), dtype=torch.long) for _ in range(3))
    place = torch.zeros(len(scenes), len(KINDS), 3)
    for i, scene in enumerate(scenes):
        for kind in {thing.kind for thing in scene.things}:
            same = [thing for thing in scene.things if thing.kind == kind]
            k = KINDS.index(kind)
            present[i, k], tint[i, k], count[i, k] = 1, TINTS.index(same[0].tint), len(same) - 1
            place[i, k] = torch.tensor([(t.x, t.y, t.z) for t in same]).mean(0)
    return present, tint, count, place, torch.tensor([BACKDROPS.index(scene.backdrop) for scene in scenes])


def reading_loss(
    reader: SceneReader, features: Tensor, mask: Tensor, scenes: Sequence[Scene]
) -> tuple[Tensor, dict]:
    """Return the loss of recognizing scenes from features, and the accuracy of kinds and tints."""
    present, tint, count, place, backdrop = scene_targets(scenes)
    objects, ground = reader(features, mask)
    seen = present.bool()
    present_logits, tints, counts, places = objects.split([1, len(TINTS), 4, 3], dim=-1)
    present_logits = present_logits.squeeze(-1)
    loss = (
        4 * binary_cross_entropy_with_logits(present_logits, present.float())
        + cross_entropy(tints[seen], tint[seen])
        + 0.5 * cross_entropy(counts[seen], count[seen])
        + 0.5 * (places[seen] - place[seen]).abs().mean()
        + 0.3 * cross_entropy(ground, backdrop)
    )
    kinds_right = ((present_logits > 0) == seen).all(-1).float().mean()
    tints_right = (tints[seen].argmax(-1) == tint[seen]).float().mean()
    return loss, {"kinds": float(kinds_right), "tints": float(tints_right)}


def _batch(tokenizer, settings: Settings, step: int) -> tuple[list[Scene], Tensor, Tensor, Tensor]:
    """Return scenes, tokens (B, M) of several captions of each, and masks of real and of first captions."""
    rng = random.Random(f"{settings.seed}/{step}")
    scenes = [draw_scene(settings.seed, rng.randrange(1 << 30)) for _ in range(settings.batch)]
    systems = [name for name in SYSTEM_PROMPTS if name != "empty"]
    rows, firsts = [], []
    for scene in scenes:
        languages = rng.sample(LANGUAGES, settings.translations)
        texts = [describe_scene(scene, lang, _level(rng), rng.randrange(1 << 30)) for lang in languages]
        system = "real" if rng.random() < 0.5 else rng.choice(systems)
        first = tokenizer(full_prompt(texts[0], system)).input_ids
        rest = [tokenizer(text, add_special_tokens=False).input_ids for text in texts[1:]]
        end = [tokenizer.eos_token_id]
        rows.append(first + end + [token for ids in rest for token in ids + end])
        firsts.append(len(first))
    length = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    places = torch.arange(length)[None]
    return (
        scenes,
        tokens,
        places < torch.tensor([[len(row)] for row in rows]),
        places < torch.tensor(firsts)[:, None],
    )


def _level(rng: random.Random) -> str:
    """Draw a caption level; short captions most often, as in the prompts of users."""
    return rng.choices(LEVELS, (1, 2, 4, 1))[0]


def _losses(model, reader, tokenizer, settings: Settings, step: int) -> tuple[Tensor, dict]:
    """Return the total loss of a step and its row of metrics."""
    scenes, tokens, real, first = _batch(tokenizer, settings, step)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input_ids=tokens, attention_mask=real.long(), output_hidden_states=True)
        logits, features = output.logits, output.hidden_states[-2]
    language = cross_entropy(logits[:, :-1].float()[real[:, 1:]], tokens[:, 1:][real[:, 1:]])
    reading, accuracy = reading_loss(reader, features.float(), first, scenes)
    row = {"loss": reading.item(), "language": language.item(), **accuracy}
    return reading + settings.language_loss * language, row


def _save(model: Gemma2ForCausalLM, folder: Path) -> None:
    """Round to bfloat16 and save, without the language-model head."""
    copy = build_text_encoder(model.config.vocab_size)
    copy.load_state_dict(model.state_dict())
    with staged_folder(folder) as aside:
        copy.model.to(torch.bfloat16).save_pretrained(aside)
        declare_float32(aside)


def train_text_encoder(settings: Settings, out: Path, resume: bool = False) -> Iterator[dict]:
    """Train the tokenizer and the encoder, yield rows of metrics, and write both folders to `out`.

    The folders are `out/tokenizer` and `out/text_encoder`.

    Raises:
        LuminaError: if there is nothing to resume, or the saved state is damaged or of another network.
    """
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer(settings.vocabulary, settings.seed)
    with staged_folder(out / "tokenizer") as folder:
        tokenizer.save_pretrained(folder)
    parts = nn.ModuleDict({"model": build_text_encoder(len(tokenizer)), "reader": SceneReader(256)})
    optimizer = torch.optim.AdamW(parts.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.05)

    def train_step(step: int) -> dict[str, float]:
        loss, row = _losses(parts["model"], parts["reader"], tokenizer, settings, step)
        descend(parts, optimizer, loss, settings.lr * cosine_rate(step, settings.steps, warmup=100), clip=1.0)
        return row

    yield from fit(
        TrainingProgress(out / "text_encoder.pt", parts, optimizer, settings),
        train_step,
        lambda: _save(parts["model"], out / "text_encoder"),
        log_every=25,
        resume=resume,
    )
