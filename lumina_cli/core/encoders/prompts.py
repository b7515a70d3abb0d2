"""System prompts by name, and the strings that the text encoder reads."""

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import did_you_mean

_ASSISTANT = "You are an assistant designed to generate"

# Angle brackets in the paper's two-picture templates mark what may be another word; here they are filled.
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
    "dual-panel": "Generate a dual-panel image where the lower half displays a depth map, while the upper "
    "half retains the original image for direct visual comparison.",
    "two-panel": "Generate a two-panel depiction of a human face transforming from a rough sketch in the "
    "left half to a hyper-realistic portrait in the right half.",
    "empty": "",
}


def whole_letters(text: str) -> str:
    """Return a text with a mark in place of half letters (lone surrogates), which no tokenizer takes.

    A JSON file may hold them: a text that was cut in the middle of an emoji does.
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def full_prompt(caption: str, system: str = "real") -> str:
    """Return the string to encode for a caption: the system prompt, a marker, the caption.

    `system` is a key of SYSTEM_PROMPTS or, if it has a space, a system prompt itself; "empty" leaves the
    caption alone. The unconditional prompt is "" without any of this. Raises UsageError for an unknown name.
    """
    if " " not in system and system not in SYSTEM_PROMPTS:
        hint = did_you_mean(system, SYSTEM_PROMPTS) or f"; choose from {', '.join(SYSTEM_PROMPTS)}"
        raise UsageError(f"unknown system prompt {system!r}{hint}")
    text = SYSTEM_PROMPTS.get(system, system)
    return whole_letters(f"{text} <Prompt Start> {caption}" if text else caption)


def full_negative(negative: str, system: str = "real", with_system: bool = True) -> str:
    """Return the string to encode for what guidance moves away from; the empty one is always bare.

    The official programs put the system prompt before a negative prompt (`with_system`), diffusers never.
    """
    return full_prompt(negative, system) if negative and with_system else negative
