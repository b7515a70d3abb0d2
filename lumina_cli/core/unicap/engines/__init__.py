"""What writes captions; each engine is a line of the CAPTIONERS table."""

from typing import Any

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import CAPTIONERS


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
    kind = CAPTIONERS.load(name)
    if (inner if name == "ray" else name).partition(":")[0] != "openai" and endpoint:
        raise UsageError(f"--endpoint is for --engine openai, not {words}")
    if name == "ray":
        return kind(inner or "transformers", model, device, endpoint, batch)
    if inner:
        raise UsageError(f"engine {words!r}: only ray runs another engine, as ray:nano")
    return kind(model, device, endpoint, batch) if name == "openai" else kind(model, device)
