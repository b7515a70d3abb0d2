"""Attention maps: tokens of a word, recorded attention, and nano attending to the named object."""

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import open_image, read_metadata
from lumina_cli.core.nextdit.rope import rotate
from lumina_cli.core.nextdit.sequence import padded_layout
from lumina_cli.core.sampling.editing.attention_maps import (
    AttentionHook,
    AttentionRecorder,
    overlay,
    with_overlays,
    word_attention,
    word_tokens,
)
from lumina_cli.core.sampling.editing.img2img import Edit, EditHook
from lumina_cli.core.sampling.pipeline import load_pipeline
from lumina_cli.core.sampling.request import Job, ResolvedRequest
from lumina_cli.core.sampling.runner import generate_rows

FAST = {"solver": "euler", "steps": 2}


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return load_pipeline(tiny_folder)


@pytest.fixture(scope="module")
def nano():
    return load_pipeline("nano")


def spelled(tokens, text, places) -> str:
    ids = tokens.tokenizer([text])["input_ids"][0]
    return tokens.tokenizer.decode([ids[place] for place in places])


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("a red car left of a blue ball", "car", "car"),
        ("a Red car, a red ball", "red", "Red red"),
        ("a carpet and a car", "car", "car"),
        ("a blue ball left of a ball", "blue ball", "blue ball"),
        ("一辆红色的汽车在球的左边", "汽车", "汽车"),
        ("ein Würfel", "würfel", "Würfel"),
    ],
)
def test_word_tokens_match_the_word(nano, prompt, word, expected):
    text = full_prompt(prompt)
    places = word_tokens(nano.text.tokens, text, word, len(text) - len(prompt))
    assert spelled(nano.text.tokens, text, places).split() == expected.split()


def test_words_of_the_system_prompt_do_not_match(nano):
    prompt = "a red car"
    text = full_prompt(prompt)
    with pytest.raises(UsageError, match="'images' is not in the prompt 'a red car'"):
        word_tokens(nano.text.tokens, text, "images", len(text) - len(prompt))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("bicycle", "'bicycle' is not in the prompt"),
        ("ca", "'ca' is not in the prompt"),
        (" ", "the word of --attention is empty"),
        ("end", "'end' is beyond the encoder's limit of 256 tokens"),
    ],
)
def test_missing_or_truncated_words_are_rejected(word, message, nano):
    with pytest.raises(UsageError, match=message):
        word_tokens(nano.text.tokens, "red cars " * 300 + "end", word)


def test_attention_to_all_tokens_sums_to_one():
    queries, keys = torch.randn(4, 5, 8), torch.randn(2, 9, 8)
    shares = word_attention(queries, keys, [range(9), [3], [4, 5]])
    torch.testing.assert_close(shares[0], torch.ones(5))
    weights = (queries @ keys.repeat_interleave(2, 0).mT / 8**0.5).softmax(-1).mean(0)
    torch.testing.assert_close(shares[1], weights[:, 3])
    torch.testing.assert_close(shares[2], weights[:, 4:6].sum(-1))


def reference(network, latents, t, features, lengths, places, layers):
    """Attention to `places` from the padded forward pass, with the attention written out."""
    found = []

    def read(attention, inputs):
        x, mask, cos, sin = inputs
        q, k, _ = (
            part.unflatten(-1, (-1, attention.head_dim))
            for part in attention.qkv(x).split(attention.widths, -1)
        )
        q, k = rotate(attention.q_norm(q), cos, sin), rotate(attention.k_norm(k), cos, sin)
        k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
        weights = torch.einsum("blhd,bmhd->bhlm", q, k) / q.shape[-1] ** 0.5
        if mask is not None:
            weights = weights.masked_fill(~mask[:, None, None], -torch.inf)
        found.append(weights.softmax(-1).mean(1)[:, max(lengths) :])

    hooks = [layer.attention.register_forward_pre_hook(read) for layer in layers]
    sizes = [tuple(latents.shape[2:])] * len(latents)
    with torch.no_grad():
        text = network.encode_text(
            features, torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        )
        network.velocity_tokens(latents, sizes, t, text)
    for hook in hooks:
        hook.remove()
    return [torch.stack(found).mean(0)[row][:, own].sum(-1) for row, own in enumerate(places)], text


def test_recorded_attention_matches_the_padded_forward_pass(pipe):
    torch.manual_seed(0)
    network, lengths = pipe.transformer, (7, 4)
    latents, features, t = torch.randn(2, 16, 8, 6), torch.randn(2, 7, 32), torch.tensor([0.3, 0.3])
    watching = AttentionRecorder(network, [[[2, 3]], [[1]]])
    expected, text = reference(network, latents, t, features, lengths, [[2, 3], [1]], watching.layers)
    with torch.no_grad():
        velocity = watching(latents, t, text)
        torch.testing.assert_close(velocity, network(latents, t, text))
    for row in range(2):
        torch.testing.assert_close(watching.mean(row)[0], expected[row], atol=1e-5, rtol=1e-4)
    assert padded_layout(network.config, lengths, ((4, 3),) * 2, latents.device).joint_mask is not None


def test_recording_changes_no_image_and_removes_its_hooks(pipe, tmp_path):
    jobs, resolved = (
        [Job("two cups", 1), Job("two blue cups and a ball", 2)],
        ResolvedRequest(pipe.plan_for(FAST)),
    )
    hook = AttentionHook(["cups"])
    watched, plain = pipe.with_hooks(hook).generate_batch(jobs, resolved), pipe.generate_batch(jobs, resolved)
    assert [one.tobytes() for one in watched] == [one.tobytes() for one in plain]
    assert not any(layer.attention.qkv._forward_hooks for layer in pipe.transformer.layers)
    assert {job for job, _ in hook.maps} == set(jobs)
    for (maps,) in hook.maps.values():
        assert maps["cups"].shape == (4, 4)
        assert 0 < maps["cups"].mean() < 1


def test_overlays_are_saved_next_to_their_images(pipe, tmp_path):
    hook = AttentionHook(["cups", "two"])
    rows = [{"prompt": "two cups"}, {"prompt": "two blue cups", "size": "64x48", "seed": 4}]
    drawn = generate_rows(rows, pipe.with_hooks(hook), tmp_path, plan=FAST, force=True, seed=3)
    done = list(with_overlays(drawn, hook))
    assert [row["attention"]["cups"].rpartition("/")[2] for row in done] == [
        "00000-two-cups-s3-attention-cups.png", "00001-two-blue-cups-s4-attention-cups.png",
    ]  # fmt: skip
    for row in done:
        for word, path in row["attention"].items():
            assert "{}x{}".format(*open_image(path).size) == row["size"]
            assert read_metadata(path)["attention"] == word
    assert hook.maps == {}


@pytest.mark.parametrize("batch", [1, 3])
def test_identical_rows_get_maps_of_their_own(pipe, tmp_path, batch):
    hook = AttentionHook(["cups"])
    rows = [{"prompt": "two cups", "n": number} for number in range(3)]
    done = list(
        with_overlays(generate_rows(rows, pipe.with_hooks(hook), tmp_path, plan=FAST, batch=batch), hook)
    )
    assert [row["n"] for row in done] == [0, 1, 2]
    assert len({row["attention"]["cups"] for row in done}) == 3
    assert hook.maps == {}


def test_attention_maps_of_an_edit_have_its_size(pipe, tmp_path):
    hook = AttentionHook(["cups"])
    edit = EditHook(Edit(Image.new("RGB", (96, 48), "red"), 0.6))
    drawn = generate_rows([{"prompt": "two cups"}], pipe.with_hooks(edit, hook), tmp_path, plan=FAST)
    (row,) = with_overlays(drawn, hook)
    assert row["size"] == "96x48"
    assert open_image(row["attention"]["cups"]).size == (96, 48)


def test_attention_maps_need_a_network_call(pipe):
    edited = pipe.with_hooks(EditHook(Edit(Image.new("RGB", (64, 64)), 0.0)), AttentionHook(["cups"]))
    with pytest.raises(
        UsageError, match="--attention needs --strength above 0: at 0 the network is never called"
    ):
        edited.generate_batch([Job("two cups")], ResolvedRequest(pipe.plan_for(FAST)))


def test_attention_maps_reject_caches_and_missing_words(pipe):
    attentive = pipe.with_hooks(AttentionHook(["horse"]))
    with pytest.raises(UsageError, match="'horse' is not in the prompt 'two cups'"):
        attentive.generate_batch([Job("two cups")], ResolvedRequest(pipe.plan_for(FAST)))
    with pytest.raises(
        UsageError, match="--attention cannot be used with a cache, which skips layers; pass --cache off"
    ):
        attentive.generate_batch([Job("two cups")], ResolvedRequest(Plan(cache="first:0.1")))


def test_overlay_is_warm_where_attention_is_high():
    share = torch.zeros(4, 4)
    share[1, 2] = 1
    heat = np.asarray(overlay(Image.new("RGB", (64, 64), "green"), share), int)
    warm = heat[..., 0] - heat[..., 2]
    assert np.unravel_index(warm.argmax(), warm.shape)[0] in range(16, 32)
    assert np.unravel_index(warm.argmax(), warm.shape)[1] in range(32, 48)
    assert np.asarray(overlay(Image.new("RGB", (64, 64)), torch.ones(4, 4))).shape == (64, 64, 3)


def test_nano_attends_to_the_object_that_a_word_names(nano):
    hook = AttentionHook(["car", "ball"])
    jobs = [Job("a red car left of a blue ball", seed) for seed in (2, 3)]
    pictures = nano.with_hooks(hook).generate_batch(
        jobs, ResolvedRequest(nano.plan_for({"solver": "euler", "steps": 6}))
    )
    for job, picture in zip(jobs, pictures, strict=True):
        pixels = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), float)
        strength = {"car": pixels[..., 0] - pixels[..., 2], "ball": pixels[..., 2] - pixels[..., 0]}
        places = {}
        for word, share in hook.maps[job, (128, 128)][0].items():
            row, column = divmod(int(share.argmax()), 8)
            places[word] = column
            assert strength[word][row, column] > strength[word].mean(), (word, job)
        assert places["car"] < 4 <= places["ball"], job
