"""ComfyUI's graph of nodes: the settings of the first sampler, and the texts that it follows."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lumina_cli.core.images.metadata.settings import build_metadata

_MAX_NODES = 10_000
_TEXT_INPUTS = (
    "text", "user_prompt", "prompt", "positive_prompt", "text_g", "t5xxl", "gemma_prompt", "string", "value",
    "populated_text", "wildcard_text", "text_l", "clip_l", "text1", "string_a",
)  # fmt: skip
_TEXTLESS = ("ConditioningZeroOut",)

Node = Mapping[str, Any]


def is_graph(value: Any) -> bool:
    """Whether a JSON object is a graph of nodes by their ids."""
    return (
        isinstance(value, Mapping)
        and 0 < len(value) <= _MAX_NODES
        and all(isinstance(node, Mapping) for node in value.values())
        and any("class_type" in node for node in value.values())
    )


def read_graph(graph: Mapping[str, Node]) -> dict:
    """Return the content of a graph, see `build_metadata`; {} if it has no sampler that follows a text."""
    samplers = [
        node for node in graph.values() if {"positive", "guider"} & _inputs(node).keys() and _samples(node)
    ]
    sampler = next((node for node in samplers if _starts_from_noise(graph, node)), None)
    sampler = sampler or next(iter(samplers), None)
    if sampler is None:
        return {}
    guider = _follow(graph, _inputs(sampler).get("guider")) or sampler
    positive = _inputs(guider).get("positive", _inputs(guider).get("conditioning"))
    prompt = _find_text(graph, positive, "positive")
    if prompt is None:
        return {}
    settings = {
        "negative": _find_text(graph, _inputs(guider).get("negative"), "negative"),
        "seed": _find(graph, sampler, ("seed", "noise_seed", "value"), ("noise", "seed", "noise_seed")),
        "steps": _find(graph, sampler, ("steps", "value"), ("sigmas", "steps")),
        "solver": _find(graph, sampler, ("sampler_name", "value"), ("sampler", "sampler_name")),
        "guidance": _find(graph, sampler, ("cfg", "value"), ("guider", "cfg")),
        "shift": _find(graph, guider, ("shift",), ("model",)),
        "model": _find(graph, guider, ("ckpt_name", "unet_name", "model_name"), ("model",)),
        "size": _find_size(graph, sampler),
    }
    written = {name: str(value) for name, value in settings.items() if value not in (None, "")}
    return build_metadata(prompt, settings, written, "ComfyUI")


def _inputs(node: Node) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, Mapping) else {}


def _samples(node: Node) -> bool:
    return "sampler" in str(node.get("class_type", "")).lower()


def _follow(graph: Mapping[str, Node], link: Any) -> Node | None:
    """Return the node that an input is linked to, or None for a value."""
    if isinstance(link, list) and len(link) == 2 and isinstance(link[0], str | int):
        return graph.get(str(link[0]))
    return None


def _upstream(
    graph: Mapping[str, Node], start: Node, links: Sequence[str] | None = None, skip: str = ""
) -> Iterator[Node]:
    """Yield `start` and the nodes that it depends on, nearest first.

    `links` limits the inputs to follow; `skip` names one that is not followed.
    """
    waiting, seen = deque([start]), {id(start)}
    while waiting:
        node = waiting.popleft()
        yield node
        for name, value in _inputs(node).items():
            wanted = name != skip and (links is None or name in links)
            target = _follow(graph, value) if wanted else None
            if target is not None and id(target) not in seen:
                seen.add(id(target))
                waiting.append(target)


def _find(graph: Mapping[str, Node], start: Node, names: Sequence[str], links: Sequence[str]) -> Any:
    """Return the first input with one of `names` that is a value, of a node or of those upstream."""
    for node in _upstream(graph, start, links):
        for name in names:
            value = _inputs(node).get(name)
            if isinstance(value, str | int | float):
                return value
    return None


def _find_size(graph: Mapping[str, Node], sampler: Node) -> list | None:
    for node in _upstream(graph, sampler, ("latent_image", "latent", "samples", "width", "height")):
        sides = [_inputs(node).get(name) for name in ("width", "height")]
        if None not in sides:
            return [_number(graph, side) for side in sides]
    return None


def _number(graph: Mapping[str, Node], value: Any) -> Any:
    node = _follow(graph, value)
    return value if node is None else _find(graph, node, ("value", "int", "number", "width", "height"), ())


def _starts_from_noise(graph: Mapping[str, Node], sampler: Node) -> bool:
    """Whether a sampler's latents are empty; those of a later pass come from another sampler."""
    source = _follow(graph, _inputs(sampler).get("latent_image"))
    return source is not None and "empty" in str(source.get("class_type", "")).lower()


def _find_text(graph: Mapping[str, Node], link: Any, side: str) -> str | None:
    """Return the first text upstream of a conditioning, "positive" or "negative"; None without one."""
    start = _follow(graph, link)
    if start is None:
        return None
    for node in _upstream(graph, start, skip="negative" if side == "positive" else "positive"):
        if node.get("class_type") in _TEXTLESS:
            return None
        for name in (side, *_TEXT_INPUTS):
            value = _inputs(node).get(name)
            if isinstance(value, str):
                return value
    return None
