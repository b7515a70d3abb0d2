"""Rows that were packed before the limits of rows are read; folders stay readable."""

import io
import json
import tarfile

import pytest
from PIL import Image

from lumina_cli.core.shards.reader import ShardReader, read_shards


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a tar of three samples, whose rows exceed the limits."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    rows = {
        "a": '{"caption": "a", "x": ' + "[" * 900 + "]" * 900 + "}",
        "b": '{"caption": "b", "x": ' + '{"y": ' * 3000 + "1" + "}" * 3000 + "}",
        "c": '{"caption": "c", "x": "' + "c" * (17 << 20) + '"}',
    }
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "000000.tar", "w") as archive:
        for key, row in rows.items():
            for name, data in ((f"{key}.png", buffer.getvalue()), (f"{key}.json", row.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return folder


def test_every_row_is_read(folder, lumina):
    assert [row["caption"] for row in read_shards(folder)] == ["a", "b", "c"]
    assert [row["caption"] for row in ShardReader(folder)] == ["a", "b", "c"]
    code, rows, _ = lumina(f"shard cat {folder}")
    assert (code, [row["caption"] for row in rows]) == (0, ["a", "b", "c"])
    assert json.dumps(rows[0]["x"]).count("[") == 255
    assert len(rows[2]["x"]) == 17 << 20


def test_packing_them_again_rejects_what_is_beyond_the_limits(folder, lumina, tmp_path):
    code, _, _ = lumina(f"shard {folder} {tmp_path}/again --max-bad-rate 1")
    lines = (tmp_path / "again" / "rejects.jsonl").read_text().splitlines()
    rejects = [json.loads(line) for line in lines]
    assert (code, len(rejects)) == (0, 3)
    assert {reject["code"] for reject in rejects} == {"bad_json"}
    assert [("nested too deeply" in each["reason"], "16 MiB" in each["reason"]) for each in rejects] == [
        (True, False), (True, False), (False, True),
    ]  # fmt: skip
