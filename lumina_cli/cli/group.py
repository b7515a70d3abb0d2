"""Groups of sub-verbs that have a main one: `lumina shard SRC DEST` is `lumina shard pack SRC DEST`."""

import os
import re

from typer.core import TyperGroup

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import Registry, nearest

_PLAIN = re.compile(r"[A-Za-z][A-Za-z_-]*")  # no path, no URL, no nano:N


class FallbackGroup(TyperGroup):
    """A group whose main sub-verb runs when the first word is not the name of a sub-verb.

    `words` are all that the main one takes as its first word; None: places of files.
    """

    main_verb = ""
    words: Registry | None = None

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            if _PLAIN.fullmatch(args[0]):
                self._check(ctx.command_path, args[0])
            args = [self.main_verb, *args]
        return super().parse_args(ctx, args)

    def _check(self, verb: str, word: str) -> None:
        """Raise UsageError where the first word is none for the main sub-verb, but may be misspelt."""
        if os.path.exists(word) if self.words is None else word in self.words:
            return
        words = self.words or ()
        near = nearest(word, [*words, *self.commands])
        if near or words:
            meant = repr(near) if near in words else f"`{verb} {near}`"
            hint = f"did you mean {meant}?" if near else f"choose from {', '.join(words)}"
            kind = "no such source" if self.words is None else f"unknown {self.words.kind}"
            raise UsageError(f"{kind} {word!r}; {hint}")


def fallback(main: str, words: Registry | None = None) -> type[FallbackGroup]:
    """Return a group class for `typer.Typer(cls=fallback("run"), no_args_is_help=True)`."""
    return type("MainGroup", (FallbackGroup,), {"main_verb": main, "words": words})
