"""Files that are not what their names promise are named as what they are, wherever they are read."""

import pickle
import shutil
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.models.locate import find_model
from lumina_cli.core.training.progress import read_state
from lumina_cli.core.weights.checksums import SUMS, write_checksums
from lumina_cli.core.weights.content import describe_content
from lumina_cli.core.weights.files import read_weights
from lumina_cli.core.weights.json_files import read_json
from lumina_cli.core.weights.lazy import LazyWeights
from lumina_cli.core.weights.lora_files import read_adapter
from lumina_cli.core.weights.run_folder import RunFolder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 10438000000\n"
PAGE = b'\n<!DOCTYPE html>\n<html class=""><head><title>config.json</title></head><body></body></html>'
TENSORS = save({"layers.0.attention.out.weight": torch.ones(40, 40)})

FOREIGN = {
    "lfs": (POINTER, "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    "annex": (b"/annex/objects/SHA256E-s5--00.safetensors\n", "a git-annex pointer"),
    "html": (PAGE, "an HTML page, not the file itself; download the file"),
    "html with a mark": (b"\xef\xbb\xbf<html><body>Sign in</body></html>", "an HTML page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML answer of a server"),
    "empty": (b"", "empty; download it again"),
}
WEIGHTS = FOREIGN | {
    "message": (b"Entry not found", "not weights but text ('Entry not found')"),
    "cut": (TENSORS[:-1], f"truncated: {len(TENSORS) - 1:,} of {len(TENSORS):,} bytes"),
    "cut in the header": (TENSORS[:40], "truncated within its header, after 40 bytes"),
    "zip": (b"PK\x03\x04" + bytes(500), "a PyTorch or ZIP file under the name of a safetensors file"),
    "pickle": (pickle.dumps({"a": 1}, 2), "a PyTorch or ZIP file under the name of a safetensors file"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(100), "a GGUF file, which lumina does not read"),
}
CONFIGS = FOREIGN | {
    "message": (b"Invalid username or password.", "not JSON but text ('Invalid username or password.')"),
    "error": (b'{"error":"Repository not found"}', "a server's error message, not the file itself"),
}


def refusal(action):
    with pytest.raises(LuminaError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_named_as_what_they_are(tmp_path, kind):
    content, words = WEIGHTS[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert f"{path} is {words}" in refusal(lambda: read_weights(path))
    assert words in refusal(lambda: read_weights(tmp_path))
    assert words in refusal(lambda: LazyWeights(tmp_path))
    assert words in refusal(lambda: read_adapter(path))


@pytest.mark.parametrize("kind", FOREIGN)
def test_pickled_files_are_named_as_what_they_are(tmp_path, kind):
    content, words = FOREIGN[kind]
    (tmp_path / "model.pth").write_bytes(content)
    assert words in refusal(lambda: read_weights(tmp_path / "model.pth"))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", ["transformer/config.json", "tokenizer/tokenizer.json", "scheduler"])
def test_json_files_are_named_as_what_they_are(tmp_path, tiny_folder, kind, name):
    content, words = CONFIGS[kind]
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    path = folder / name if name != "scheduler" else folder / "scheduler" / "scheduler_config.json"
    path.write_bytes(content)
    if name != "scheduler":  # diffusers needs it, lumina generates without one
        assert f"{path} is {words}" in refusal(lambda: find_model(folder))
    if kind != "error":  # it is JSON
        assert words in refusal(lambda: read_json(path))


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_a_pointer_in_a_cloned_model_is_named_before_anything_is_loaded(
    tmp_path, tiny_folder, lumina, component
):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (weights,) = (folder / component).glob("*.safetensors")
    weights.write_bytes(POINTER)
    code, rows, err = lumina(f"sample 'a cup' --model {folder} --out {tmp_path}/out")
    assert (code, rows) == (1, [])
    assert f"{component}/{weights.name} is a Git LFS pointer" in err


def test_a_safetensors_file_with_the_name_of_a_pickled_one(tmp_path):
    (tmp_path / "model.pth").write_bytes(TENSORS)
    assert "rename it to model.safetensors" in refusal(lambda: read_weights(tmp_path / "model.pth"))


def test_whole_files_of_every_kind_pass(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.ones(0)}, tmp_path / "a.safetensors", metadata={"k": "v"})
    save_file({"a": torch.ones(2)}, tmp_path / "short_name.sft")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "lightning.ckpt")
    for path in tmp_path.iterdir():
        assert describe_content(path) is None
        assert read_weights(path)["a"].tolist() == [1, 1]
    assert describe_content(tmp_path / "none.safetensors") is None


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({1: torch.ones(1)}, "it has a Tensor under the int '1'"),
        ({("a", 2): torch.ones(1)}, "it has a Tensor under the tuple"),
        ({None: torch.ones(1)}, "it has a Tensor under the NoneType 'None'"),
        ({"step": 3}, "it has a int under the name 'step'"),
        ({"model": {"a": torch.ones(1)}, "step": 1}, "it has a dict under the name 'model'"),
        ([torch.ones(1)], "a dict of tensors by name, not a list"),
        (torch.ones(1), "a dict of tensors by name, not a Tensor"),
        ({"a": Hostile()}, "or contains exec, which is not a tensor; such objects are not loaded"),
    ],
)
def test_a_pickled_file_of_anything_else_is_one_line(tmp_path, lumina, content, words):
    torch.save(content, tmp_path / "x.pth")
    code, _, err = lumina(f"convert {tmp_path}/x.pth {tmp_path}/y.safetensors --to official")
    assert code == 1
    assert words in err
    assert len(err.splitlines()) == 1


def test_the_advice_of_torch_to_run_the_code_is_not_repeated(tmp_path):
    torch.save({"a": Hostile()}, tmp_path / "x.pth")
    run = RunFolder(tmp_path / "run")
    run.save({"w": torch.ones(1)}, {"w": torch.ones(1)}, {}, {"step": 1})
    torch.save({"a": Hostile()}, run.checkpoints / "0000001" / "optimizer.pt")
    for action in (lambda: read_weights(tmp_path / "x.pth"), lambda: run.load(1)):
        message = refusal(action)
        assert "exec, which is not a tensor" in message
        assert "weights_only" not in message


def write_archive(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


ARCHIVES = {
    "data.pkl": ({"x/data.pkl": b"\x80\x02" + bytes(64 << 20)}, "'x/data.pkl' is 67,108,866 bytes unpacked"),
    "a tensor": ({"x/data.pkl": b"", "x/data/0": bytes(64 << 20)}, "'x/data.pkl' is 0 bytes unpacked"),
    "no weights": ({"readme.txt": b"hello" * 2000}, "a ZIP archive, but not of weights"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_torch_does_not_write_are_refused_before_they_are_unpacked(tmp_path, lumina, kind):
    members, words = ARCHIVES[kind]
    path = write_archive(tmp_path / "x.pth", members)
    tracemalloc.start()
    try:
        assert words in refusal(lambda: read_weights(path))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    for command in (f"convert {path} {tmp_path}/y.safetensors --to official", f"sample ball --model {path}"):
        code, _, err = lumina(command)
        assert (code, words in err, err.count("\n")) == (1, True, 1)


def test_members_that_overlap_are_refused(tmp_path):
    path = write_archive(tmp_path / "x.pth", {"x/data.pkl": bytes(9000)}, zipfile.ZIP_STORED)
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    size = (1 << 30).to_bytes(4, "little")
    path.write_bytes(content[: at + 20] + size + size + content[at + 28 :])
    assert "bytes, but its members have 1,073,741,824" in refusal(lambda: read_weights(path))


@pytest.mark.parametrize("size", [4, 100, 0.5, -100, -1])
def test_a_truncated_pickled_file_is_named_without_details_of_torch(tmp_path, lumina, size):
    torch.save({"a": torch.ones(100, 100)}, tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: int(len(content) * size) if size == 0.5 else size])
    code, _, err = lumina(f"convert {tmp_path}/x.pth {tmp_path}/y.safetensors --to official")
    assert (code, err.count("\n")) == (1, 1)
    assert "x.pth is truncated or damaged: " in err or "x.pth is not weights but text" in err
    assert "download it again" in err


@pytest.mark.parametrize("tensor", [torch.ones(1).expand(10**10), torch.ones(1000).expand(10**7, 1000)])
def test_a_small_file_of_huge_views_is_refused(tmp_path, lumina, tensor):
    torch.save({"a": tensor}, tmp_path / "x.pth")
    code, _, err = lumina(f"convert {tmp_path}/x.pth {tmp_path}/y.safetensors --to official")
    assert (code, err.count("\n")) == (1, 1)
    assert "but its tensors would have 40,000,000,000; they repeat the same values" in err


def test_tensors_that_share_memory_are_read(tmp_path):
    table = torch.randn(100, 100)
    torch.save({"a": table, "b": table, "c": table[:50], "d": torch.ones(1).expand(64)}, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert torch.equal(found["a"], found["b"])
    assert found["d"].sum() == 64


def test_a_compressed_state_of_an_optimizer_is_refused(tmp_path):
    run, weights = RunFolder(tmp_path / "run"), {"w": torch.ones(1)}
    folder = run.save(weights, weights, {}, {"step": 1, "stage": "low", "stage_step": 1})
    write_archive(folder / "optimizer.pt", {"x/data.pkl": bytes(8 << 20)})
    write_checksums(folder)  # as if the checkpoint were whole
    assert run.check(1)["step"] == 1
    assert "optimizer.pt is a compressed archive" in refusal(lambda: run.load(1))
    (folder / SUMS).unlink()
    assert "optimizer.pt is a compressed archive" in refusal(lambda: run.check(1))
    write_archive(tmp_path / "state.pt", {"x/data.pkl": bytes(8 << 20)})
    assert "state.pt is a compressed archive" in refusal(lambda: read_state(tmp_path / "state.pt"))
