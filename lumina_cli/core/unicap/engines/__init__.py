"""Captioning engines, one per entry of the CAPTIONERS table."""

import re
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.registry import CAPTIONERS

_LOADERS = ("transformers", "vllm", "nano")  # engines whose model is a folder or a hub id


def open_engine(
    words: str,
    model: str | None = None,
    device: str | None = None,
    endpoint: str | None = None,
    batch: int = 8,
) -> Any:
    """Open a captioning engine.

        words       name of the engine, or "ray:NAME" to run it on a Ray cluster
        model       model of the engine; None is its default
        endpoint    URL, only for openai
        batch       concurrent requests of openai

    Raises:
        UsageError: if the name is unknown, or `endpoint` does not apply to the engine.
        LuminaError: if `model` is neither a folder nor a hub id.
    """
    name, _, inner = words.partition(":")
    runs_engine = (inner or "transformers") if name == "ray" else name
    if model is not None and runs_engine in _LOADERS:
        _check_model(model)
    kind = CAPTIONERS.load(name)
    if runs_engine.partition(":")[0] != "openai" and endpoint:
        raise UsageError(f"--endpoint applies to --engine openai, not to {words}")
    if name == "ray":
        return kind(inner or "transformers", model, device, endpoint, batch)
    if inner:
        raise UsageError(f"engine {words!r}: only ray takes another engine, such as ray:nano")
    return kind(model, device, endpoint, batch) if name == "openai" else kind(model, device)


def _check_model(model: str) -> None:
    """Raise an error if `model` cannot be a folder or a hub id, before loading anything."""
    if Path(model).expanduser().exists() or re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        return
    if model in CAPTIONERS:
        raise UsageError(f"--model {model}: {model} is an engine; use --engine {model}")
    raise LuminaError(f"{model}: no such folder, and not a hub id (owner/name)")
