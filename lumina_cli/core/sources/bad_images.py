"""Unreadable images of shards: the first ones are reported, all are counted, too many are an error."""

from collections.abc import Callable

from PIL import Image

from lumina_cli.core.errors import TooManyRejects
from lumina_cli.core.images.io import InvalidImage, open_image
from lumina_cli.core.shards.tar import TarImage

REPORTED = 5  # unreadable images that a run reports one by one; the others are counted


def open_entry(tar: str, entry: dict) -> Image.Image | str:
    """Return the image of an entry of a shard's index, or the reason why it is unreadable.

    Raises:
        LuminaError: if the tar cannot be read, which is not a fault of the image.
    """
    image = TarImage(tar, entry["image"], entry["offset"], entry["length"])
    try:
        return open_image(image.read(), name=str(image), whole=True)
    except InvalidImage as error:
        return str(error).removeprefix(f"{image}: ").removeprefix(f"{tar}: ")


class UnreadableImages:
    """Counts the unreadable images of a run.

    `notify` receives a message for each of the first REPORTED images, and one with their number.
    """

    def __init__(self, max_bad_rate: float, notify: Callable[[str], None]):
        self.max_bad_rate, self.notify = max_bad_rate, notify
        self.samples = self.bad = 0

    def add(self, tar: str, bad: dict[str, str], samples: int) -> None:
        """Count the samples of a shard; `bad` maps the keys of unreadable images to the reasons."""
        for key, reason in list(bad.items())[: max(0, REPORTED - self.bad)]:
            self.notify(f"{tar}: the image of {key} cannot be read: {reason}")
        self.bad, self.samples = self.bad + len(bad), self.samples + samples

    def end(self, folder: str) -> None:
        """Report the number of unreadable images; `folder` contains the indexes that list them.

        Raises:
            TooManyRejects: if they are more than the fraction `max_bad_rate` of the samples.
        """
        if not self.bad:
            return
        count = f"{self.bad} of {self.samples} images cannot be read"
        where = f"'unreadable' in {folder}/*.index.jsonl lists them"
        if self.bad > self.max_bad_rate * self.samples:
            raise TooManyRejects(f"{count}, more than --max-bad-rate allows; {where}")
        self.notify(f"{count}; {where}")
