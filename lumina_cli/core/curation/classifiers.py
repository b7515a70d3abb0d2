"""Scores of images by a network: an image classifier of the hub, or CLIP with a linear head."""

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
NSFW = "Falconsai/nsfw_image_detection"  # a probability, 0 to 1
CLASSES = {"aesthetic": ("aesthetic", "good", "high"), "nsfw": ("nsfw", "porn", "hentai", "sexy", "explicit")}
HEADS = ("predictor.", "layers.", "head.")  # prefixes of the weights of a linear head on CLIP


class ModelScore:
    """One number per image from a model, given as a folder or a hub id.

    model    a classifier, whose score is the sum of the probabilities of `classes`; or a CLIP vision tower
             with linear layers, such as LAION's aesthetic predictors, whose score is the output of these
             layers for the normalized embedding. "MODEL#LABEL" selects the class of a classifier
    classes  names of classes, at least one of them must exist

    Weights are read from safetensors only, and code of the repository is never run.

    Raises:
        LuminaError: if the model cannot be read or does not provide such a score.
        UsageError: if a classifier has none of the classes.
    """

    def __init__(self, model: str, classes: Sequence[str]):
        model, _, label = model.partition("#")
        self.model_name, self.device = model, pick_device()
        with quiet_transformers():
            try:
                settings, _ = PreTrainedConfig.get_config_dict(model)
                self.processor = AutoImageProcessor.from_pretrained(
                    model, backend="pil", trust_remote_code=False
                )
                architectures = " ".join(settings.get("architectures") or ())
                classifier = "ImageClassification" in architectures
                network = _classifier(model) if classifier else _tower(model, settings)
            except (OSError, ValueError, ImportError) as error:
                reason = " ".join(str(error).split())[:200]
                raise LuminaError(f"{model} does not provide a score of images: {reason}") from error
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.labels = self.head = None
        if classifier:
            self.labels = _labels(network.config.id2label, [label] if label else classes, model)
        else:
            self.head = _linear_head(model, with_relu="ReLU" in architectures).to(self.device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[float]:
        """Return the score of each RGB image."""
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        if self.labels:
            return self.network(**inputs).logits.softmax(-1)[:, self.labels].sum(-1).tolist()
        embeds: Tensor = self.network(pixel_values=inputs["pixel_values"]).image_embeds
        return self.head(nn.functional.normalize(embeds, dim=-1)).squeeze(-1).tolist()


class Aesthetic(ModelScore):
    """Aesthetic quality; by default LAION's predictor on CLIP ViT-L/14, about 1 to 10."""

    def __init__(self, model: str | None = None):
        super().__init__(model or AESTHETIC, CLASSES["aesthetic"])


class Nsfw(ModelScore):
    """Probability that an image is not safe for work, 0 to 1."""

    def __init__(self, model: str | None = None):
        super().__init__(model or NSFW, CLASSES["nsfw"])


def _classifier(model: str) -> nn.Module:
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    return AutoModelForImageClassification.from_pretrained(
        model, config=config, use_safetensors=True, trust_remote_code=False
    )


def _tower(model: str, settings: dict) -> nn.Module:
    """Return CLIP's vision tower, regardless of the architecture in the configuration."""
    known = {name: value for name, value in settings.items() if name not in ("auto_map", "model_type")}
    config = CLIPVisionConfig.from_dict(known)
    return CLIPVisionModelWithProjection.from_pretrained(model, config=config, use_safetensors=True)


def _labels(names: dict[int, str], classes: Sequence[str], model: str) -> list[int]:
    """Return the indices of the classes of a classifier."""
    found = [number for number, name in names.items() if name.lower() in [word.lower() for word in classes]]
    if not found:
        have = ", ".join(names.values())
        raise UsageError(f"{model} has no class {' or '.join(classes)}, only {have}; write {model}#CLASS")
    return found


def _linear_head(model: str, with_relu: bool) -> nn.Module:
    """Return the linear layers of a checkpoint on top of CLIP, ending in one number."""
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
    between = [nn.ReLU()] if with_relu else []
    chain = [part for layer in layers[:-1] for part in (layer, *between)] + layers[-1:]
    return nn.Sequential(*chain).eval().requires_grad_(False)


def _depth(name: str) -> list[int]:
    """Return the numbers in the name of a weight, which order the layers."""
    return [int(part) for part in name.split(".") if part.isdecimal()]
