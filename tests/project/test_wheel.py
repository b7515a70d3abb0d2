"""The wheel: it contains all modules and assets, and works without a checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Build the wheel without a network and return the folder that it unpacks to."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *words, str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inside", "source"), [("lumina_cli/assets", "lumina_cli/assets"), ("lumina_cli/recipes", "recipes")]
)
def test_the_wheel_contains_the_recipes_and_the_embedded_model(unpacked, inside, source):
    wanted = files(ROOT / source)
    assert len(wanted) > 4
    assert files(unpacked / inside) == wanted


@pytest.mark.slow
def test_the_wheel_contains_exactly_the_modules(unpacked):
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lumina_cli").rglob("*.py")}
    assert {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.py")} == wanted
    assert {path.name.split("-")[0] for path in unpacked.iterdir()} == {"lumina_cli"}


@pytest.mark.slow
def test_recipes_and_assets_are_found_from_the_wheel_alone(unpacked, tmp_path):
    def python(*words):
        surroundings = os.environ | {"PYTHONPATH": str(unpacked)}
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=surroundings, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    rows = [
        json.loads(line) for line in python("-m", "lumina_cli", "train", "nano", "--dry-run").splitlines()
    ]
    assert [row["stage"] for row in rows] == ["low", "high", "hq"]
    found = python("-c", "from lumina_cli.core.registry import ASSETS; print(ASSETS)").strip()
    assert Path(found) == unpacked / "lumina_cli" / "assets"
