"""Groups of sub-verbs that have a main one: `lumina shard SRC DEST` is `lumina shard pack SRC DEST`."""

from typer.core import TyperGroup


class FallbackGroup(TyperGroup):
    """A group whose main sub-verb runs when the first word is not the name of a sub-verb."""

    main_verb = ""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            args = [self.main_verb, *args]
        return super().parse_args(ctx, args)


def fallback(main: str) -> type[FallbackGroup]:
    """Return a group class for `typer.Typer(cls=fallback("run"), no_args_is_help=True)`."""
    return type("MainGroup", (FallbackGroup,), {"main_verb": main})
