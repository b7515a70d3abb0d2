"""Grouping the members of a tar into samples, in any order of the members.

As in webdataset, members that share the name up to its first dot are one sample: 000.jpg, 000.txt, 000.json.
An image that this rule would lose is a sample of its own, named by its whole stem: 22.05.png with 22.05.txt.
An image name that occurs twice is two samples; the n-th caption file of that name belongs to the n-th image.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lumina_cli.core.images.suffixes import SUFFIXES, LeftOut, is_image

Member = tuple[str, int, int]  # name, offset and size in bytes
TEXTS = (".txt", ".caption")  # suffixes of caption files, in order of priority


@dataclass
class Sample:
    """A sample of a tar: its key, unique in the tar, the name of its image, and its members by suffix."""

    key: str
    image: str
    parts: dict[str, Member] = field(default_factory=dict)


def group_members(
    members: Iterable[Member],
    truth: Sequence[str] = (),
    left_out: LeftOut | None = None,
    images: Collection[str] = (),
) -> Iterator[Sample]:
    """Yield the samples of a tar in the order of their images.

    truth     names of ground truth: the member KEY.NAME.png belongs to the sample KEY
    left_out  receives the members that belong to no sample
    images    names without suffix whose content is an image

    Parts have the keys "image", ".json", ".txt" (any suffix of TEXTS), and the names of `truth`.
    """
    visible = [member for member in members if not member[0].rpartition("/")[2].startswith(".")]
    names = _Names(visible, truth, images)
    left_out = LeftOut() if left_out is None else left_out
    used: set[int] = set()
    found = list(names.samples(left_out, used))
    _count_unused(names, used, left_out)
    yield from found


class _Names:
    """The members of a tar by name.

    plain  first-dot stem -> positions of images named STEM.SUFFIX
    whole  whole stem and suffix in lower case -> positions of all members
    """

    def __init__(self, members: list[Member], truth: Sequence[str], images: Collection[str]):
        self.members, self.truth, self.images = members, truth, images
        self.plain: dict[str, list[int]] = {}
        self.whole: dict[tuple[str, str], list[int]] = {}
        for at, (name, *_) in enumerate(members):
            stem, suffix = split_first_dot(name)
            if suffix in SUFFIXES:
                self.plain.setdefault(stem, []).append(at)
            last, dot, ending = name.rpartition(".")
            self.whole.setdefault((last, dot + ending.lower()), []).append(at)
        self.dotted = {
            split_first_dot(stem)[0]
            for stem, suffix in self.whole
            if suffix in SUFFIXES and any((stem, text) in self.whole for text in TEXTS)
        }  # stems with an image of a longer name that has a caption file of its own

    def samples(self, left_out: LeftOut, used: set[int]) -> Iterator[Sample]:
        """Yield the samples; add the positions of their members to `used`."""
        images: dict[str, list[int]] = {}
        for at, (name, *_) in enumerate(self.members):
            if (is_image(name) or name in self.images) and (key := self._key(name)) is not None:
                images.setdefault(key, []).append(at)
        order = []
        for key, places in images.items():
            first = self.members[places[0]][0]
            same = [at for at in places if self.members[at][0] == first]
            order += [(at, key, number, same) for number, at in enumerate(same)]
            for _ in range(len(places) - len(same)):
                left_out.add_image("further image of a sample")
            used.update(places)
        taken = set(images)
        for at, key, number, same in sorted(order):
            unique, count = key, 1
            while number and unique in taken:
                count += 1
                unique = f"{key}-{count}"
            taken.add(unique)
            name = self.members[at][0]
            sample = Sample(unique, name if unique == key else unique + name[len(key) :])
            sample.parts = {"image": self.members[at]} | self._parts(key, number, same, used)
            yield sample

    def _key(self, name: str) -> str | None:
        """Return the key of the sample that an image is the image of; None if it is a part of another one."""
        stem, suffix = split_first_dot(name)
        if name in self.images:
            return name
        if suffix in SUFFIXES:
            return stem
        if stem not in self.plain:
            return name.rpartition(".")[0]
        truth = suffix.removesuffix(".png").removeprefix(".") in self.truth and suffix.endswith(".png")
        return name.rpartition(".")[0] if stem in self.dotted and not truth else None

    def _parts(self, key: str, number: int, same: list[int], used: set[int]) -> dict[str, Member]:
        """Return the other members of the sample whose image is the `number`-th of `same`."""
        name = self.members[same[0]][0]
        stems = [key, name]
        first = split_first_dot(name)[0]
        if first != key and first not in self.plain:
            stems.append(first)  # one caption file for 000.left.jpg and 000.right.jpg
        parts = {}
        for suffix in (".json", *reversed(TEXTS)):
            places = next((self.whole[stem, suffix] for stem in stems if (stem, suffix) in self.whole), [])
            used.update(places)
            if (at := _nth(places, number, same)) is not None:
                parts[".txt" if suffix in TEXTS else suffix] = self.members[at]
        for truth in self.truth:
            places = self.whole.get((f"{key}.{truth}", ".png"), [])
            if (at := _nth(places, number, same)) is not None:
                parts[truth] = self.members[at]
                used.update(places)
        return parts


def _nth(places: list[int], number: int, images: list[int]) -> int | None:
    """Return the place that belongs to the `number`-th of several images of one name.

    Equal numbers are paired in order; otherwise a place belongs to the last image before it.
    """
    if len(places) == len(images):
        return places[number]
    if len(images) == 1:
        return places[-1] if places else None
    owners = [max((i for i, image in enumerate(images) if image < at), default=0) for at in places]
    return next((at for at, owner in zip(places, owners, strict=True) if owner == number), None)


def _count_unused(names: _Names, used: set[int], left_out: LeftOut) -> None:
    stems = {split_first_dot(names.members[at][0])[0] for at in used}
    for at, (name, *_) in enumerate(names.members):
        if at in used:
            continue
        stem, suffix = split_first_dot(name)
        if suffix.endswith(TEXTS):
            left_out.add_caption(name)
        elif is_image(name):
            left_out.add_image("further image of a sample")
        elif stem not in stems:  # else a field of a sample, such as 000.cls
            left_out.add_file(name.rpartition("/")[2])


def split_first_dot(name: str) -> tuple[str, str]:
    """Return (name up to the first dot of its last component, the rest with the dot, in lower case)."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return f"{folder}{slash}{stem}", dot + suffix.lower()
