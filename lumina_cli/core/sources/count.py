"""The number of rows of a SOURCE, if it is known without reading all of it."""

from lumina_cli.core.images.suffixes import is_image
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.tables import count_table_rows, get_table_suffix
from lumina_cli.core.shards.overlays.reader import read_json
from lumina_cli.core.shards.reader import read_totals
from lumina_cli.core.shards.selection import DONE
from lumina_cli.core.sources.image_folder import find_images
from lumina_cli.core.sources.settings import exists, split_place

LARGEST = 256 << 20  # bytes; larger files of rows are not counted


def count_source(source: str) -> int | None:
    """Return the number of rows of a SOURCE (see source.py), or None if only reading it would show that."""
    kind, _, rest = source.partition(":")
    if source == "-" or filesystem.is_url(source):
        return None
    if kind == "nano" and not exists(source):
        number = rest.partition("?")[0]
        return int(number) if number.isdecimal() and len(number) < 20 else None
    place, _ = split_place(source)
    if filesystem.is_file(filesystem.join(place, DONE)):
        found = (read_json(filesystem.join(place, DONE)) or {}).get("samples")
        return found if isinstance(found, int) else None
    if filesystem.is_dir(place):
        if any(name.endswith(".tar") for name in filesystem.list_names(place)):
            found = (read_totals(place) or {}).get("samples")
            return found if isinstance(found, int) else None
        return sum(1 for _ in find_images(place))
    if not filesystem.is_file(place) or place.endswith(".tar"):
        return None
    if is_image(place):
        return 1
    if filesystem.file_size(place) > LARGEST:
        return None
    with filesystem.open_file(place) as file:
        if get_table_suffix(place):
            return count_table_rows(file, place)
        first = file.readline().strip()
        if first.startswith(b"["):  # a JSON array
            return None
        return bool(first) + sum(bool(line.strip()) for line in file)
