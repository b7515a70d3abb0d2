"""The networks that `bench step` compares, their inputs, and their exact output."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lumina_cli.core.device import compute_dtype
from lumina_cli.core.nextdit import EncodedText, NextDiT, NextDiTConfig, load_transformer
from lumina_cli.core.nextdit.config import config_to_diffusers
from lumina_cli.core.nextdit.convert import empty_model, to_diffusers
from lumina_cli.core.nextdit.sequence import padded_layout, patchify, unpatchify

PIXELS = 8  # width of a latent
TIME = 0.3
SMALL = 2**28  # parameters; smaller models compute in float32, see `load_pipeline`


@dataclass(frozen=True)
class NetworkInputs:
    """Inputs of one call of the network for one image.

    latents   (1, C, H, W)
    t         (1,)
    texts     features (1, M, T) of the caption and, for a guided step, of an empty one with one token
    """

    latents: Tensor
    t: Tensor
    texts: tuple[Tensor, ...]


def default_dtype(model: NextDiT) -> torch.dtype:
    """Return the dtype that a model of this size computes in by default on this CPU."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return torch.float32 if count < SMALL else compute_dtype("cpu")


def random_network(name: str, dtype: torch.dtype | None = None, seed: int = 0) -> NextDiT:
    """Return a network of a published size with random weights, generated directly in `dtype`.

    Matrices preserve the norm of their input, norm weights are near one and biases near zero, so activations
    have realistic magnitudes.
    """
    model = empty_model(NextDiTConfig.named(name))
    model = model.to(dtype or default_dtype(model)).to_empty(device="cpu").eval().requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.normal_(std=weight.shape[1] ** -0.5, generator=random)
        else:
            weight.normal_(std=0.1, generator=random)
            weight += float("norm" in key or key == "cap_embedder.0.weight")
    return model


def load_network(name: str, dtype: torch.dtype | None) -> NextDiT:
    """Load the network of a model by name or folder, in `dtype` or the default one."""
    from lumina_cli.core.models.locate import choose_model

    model = load_transformer(choose_model(name).folder / "transformer", dtype=dtype)
    return model.to(dtype or default_dtype(model)).eval().requires_grad_(False)


def make_call(
    config: NextDiTConfig, size: int, tokens: int, guided: bool, seed: int, dtype: torch.dtype
) -> NetworkInputs:
    """Return random inputs for an image of `size` x `size` pixels and a caption of `tokens`."""
    random = torch.Generator().manual_seed(seed)
    side = size // PIXELS
    latents = torch.randn(1, config.in_channels, side, side, generator=random)
    lengths = (tokens, 1) if guided else (tokens,)
    texts = tuple(torch.randn(1, length, config.text_dim, generator=random).to(dtype) for length in lengths)
    return NetworkInputs(latents.to(dtype), torch.tensor([TIME]), texts)


Step = Callable[[NetworkInputs], list[Tensor]]  # the velocity for each text


def our_step(model: NextDiT, guided: bool) -> Callable[[NetworkInputs], list[Tensor]]:
    """Return a step of our network; a guided one packs both branches into one call and encodes texts once."""
    encoded: dict[int, EncodedText] = {}

    def run(call: NetworkInputs) -> list[Tensor]:
        if not guided:
            return [model(call.latents, call.t, call.texts[0])]
        if id(call) not in encoded:
            encoded[id(call)] = _encode(model, call.texts)
        return list(model(call.latents, call.t, encoded[id(call)]).split(1))

    return run


def _encode(model: NextDiT, texts: Sequence[Tensor]) -> EncodedText:
    """Encode texts of different lengths as one batch, zero-padded."""
    parts = [model.encode_text(text) for text in texts]
    lengths = tuple(length for part in parts for length in part.lengths)
    features = parts[0].features.new_zeros(len(lengths), max(lengths), parts[0].features.shape[2])
    for row, part in zip(features, parts, strict=True):
        row[: part.lengths[0]] = part.features[0]
    return EncodedText(features, lengths)


def diffusers_step(model: NextDiT) -> Callable[[NetworkInputs], list[Tensor]]:
    """Return a step of diffusers' network, which shares the memory of our weights; a call for each text."""
    from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel

    with torch.device("meta"):
        theirs = Lumina2Transformer2DModel.from_config(config_to_diffusers(model.config))
    theirs.load_state_dict(to_diffusers(model.state_dict()), assign=True)
    config = theirs.config  # its position tables are not buffers, so loading left them on the meta device
    theirs.rope_embedder = type(theirs.rope_embedder)(
        theta=10000,
        axes_dim=config.axes_dim_rope,
        axes_lens=config.axes_lens,
        patch_size=config.patch_size,
    )
    theirs.eval()

    def run(call: NetworkInputs) -> list[Tensor]:
        masks = [torch.ones(text.shape[:2], dtype=torch.bool) for text in call.texts]
        inputs = zip(call.texts, masks, strict=True)
        return [theirs(call.latents, call.t, *text, return_dict=False)[0] for text in inputs]

    return run


SIDES = {"diffusers": diffusers_step}


@torch.inference_mode()
def exact_velocities(model: NextDiT, call: NetworkInputs) -> list[Tensor]:
    """Return the velocity for each text in float32.

    The padded blocks compute it; each is converted to float32 for its turn only, so that a large model in
    bfloat16 never needs twice its memory.
    """

    def wide(module: nn.Module) -> nn.Module:
        return deepcopy(module).float()

    patch, (height, width) = model.config.patch_size, call.latents.shape[2:]
    grid, out = (height // patch, width // patch), []
    c = wide(model.t_embedder)(call.t)
    for text in call.texts:
        layout = padded_layout(model.config, (text.shape[1],), (grid,), text.device)
        words = wide(model.cap_embedder)(text.float())
        for block in model.context_refiner:
            words = wide(block)(words, None, *layout.text)
        x = wide(model.x_embedder)(patchify(call.latents.float(), patch))
        for block in model.noise_refiner:
            x = wide(block)(x, None, *layout.image, c)
        x = torch.cat([words, x], dim=1)
        for block in model.layers:
            x = wide(block)(x, None, *layout.joint, c)
        tokens = wide(model.final_layer)(x[:, text.shape[1] :], c)
        out.append(unpatchify(tokens, (height, width), patch))
    return out
