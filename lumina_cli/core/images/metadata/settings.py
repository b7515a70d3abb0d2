"""Settings of other programs under our own names: each is converted, or left out, on its own."""

import math
import re
from collections.abc import Mapping
from typing import Any

# other programs' names of the solvers that implement the same method here
SOLVERS = {
    "euler": "euler",
    "k_euler": "euler",
    "eulerdiscretescheduler": "euler",
    "flowmatcheulerdiscretescheduler": "euler",
    "euler flowmatch": "euler",
    "heun": "heun",
    "k_heun": "heun",
    "dpm++ 2m": "dpm",
    "dpmpp_2m": "dpm",
    "dpm": "dpm",
    "unipc": "unipc",
    "uni_pc": "unipc",
    "unipcmultistepscheduler": "unipc",
    "midpoint": "midpoint",
    "rk4": "rk4",
}
_SCHEDULES = ("karras", "simple", "normal", "beta", "automatic", "exponential", "sgm_uniform")
_SIZE = re.compile(r"\D{0,2}(\d{1,6})\s*[x×,]\s*(\d{1,6})\D{0,2}")
_LARGEST_SIDE = 65535  # pixels
_MAX_STEPS = 10**6
_MAX_SEED = 2**128


def build_metadata(
    prompt: str, settings: Mapping[str, Any], written: Mapping[str, str], program: str | None = None
) -> dict:
    """Return the metadata of an image of another program; a setting that cannot be used costs only itself.

    settings   raw values of any type by our names: negative, seed, size, model, steps, solver, guidance,
               shift
    written    all settings as they were written, for people
    program    name of the program, if it is known
    returns    "prompt", "plan", "parameters" (`written`) and, if they could be read, "negative", "seed",
               "size" and "model"; "unused" lists the names in `settings` whose values could not be used
    """
    parsed = {name: _PARSERS[name](value) for name, value in settings.items() if value not in (None, "")}
    plan = {name: parsed.get(name) for name in ("steps", "solver", "guidance", "shift")}
    found = {
        "prompt": prompt.strip(),
        **{name: parsed.get(name) for name in ("negative", "seed", "size", "model")},
        "plan": {name: value for name, value in plan.items() if value is not None},
        "parameters": dict(written),
        "program": program,
        "unused": [name for name, value in parsed.items() if value is None] or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def parse_integer(value: Any, low: int, high: int) -> int | None:
    """Return an integer from `low` to `high`, also of text such as "20" or "20.0"; None for other values."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([+-]?\d{1,60})(?:\.0*)?\s*", value)
        value = int(found[1]) if found else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and low <= value <= high else None


def parse_float(value: Any) -> float | None:
    """Return a finite number, also of text; None for other values."""
    try:
        number = (
            float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        )
    except (ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None


def parse_size(value: Any) -> list[int] | None:
    """Return [width, height] of "512x768", "(1152, 896)" or a pair."""
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        value = [int(found[1]), int(found[2])]
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    sides = [parse_integer(side, 1, _LARGEST_SIDE) for side in value]
    return None if None in sides else sides  # type: ignore[return-value]


def parse_solver(value: Any) -> str | None:
    """Return our name of a solver; words for a noise schedule after its name are ignored."""
    words = value.lower().split() if isinstance(value, str) else []
    while words and words[-1] in _SCHEDULES:
        words.pop()  # a plan defines its schedule on its own
    return SOLVERS.get(" ".join(words))


def parse_text(value: Any) -> str | None:
    """Return text, stripped; None if it is empty or not text."""
    return value.strip() or None if isinstance(value, str) else None


def parse_model(value: Any) -> str | None:
    """Return the name of a model, also of a record that describes it."""
    if isinstance(value, Mapping):
        names = ("name", "model_name", "title", "key")
        value = next((value[name] for name in names if isinstance(value.get(name), str)), None)
    return parse_text(value)


def _parse_positive(value: Any) -> float | None:
    number = parse_float(value)
    return number if number is not None and number > 0 else None


_PARSERS = {
    "negative": parse_text,
    "seed": lambda value: parse_integer(value, -_MAX_SEED, _MAX_SEED),
    "size": parse_size,
    "model": parse_model,
    "steps": lambda value: parse_integer(value, 1, _MAX_STEPS),
    "solver": parse_solver,
    "guidance": parse_float,
    "shift": _parse_positive,
}
