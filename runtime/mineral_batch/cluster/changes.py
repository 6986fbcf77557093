"""What has been added, removed or changed since a run in pieces was planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mineral_batch.cluster.parts import decode_images
from mineral_batch.cluster.place import Place
from mineral_batch.cluster.plan import PIECE_IMAGES, Piece, Plan, write_pieces
from mineral_batch.images.discover import takes_long
from mineral_batch.results.inputs import Inputs, expand_lists
from mineral_batch.results.journal_rows import source_identity
from mineral_batch.words import counted

# The names of more images are not held in memory; the numbers of both lists are told then.
_MOST_NAMED = 2_000_000


@dataclass(frozen=True)
class Changes:
    """How the images under the inputs differ from those of the plan.

    Attributes:
        planned: images in the plan.
        now: images that are there now.
        added: names that the plan lacks; None if they were not counted.
        removed: planned names that are gone.
        changed: planned names whose size or time of change (or ETag) is another.
    """

    planned: int
    now: int
    added: int | None = None
    removed: int = 0
    changed: int = 0

    @property
    def is_incomplete(self) -> bool:
        """Whether the run lacks something that is there now; an image that was removed is none."""
        return self.added is None or self.added + self.changed > 0

    def describe(self, place: Place, plan: Plan) -> str:
        """Return it in words, such as `1 image added and 2 removed since the run in out was planned (TIME)`."""
        when = f"since the run in {place.name} was planned ({plan.started})"
        counts = {"added": self.added or 0, "removed": self.removed, "changed": self.changed}
        told = [(count, what) for what, count in counts.items() if count]
        if not told:
            return f"the images have changed {when}: {self.planned:,} then, {self.now:,} now"
        first, *others = told
        words = [f"{counted(first[0])} {first[1]}", *(f"{count:,} {what}" for count, what in others)]
        return f"{' and '.join([', '.join(words[:-1]), words[-1]] if others else words)} {when}"


def can_relist(inputs: Inputs) -> bool:
    """Return whether all inputs are folders, files and archives on this machine that are listed without being read."""
    return not any(map(takes_long, expand_lists(inputs.existing)))


def changes_since(plan: Plan, place: Place, inputs: Inputs) -> Changes | None:
    """List the inputs again and compare them with the plan; None if they are the same.

    Raises:
        DataError: if an input, or the plan, cannot be read.
    """
    size = max((piece.images for piece in plan.pieces), default=PIECE_IMAGES)
    now = write_pieces(place, inputs.sources(), plan.fingerprint, size, dry=True)
    if now == list(plan.pieces):
        return None
    images = sum(piece.images for piece in now)
    if plan.images > _MOST_NAMED:
        return Changes(plan.images, images)
    planned = _planned(plan.pieces, place)
    count = len(planned)
    added = changed = images = 0
    for source in inputs.sources():
        name, *version = source_identity(source)
        before = planned.pop(name, None)
        images += 1
        added += before is None
        changed += before is not None and before != tuple(version)
    return Changes(count, images, added, len(planned), changed)


def _planned(pieces: Sequence[Piece], place: Place) -> dict[str, tuple[int, int]]:
    """Return size and time of change of each planned name."""
    found = {}
    for piece in pieces:
        content = place.get(piece.planned)
        for image in decode_images(content, f"{place.name}/{piece.planned}") if content is not None else ():
            found[image.name] = image.size, image.modified
    return found
