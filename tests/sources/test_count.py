"""The total of a progress bar equals the number of rows that reading the folder yields."""

from PIL import Image

from lumina_cli.core.sources.count import count_source
from lumina_cli.core.sources.source import read_source


def test_counting_a_folder_skips_the_files_that_reading_skips(tmp_path):
    for name in ("a.jpg", "b.PNG", ".hidden.jpg", "in/c.webp", "in/.trash/d.jpg", ".git/e.jpg", "..f/g.jpg"):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(place)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    assert count_source(str(tmp_path)) == len(list(read_source(tmp_path))) == 4
