"""Scores that a network gives to a picture: any image classifier of the hub, or CLIP with a linear head."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
)
from transformers.utils import cached_file

from lumina_cli.core.device import pick_device
from lumina_cli.core.encoders.text import quiet_transformers
from lumina_cli.core.errors import LuminaError, UsageError

AESTHETIC = "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE"  # about 1 to 10
NSFW = "Falconsai/nsfw_image_detection"  # a share, 0 to 1
WANTED = {"aesthetic": ("aesthetic", "good", "high"), "nsfw": ("nsfw", "porn", "hentai", "sexy", "explicit")}
HEADS = ("predictor.", "layers.", "head.")  # how weights of a linear head behind CLIP are called


class ModelScore:
    """One number per picture from a model named by a folder or a hub id.

    A classifier gives the sum of the shares of the classes that are `wanted`; a CLIP vision tower with a head
    of linear layers (LAION's aesthetic predictors as shunk031 keeps them on the hub, read without the code
    that lies beside them) what the head says of the normalised embedding. "MODEL#LABEL" names the class of a
    classifier oneself. LuminaError where the model cannot be read or gives no such score. Weights are read
    from safetensors only.
    """

    def __init__(self, model: str, wanted: Sequence[str]):
        model, _, label = model.partition("#")
        self.model_name, self.device = model, pick_device()
        with quiet_transformers():
            try:
                settings, _ = PreTrainedConfig.get_config_dict(model)
                self.processor = AutoImageProcessor.from_pretrained(
                    model, backend="pil", trust_remote_code=False
                )
                made_by = " ".join(settings.get("architectures") or ())
                classifier = "ImageClassification" in made_by
                network = _classifier(model) if classifier else _tower(model, settings)
            except (OSError, ValueError, ImportError) as error:
                reason = " ".join(str(error).split())[:200]
                raise LuminaError(f"{model} gives no score of pictures: {reason}") from error
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.labels = self.head = None
        if classifier:
            self.labels = _labels(network.config.id2label, [label] if label else wanted, model)
        else:
            self.head = _linear_head(model, bent="ReLU" in made_by).to(self.device)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[float]:
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        if self.labels:
            return self.network(**inputs).logits.softmax(-1)[:, self.labels].sum(-1).tolist()
        embeds: Tensor = self.network(pixel_values=inputs["pixel_values"]).image_embeds
        return self.head(nn.functional.normalize(embeds, dim=-1)).squeeze(-1).tolist()


class Aesthetic(ModelScore):
    """How well people would like a picture; by default LAION's predictor on CLIP ViT-L/14, about 1 to 10."""

    def __init__(self, model: str | None = None):
        super().__init__(model or AESTHETIC, WANTED["aesthetic"])


class Nsfw(ModelScore):
    """How likely a picture is not for every eye, 0 to 1."""

    def __init__(self, model: str | None = None):
        super().__init__(model or NSFW, WANTED["nsfw"])


def _classifier(model: str) -> nn.Module:
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    return AutoModelForImageClassification.from_pretrained(
        model, config=config, use_safetensors=True, trust_remote_code=False
    )


def _tower(model: str, settings: dict) -> nn.Module:
    """CLIP's vision tower, whatever the configuration calls the class around it."""
    known = {name: value for name, value in settings.items() if name not in ("auto_map", "model_type")}
    config = CLIPVisionConfig.from_dict(known)
    return CLIPVisionModelWithProjection.from_pretrained(model, config=config, use_safetensors=True)


def _labels(names: dict[int, str], wanted: Sequence[str], model: str) -> list[int]:
    found = [number for number, name in names.items() if name.lower() in [word.lower() for word in wanted]]
    if not found:
        have = ", ".join(names.values())
        raise UsageError(f"{model} has no class {' or '.join(wanted)}, only {have}; write {model}#CLASS")
    return found


def _linear_head(model: str, bent: bool) -> nn.Module:
    """The linear layers that a checkpoint holds beside CLIP's, ending in one number; `bent`: ReLU between."""
    from safetensors import safe_open

    file = str(Path(model) / "model.safetensors") if Path(model).is_dir() else None
    file = file or cached_file(model, "model.safetensors")
    with safe_open(file, "pt") as weights:
        names = sorted(name for name in weights.keys() if name.startswith(HEADS))  # noqa: SIM118
        tensors = {name: weights.get_tensor(name).float() for name in names}
    layers = []
    for name in sorted((n for n in names if tensors[n].ndim == 2), key=_depth):
        out, wide = tensors[name].shape
        layer = nn.Linear(wide, out)
        layer.weight.data = tensors[name]
        layer.bias.data = tensors.get(name.removesuffix("weight") + "bias", torch.zeros(out))
        layers.append(layer)
    if not layers or layers[-1].out_features != 1:
        raise LuminaError(f"{model} is neither an image classifier nor CLIP with a linear head")
    between = [nn.ReLU()] if bent else []
    chain = [part for layer in layers[:-1] for part in (layer, *between)] + layers[-1:]
    return nn.Sequential(*chain).eval().requires_grad_(False)


def _depth(name: str) -> list[int]:
    return [int(part) for part in name.split(".") if part.isdecimal()]
