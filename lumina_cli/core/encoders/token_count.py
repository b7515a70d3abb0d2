"""Token counts of texts, with the tokenizer alone: fast, and without torch."""

import hashlib
from pathlib import Path

import lumina_cli
from lumina_cli.core.encoders.prompts import replace_surrogates
from lumina_cli.core.errors import LuminaError

_NANO = Path(lumina_cli.__file__).parent / "assets" / "nano"


class TokenCounter:
    """Counter of the tokens of texts, without special tokens; cheap to pickle.

    folder   "nano", a model folder, its tokenizer/ or the tokenizer.json in it
    digest   identifies the tokenizer

    Raises:
        LuminaError: if tokenizer.json is missing, or, when counting, damaged.
    """

    def __init__(self, folder: str):
        place = _NANO if folder == "nano" else Path(folder)
        tried = [place, place / "tokenizer.json", place / "tokenizer" / "tokenizer.json"]
        path = next((path for path in tried if path.is_file()), None)
        if path is None:
            raise LuminaError(f"{folder} contains no tokenizer.json; give the folder of a tokenizer, or nano")
        self.path, self.digest = path, hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        self._tokenizer = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_tokenizer": None}

    def __call__(self, texts: list[str]) -> list[int]:
        """Return the number of tokens of each text."""
        if self._tokenizer is None:
            self._tokenizer = _open(self.path)
        texts = [replace_surrogates(text) for text in texts]
        return [len(each.ids) for each in self._tokenizer.encode_batch(texts, add_special_tokens=False)]


def _open(path: Path):
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain exceptions
        raise LuminaError(f"{path} is not a tokenizer ({' '.join(str(error).split())})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
