"""Files of annotations: captions of COCO and chats of LLaVA are read, regions of annotation tools are named."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.sources.source import open_row_image, read_source

IMAGES = [
    {"id": 7, "file_name": "a.png", "width": 8, "license": 1},
    {"id": 9, "file_name": "b.png", "width": 8},
]
CAPTIONS = [
    {"id": 1, "image_id": 9, "caption": "a red cup"},
    {"id": 2, "image_id": 7, "caption": "a green hill "},
    {"id": 3, "image_id": 9, "caption": "a cup"},
]
BOX = {"id": 1, "image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 1}


@pytest.fixture
def folder(tmp_path):
    """A folder with two images in val2017/, and an empty folder annotations/."""
    for name in ("val2017", "annotations"):
        (tmp_path / name).mkdir()
    for i, name in enumerate("ab"):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "val2017" / f"{name}.png")
    return tmp_path


def write(folder, value, name="val2017/notes.json", indent=None):
    (folder / name).write_text(json.dumps(value, indent=indent))
    return str(folder / name)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "name", ["annotations/captions_val2017.json", "captions_val2017.json", "val2017/c.json"]
)
def test_captions_of_coco_are_joined_with_their_images(folder, name, indent):
    value = {"info": {}, "licenses": [{"id": 1}], "images": IMAGES, "annotations": CAPTIONS}
    rows = list(read_source(write(folder, value, name, indent)))
    short = [{"short": "a green hill"}, {"short": "a red cup", "short_2": "a cup"}]
    assert [row["captions"]["en"] for row in rows] == short
    assert [row["image_id"] for row in rows] == [7, 9]
    assert [open_row_image(row).getpixel((0, 0))[0] for row in rows] == [0, 1]


def test_images_of_coco_without_captions_and_captions_without_images_are_rows(folder):
    orphan = {"id": 4, "image_id": 11, "caption": "lost"}
    place = write(folder, {"images": IMAGES, "annotations": [CAPTIONS[1], orphan]})
    rows = list(read_source(place, lenient=True))
    assert [row.get("captions") for row in rows] == [{"en": {"short": "a green hill"}}, None, None]
    assert "a caption of image 11, which the file does not list" in rows[2]["image"].reason
    with pytest.raises(LuminaError, match="a caption of image 11, which the file does not list"):
        list(read_source(place))


def test_a_coco_file_of_images_only_is_read(folder):
    place = write(folder, {"images": IMAGES, "categories": [{"id": 1}]})
    assert [row["image"].rpartition("/")[2] for row in read_source(place)] == ["a.png", "b.png"]


def test_a_coco_file_in_a_folder_of_images_gives_its_captions(folder):
    value = {"images": IMAGES, "annotations": CAPTIONS, "categories": [{"id": 1}]}
    write(folder, value, "val2017/captions_val.json")
    rows = list(read_source(folder / "val2017"))
    assert [row["captions"]["en"]["short"] for row in rows] == ["a green hill", "a red cup"]


@pytest.mark.parametrize("lenient", [True, False])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"images": IMAGES, "annotations": [BOX]},
            "without captions: its annotations contain id, image_id, bbox, category_id; use the captions",
        ),
        (
            {"images": IMAGES, "annotations": [{"image_id": 7, "keypoints": [1]}]},
            "a COCO file without captions",
        ),
        ({"version": "5", "shapes": [], "imagePath": "a.png"}, "an annotation file of LabelMe"),
        ({"a.png99": {"filename": "a.png", "size": 99, "regions": []}}, "an annotation file of VIA"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "an annotation file of VIA"),
        ([{"id": 1, "data": {"image": "a.png"}, "annotations": []}], "an annotation file of Label Studio"),
    ],
)
def test_annotations_without_captions_are_named(folder, value, message, lenient):
    with pytest.raises(LuminaError, match=message):
        list(read_source(write(folder, value), lenient=lenient))


ASKED = {"from": "human", "value": "<image>\nDescribe."}
CHATS = [
    {"conversations": [ASKED, {"from": "gpt", "value": "a red cup"}]},
    {
        "conversations": [
            ASKED,
            {"from": "gpt", "value": "<image>\na red cup"},
            {"from": "gpt", "value": "no"},
        ]
    },
    {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a red cup"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a red cup"}]},
        ]
    },
    {"texts": [{"user": "What is this?", "assistant": "a red cup", "source": "x"}]},
    {"caption": "a red cup", "conversations": [{"from": "gpt", "value": "another"}]},
]


@pytest.mark.parametrize("chat", CHATS, ids=range(len(CHATS)))
@pytest.mark.parametrize("image", [{"image": "a.png"}, {"images": ["a.png"]}])
def test_the_first_answer_of_a_chat_is_the_caption(folder, chat, image):
    (row,) = read_source(write(folder, [{"id": "1", **image, **chat}]))
    assert (row["image"].rpartition("/")[2], row["captions"]) == ("a.png", {"en": {"short": "a red cup"}})


def test_a_chat_is_read_from_jsonl_and_parquet_and_by_name(folder):
    row = {"image": "a.png", "caption": "no", "chat": CHATS[0]["conversations"]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "val2017" / "c.parquet")
    write(folder, row, "val2017/c.jsonl")
    for name in ("c.parquet", "c.jsonl"):
        (found,) = read_source(f"{folder}/val2017/{name}?text=chat")
        assert found["captions"] == {"en": {"short": "a red cup"}}


def test_a_chat_without_an_answer_has_no_caption(folder):
    (row,) = read_source(write(folder, [{"image": "a.png", "conversations": [ASKED]}]))
    assert not row.get("captions")


def test_rows_with_several_images_and_whole_coco_files_in_a_row_are_named(folder):
    rows = [{"images": ["a.png", "b.png"]}, {"images": IMAGES, "annotations": CAPTIONS}]
    (folder / "val2017" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = [row["image"].reason for row in read_source(folder / "val2017" / "rows.jsonl", lenient=True)]
    assert "'images' has 2 items, but a row has one image" in found[0]
    assert "a whole COCO file in one row" in found[1]
