"""Plain-text help pages: options in groups, examples at the end. No rich, so that `--help` starts quickly."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import did_you_mean

ARGUMENTS, OPTIONS, GENERAL = "Arguments", "Options", "General options"
TYPES = {"str": "TEXT", "path": "PATH", "Path": "PATH", "int": "INT", "float": "FLOAT"}
NARROW = 70  # columns; below this, each description starts on a line of its own
MIN_NAME, MAX_NAME = 6, 26  # characters of the column with the names of options


def split_examples(text: str | None) -> tuple[str, str]:
    """Split a docstring into (description, commands), at its "Examples:" paragraph."""
    description, _, examples = inspect.cleandoc(text or "").partition("\nExamples:\n")
    return description.strip(), inspect.cleandoc(f"\n{examples}").strip()


def group_parameters(parameters: list) -> dict[str, list]:
    """Return visible parameters by heading: arguments, each group in order of appearance, ungrouped options.

    An option is in the group that its `rich_help_panel` names.
    """
    groups: dict[str, list] = {ARGUMENTS: []}
    ungrouped = []
    for parameter in parameters:
        if parameter.hidden:
            continue
        panel = getattr(parameter, "rich_help_panel", None)
        if parameter.param_type_name == "argument":
            groups[ARGUMENTS].append(parameter)
        elif panel:
            groups.setdefault(panel, []).append(parameter)
        else:
            ungrouped.append(parameter)
    groups[GENERAL if len(groups) > 1 else OPTIONS] = ungrouped
    return {heading: members for heading, members in groups.items() if members}


def describe_parameter(parameter: Any, context: Any) -> tuple[str, str] | None:
    """Return (name with its kind of value, description): ("--seed INT", "Random seed.  [default: 0]")."""
    record = parameter.get_help_record(context)
    if record is None:
        return None
    name, kind = re.fullmatch(r"(.*?)(?: <(.+)>)?", record[0]).groups()
    if kind and parameter.param_type_name == "option":
        kind = kind.removesuffix(" range").removeprefix("list[").removesuffix("]")
        name = f"{name} {TYPES.get(kind, kind)}"
    return name, " ".join(record[1].split("\n"))


class _HelpPage:
    """What the help pages of commands and of groups have in common."""

    def collect_usage_pieces(self, context) -> list[str]:
        """Return the words of the usage line; brackets of a metavar are not put into brackets again."""
        pieces = super().collect_usage_pieces(context)
        return [piece[1:].removesuffix("]...") if piece.startswith("[[") else piece for piece in pieces]

    def format_help_text(self, context, formatter) -> None:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(split_examples(self.help)[0])

    def format_options(self, context, formatter) -> None:
        if isinstance(self, TyperGroup):
            self.format_commands(context, formatter)
        sections = {
            heading: [row for each in parameters if (row := describe_parameter(each, context))]
            for heading, parameters in group_parameters(self.get_params(context)).items()
        }
        longest = max(len(name) for rows in sections.values() for name, _ in rows if len(name) <= MAX_NAME)
        column = MIN_NAME if formatter.width < NARROW else longest
        for heading, rows in sections.items():
            with formatter.section(heading):  # padded, so that all sections align
                formatter.write_dl([(name.ljust(column), text) for name, text in rows], col_max=column)

    def format_commands(self, context, formatter) -> None:
        """Write the names of commands with the first sentence of their help, wrapped rather than cut off."""
        names = self.list_commands(context)
        rows = [(name, self.commands[name].get_short_help_str(limit=1000)) for name in names]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, context, formatter) -> None:
        """Write the examples as they are in the docstring: a command that is wrapped cannot be pasted."""
        if examples := split_examples(self.help)[1]:
            with formatter.section("Examples"):
                for line in examples.splitlines():
                    formatter.write(f"  {line}".rstrip() + "\n")


class HelpCommand(_HelpPage, TyperCommand):
    """A command whose help has groups of options and examples."""


class HelpGroup(_HelpPage, TyperGroup):
    """A group of commands whose help lists the commands first and ends with examples."""

    def resolve_command(self, ctx, args: list[str]):
        if args and args[0] not in self.commands:
            names = self.list_commands(ctx)
            inner = (name for name in names if args[0] in getattr(self.commands[name], "commands", ()))
            exact = next((f"; did you mean `lumina {name} {args[0]}`?" for name in inner), "")
            hint = exact or did_you_mean(args[0], names) or f"; choose from {', '.join(names)}"
            raise UsageError(f"unknown command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)


class VerbApp(typer.Typer):
    """A typer app whose commands are `HelpCommand`s and which is a `HelpGroup` unless `cls` names another."""

    def __init__(self, **settings: Any):
        settings = {"cls": HelpGroup, "no_args_is_help": True, "rich_markup_mode": None} | settings
        super().__init__(**settings)

    def command(self, name: str | None = None, **settings: Any):
        """Return the decorator of `typer.Typer.command`, with `HelpCommand` as the default class."""
        return super().command(name, **{"cls": HelpCommand} | settings)


def walk_commands(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Yield (full name, command, context) of a command and of all below it, in the order of `--help`."""
    context = command.make_context(name.split()[-1], [], parent=parent, resilient_parsing=True)
    yield name, command, context
    for word in command.list_commands(context) if isinstance(command, TyperGroup) else ():
        inner = command.get_command(context, word)
        if not inner.hidden:
            yield from walk_commands(inner, f"{name} {word}", context)
