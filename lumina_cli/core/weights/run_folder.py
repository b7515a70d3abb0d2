"""A run folder: the resolved recipe, metrics, checkpoints for resuming, and the exported model.

    recipe.yaml              the resolved recipe
    metrics.jsonl            one row per logged step
    events.out.tfevents.*    TensorBoard
    checkpoints/0001000/     weights.safetensors, ema.safetensors, optimizer.pt (read with weights_only),
                             state.json and SHA256SUMS
    model/                   the exported model folder, with SHA256SUMS

Everything is written under a temporary name and renamed, so a file or folder with its final name is complete.
The checksums detect damage that happens later. A damaged checkpoint is renamed to 0001000.damaged.
"""

import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import apply_umask, disk_errors, locked_folder
from lumina_cli.core.weights.checksums import SUMS, find_damage, write_checksums
from lumina_cli.core.weights.content import describe_content
from lumina_cli.core.weights.json_files import declare_float32, summarize_error, write_text

FILES = ("state.json", "weights.safetensors", "ema.safetensors", "optimizer.pt")  # of a checkpoint
DAMAGED = ".damaged"  # suffix of the name of a damaged checkpoint or recipe that is set aside


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `final` if the block succeeds.

    `final` keeps its content until then. If the process is killed between the two renames, the next call
    restores the old folder.

    Raises:
        LuminaError: if writing fails.
    """
    final = Path(final)
    aside, old = final.with_name(f".{final.name}.partial"), final.with_name(f".{final.name}.old")
    _restore_folder(final)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with disk_errors(final):
            aside.mkdir(parents=True)
            yield aside
            apply_umask(aside)
            _replace_folder(aside, final, old)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _restore_folder(final: Path) -> None:
    """Restore the folder that a killed process left under its backup name, or delete a stale backup."""
    old = final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():
        with disk_errors(final):
            old.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _replace_folder(aside: Path, final: Path, old: Path) -> None:
    """Rename `aside` to `final`; on failure `final` is unchanged."""
    if not final.exists():
        aside.rename(final)
        return
    final.rename(old)
    try:
        aside.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


class RunFolder:
    """The files of a training run; `keep` is the number of checkpoints to keep."""

    def __init__(self, path: Path, keep: int = 2):
        self.path, self.keep = Path(path), keep
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"

    @property
    def recipe(self) -> Path:
        """The file of the resolved recipe."""
        return self.path / "recipe.yaml"

    def write_recipe(self, settings: dict) -> None:
        """Write the resolved recipe."""
        write_text(self.recipe, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder during the block; remove it if it stays empty.

        Raises:
            LuminaError: if another process is training in it, or if it cannot be created.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with locked_folder(str(self.path)):
                yield
        finally:
            with suppress(OSError):
                self.path.rmdir()

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, whole or damaged, in ascending order."""
        names = [path.name for path in self.checkpoints.glob("*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isdigit())

    def folder_of(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.checkpoints / f"{step:07d}"

    def save(self, weights: dict[str, Tensor], ema: dict[str, Tensor], optimizer: dict, state: dict) -> Path:
        """Write the checkpoint of `state["step"]`, delete all but the last `keep`, and return its folder.

            weights, ema   {name: tensor} of the model and of its moving average
            optimizer      the optimizer's state dict
            state          JSON object; "step" names the checkpoint

        Raises:
            LuminaError: if writing fails.
        """
        final = self.folder_of(state["step"])
        with staged_folder(final) as aside:
            save_file({k: v.contiguous() for k, v in weights.items()}, aside / "weights.safetensors")
            save_file({k: v.contiguous() for k, v in ema.items()}, aside / "ema.safetensors")
            with (aside / "optimizer.pt").open("wb") as file:  # reports why a write fails
                torch.save(optimizer, file)
            (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
            write_checksums(aside)
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder_of(step), ignore_errors=True)
        return final

    def newest_whole(self) -> tuple[dict | None, dict[int, str]]:
        """Return the state of the newest whole checkpoint, and step -> reason of the damaged ones after it.

        The state is None without a whole checkpoint. All bytes of a checkpoint are compared with its
        checksums; those of earlier releases have none, so only some damage is detected.
        """
        damaged = {}
        for step in reversed(self.steps()):
            try:
                return self.check(step), damaged
            except LuminaError as error:
                damaged[step] = str(error)
        return None, damaged

    def check(self, step: int) -> dict:
        """Return the state of a checkpoint.

        Raises:
            LuminaError: if one of its files is missing or damaged; the message is the reason.
        """
        folder = self.folder_of(step)
        if reason := find_damage(folder, FILES):
            raise LuminaError(reason)
        if not (folder / SUMS).is_file():
            try:
                check_zip(folder / "optimizer.pt")
                self._read(step)
            except Exception as error:  # safetensors, zip and pickle each raise their own kind
                raise LuminaError(summarize_error(error)) from error
        return read_state(folder / "state.json", step)

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
        """Return (weights, averaged weights, optimizer state) of a checkpoint, on the CPU.

        Raises:
            LuminaError: if a file is damaged.
        """
        try:
            return self._read(step)
        except Exception as error:  # safetensors, zip and pickle each raise their own kind
            raise LuminaError(f"{self.folder_of(step)} cannot be read: {summarize_error(error)}") from error

    def _read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
        folder = self.folder_of(step)
        check_members(folder / "optimizer.pt")
        weights, ema = (load_file(folder / f"{name}.safetensors") for name in ("weights", "ema"))
        # on the CPU, so that a run can resume without the GPU that it started on
        optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        return weights, ema, optimizer

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that it is not used or counted again; return its new folder."""
        folder = self.folder_of(step)
        aside = folder.with_name(folder.name + DAMAGED)
        with disk_errors(aside):
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        return aside

    def append_metrics(self, row: dict) -> None:
        """Append a line to metrics.jsonl in one write, so that a kill truncates at most the last line."""
        with disk_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind_metrics(self, step: int) -> int:
        """Drop the metrics after `step` and all lines that are not rows; return the number of the latter.

        A truncated last line, which a kill leaves, is not counted.
        """
        if not self.metrics.is_file():
            return 0
        text, lines, unreadable = self.metrics.read_text(encoding="utf-8", errors="replace"), [], 0
        for line in text.splitlines(keepends=True):
            row = _parse_object(line)
            if type(row.get("step")) is not int:
                unreadable += line.endswith("\n")
            elif row["step"] <= step:
                lines.append(line)
        write_text(self.metrics, "".join(line.rstrip("\n") + "\n" for line in lines))
        return unreadable

    @contextmanager
    def model_aside(self, frozen: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield a folder that becomes `model/`, with copies of those `parts` of a model folder that exist."""
        with staged_folder(self.path / "model") as aside:
            for part in (frozen / name for name in parts if (frozen / name).exists()):
                if part.is_dir():
                    shutil.copytree(part, aside / part.name, copy_function=shutil.copyfile)
                else:
                    shutil.copyfile(part, aside / part.name)
            declare_float32(aside / "text_encoder")
            yield aside
            write_checksums(aside)


def read_state(path: Path, step: int) -> dict:
    """Return the state.json of the checkpoint of a step.

    Raises:
        LuminaError: if it is not the state of this step.
    """
    state = _parse_object(path.read_text(encoding="utf-8", errors="replace"))
    if state.get("step") != step or not isinstance(state.get("stage"), str):
        raise LuminaError(f"{path.name} is not the state of step {step}")
    window = state.get("window") or {"sums": {}, "steps": 0}
    sums = window.get("sums") if isinstance(window, dict) else None
    counts = (state.get("stage_step"), window.get("steps") if isinstance(sums, dict) else None)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise LuminaError(f"{path.name} has damaged counts of steps")
    return state


def check_members(path: Path) -> None:
    """Check that a file is what `torch.save` writes, which torch.load can read in memory of the file's size.

    Raises:
        LuminaError: if it is not; the message is the reason.
    """
    if (found := describe_content(path)) is not None:
        raise LuminaError(f"{path.name} is {found}")


def check_zip(path: Path) -> None:
    """Verify the checksums in the zip archive that `torch.save` writes; torch itself does not.

    Raises:
        LuminaError, OSError, zipfile.BadZipFile: if it is damaged, or not what `torch.save` writes.
    """
    check_members(path)
    with zipfile.ZipFile(path) as archive:
        if name := archive.testzip():
            raise LuminaError(f"{path.name} is damaged at {name}")


def _parse_object(text: str) -> dict:
    """Return a JSON object; {} if the text is not one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
