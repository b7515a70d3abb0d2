"""Every command block of README and the docs runs, page by page, in the order in which a reader meets them.

A comment directly before a block changes that: `<!-- not run: REASON -->` for what needs the Hub, a GPU or a server. Such
blocks still have to parse (test_commands.py). The sentence after "not run:" is for people who read the source of a page.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_server import shell_environment
from PIL import Image
from safetensors.torch import save_file

from lumina_cli.core.registry import ASSETS

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n\s*)?```(?P<language>\w*)\n(?P<text>.*?)```", re.S)
LANGUAGES = ("bash", "python")
# blocks of one page that another page runs at full length: fewer steps, the same commands
LOOP = {"nano:2000": "nano:200", "low.steps=40": "low.steps=4", "high.steps=30": "high.steps=3"}
SHORTER = {
    "README.md": LOOP
    | {"hq.steps=20": "hq.steps=2"},  # tests/project/test_readme_loop.py runs the whole loop
    "docs/guides/training.md": LOOP,
    "docs/quickstart.md": {"steps: 80": "steps: 8"},
    "docs/guides/fine-tuning.md": {"steps: 80": "steps: 8"},
}
ELSEWHERE = re.compile(r"docs/extending|docs/reference/python")  # test_docs_match_code.py; signatures only


HELP_PAGE = "docs/reference/cli.md"  # its examples are lines of their own


def blocks(page: Path) -> list[dict[str, str | None]]:
    """Return language, text and reason (None: runs) of each fenced block of a page."""
    return [match.groupdict() for match in FENCE.finditer(page.read_text(encoding="utf-8"))]


def runnable(page: Path) -> list[dict[str, str | None]]:
    return [block for block in blocks(page) if block["language"] in LANGUAGES and not block["reason"]]


PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    if runnable(page) and not ELSEWHERE.match(str(page.relative_to(ROOT)))
)


def ten_photos(folder: Path, side: int = 256) -> None:
    """Write ten JPEG files with captions next to them."""
    (folder / "photos").mkdir()
    for number in range(10):
        shade = Image.linear_gradient("L").rotate(36 * number)
        photo = Image.merge("RGB", (shade, shade.rotate(90), shade.rotate(180)))
        photo.resize((side, side)).save(folder / f"photos/photo-{number}.jpg")
        (folder / f"photos/photo-{number}.txt").write_text(f"a gradient turned by {36 * number} degrees")


def photo_recipe(folder: Path) -> None:
    """Write photos.yaml, as the page prints it."""
    page = ROOT / "docs" / "quickstart.md"
    recipe = next(block["text"] for block in blocks(page) if block["language"] == "yaml")
    for old, new in SHORTER["docs/quickstart.md"].items():
        recipe = recipe.replace(old, new)
    (folder / "photos.yaml").write_text(recipe)


def packed_photos(folder: Path) -> None:
    """Write the shards of ten photos and their recipe."""
    from lumina_cli.core.shards.pack import write_shards
    from lumina_cli.core.sources.source import read_source

    ten_photos(folder)
    list(write_shards(read_source(folder / "photos"), folder / "shards"))
    photo_recipe(folder)


def style_lora(folder: Path) -> None:
    """Write style.safetensors, a LoRA for nano in diffusers' names."""
    width = 192
    name = "transformer.layers.0.attn.to_out.0"
    tensors = {"lora_A": torch.randn(4, width) * 0.01, "lora_B": torch.randn(width, 4) * 0.01}
    save_file(
        {f"{name}.{part}.weight": value for part, value in tensors.items()}, folder / "style.safetensors"
    )


def prompts_file(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a red car\nthree purple mushrooms\n")


def scenes(folder: Path) -> None:
    """Write data/, shards of a few rendered scenes."""
    from lumina_cli.core.shards.pack import write_shards
    from lumina_cli.core.sources.source import read_source

    list(write_shards(read_source("nano:8"), folder / "data"))


PREPARED: dict[str, list[Callable[[Path], None]]] = {
    "README.md": [ten_photos],
    "docs/quickstart.md": [ten_photos, photo_recipe],
    "docs/guides/fine-tuning.md": [packed_photos, style_lora],
    "docs/guides/cluster.md": [prompts_file, scenes],
}


@pytest.fixture(scope="module")
def shell(tmp_path_factory) -> dict[str, str]:
    """Return the environment in which blocks run."""
    programs = tmp_path_factory.mktemp("sh")
    if not shutil.which("jq"):  # its result is not looked at
        (programs / "jq").write_text("#!/bin/sh\nexec cat\n")
        (programs / "jq").chmod(0o755)
    with shell_environment(programs) as environment:
        yield environment


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != HELP_PAGE])
def test_every_block_of_a_page_runs(page, shell, tmp_path):
    for prepare in PREPARED.get(page, []):
        prepare(tmp_path)
    found = [shortened(page, block) for block in runnable(ROOT / page)]
    scripts = [text for language, text in found if language == "bash"]
    shown = [f"echo 'block {number}:' >&2\n{text}" for number, text in enumerate(scripts, 1)]
    commands = [["bash", "-e", "-c", "\n".join(shown)]] if shown else []  # one shell: variables stay
    commands += [[sys.executable, "-c", text] for language, text in found if language == "python"]
    for command in commands:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=shell,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def shortened(page: str, block: dict) -> tuple[str, str]:
    """Return (language, text) of a block with the replacements of its page."""
    text = block["text"]
    for old, new in SHORTER.get(page, {}).items():
        text = text.replace(old, new)
    return block["language"], text


# lines of help that are not run, and why
NOT_RUN = {
    r"s3://": "needs a bucket",
    r"lumina-image-2": "downloads the 2.6B model",
    r"lumina caption (?!.*--engine (nano|noop))": "downloads a captioner",
    r"aesthetic": "downloads a model",
    r"--mix web": "needs shards of two sources",
    r"lumina bench": "the guide to benchmarks runs each of them",
    r"prompts official \|": "generates 553 images",
    r"\.pth ": "needs the official checkpoint; tests/cli/test_convert.py converts such files",
    r"--gate": "a model of two steps does not pass; tests/evals has gates",
    r"--resume|overlay data --remove|eval compare|eval captions|--from ": "needs the results of other lines",
}
TAILS = {  # settings that make a line short
    r"lumina train nano out=runs/first": " --dry-run",
    r"lumina eval geneval --model nano": " --per-task 1 --pictures 1",
    r"lumina eval geneval --images": "",
}


def help_files(folder: Path) -> None:
    """Write what the examples of the help name: photos, shards, prompts, an image, a mask, tables, a model, a LoRA."""
    ten_photos(folder, 520)
    scenes(folder)
    (folder / "data").rename(folder / "shards")
    prompts_file(folder)
    style_lora(folder)
    (folder / "style.safetensors").rename(folder / "lora.safetensors")
    shutil.copy(folder / "photos/photo-0.jpg", folder / "photo.jpg")
    Image.open(folder / "photo.jpg").resize((128, 128)).save(folder / "photo.png")
    Image.linear_gradient("L").resize((128, 128)).save(folder / "mask.png")
    (folder / "scores.csv").write_text("image,score\nphotos/photo-0.jpg,0.5\n")
    (folder / "runs/first").mkdir(parents=True)
    (folder / "runs/first/model").symlink_to(ASSETS / "nano")
    samples = folder / "images/00000/samples"
    samples.mkdir(parents=True)
    shutil.copy(folder / "photo.png", samples / "00000.png")
    row = '{"tag": "single_object", "include": [{"class": "car", "count": 1}], "prompt": "a photo of a car"}'
    (samples.parent / "metadata.jsonl").write_text(row)


@pytest.mark.slow
def test_the_examples_of_the_help_run(shell, tmp_path):
    help_files(tmp_path)
    lines = []
    for block in runnable(ROOT / HELP_PAGE):
        for line in block["text"].splitlines():
            if line in lines or any(re.search(pattern, line) for pattern in NOT_RUN):
                continue
            tail = next((tail for start, tail in TAILS.items() if re.match(start, line)), "")
            lines.append(line + tail)
    assert len(lines) > 25
    script = "\n".join(f"echo {shlex.quote(line)} >&2\n{line}" for line in lines)
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env=shell,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_block_that_fails_is_noticed(shell, tmp_path):
    done = subprocess.run(
        ["bash", "-e", "-c", "lumina sample --sise 3"],
        cwd=tmp_path,
        env=shell,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"no option --sise" in done.stderr


def test_few_blocks_are_not_run():
    """Each exception has a reason; their number may only grow on purpose."""
    reasons = [block["reason"] for page in PAGES for block in blocks(ROOT / page) if block["reason"]]
    assert all(re.match(r"needs|downloads|takes|installs", reason) for reason in reasons), reasons
    assert len(reasons) <= 20
