"""Pictures of shards that cannot be read: named on the way, counted, and too many of them are an error."""

from collections.abc import Callable

from PIL import Image

from lumina_cli.core.errors import TooManyRejects
from lumina_cli.core.images.io import InvalidImage, open_image
from lumina_cli.core.shards.tar import TarImage

NAMED = 5  # of a run; the others are counted


def open_entry(tar: str, entry: dict) -> Image.Image | str:
    """Return the picture of a line of an index, or in one line why it cannot be read.

    LuminaError where the place itself cannot be: that says nothing of the picture.
    """
    image = TarImage(tar, entry["image"], entry["offset"], entry["length"])
    try:
        return open_image(image.read(), name=str(image), whole=True)
    except InvalidImage as error:
        return str(error).removeprefix(f"{image}: ").removeprefix(f"{tar}: ")


class UnreadableImages:
    """What a run could not read. `tell` hears of the first NAMED pictures, and how many there were."""

    def __init__(self, max_bad_rate: float, tell: Callable[[str], None]):
        self.max_bad_rate, self.tell = max_bad_rate, tell
        self.samples = self.bad = 0

    def add(self, tar: str, bad: dict[str, str], samples: int) -> None:
        """Count the samples of a shard; `bad` says by key why a picture cannot be read."""
        for key, reason in list(bad.items())[: max(0, NAMED - self.bad)]:
            self.tell(f"{tar}: the picture of {key} cannot be read: {reason}")
        self.bad, self.samples = self.bad + len(bad), self.samples + samples

    def end(self, folder: str) -> None:
        """Say how many there were; TooManyBad where they are a larger share than `max_bad_rate`.

        `folder` holds the indexes whose lines name them all.
        """
        if not self.bad:
            return
        told = f"{self.bad} of {self.samples} pictures cannot be read"
        where = f"'unreadable' in {folder}/*.index.jsonl names them"
        if self.bad > self.max_bad_rate * self.samples:
            raise TooManyRejects(f"{told}, more than --max-bad-rate allows; {where}")
        self.tell(f"{told}; {where}")
