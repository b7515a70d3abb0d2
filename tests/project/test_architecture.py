"""Rules of the code base: import layers, import cycles, folder and module sizes, safe calls, light commands."""

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
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
CORE = [path for path in FILES if "core" in path.parts]
CLI = [path for path in FILES if path.relative_to(PACKAGE).parts[0] == "cli"]
HEAVY = {"torch", "numpy", "transformers", "diffusers", "datasets", "ray", "matplotlib", "webdataset", "PIL"}
# From the bottom up; a package imports only packages of lower layers.
LAYERS = (
    {"errors", "limits", "secrets", "registry", "recipe", "device", "doctor"},
    {"io"},
    {"weights", "images"},
    {"flow", "kernels", "shards"},
    {"nextdit", "encoders", "nano"},
    {"models", "sources"},
    {"unicap", "curation", "dataset", "training", "sampling", "evals"},
    {"bench"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
BANNED_NAMES = {"utils", "util", "common", "helpers", "misc", "base", "manager"}
MOST_MODULES, MOST_LINES = 10, 300
LIGHT = [
    "errors",
    "registry",
    "recipe",
    "device",
    "doctor",
    "io/jsonl",
    "io/atomic",
    "nano/scene",
    "nano/captions",
]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path, top_level: bool = False, running: bool = False) -> set[str]:
    """Return the dotted names that a file imports; with `top_level`, only those of its module level.

    With `running`, imports for type checkers alone are left out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if running:
        tree.body = [
            node
            for node in tree.body
            if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ]
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    if top_level:
        nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package_of(module: str) -> str | None:
    """Return the package of the core that a dotted name belongs to."""
    words = module.split(".")
    return words[2] if words[:2] == ["lumina_cli", "core"] and len(words) > 2 else None


def calls(path: Path) -> set[str]:
    """Return the names that a file calls, as written: print, sys.exit, os.environ.setdefault."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE / "core").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for package in filter(None, map(package_of, imports(path))):
        allowed = package == own or RANK[package] < RANK[own] or RANK[package] == RANK[own] == 0
        assert allowed, f"{name_of(path)} ({own}) imports {package}"


def import_graph() -> dict[str, set[str]]:
    """Return, per module, the modules that it imports anywhere, also inside functions."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    graph = {}
    for module, path in modules.items():
        graph[module] = set()
        for name in imports(path, running=True):
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                graph[module].add(target)
    return graph


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import cycle, or [] if there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


@pytest.mark.slow
def test_no_import_cycles():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle(import_graph()) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_library_neither_prints_nor_exits(path):
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
def test_no_code_from_files_runs(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"pickle", "dill", "torchvision", "shelve", "marshal"}
    assert not {"eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system"} & calls(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert words.get("trust_remote_code", "False") == "False"
            if re.fullmatch(r"Auto[A-Z]\w+\.from_\w+", ast.unparse(node.func)):
                # without the argument, transformers asks on stdin, and a pipe could answer "y"
                assert "trust_remote_code" in words
            assert ast.unparse(node.func) != "torch.load" or words.get("weights_only") == "True"


@pytest.mark.parametrize("path", CLI, ids=name_of)
def test_commands_import_no_heavy_packages(path):
    roots = {name.split(".")[0] for name in imports(path, top_level=True)}
    assert not roots & HEAVY
    packages = set(filter(None, map(package_of, imports(path, top_level=True))))
    assert packages <= {"errors", "limits", "secrets", "registry", "recipe", "device", "io", "nano"}


@pytest.mark.parametrize("path", [PACKAGE / "core" / f"{name}.py" for name in LIGHT], ids=name_of)
def test_modules_used_by_the_command_line_import_no_heavy_packages(path):
    assert not {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_and_functions_are_short(path):
    assert path.stem not in BANNED_NAMES
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    if path.stem != "__init__":
        assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"


def module_counts(folder: Path) -> dict[str, int]:
    """Return the number of modules in each folder below `folder`, without `__init__.py`."""
    counts: dict[str, int] = {}
    for path in folder.rglob("*.py"):
        if path.stem not in ("__init__", "conftest"):
            name = path.parent.relative_to(ROOT).as_posix()
            counts[name] = counts.get(name, 0) + 1
    return counts


@pytest.mark.parametrize("folder", ["lumina_cli", "tests"])
def test_folders_contain_at_most_ten_modules(folder):
    assert {name: n for name, n in module_counts(ROOT / folder).items() if n > MOST_MODULES} == {}


def listed_modules(tree: str) -> dict[str, set[str]]:
    """Return the modules per folder of the tree in docs/architecture.md, read by its indentation."""
    found: dict[str, set[str]] = {}
    folders: list[tuple[int, str]] = []
    for line in tree.split("lumina_cli/\n")[1].splitlines():
        indent = len(line) - len(line.lstrip())
        if not indent:
            break
        while folders and folders[-1][0] >= indent:
            folders.pop()
        words = line.split()
        if words[0].endswith("/"):
            parent = f"{folders[-1][1]}/" if folders else ""
            folders.append((indent, parent + words[0].rstrip("/")))
            words = re.split(r"\s{2,}", line.split(maxsplit=1)[1] if len(words) > 1 else "")[0].split()
        elif words[0].startswith("__init__"):
            continue
        found.setdefault(folders[-1][1], set()).update(words)
    return found


def test_the_tree_of_the_architecture_page_matches_the_code():
    plan = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = listed_modules(plan.split("## Tree")[1].split("```")[1])
    modules: dict[str, set[str]] = {}
    for path in FILES:
        if path.stem not in ("__init__", "__main__"):
            modules.setdefault(path.parent.relative_to(PACKAGE).as_posix(), set()).add(path.stem)
    code = {name: listed[name] for name in listed if name.startswith(("cli", "core")) and listed[name]}
    assert code == modules


TABLES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]


ENTRIES = [pytest.param(table, name, id=f"{table.kind}-{name}") for table in TABLES for name in table]


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_every_table_entry_can_be_imported(table, name):
    assert callable(table.load(name)) or table.kind == "kernel"


def processor_time() -> float:
    """Return the processor seconds of all child processes so far; other load does not change them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_fast_and_imports_no_heavy_packages():
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
