"""Ground-truth images: renders that show exactly what prompts request; their score is the judge's ceiling."""

import itertools
from dataclasses import replace

from PIL.Image import Image

from lumina_cli.core.errors import UsageError
from lumina_cli.core.evals.geneval.layout import ImageGenerator
from lumina_cli.core.nano.rendering.renderer import render
from lumina_cli.core.nano.scene import TINTS, Scene, draw_scene, held_out_pairs

SCENES_APART = 100_000  # scene numbers between the first candidates of two images


def ground_truth_generator(model: str = "nano", seed: int = 0, size: int = 128) -> ImageGenerator:
    """Return a generator that renders what nano prompts request, at size x size pixels.

    Raises:
        UsageError: if `model` is not nano.
    """
    if model != "nano":
        raise UsageError(f"--ceiling renders nano scenes and does not apply to --model {model}")

    def generate(rows: list[dict], numbers: list[int]) -> list[Image]:
        scenes = [ground_truth_scene(row, seed, number) for row, number in zip(rows, numbers, strict=True)]
        return [image.image for image in render(scenes, size=size)]

    return ImageGenerator(generate, {"model": "true-scenes", "seed": seed, "size": [size, size]})


def ground_truth_scene(row: dict, seed: int, index: int) -> Scene:
    """Return a nano scene that shows what a prompt row requests; everything else is random.

    The scene is a random one of the right layout, with the kinds and tints replaced by those of the prompt.
    """
    layout = {"single_object": "single", "colors": "single", "counting": "count", "position": "relation"}
    layout = layout.get(row["tag"], "pair")
    items = row["include"][::-1] if layout == "relation" else row["include"]
    relation = items[0]["position"][0] if layout == "relation" else None
    items = items * items[0]["count"]
    lower = 0 if relation == "below" else 1  # the height of the upper one follows from its kind
    for number in itertools.count(SCENES_APART * index):
        scene = draw_scene(seed, number)
        fits = (scene.layout, scene.relation, len(scene.things)) == (layout, relation, len(items))
        if fits and (relation is None or scene.things[lower].kind == items[lower]["class"]):
            return _with_prompt_items(scene, items)
    raise AssertionError  # unreachable: the supply of scenes is infinite


def _with_prompt_items(scene: Scene, items: list[dict]) -> Scene:
    """Set the kinds and tints of a prompt; a tint that it leaves open is never a held-out combination."""
    unseen = set(held_out_pairs())
    things = []
    for thing, item in zip(scene.things, items, strict=True):
        kind, tint = item["class"], item.get("color") or thing.tint
        if "color" not in item and (tint, kind) in unseen:
            tint = next(other for other in TINTS if (other, kind) not in unseen)
        things.append(replace(thing, kind=kind, tint=tint))
    return replace(scene, things=tuple(things))
