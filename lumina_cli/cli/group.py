"""Command groups with a default command: `lumina shard SRC DEST` runs `lumina shard pack SRC DEST`."""

import os
import re

from lumina_cli.cli.help import HelpGroup
from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import Registry, nearest

_COMMAND_LIKE = re.compile(r"[A-Za-z][A-Za-z_-]*")  # not a path, a URL or nano:N


class DefaultCommandGroup(HelpGroup):
    """A group that runs its default command if the first word is not the name of a command.

    `names` are the valid first arguments of the default command; None if these are files.
    """

    main_verb = ""
    names: Registry | None = None

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        own_options = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in self.commands and args[0] not in own_options:
            if _COMMAND_LIKE.fullmatch(args[0]):
                self._check_first_word(ctx.command_path, args[0])
            args = [self.main_verb, *args]
        return super().parse_args(ctx, args)

    def _check_first_word(self, group: str, word: str) -> None:
        """Raise UsageError if the word is not valid for the default command and may be a misspelled name."""
        if os.path.exists(word) if self.names is None else word in self.names:
            return
        names = [] if self.names is None else self.names.names()
        near = nearest(word, [*names, *self.commands])
        if near or names:
            meant = repr(near) if near in names else f"`{group} {near}`"
            hint = f"did you mean {meant}?" if near else f"choose from {', '.join(names)}"
            kind = "no such source" if self.names is None else f"unknown {self.names.kind}"
            raise UsageError(f"{kind} {word!r}; {hint}")


def default_command(name: str, names: Registry | None = None) -> type[DefaultCommandGroup]:
    """Return the group class for `VerbApp(cls=default_command("run"))`."""
    return type("CommandGroup", (DefaultCommandGroup,), {"main_verb": name, "names": names})
