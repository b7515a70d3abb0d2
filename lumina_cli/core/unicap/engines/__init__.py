"""What writes captions; each engine is a line of the CAPTIONERS table."""

import re
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.registry import CAPTIONERS

_LOADERS = ("transformers", "vllm", "nano")  # they take a folder or a hub id as their model


def open_engine(
    words: str,
    model: str | None = None,
    device: str | None = None,
    endpoint: str | None = None,
    batch: int = 8,
) -> Any:
    """Return the captioner that `words` names; "ray:INNER" is one that runs others on a Ray cluster.

    `model` is the engine's own default where it is None. UsageError for a name that means nothing, or an
    `endpoint` for an engine that calls none.
    """
    name, _, inner = words.partition(":")
    runs = (inner or "transformers") if name == "ray" else name
    if model is not None and runs in _LOADERS:
        _check_model(model)
    kind = CAPTIONERS.load(name)
    if runs.partition(":")[0] != "openai" and endpoint:
        raise UsageError(f"--endpoint is for --engine openai, not {words}")
    if name == "ray":
        return kind(inner or "transformers", model, device, endpoint, batch)
    if inner:
        raise UsageError(f"engine {words!r}: only ray runs another engine, as ray:nano")
    return kind(model, device, endpoint, batch) if name == "openai" else kind(model, device)


def _check_model(model: str) -> None:
    """Raise where `model` cannot be a folder or a hub id, before anything is loaded or the hub is asked."""
    if Path(model).expanduser().exists() or re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        return
    if model in CAPTIONERS:
        raise UsageError(f"--model {model}: {model} is an engine: --engine {model}")
    raise LuminaError(f"{model}: no such folder, and not a hub id (owner/name)")
