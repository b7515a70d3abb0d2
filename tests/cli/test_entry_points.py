"""Names that other installed packages register with entry points."""

import subprocess
import sys

import pytest

from lumina_cli.core import registry
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.registry import Registry

TABLES = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}
EULER = """
from lumina_cli.core.flow.solvers import solver

@solver(order=1, calls=1)
def mine(velocity, x, times):
    for t, s in zip(times, times[1:]):
        x = x + (s - t) * velocity(x, t)
        yield x
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that puts a package with entry points on sys.path, as pip would install it."""

    def install(name: str, entry_points: str, code: str = ""):
        folder = tmp_path / name
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        (folder / f"{name}_code.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))
        for table in TABLES.values():
            table.__dict__.pop("plugins", None)

    yield install
    for table in TABLES.values():
        table.__dict__.pop("plugins", None)


def test_every_table_has_the_group_of_its_name():
    assert {name: table.group for name, table in TABLES.items()} == {
        name: f"lumina.{name.lower()}" for name in TABLES
    }


def test_a_solver_of_another_package_samples(install, lumina, tiny_folder, tmp_path):
    install("extras", "[lumina.solvers]\nmine = extras_code:mine\n", EULER)
    paths = []
    for solver in ("mine", "euler"):
        code, rows, err = lumina(
            f"sample 'two cups' --model {tiny_folder} --plan solver={solver},steps=2,shift=1 --out {tmp_path}/{solver}"
        )
        assert (code, err) == (0, "")
        paths.append(rows[0]["image"])
    first, second = (open_pixels(path) for path in paths)
    assert first == second


def open_pixels(path: str) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def test_unknown_names_list_those_of_other_packages(install, lumina, tmp_path):
    install("extras", "[lumina.solvers]\nralston = extras_code:mine\n", EULER)
    assert "did you mean 'ralston'?" in lumina("sample x --plan solver=ralstn")[2]
    assert lumina("sample x --plan solver=qqqqqq")[2].endswith("unipc, ralston\n")


@pytest.mark.parametrize(
    ("target", "code", "reason"),
    [
        ("extras_code:gone", "", "AttributeError: module 'extras_code' has no attribute 'gone'"),
        ("no_such_module:mine", "", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("extras_code:mine", "1 / 0", "ZeroDivisionError: division by zero"),
        ("extras_code:mine", "raise SyntaxError('two\\nlines')", "SyntaxError: two lines"),
    ],
)
def test_a_broken_entry_point_is_one_line(target, code, reason, install, lumina):
    install("extras", f"[lumina.solvers]\nmine = {target}\n", code)
    sys.modules.pop("extras_code", None)
    assert lumina("sample x --plan solver=mine") == (
        1, [], f"lumina sample: solver 'mine' of package extras: cannot load {target}: {reason}\n"
    )  # fmt: skip


def test_built_in_names_take_precedence(install):
    install("extras", "[lumina.solvers]\neuler = extras_code:gone\n")
    assert registry.SOLVERS.load("euler").__module__ == "lumina_cli.core.flow.solvers"
    assert registry.SOLVERS.names() == list(registry.SOLVERS)


def test_a_name_of_two_packages_is_an_error(install):
    for name in ("first", "second"):
        install(name, f"[lumina.judges]\nmine = {name}_code:mine\n", "mine = 1")
    assert "mine" in registry.JUDGES
    with pytest.raises(LuminaError, match="judge 'mine' is registered by first and second"):
        registry.JUDGES.load("mine")


def test_a_benchmark_of_another_package_is_a_word_of_eval(install, lumina):
    install("extras", "[lumina.benchmarks]\nmine = extras_code:Mine\n", "Mine = None")
    assert (
        lumina("eval mine")[2] == "lumina eval: pass exactly one of --model NAME, --images DIR or --ceiling\n"
    )
    with pytest.raises(UsageError, match="choose from geneval, mine"):
        registry.BENCHMARKS.load("xyz")


@pytest.mark.slow
def test_help_and_built_in_names_do_not_read_metadata():
    code = "import sys; from lumina_cli.cli.app import run; from lumina_cli.core.registry import SOLVERS; run(['--help'])"
    code += "; SOLVERS.load('euler'); print([name for name in vars(SOLVERS) if name == 'plugins'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
