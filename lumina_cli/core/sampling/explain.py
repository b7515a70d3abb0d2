"""What `lumina sample` would do, without doing it: the resolved plan, its calls, the texts that are read."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lumina_cli.core.encoders.tokenizer import PromptTokenizer
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.path import to_sigma
from lumina_cli.core.flow.presets import find_preset
from lumina_cli.core.models.folder import ModelFolder
from lumina_cli.core.models.locate import ModelChoice, choose_model
from lumina_cli.core.sampling.request import Job, ResolvedRequest, SamplingRequest, checked_rows

if TYPE_CHECKING:  # what reads weights takes seconds to import
    from lumina_cli.core.sampling.editing.img2img import Edit
    from lumina_cli.core.sampling.model_options import ModelOptions


def explain_rows(
    rows: Iterable[dict],
    model: str | Path | ModelChoice = "auto",
    opening: "ModelOptions | None" = None,
    **wishes,
) -> Iterator[dict]:
    """Yield rows about the plan, then one about each network call, then one about each text that is encoded.

    "about" says which. Reads the tokenizer and the configs of the model, but no weights. `opening` is what
    would be done to the model: its LoRAs are checked, the words it watches found, and its picture is what
    the plan starts from. `wishes` are those of `draw_rows`. The call rows hold "rows", how many rows of the
    network one picture takes: 2 where guidance runs. The text rows hold "text", exactly as the text encoder
    gets it, its number of "tokens", and "unread", the end of it that is beyond the longest text.
    """
    wish = SamplingRequest(**wishes)
    wish.check()
    rows = checked_rows(rows)
    first = next(rows, None)
    edit = _edit_of(opening) if opening else None
    folder = ModelFolder(model if isinstance(model, ModelChoice) else choose_model(model))
    if opening and opening.loras:
        from lumina_cli.core.nextdit.lora.merge import LoraStack

        LoraStack(folder.config, opening.loras)
    setup = wish.resolve(folder)
    if edit:
        from lumina_cli.core.sampling.editing.img2img import image_size

        setup = replace(setup, plan=edit.plan(setup.plan, torch.zeros(1, 1)))
        usual = image_size(edit.picture.size, folder.default_size, folder.token_side)
        wish = replace(wish, size=wish.size or usual)
    yield explain_plan(folder, wish, setup, edit)
    for number, call in enumerate(setup.plan.calls(), start=1):
        yield {
            "about": "call", "call": number, "step": call.step + 1, "t": call.t, "sigma": to_sigma(call.t),
            "guided": call.branches == 2, "rows": call.branches,
        }  # fmt: skip
    tokens = PromptTokenizer(folder.folder, folder.longest_text)
    index = 0
    while first is not None:
        words = opening.attention if opening else ()
        yield from explain_row(index, first, wish, setup, folder, tokens, words)
        first, index = next(rows, None), index + 1


def _edit_of(opening: "ModelOptions") -> "Edit | None":
    """The picture that drawing starts from, read and checked."""
    if opening.init is None:
        return None
    from lumina_cli.core.sampling.editing.img2img import read_edit

    return read_edit(opening.init, opening.mask, opening.strength)


def explain_plan(
    folder: ModelFolder, wish: SamplingRequest, setup: ResolvedRequest, edit: "Edit | None" = None
) -> dict:
    """Return what holds for all pictures: the settings, where each comes from, and what they cost."""
    calls = setup.plan.calls()
    size = folder.size_for(wish.size)
    return {
        "about": "plan",
        "model": folder.name,
        "model_reason": folder.reason,
        "weights": folder.weights,
        "preset": str(wish.preset) if wish.preset else None,
        "size": "{}x{}".format(*size),
        "image_tokens": size[0] * size[1] // folder.token_side**2,
        "longest_text": folder.longest_text,
        "calls": len(calls),
        "guided_calls": sum(call.branches == 2 for call in calls),
        "network_rows": sum(call.branches for call in calls),
        "settings": setup.plan.to_json(),
        "from": sources(folder, wish, setup.plan),
        "times": setup.plan.times(),
        "system": setup.system,
        "negative_system": setup.negative_system,
        **({"edit": edit.settings()} if edit else {}),
    }


def sources(folder: ModelFolder, wish: SamplingRequest, plan: Plan) -> dict[str, str]:
    """Return where each setting of the plan comes from: given, preset, model or default."""
    names = plan.to_json()
    if isinstance(wish.plan, Plan):
        return dict.fromkeys(names, "given")
    given = {"steps" if name == "calls" else name for name in wish.plan or {}}
    if wish.preset is None:
        named = {name for name, value in folder.plan.to_json().items() if value != Plan().to_json()[name]}
        of_model = dict.fromkeys(named, "model")
    else:
        named = find_preset(wish.preset).plan.model_fields_set
        of_model = {"shift": "model"} | dict.fromkeys(named, "preset")
    return dict.fromkeys(names, "default") | of_model | dict.fromkeys(given, "given")


def explain_row(
    index: int,
    row: dict,
    wish: SamplingRequest,
    setup: ResolvedRequest,
    folder: ModelFolder,
    tokens: PromptTokenizer,
    words: Iterable[str] = (),
) -> Iterator[dict]:
    """Yield the texts of one row: its prompt, and what guidance moves away from.

    UsageError where one of the `words` that are to be watched is not in the prompt.
    """
    job = Job(row["prompt"], row.get("seed", wish.seed), 0, row.get("negative", wish.negative) or "")
    for word in words:
        from lumina_cli.core.sampling.editing.attention_maps import word_tokens

        text = setup.prompt(job)
        word_tokens(tokens, text, word, len(text) - len(job.prompt))
    size = "{}x{}".format(*folder.size_for(row.get("size") or wish.size))
    branches = {"prompt": setup.prompt(job), "negative" if job.negative else "null": setup.negative(job)}
    for branch, text in branches.items():
        yield {
            "about": "text", "row": index + 1, "size": size, "branch": branch, "text": text,
            "tokens": tokens.count([text])[0], "dropped": tokens.dropped([text])[0],
            "unread": tokens.truncated_text(text),
        }  # fmt: skip
