"""Model folders from single files and from transformers without the other components.

A folder is assembled once, in the user's cache: the transformer is stored in diffusers' names, components of
other folders are linked.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow.path import scheduler_config
from lumina_cli.core.models.components import MODEL_INDEX, find_components
from lumina_cli.core.models.hub import LUMINA_IMAGE_2, find_cached
from lumina_cli.core.models.layout import first_line, missing_files
from lumina_cli.core.models.single_file import FileParts, read_single_file
from lumina_cli.core.nextdit.config import NextDiTConfig, config_from_diffusers, infer_config
from lumina_cli.core.nextdit.convert import check_state_dict, empty_model, save_transformer
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.weights.files import check_suffix, write_weights
from lumina_cli.core.weights.fingerprint import hash_files
from lumina_cli.core.weights.json_files import declare_float32, read_json, write_json
from lumina_cli.core.weights.run_folder import staged_folder

SCHEDULER = "scheduler/scheduler_config.json"
NANO = ASSETS / "nano"
SHIFT = 6.0  # of Lumina-Image 2.0's scheduler
FLUX_VAE = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "force_upcast": True, "in_channels": 3, "out_channels": 3, "latent_channels": 16, "layers_per_block": 2,
    "mid_block_add_attention": True, "norm_num_groups": 32, "sample_size": 1024, "scaling_factor": 0.3611,
    "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
GEMMA_2_2B = {
    "architectures": ["Gemma2Model"], "model_type": "gemma2", "dtype": "float32", "vocab_size": 256000,
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-06, "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": 2, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip


def assemble_model(source: Path, frozen: str | Path | None = None) -> Path:
    """Return a complete model folder for a single file, or for a folder that has only a transformer.

    source   a weight file of any dialect, or a folder of weights
    frozen   a model that provides the components which `source` lacks

    Raises:
        LuminaError: if a component is missing, or the file is not of a Lumina-Image 2.0.
    """
    if source.is_file():
        check_suffix(source)
    donor = find_components(str(frozen)).resolve() if frozen is not None else None
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    digest = hashlib.sha256(f"1 {donor}".encode())
    digest.update(hash_files(files).encode())
    folder = cache_folder() / f"{source.stem or source.name}-{digest.hexdigest()[:12]}"
    if not folder.is_dir() or missing_files(folder):
        parts = read_single_file(source)
        with staged_folder(folder) as aside:
            write_model(parts, aside, source, donor)
    return folder


def cache_folder() -> Path:
    """Return the folder of assembled models: in LUMINA_CACHE, or in the user's cache."""
    root = os.environ.get("LUMINA_CACHE")
    if root:
        return Path(root) / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lumina" / "models"


def write_model(parts: FileParts, folder: Path, source: Path, donor: Path | None, link: bool = True) -> None:
    """Write the components of a file, and those of `donor` that it lacks, as a model folder.

    link   link the components of other folders instead of copying them

    Raises:
        LuminaError: if a component is missing.
    """
    config = transformer_config(parts, source)
    bundled = NANO if _same_shapes(config, _nano_config()) else None
    place = _link if link else _copy
    missing = []
    if parts.vae:
        _write_vae(parts, folder, source, donor or bundled)
    elif not _take(donor, "vae", folder, place):
        missing.append("vae")
    if parts.text_encoder:
        _write_text_encoder(parts, folder, source, donor or bundled)
    elif not _take(donor, "text_encoder", folder, place):
        missing.append("text_encoder")
    if not missing and not _write_tokenizer(parts, folder, donor, bundled, place):
        missing.append("tokenizer")
    if not link:  # a linked config belongs to another folder
        declare_float32(folder / "text_encoder")
    if missing:
        _raise_missing(source, config, missing)
    model = empty_model(config)
    check_state_dict(model, parts.transformer, str(source))
    model.load_state_dict(parts.transformer, assign=True)
    save_transformer(model, folder / "transformer")
    _write_settings(parts, folder, donor or bundled)


def transformer_config(parts: FileParts, source: Path) -> NextDiTConfig:
    """Return the config of the transformer in a file: its own, the bundled model's, or by its shapes."""
    if own := parts.configs.get("transformer"):
        return config_from_diffusers(own)
    try:
        found = infer_config({name: tuple(tensor.shape) for name, tensor in parts.transformer.items()})
    except LuminaError as error:
        raise LuminaError(f"{source}: {error}") from error
    nano = _nano_config()
    return nano if _same_shapes(found, nano) else found


def _nano_config() -> NextDiTConfig:
    return config_from_diffusers(read_json(NANO / "transformer" / "config.json"))


def _same_shapes(one: NextDiTConfig, other: NextDiTConfig) -> bool:
    names = ("dim", "num_layers", "num_refiner_layers", "num_heads", "num_kv_heads", "text_dim", "hidden_dim")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _raise_missing(source: Path, config: NextDiTConfig, missing: list[str]) -> None:
    """Report the components that a source lacks, and the model that has fitting ones."""
    names = "nano", "lumina-image-2"
    fitting = [name for name in names if NextDiTConfig.named(name).text_dim == config.text_dim]
    example = f"a model folder or a name, such as --frozen {fitting[0]}" if fitting else "a model folder"
    raise LuminaError(
        f"{source} contains a transformer without {' and '.join(missing)}; take "
        f"{'it' if len(missing) == 1 else 'them'} from another model with --frozen, which names {example}"
    )


def _take(donor: Path | None, component: str, folder: Path, place: Callable[[Path, Path], None]) -> bool:
    """Place a component of another model folder; return whether it exists."""
    if donor is None or not (donor / component).exists():
        return False
    place(donor / component, folder / component)
    return True


def _link(source: Path, dest: Path) -> None:
    try:
        dest.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except OSError:  # a file system without links
        _copy(source, dest)


def _copy(source: Path, dest: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, dest, copy_function=shutil.copyfile, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, dest)


def _write_vae(parts: FileParts, folder: Path, source: Path, donor: Path | None) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    candidates = [parts.configs.get("vae"), _config_in(donor, "vae"), FLUX_VAE]
    config = _choose_config("vae", parts.vae, candidates, AutoencoderKL.from_config, source)
    write_weights(parts.vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
    write_json(config, folder / "vae" / "config.json")


def _write_text_encoder(parts: FileParts, folder: Path, source: Path, donor: Path | None) -> None:
    from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Model

    candidates = [parts.configs.get("text_encoder"), _config_in(donor, "text_encoder"), GEMMA_2_2B]
    config = _choose_config(
        "text_encoder", parts.text_encoder, candidates, lambda one: Gemma2Model(Gemma2Config(**one)), source
    )
    write_weights(parts.text_encoder, folder / "text_encoder" / "model.safetensors")
    write_json(config | {"dtype": "float32"}, folder / "text_encoder" / "config.json")


def _config_in(donor: Path | None, component: str) -> dict | None:
    path = donor / component / "config.json" if donor else None
    return read_json(path) if path and path.is_file() else None


def _choose_config(
    component: str,
    tensors: dict[str, torch.Tensor],
    candidates: Iterable[dict | None],
    build: Callable[[dict], torch.nn.Module],
    source: Path,
) -> dict[str, Any]:
    """Return the first config whose network has the shapes of the weights."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for config in filter(None, candidates):
        with torch.device("meta"):
            wanted = {name: tuple(one.shape) for name, one in build(config).state_dict().items()}
        if found == wanted:
            return config
    raise LuminaError(
        f"{source}: the shapes of its {component} are not those of a known model; name a model folder with "
        f"its {component}/config.json by --frozen"
    )


def _write_tokenizer(
    parts: FileParts,
    folder: Path,
    donor: Path | None,
    bundled: Path | None,
    place: Callable[[Path, Path], None],
) -> bool:
    """Write the tokenizer of the file, of `donor`, of the bundled or of the published model."""
    if "tokenizer.json" in parts.tokenizer:
        _write_files(parts, folder / "tokenizer")
        return True
    if _take(donor, "tokenizer", folder, place) or _take(bundled, "tokenizer", folder, place):
        return True
    if _take(find_cached(LUMINA_IMAGE_2), "tokenizer", folder, place):
        return True
    return _take(_download_tokenizer(), "tokenizer", folder, place)


def _write_files(parts: FileParts, folder: Path) -> None:
    folder.mkdir()
    for name, content in parts.tokenizer.items():
        (folder / name).write_bytes(content)
    config = parts.configs.get("tokenizer") or {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}
    write_json(config, folder / "tokenizer_config.json")


def _download_tokenizer() -> Path:
    """Return a folder with the tokenizer of the published model, a few MB from the hub."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(LUMINA_IMAGE_2, allow_patterns=["tokenizer/*"]))
    except Exception as error:  # the hub, the network and the disk raise different types
        raise LuminaError(
            f"the file has no tokenizer, and that of {LUMINA_IMAGE_2} could not be downloaded "
            f"({first_line(error)}); name a model folder with a tokenizer/ by --frozen"
        ) from error


def _write_settings(parts: FileParts, folder: Path, donor: Path | None) -> None:
    """Write the scheduler, the plan and the index of the pipeline."""
    scheduler = parts.configs.get("scheduler")
    if scheduler is None and donor and (donor / SCHEDULER).is_file():
        scheduler = read_json(donor / SCHEDULER)
    write_json(scheduler or scheduler_config(SHIFT), folder / SCHEDULER)
    plan = parts.configs.get("plan")
    if plan is None and "scheduler" not in parts.configs and donor and (donor / "plan.json").is_file():
        plan = json.loads((donor / "plan.json").read_text(encoding="utf-8"))
    if plan is not None:
        write_json(plan, folder / "plan.json")
    write_json(MODEL_INDEX, folder / "model_index.json")
