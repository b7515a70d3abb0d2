"""Weights: dialects are bijections, files are read safely, and every misfit is a one-line error."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from diffusers import Lumina2Transformer2DModel
from diffusers.models.attention import LuminaFeedForward
from safetensors.torch import load_file, save_file

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit import convert as c
from lumina_cli.core.nextdit.config import infer_config

GOLDEN = "tests/golden/official_nextdit_tiny.safetensors"
TINY = NextDiTConfig(
    dim=48, num_layers=3, num_heads=3, num_kv_heads=1, multiple_of=16, text_dim=40, axes_dim=(8, 4, 4)
)
WIDE_KV = NextDiTConfig(
    dim=72,
    num_layers=1,
    num_refiner_layers=1,
    num_heads=6,
    num_kv_heads=3,
    multiple_of=8,
    ffn_dim=56,
    text_dim=8,
    axes_dim=(4, 4, 4),
    in_channels=4,
)


@pytest.fixture(scope="module")
def official(request):
    tensors = load_file(request.config.rootpath / GOLDEN)
    return {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("weights.")}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = NextDiT(TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


def run(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, model.config.in_channels, 8, 12, generator=generator)
    text = torch.randn(2, 7, model.config.text_dim, generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    return latents, torch.tensor([0.2, 0.7]), text, mask


# --- dialects


def test_a_round_trip_through_every_dialect_is_the_identity(official):
    ours = c.from_official(official, TINY)
    ours = c.from_diffusers(c.to_diffusers(ours, TINY), TINY)
    back = c.to_official(c.from_comfyui(c.to_comfyui(ours, TINY), TINY), TINY)
    assert_same(back, {**official, "norm_final.weight": torch.ones(48)})
    assert len(back) == 101


def test_tensor_counts_are_those_of_the_published_layouts(official):
    assert len(official) == 101
    assert len(c.to_diffusers(c.from_official(official))) == 114


def test_a_used_norm_final_comes_back_as_ones(official):
    changed = {**official, "norm_final.weight": torch.full((48,), 3.0)}
    assert torch.equal(c.to_official(c.from_official(changed))["norm_final.weight"], torch.ones(48))


@pytest.mark.parametrize("config", [TINY, WIDE_KV], ids=["tiny", "wide_kv"])
@pytest.mark.parametrize("dialect", c.DIALECTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_dialect_is_inverted_for_any_size(dialect, config, dtype):
    ours = NextDiT(config).to(dtype).state_dict()
    theirs = c.to_dialect(ours, dialect, config)
    assert c.detect_dialect(theirs) == dialect
    assert_same(c.from_any(theirs, config), dict(ours))


@pytest.mark.parametrize("config", [TINY, WIDE_KV], ids=["tiny", "wide_kv"])
def test_names_and_shapes_are_exactly_those_of_diffusers(config):
    theirs = Lumina2Transformer2DModel.from_config(c.config_to_diffusers(config)).state_dict()
    ours = c.to_diffusers(NextDiT(config).state_dict())
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_other_networks_of_a_comfyui_file_are_left_out(model):
    file = {**c.to_comfyui(model.state_dict()), "vae.decoder.conv_in.weight": torch.zeros(1)}
    assert_same(c.from_any(file), dict(model.state_dict()))


def test_an_unknown_dialect_names_the_tensors():
    with pytest.raises(LuminaError, match=r"^2 tensors \(a, b\) are not weights of a Next-DiT"):
        c.detect_dialect({"b": torch.zeros(1), "a": torch.zeros(1)})


def test_a_missing_part_of_a_split_matrix_is_named(model):
    theirs = c.to_diffusers(model.state_dict())
    del theirs["layers.1.attn.to_k.weight"]
    with pytest.raises(LuminaError, match=r"have no layers\.1\.attn\.to_k\.weight"):
        c.from_diffusers(theirs)


def test_a_matrix_that_is_not_fused_qkv_is_named(model):
    ours = {**model.state_dict(), "layers.0.attention.qkv.weight": torch.zeros(48, 48)}
    with pytest.raises(LuminaError, match=r"layers\.0\.attention\.qkv\.weight has shape \(48, 48\)"):
        c.to_diffusers(ours)


def test_a_misfit_lists_missing_unexpected_and_misshaped(model):
    broken = dict(model.state_dict())
    del broken["x_embedder.bias"]
    broken |= {"extra": torch.zeros(2), "x_embedder.weight": torch.zeros(48, 3)}
    with pytest.raises(LuminaError) as caught:
        c.check_state_dict(model, broken, "tiny.pth")
    assert str(caught.value) == (
        "tiny.pth does not fit this model: missing 1 tensor (x_embedder.bias); unexpected 1 tensor (extra); "
        "misshaped 1 tensor (x_embedder.weight is (48, 3), should be (48, 64))"
    )


def test_a_config_given_to_a_conversion_is_checked(official):
    with pytest.raises(LuminaError, match="does not fit this model: missing 1 tensor"):
        c.from_official({k: v for k, v in official.items() if k != "x_embedder.bias"}, TINY)
    with pytest.raises(LuminaError, match="misshaped"):
        c.from_official(official, WIDE_KV)


# --- configs


@pytest.mark.parametrize("name", ["nano", "lumina-image-2", "lumina-image-2-7b"])
def test_a_named_config_round_trips_through_diffusers(name):
    config = NextDiTConfig.named(name)
    back = c.config_from_diffusers(json.loads(json.dumps(c.config_to_diffusers(config))))
    assert back == config


@pytest.mark.parametrize("config", [NextDiTConfig.named("nano"), WIDE_KV], ids=["nano", "wide_kv"])
def test_the_config_is_inferred_from_shapes(config):
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in NextDiT(config).state_dict().items()}
    found = infer_config(shapes)
    assert (found.dim, found.hidden_dim, found.num_heads, found.num_kv_heads, found.axes_dim) == (
        config.dim,
        config.hidden_dim,
        config.num_heads,
        config.num_kv_heads,
        config.axes_dim,
    )
    assert (found.num_layers, found.num_refiner_layers) == (config.num_layers, config.num_refiner_layers)


def test_shapes_that_do_not_determine_the_axes_are_refused(official):
    shapes = {name: tuple(tensor.shape) for name, tensor in official.items()}
    with pytest.raises(LuminaError, match="head width 16 cannot be split evenly over three position axes"):
        infer_config(shapes)
    assert infer_config(shapes, axes_dim=(8, 4, 4)) == TINY
    with pytest.raises(LuminaError, match=r"not a complete Next-DiT: 'x_embedder\.weight' is missing"):
        infer_config({})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "not of a FluxTransformer2DModel"),
        (
            {"hidden_size": None},
            "does not describe a Next-DiT: hidden_size must be an integer of at least 1, not None",
        ),
        ({"num_layers": "x"}, "num_layers must be an integer of at least 1, not 'x'"),
        ({"num_refiner_layers": -1}, "num_refiner_layers must be an integer of at least 0, not -1"),
        ({"num_attention_heads": 0}, "num_attention_heads must be an integer of at least 1, not 0"),
        ({"num_kv_heads": "1"}, "num_kv_heads must be an integer of at least 1, not '1'"),
        ({"cap_feat_dim": True}, "cap_feat_dim must be an integer of at least 1, not True"),
        ({"norm_eps": "1e-5"}, "norm_eps must be a positive number, not '1e-5'"),
        ({"axes_lens": 300}, "axes_lens must be three integers of at least 1, and at most 65536, not 300"),
        (
            {"axes_dim_rope": [7, 5, 4]},
            r"axes_dim_rope must be three even integers of at least 2, not \[7, 5, 4\]",
        ),
        ({"ffn_dim_multiplier": "a"}, "ffn_dim_multiplier must be a positive number or null, not 'a'"),
        ({"ffn_dim_multiplier": 1e308}, "does not describe a Next-DiT: "),
        ({"num_kv_heads": 2}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"out_channels": 8}, "out_channels must be equal to in_channels .*, not 8"),
    ],
)
def test_an_invalid_config_file_is_a_one_line_error(change, words):
    with pytest.raises(LuminaError, match=words):
        c.config_from_diffusers({**c.config_to_diffusers(TINY), **change})


@pytest.mark.parametrize("name", [field.name for field in fields(NextDiTConfig)])
def test_an_invalid_field_is_named(name):
    with pytest.raises(ValueError, match=f"^{name} must be .*, not 'x'"):
        replace(TINY, **{name: "x"})


@pytest.mark.parametrize("dim", [12, 28, 60, 100, 2308])
def test_the_feed_forward_width_round_trips_through_diffusers(dim):
    for ffn in range(1, 401, 3):
        config = replace(TINY, dim=dim, num_heads=1, axes_dim=(dim - 8, 4, 4), multiple_of=1, ffn_dim=ffn)
        theirs = c.config_to_diffusers(config)
        with torch.device("meta"):
            layer = LuminaFeedForward(dim, 4 * dim, 1, theirs["ffn_dim_multiplier"])
        assert layer.linear_1.out_features == ffn
        assert c.config_from_diffusers(theirs).hidden_dim == ffn


# --- files


def test_our_folder_loads_in_diffusers_with_the_same_output(model, tmp_path):
    c.save_transformer(model, tmp_path / "transformer")
    theirs = Lumina2Transformer2DModel.from_pretrained(tmp_path / "transformer")
    latents, t, text, mask = run(model)
    with torch.no_grad():
        wanted = theirs(latents, t, text, mask).sample
        found = c.load_transformer(tmp_path / "transformer")(latents, t, text, mask)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("max_shard_size", ["10GB", "100KB"])
def test_a_folder_of_diffusers_loads_whole_or_sharded(tmp_path, max_shard_size):
    torch.manual_seed(0)
    theirs = Lumina2Transformer2DModel.from_config(c.config_to_diffusers(WIDE_KV))
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "100KB")
    ours = c.load_transformer(tmp_path)
    assert ours.config == WIDE_KV
    assert_same(c.to_diffusers(ours.state_dict()), theirs.state_dict())


def test_saving_in_bfloat16_and_over_an_older_sharded_folder(model, tmp_path):
    theirs = Lumina2Transformer2DModel.from_config(c.config_to_diffusers(WIDE_KV))
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    c.save_transformer(model, tmp_path, dtype=torch.bfloat16)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert c.load_transformer(tmp_path).dtype == torch.bfloat16
    assert c.load_transformer(tmp_path, dtype=torch.float32).config == TINY


def test_a_pth_loads_without_unpickling_objects(official, tmp_path):
    torch.save(official, tmp_path / "consolidated.00-of-01.pth")
    assert_same(c.read_weights(tmp_path / "consolidated.00-of-01.pth"), official)
    assert_same(c.read_weights(tmp_path), official)


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_a_pth_that_would_run_code_is_a_one_line_error(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(1), "args": Hostile()}, path)
    with pytest.raises(
        LuminaError, match=r"cannot be loaded: it is damaged, or contains exec, which"
    ) as caught:
        c.read_weights(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(LuminaError, match="or contains something other than tensors"):
        c.read_weights(path)


def broken_files(folder):
    """Write files that must each raise a one-line error, with the expected words."""
    save_file({"a": torch.zeros(100)}, folder / "cut.safetensors")
    whole = (folder / "cut.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-50])
    (folder / "empty.pth").write_bytes(b"")
    torch.save({"a": torch.zeros(100)}, folder / "cut.pth")
    (folder / "cut.pth").write_bytes((folder / "cut.pth").read_bytes()[:-200])
    torch.save({"model": {"a": torch.zeros(1)}}, folder / "nested.pth")
    (folder / "notes.txt").write_text("no weights")
    (folder / "hollow").mkdir()
    (folder / "sharded").mkdir()
    index = {"weight_map": {"a": "part-1.safetensors"}}
    (folder / "sharded" / "x.safetensors.index.json").write_text(json.dumps(index))
    (folder / "outside").mkdir()
    (folder / "outside" / "x.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../cut.safetensors"}}'
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.safetensors", "does not exist"),
        ("cut.safetensors", "is truncated: .* bytes; download it again"),
        ("empty.pth", "is empty; download it again"),
        ("cut.pth", "is truncated or damaged: "),
        ("nested.pth", "must contain only a flat dict of tensors"),
        ("notes.txt", "unknown suffix"),
        ("hollow", "holds 0 indexes and 0 weight files"),
        ("sharded", "part-1.safetensors is listed in the index but missing"),
        ("outside", "points outside its own folder"),
    ],
)
def test_an_unreadable_file_is_a_one_line_error(tmp_path, name, words):
    broken_files(tmp_path)
    with pytest.raises(LuminaError, match=words) as caught:
        c.read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_or_with_a_broken_config(model, tmp_path):
    c.save_transformer(model, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LuminaError, match="is not readable JSON"):
        c.load_transformer(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(LuminaError, match=r"config\.json does not exist"):
        c.load_transformer(tmp_path)


def test_a_folder_whose_weights_do_not_fit_its_config(model, tmp_path):
    c.save_transformer(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(c.config_to_diffusers(WIDE_KV)))
    with pytest.raises(LuminaError, match=r"does not fit this model: unexpected .* misshaped"):
        c.load_transformer(tmp_path)


# In a process of its own: the limit would also hold for a file that pytest writes its report to.
LIMITED = """
import resource, sys, torch
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nextdit.convert import write_weights
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_weights({"a": torch.zeros(100_000)}, sys.argv[1])
except LuminaError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_write_that_fails_leaves_the_old_file(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"old")
    words = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout == f"cannot write {path}: File too large\n"
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [name]


FULL_DISK = """
import sys, torch
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nextdit.convert import write_weights
for name in ("w.safetensors", "w.pth"):
    try:
        write_weights({"a": torch.zeros(100_000)}, f"{sys.argv[1]}/{name}")
    except LuminaError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_a_one_line_error(tmp_path):
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=100k t "$0" && exec "$@"', str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a user mount a small disk")
    words = [*mount, sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"the disk is full: {tmp_path / n}" for n in ("w.safetensors", "w.pth")
    ]


def test_written_weights_read_back_from_either_ending(model, tmp_path):
    for name in ("w.safetensors", "w.pth"):
        c.write_weights(c.to_diffusers(model.state_dict()), tmp_path / name)
        assert_same(c.from_any(c.read_weights(tmp_path / name)), dict(model.state_dict()))
