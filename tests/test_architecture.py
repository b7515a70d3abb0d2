"""The house rules that a machine can check: which way imports point, what verbs and the library leave alone."""

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import lumina_cli
from lumina_cli.core import registry

PACKAGE = Path(lumina_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
CORE = [path for path in FILES if "core" in path.parts]
CLI = [path for path in FILES if path.parent.name == "cli"]
HEAVY = {"torch", "numpy", "transformers", "diffusers", "datasets", "ray", "matplotlib", "webdataset", "PIL"}
LAYERS = (
    {"errors", "registry", "recipe", "device", "doctor"},
    {"formats"},
    {"flow", "kernels"},
    {"nextdit", "encoders", "nano"},
    {"unicap", "data", "training", "sampling", "evals"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
BANNED_NAMES = {"utils", "common", "helpers", "misc", "base", "manager"}
LIGHT = [
    "errors",
    "registry",
    "recipe",
    "device",
    "doctor",
    "formats/rows",
    "formats/atomic",
    "nano/scene",
    "nano/language",
]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path, top_level: bool = False) -> set[str]:
    """The dotted names that a file imports; with `top_level`, only those that run when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    if top_level:
        nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(module: str) -> str | None:
    """The part of the core that a dotted name belongs to."""
    words = module.split(".")
    return words[2] if words[:2] == ["lumina_cli", "core"] and len(words) > 2 else None


def calls(path: Path) -> set[str]:
    """The names that a file calls, as written: print, sys.exit, os.environ.setdefault."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE / "core").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for part in filter(None, map(part_of, imports(path))):
        allowed = part == own or RANK[part] < RANK[own] or RANK[part] == RANK[own] == 0
        assert allowed, f"{name_of(path)} ({own}) imports {part}"


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_library_neither_talks_nor_exits(path):
    assert not {name for name in imports(path) if name.split(".")[0] in ("typer", "click", "rich")}
    assert not {name for name in imports(path) if name.startswith("lumina_cli.cli")}
    assert not {
        "print",
        "input",
        "exit",
        "quit",
        "sys.exit",
        "os._exit",
        "os.putenv",
        "os.environ.setdefault",
    } & calls(path)
    assert "os.environ[" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_runs_code_from_files(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"pickle", "dill", "torchvision", "shelve", "marshal"}
    assert not {"eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system"} & calls(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert words.get("trust_remote_code", "False") == "False"
            if re.fullmatch(r"Auto[A-Z]\w+\.from_\w+", ast.unparse(node.func)):
                # left out, transformers asks on stdin whether it may, and a pipe may answer
                assert "trust_remote_code" in words
            assert ast.unparse(node.func) != "torch.load" or words.get("weights_only") == "True"


@pytest.mark.parametrize("path", CLI, ids=name_of)
def test_verbs_import_nothing_heavy(path):
    roots = {name.split(".")[0] for name in imports(path, top_level=True)}
    assert not roots & HEAVY
    parts = set(filter(None, map(part_of, imports(path, top_level=True))))
    assert parts <= {"errors", "registry", "recipe", "device", "formats", "nano"}


@pytest.mark.parametrize("path", [PACKAGE / "core" / f"{name}.py" for name in LIGHT], ids=name_of)
def test_what_the_command_line_imports_stays_light(path):
    assert not {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY


@pytest.mark.parametrize(
    "path", [path for path in CLI if path.stem not in ("app", "output", "__init__")], ids=name_of
)
def test_verbs_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 100


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_are_readable(path):
    assert path.stem not in BANNED_NAMES
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    if path.stem not in ("__init__",):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), (
            f"{name_of(path)} says not what it is"
        )


TABLES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]


ENTRIES = [pytest.param(table, name, id=f"{table.kind}-{name}") for table in TABLES for name in table]


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_every_name_leads_to_something(table, name):
    assert callable(table.load(name)) or table.kind == "kernel"


def processor_time() -> float:
    """Seconds that child processes computed: what a busy machine does not change."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_light():
    names = sorted(HEAVY | {"rich", "pydantic"})
    code = f"""
import sys
from lumina_cli.cli.app import run
try:
    run(["--help"])
finally:
    print([name for name in {names} if name in sys.modules])
"""
    times = []
    for _ in range(3):
        start = processor_time()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(processor_time() - start)
    assert result.stdout.strip().endswith("[]")
    assert min(times) < 0.3, times
