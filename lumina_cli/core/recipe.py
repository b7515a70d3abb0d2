"""Recipes: short YAML files, validated strictly against a pydantic schema; errors name the file and the line.

YAML 1.1 parses `2e-4` as text, `010` as 8 and `no` as false. Here every unquoted word stays text until the
schema's field converts it, so `010` is 10 and `no` can be a name.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.limits import MAX_RECIPE, InvalidJSON, read_text
from lumina_cli.core.registry import did_you_mean

PACKAGE = Path(__file__).resolve().parent.parent
COMMAND_LINE = "on the command line"
_MAX_NODES, _MAX_DEPTH = 10_000, 20
_TAGS = tuple(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")
)
_NOT_FINITE = re.compile(r"[-+]?\.?(nan|inf|infinity)", re.IGNORECASE)

KeyPath = tuple[str | int, ...]
Places = dict[KeyPath, str]  # where each setting is written: "nano.yaml line 7"


def load_recipe(name: str | Path | None, schema: type, overrides: list[str] = ()) -> Any:
    """Return an instance of `schema` (a pydantic model class) filled from a recipe and `key=value` overrides.

        name   a path, the name of a packaged recipe, or None for the schema's defaults

    Raises:
        UsageError: for an unknown setting, a value of the wrong type or a duplicate; names the place.
    """
    import pydantic

    path = None if name is None else find_recipe(name)
    places: Places = {(): path.name if path else COMMAND_LINE}
    values = {} if path is None else _read(path, places)
    for word in overrides:
        _apply_override(values, word, places)
    try:
        return schema.model_validate(values, strict=False, extra="forbid")
    except pydantic.ValidationError as error:
        mistakes = error.errors(include_url=False)
        raise UsageError(_describe_mistake(_select_mistake(mistakes, places), schema, places)) from None


def packaged_recipes() -> dict[str, Path]:
    """Return the recipes that ship with lumina, by name; in a checkout they are next to the package."""
    folder, checkout = PACKAGE / "recipes", PACKAGE.parent
    if not folder.is_dir() and (checkout / "pyproject.toml").is_file():
        folder = checkout / "recipes"
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe, given a path or the name of a packaged one."""
    if Path(name).is_file():
        return Path(name)
    known = packaged_recipes()
    if str(name) in known:
        return known[str(name)]
    hint = did_you_mean(str(name).removesuffix(".yaml"), known) or ""
    if Path(name).suffix in (".yaml", ".yml"):
        raise UsageError(f"{name}: no such file{'' if Path(name).parent.name else hint}")
    trainings = [recipe for recipe in known if not recipe.startswith("sample/")]  # the others are presets
    hint = hint or f"; choose from {', '.join(trainings) or 'none'}, or give a .yaml file"
    raise UsageError(f"unknown recipe {str(name)!r}{hint}")


def _read(path: Path, places: Places) -> dict:
    try:
        node = _compose(read_text(path, MAX_RECIPE).removeprefix("\ufeff"), f"{path.name} line {{}}")
    except InvalidJSON as error:
        raise UsageError(f"{path.name} is {error.msg}, too large for a recipe") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path.name} is not UTF-8 text") from None
    except OSError as error:
        raise LuminaError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(_describe_syntax_error(error, path.name)) from None
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(
            f"{path.name} line {node.start_mark.line + 1}: a recipe must be a YAML mapping, "
            "with lines such as `name: value`"
        )
    return _Reader(f"{path.name} line {{}}", places).read_value(node, ())


def _compose(text: str, place: str) -> yaml.Node | None:
    """Return the node of YAML text.

    The events are read first, because composing a node recurses to its depth.

    Raises:
        UsageError: if it is nested too deeply, or has too many nodes.
        yaml.YAMLError: if it is not YAML.
    """
    depth = count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        count += isinstance(event, yaml.NodeEvent)
        if depth > _MAX_DEPTH or count > _MAX_NODES:
            where = place.format(event.start_mark.line + 1)
            raise UsageError(f"{where}: nested or repeated too deeply for a recipe")
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _describe_syntax_error(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{name} line {mark.line + 1}" if mark else name
    return f"{place}: not valid YAML: {getattr(error, 'problem', None) or getattr(error, 'reason', error)}"


class _Reader:
    """Converts YAML nodes to dicts, lists and text, and records where each is written."""

    def __init__(self, place: str, places: Places):
        self.place, self.places, self.count = place, places, 0

    def read_value(self, node: yaml.Node, path: KeyPath) -> Any:
        where = self.place.format(node.start_mark.line + 1)
        self.count += 1
        if self.count > _MAX_NODES or len(path) > _MAX_DEPTH:
            raise UsageError(f"{where}: nested or repeated too deeply for a recipe")
        if node.tag not in _TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise UsageError(f"{where}: {join_path(path)}: {tag} is not allowed in a recipe")
        self.places.setdefault(path, where)
        if isinstance(node, yaml.MappingNode):
            return self.read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read_value(item, (*path, index)) for index, item in enumerate(node.value)]
        return convert_scalar(node.value, f"{where}: {join_path(path)}") if node.style is None else node.value

    def read_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict:
        found: dict[str, Any] = {}
        for key, item in node.value:
            where = self.place.format(key.start_mark.line + 1)
            if not isinstance(key, yaml.ScalarNode):
                raise UsageError(f"{where}: setting names must be strings")
            inner = (*path, key.value)
            if key.value in found:
                raise UsageError(f"{where}: {join_path(inner)} is set twice; first at {self.places[inner]}")
            self.places[inner] = where
            found[key.value] = self.read_value(item, inner)
        return found


def convert_scalar(text: str, where: str) -> str | None:
    """Return the value of an unquoted word: None for null, else text, which the schema converts."""
    if _NOT_FINITE.fullmatch(text):
        raise UsageError(f"{where}: {text!r} is not a finite number")
    return None if text in ("", "~", "null", "Null", "NULL") else text


def _apply_override(values: dict, word: str, places: Places) -> None:
    """Set the value of one `a.b=c` in the nested values."""
    name, equals, text = word.partition("=")
    path = tuple(name.split("."))
    if not equals or not all(path):
        raise UsageError(f"{COMMAND_LINE}: {word!r} is not a setting; write name=value or group.name=value")
    inner = values
    for depth, key in enumerate(path[:-1], start=1):
        inner[key] = {} if inner.get(key) is None else inner[key]
        places.setdefault(path[:depth], COMMAND_LINE)
        if not isinstance(inner[key], dict):
            group = join_path(path[:depth])
            raise UsageError(
                f"{COMMAND_LINE}: {join_path(path)}: {group} is one value, not a group of settings"
            )
        inner = inner[key]
    for old in [old for old in places if old[: len(path)] == path]:
        del places[old]
    places[path] = COMMAND_LINE
    inner[path[-1]] = _parse_value(text, path, places)


def _parse_value(text: str, path: KeyPath, places: Places) -> Any:
    if not text.startswith(("[", "{")):
        return convert_scalar(text, f"{COMMAND_LINE}: {join_path(path)}")
    try:
        node = _compose(text, COMMAND_LINE)
    except yaml.YAMLError as error:
        raise UsageError(f"{COMMAND_LINE}: {join_path(path)}: {getattr(error, 'problem', error)}") from None
    return _Reader(COMMAND_LINE, places).read_value(node, path)


def join_path(path: KeyPath) -> str:
    """Return a path of keys in dotted form: stages.low.steps."""
    return ".".join(map(str, path))


def _select_mistake(mistakes: list[dict], places: Places) -> dict:
    """Return the mistake to report: a misspelled name, which explains a missing one, else the first."""
    order = {path: number for number, path in enumerate(places)}

    def rank(mistake: dict) -> tuple[bool, int]:
        return mistake["type"] != "extra_forbidden", order[_match_path(mistake["loc"], places)]

    return min(mistakes, key=rank)


def _match_path(loc: KeyPath, places: Places) -> KeyPath:
    """Return the longest path in the recipe that matches pydantic's location, which has union members too."""
    path: KeyPath = ()
    for part in loc:
        if (*path, part) in places:
            path = (*path, part)
    return path


def _describe_mistake(mistake: dict, schema: type, places: Places) -> str:
    path = _match_path(mistake["loc"], places)
    kind, found = mistake["type"], mistake["input"]
    if kind == "extra_forbidden":
        inside = f"{join_path(path[:-1])}: " if path[:-1] else ""
        return f"{places[path]}: {inside}no setting {path[-1]!r}{_hint_known_settings(schema, path)}"
    inside = f"{join_path(path)}: " if path else ""
    if isinstance(found, dict) and kind in ("literal_error", "string_type"):
        known = [name for model in _find_models(schema, path[:-1]) for name in model.model_fields]
        hint = did_you_mean(str(path[-1]), [name for name in known if name != path[-1]]) if path else ""
        return f"{places[path]}: {inside}one value, not a group of settings{hint}"
    if kind == "missing":
        return f"{places[path]}: {inside}missing setting {mistake['loc'][-1]!r}"
    return f"{places[path]}: {inside}{_describe_value_error(kind, found, mistake)}"


def _describe_value_error(kind: str, found: Any, mistake: dict) -> str:
    if kind in ("value_error", "assertion_error"):
        return str(mistake["ctx"]["error"])
    shown = "nothing" if found is None else repr(found)
    wanted = {"int": "an integer", "float": "a number", "bool": "true or false", "string": "text"}
    wanted |= {
        "list": "a list",
        "tuple": "a list",
        "dict": "a group of settings",
        "model": "a group of settings",
    }
    noun = wanted.get(kind.split("_")[0])
    if noun and kind.endswith(("_type", "_parsing", "_from_float", "_attributes_type")):
        return f"{shown} is not {noun}"
    if kind in ("literal_error", "enum"):
        expected = mistake["ctx"]["expected"]
        hint = did_you_mean(str(found), re.findall("'([^']*)'", expected))
        return f"{shown} is not one of {expected.replace(' or ', ', ')}{hint}"
    return f"{shown}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def _hint_known_settings(schema: type, path: KeyPath) -> str:
    """Return the hint for an unknown setting: the nearest known name, or all of them."""
    known = [name for model in _find_models(schema, path[:-1]) for name in model.model_fields]
    return did_you_mean(str(path[-1]), known) or (f"; choose from {', '.join(known)}" if known else "")


def _find_models(annotation: Any, path: KeyPath) -> Iterator[type]:
    """Yield the model classes that the schema allows at a path, through unions, dicts and lists."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        for arm in arguments:
            yield from _find_models(arm, path)
    elif origin is dict and path:
        yield from _find_models(arguments[1], path[1:])
    elif origin in (list, tuple) and path:
        yield from _find_models(arguments[0], path[1:])
    elif hasattr(annotation, "model_fields"):
        if not path:
            yield annotation
        elif path[0] in annotation.model_fields:
            yield from _find_models(annotation.model_fields[path[0]].annotation, path[1:])
