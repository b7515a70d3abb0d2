"""Dry run of `lumina sample`: the resolved plan, its network calls and the encoded texts."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lumina_cli.core.encoders.tokenizer import PromptTokenizer
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.path import to_sigma
from lumina_cli.core.flow.presets import find_preset
from lumina_cli.core.models.folder import ModelFolder
from lumina_cli.core.models.hub import LUMINA_IMAGE_2, SYSTEMS, NotOnThisMachine
from lumina_cli.core.models.locate import ModelChoice, choose_model, find_local
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.sampling.request import Job, ResolvedRequest, SamplingRequest, checked_rows

if TYPE_CHECKING:  # these import pipelines, which takes seconds
    from lumina_cli.core.sampling.editing.img2img import Edit
    from lumina_cli.core.sampling.model_options import ModelOptions

# models with the configs that the package contains: the network of 2.6B parameters
SAME_SETTINGS = ("lumina-image-2", LUMINA_IMAGE_2, *SYSTEMS)


def explain_rows(
    rows: Iterable[dict],
    model: str | Path | ModelChoice = "auto",
    options: "ModelOptions | None" = None,
    **settings,
) -> Iterator[dict]:
    """Yield one row for the plan, one for each network call, and one for each text of each prompt row.

        rows       as for `generate_rows`
        model      a name, folder or hub id
        options    its LoRAs are validated, its attention words located, and the plan starts from its image
        settings   fields of `SamplingRequest`
        yields     rows whose "about" is "plan", "call" or "text". Call rows contain "rows", the batch entries
                   per image: 2 while guidance runs. Text rows contain "text", exactly as it is encoded, its
                   "tokens", and "unread", the end that exceeds the longest text; these are None without
                   the tokenizer of the model

    Reads the tokenizer and the configs of the model, but no weights, and downloads nothing.

    Raises:
        UsageError: if a setting or an option is invalid, or an attention word is not in a prompt.
        LuminaError: if a row is invalid or a file is missing or damaged.
    """
    request = SamplingRequest(**settings)
    request.check()
    rows = checked_rows(rows)
    first = next(rows, None)
    edit = _edit_of(options) if options else None
    folder = ModelFolder(model if isinstance(model, ModelChoice) else _find_settings(model))
    if options and options.loras:
        from lumina_cli.core.nextdit.lora.merge import LoraStack

        LoraStack(folder.config, options.loras)
    resolved = request.resolve(folder)
    if edit:
        from lumina_cli.core.sampling.editing.img2img import image_size

        resolved = replace(resolved, plan=edit.plan(resolved.plan, torch.zeros(1, 1)))
        usual = image_size(edit.image.size, folder.default_size, folder.token_side)
        request = replace(request, size=request.size or usual)
    yield explain_plan(folder, request, resolved, edit)
    for number, call in enumerate(resolved.plan.calls(), start=1):
        yield {
            "about": "call", "call": number, "step": call.step + 1, "t": call.t, "sigma": to_sigma(call.t),
            "guided": call.branches == 2, "rows": call.branches,
        }  # fmt: skip
    tokens = None
    if (folder.folder / "tokenizer").is_dir():
        tokens = PromptTokenizer(folder.folder, folder.longest_text)
    index = 0
    while first is not None:
        words = options.attention if options else ()
        yield from explain_row(index, first, request, resolved, folder, tokens, words)
        first, index = next(rows, None), index + 1


def _find_settings(model: str | Path) -> ModelChoice:
    """Find a model; if only the hub has it, the settings of the 2.6B model, which need no download."""
    try:
        return choose_model(model) if str(model) == "auto" or Path(model).exists() else find_local(model)
    except NotOnThisMachine as error:
        if str(model) not in SAME_SETTINGS:
            raise LuminaError(
                f"{str(model)!r} is not on this machine, and --explain does not download it: "
                "generate an image with it first, or name a model folder"
            ) from error
        folder = ASSETS / "settings" / "lumina-image-2"
        return ModelChoice(str(model), folder, f"{model} is not on this machine: tokens are not counted")


def _edit_of(options: "ModelOptions") -> "Edit | None":
    """The image to start from, if any."""
    if options.init is None:
        return None
    from lumina_cli.core.sampling.editing.img2img import read_edit

    return read_edit(options.init, options.mask, options.strength)


def explain_plan(
    folder: ModelFolder, request: SamplingRequest, resolved: ResolvedRequest, edit: "Edit | None" = None
) -> dict:
    """Return the row of the plan: settings of all images, where each comes from, and their cost."""
    calls = resolved.plan.calls()
    size = folder.size_for(request.size)
    return {
        "about": "plan",
        "model": folder.name,
        "model_reason": folder.reason,
        "weights": folder.weights if any(folder.folder.glob("*/*.safetensors")) else None,
        "preset": str(request.preset) if request.preset else None,
        "size": "{}x{}".format(*size),
        "image_tokens": size[0] * size[1] // folder.token_side**2,
        "longest_text": folder.longest_text,
        "calls": len(calls),
        "guided_calls": sum(call.branches == 2 for call in calls),
        "network_rows": sum(call.branches for call in calls),
        "settings": resolved.plan.to_json(),
        "from": sources(folder, request, resolved.plan),
        "times": resolved.plan.times(),
        "system": resolved.system,
        "negative_system": resolved.negative_system,
        **({"edit": edit.settings()} if edit else {}),
    }


def sources(folder: ModelFolder, request: SamplingRequest, plan: Plan) -> dict[str, str]:
    """Return the source of each setting of the plan: given, preset, model or default."""
    names = plan.to_json()
    if isinstance(request.plan, Plan):
        return dict.fromkeys(names, "given")
    given = {"steps" if name == "calls" else name for name in request.plan or {}}
    if request.preset is None:
        named = {name for name, value in folder.plan.to_json().items() if value != Plan().to_json()[name]}
        of_model = dict.fromkeys(named, "model")
    else:
        named = find_preset(request.preset).plan.model_fields_set
        of_model = {"shift": "model"} | dict.fromkeys(named, "preset")
    return dict.fromkeys(names, "default") | of_model | dict.fromkeys(given, "given")


def explain_row(
    index: int,
    row: dict,
    request: SamplingRequest,
    resolved: ResolvedRequest,
    folder: ModelFolder,
    tokens: PromptTokenizer | None,
    words: Iterable[str] = (),
) -> Iterator[dict]:
    """Yield a row for each text of a prompt row: its prompt, and its negative or empty prompt.

    Raises:
        UsageError: if one of the attention `words` is not in the prompt, or the size is invalid.
    """
    job = Job(
        row["prompt"], row.get("seed", request.seeds[0]), 0, row.get("negative", request.negative) or ""
    )
    if words and tokens is None:
        raise UsageError("--attention needs the tokenizer of the model, which is not on this machine")
    for word in words:
        from lumina_cli.core.sampling.editing.attention_maps import word_tokens

        text = resolved.prompt(job)
        word_tokens(tokens, text, word, len(text) - len(job.prompt))
    size = "{}x{}".format(*folder.size_for(row.get("size") or request.size))
    branches = {
        "prompt": resolved.prompt(job),
        "negative" if job.negative else "null": resolved.negative(job),
    }
    for branch, text in branches.items():
        yield {
            "about": "text", "row": index + 1, "size": size, "branch": branch, "text": text,
            "tokens": tokens and tokens.count([text])[0], "dropped": tokens and tokens.dropped([text])[0],
            "unread": tokens and tokens.truncated_text(text),
        }  # fmt: skip
