"""True pictures of prompts, rendered, not drawn by a model: what a judge says of them is its own ceiling."""

import itertools
from dataclasses import replace

from PIL.Image import Image

from lumina_cli.core.errors import UsageError
from lumina_cli.core.evals.geneval.layout import ImageGenerator
from lumina_cli.core.nano.renderer import render
from lumina_cli.core.nano.scene import TINTS, Scene, draw_scene, held_out_pairs

SCENES_APART = 100_000  # between the scenes that two pictures start to look at


def ground_truth_generator(model: str = "nano", seed: int = 0, size: int = 128) -> ImageGenerator:
    """Return a drawer that renders scenes which show what nano prompts ask for, size x size pixels."""
    if model != "nano":
        raise UsageError(f"--ceiling renders the nano world; it says nothing of --model {model}")

    def draw(rows: list[dict], numbers: list[int]) -> list[Image]:
        scenes = [ground_truth_scene(row, seed, number) for row, number in zip(rows, numbers, strict=True)]
        return [picture.image for picture in render(scenes, size=size)]

    return ImageGenerator(draw, {"model": "true-scenes", "seed": seed, "size": [size, size]})


def ground_truth_scene(row: dict, seed: int, index: int) -> Scene:
    """Return a nano scene that shows what a prompt row asks for; what it leaves open is drawn at random.

    It is a drawn scene of the right layout whose things take the kinds and tints of the prompt.
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
            return _dressed(scene, items)
    raise AssertionError  # the supply of scenes has no end


def _dressed(scene: Scene, items: list[dict]) -> Scene:
    """Give things the kinds and tints of a prompt; a tint that it leaves open is one that training shows."""
    unseen = set(held_out_pairs())
    things = []
    for thing, item in zip(scene.things, items, strict=True):
        kind, tint = item["class"], item.get("color") or thing.tint
        if "color" not in item and (tint, kind) in unseen:
            tint = next(other for other in TINTS if (other, kind) not in unseen)
        things.append(replace(thing, kind=kind, tint=tint))
    return replace(scene, things=tuple(things))
