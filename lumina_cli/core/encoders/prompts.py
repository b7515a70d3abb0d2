"""System prompts by name, and the full prompts that the text encoder receives."""

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import did_you_mean

_ASSISTANT = "You are an assistant designed to generate"

# In the paper's two-image templates, angle brackets mark replaceable words; here they are filled in.
SYSTEM_PROMPTS = {
    "base": f"{_ASSISTANT} high-quality images based on user prompts.",
    "align": f"{_ASSISTANT} high-quality images with the highest degree of image-text alignment based on "
    "textual prompts.",
    "real": f"{_ASSISTANT} superior images with the superior degree of image-text alignment based on textual "
    "prompts or user prompts.",
    "aesthetics": f"{_ASSISTANT} high-quality images with highest degree of aesthetics based on user "
    "prompts.",
    "neta": f"{_ASSISTANT} anime images based on textual prompts.",
    "4grid": f"{_ASSISTANT} four high-quality images with highest degree of aesthetics arranged in 2x2 grids "
    "based on user prompts.",
    "dual-panel": "Generate a dual-panel image where the lower half displays a depth map, while the upper "
    "half retains the original image for direct visual comparison.",
    "two-panel": "Generate a two-panel depiction of a human face transforming from a rough sketch in the "
    "left half to a hyper-realistic portrait in the right half.",
    "empty": "",
}


def replace_surrogates(text: str) -> str:
    """Return `text` with lone surrogates replaced by U+FFFD, since tokenizers reject them.

    JSON files contain them if a text was cut in the middle of an emoji.
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def full_prompt(caption: str, system: str = "real") -> str:
    """Return the full prompt of a caption: the system prompt, " <Prompt Start> ", the caption.

    caption   the user's prompt
    system    a name in SYSTEM_PROMPTS or, if it contains a space, a system prompt; "empty" adds nothing

    The unconditional prompt is "", without a system prompt.

    Raises:
        UsageError: if `system` is not a known name.
    """
    if " " not in system and system not in SYSTEM_PROMPTS:
        hint = did_you_mean(system, SYSTEM_PROMPTS) or f"; choose from {', '.join(SYSTEM_PROMPTS)}"
        raise UsageError(f"unknown system prompt {system!r}{hint}")
    text = SYSTEM_PROMPTS.get(system, system)
    return replace_surrogates(f"{text} <Prompt Start> {caption}" if text else caption)


def full_negative(negative: str, system: str = "real", with_system: bool = True) -> str:
    """Return the full negative prompt; an empty one never gets a system prompt.

    The official programs put the system prompt before a negative prompt (`with_system`), diffusers does not.
    """
    return full_prompt(negative, system) if negative and with_system else negative
