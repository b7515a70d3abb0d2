"""System prompts by name, and the string that the text encoder reads."""

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import did_you_mean

_ASSISTANT = "You are an assistant designed to generate"

SYSTEM_PROMPTS = {
    "base": f"{_ASSISTANT} high-quality images based on user prompts.",
    "align": f"{_ASSISTANT} high-quality images with the highest degree of image-text alignment based on "
    "textual prompts.",
    "real": f"{_ASSISTANT} superior images with the superior degree of image-text alignment based on textual "
    "prompts or user prompts.",
    "aesthetics": f"{_ASSISTANT} high-quality images with highest degree of aesthetics based on user "
    "prompts.",
    "4grid": f"{_ASSISTANT} four high-quality images with highest degree of aesthetics arranged in 2x2 grids "
    "based on user prompts.",
    "empty": "",
}


def full_prompt(caption: str, system: str = "real") -> str:
    """Return the string to encode for a caption: the system prompt, a marker, the caption.

    `system` is a key of SYSTEM_PROMPTS or, if it has a space, a system prompt itself; "empty" leaves the
    caption alone. The unconditional prompt is "" without any of this. Raises UsageError for an unknown name.
    """
    if " " not in system and system not in SYSTEM_PROMPTS:
        hint = did_you_mean(system, SYSTEM_PROMPTS) or f"; choose from {', '.join(SYSTEM_PROMPTS)}"
        raise UsageError(f"unknown system prompt {system!r}{hint}")
    text = SYSTEM_PROMPTS.get(system, system)
    return f"{text} <Prompt Start> {caption}" if text else caption
