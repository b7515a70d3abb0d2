"""Secrets: keys and passwords never appear in messages, rows or tracebacks. All masking is done here.

Masked are the values of the environment variables in NAMES, values passed to `add_secret`, the password of a
URL (scheme://user:PASSWORD@host), signatures in the query of a URL, and credentials in quoted HTTP headers.
"""

import base64
import os
import re
from typing import Any
from urllib.parse import quote

MASK = "***"
NAMES = (
    "OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING", "GITHUB_TOKEN", "GH_TOKEN", "WANDB_API_KEY",
)  # fmt: skip
# Local servers accept any key, and their examples use these words, which occur in captions.
_PLACEHOLDERS = frozenset(
    (
        "anything", "dummy", "empty", "lm-studio", "no-key-required", "none", "not-needed", "ollama",
        "password", "placeholder", "secret", "sk-no-key-required", "test", "token", "token-abc123", "unused",
    )
)  # fmt: skip
_SHORTEST = 5  # characters; a shorter secret is part of too many words
_WORD = 11  # characters; a secret of at most this length is masked only as a whole word
_USER = re.compile(r"(?<=:/)(/?[^\s/?#\"'@:]*):[^\s/?#\"']+@")  # pathlib turns :// into :/
_LOGIN = re.compile(r"(?<=://)([^\s/?#@:]*):([^\s/?#]+)@")  # without the scheme: linear in the text
_QUERY = re.compile(
    r"(?i)([?&](?:[\w.-]*(?:api[-_]?key|token|secret|password|signature|credential)|sig|key)=)[^&\s\"']+"
)
_HEADER = re.compile(
    r"(?i)((?:authorization|x-api-key|api-key)[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?)[^\s\"',;}\]]+"
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+(?=\S*\d)[\w.~+/=-]{8,}")
_KEY = re.compile(r"\b(sk-|hf_|ghp_|github_pat_|AKIA)[A-Za-z0-9_-]{12,}")

_added: set[str] = set()


def add_secret(value: str | None) -> None:
    """Mask a value from now on: a key of a config file, the password of a URL."""
    if value and len(value) >= _SHORTEST and value.lower() not in _PLACEHOLDERS:
        _added.add(value)


def add_url_secrets(text: str) -> None:
    """Mask the passwords of the URLs in `text` from now on, also alone and as a Basic authorization."""
    for found in _LOGIN.finditer(text):
        add_secret(found[2])
        add_secret(base64.b64encode(f"{found[1]}:{found[2]}".encode(errors="replace")).decode())


def mask_known(text: str) -> str:
    """Return a caption, or another text that is not a message, with the known secrets replaced by ***."""
    for value in _known_secrets():
        for form in (value, quote(value, safe="")):
            if form in text:
                whole = re.escape(form) if len(form) > _WORD else rf"(?<![\w-]){re.escape(form)}(?![\w-])"
                text = re.sub(whole, MASK, text)
    return text


def mask_secrets(text: str) -> str:
    """Return a message with everything replaced by *** that is a secret, or has the form of one."""
    text = mask_known(text)
    text = mask_url(text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    return _KEY.sub(rf"\1{MASK}", text)


def mask_url(url: str) -> str:
    """Return a URL without its password and signatures; any other text unchanged."""
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(rf"\1:{MASK}@", url)) if ":/" in url else url


def mask_urls(value: Any) -> Any:
    """Return a value of a row with the passwords and signatures of all URLs in it masked."""
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, dict):
        return {name: mask_urls(each) for name, each in value.items()}
    return [mask_urls(each) for each in value] if isinstance(value, list) else value


def _known_secrets() -> list[str]:
    """Return all secrets, the longest first: one may contain another."""
    found = {os.environ.get(name, "") for name in NAMES} | _added
    kept = {value for value in found if len(value) >= _SHORTEST and value.lower() not in _PLACEHOLDERS}
    return sorted(kept, key=lambda value: (-len(value), value))
