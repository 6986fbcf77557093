"""Copies of the photographs with the answers embedded as XMP; the originals are only read.

Only the block of XMP in a file changes (`packets`): nothing is decoded or encoded again. What was in the block stays,
as in a sidecar (`xmp`). A format that cannot be written here is copied unchanged and gets a sidecar beside the copy.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mineral_batch.deliver.made import Made, begin_tree, write_made
from mineral_batch.deliver.packets import PacketError, read_packet, with_packet
from mineral_batch.deliver.records import Delivery, Record
from mineral_batch.deliver.trees import inside
from mineral_batch.deliver.xmp import merged_packet, sidecar, write_sidecar
from mineral_batch.errors import DataError
from mineral_batch.files import is_file, write_errors, write_file

#: Folder of the copies in the tree.
COPIES = "photographs"


@dataclass
class EmbedCounts:
    """What was made.

    Attributes:
        embedded: copies with the answer in them.
        sidecars: reason -> copies that got a sidecar instead.
        missing: images without a file to copy.
    """

    embedded: int = 0
    sidecars: Counter[str] = field(default_factory=Counter)
    missing: int = 0


def write_copies(delivery: Delivery, tree: Path, root: str, *, with_suffix: bool) -> EmbedCounts:
    """Copy the image of every record and embed the answer in the copy; a copy of an earlier delivery is updated.

    Args:
        delivery: the records.
        tree: where.
        root: keyword above all others.
        with_suffix: name of sidecars, see `xmp.sidecar`.

    Raises:
        DataError: if lxml is missing, a file of somebody else's is in the way, or the disk refuses.
    """
    counts, made = EmbedCounts(), begin_tree(tree)
    with write_errors(tree):
        (tree / COPIES).mkdir(parents=True, exist_ok=True)
        try:
            for record in delivery.photographs():
                source = delivery.file(record)
                if is_file(source):
                    copy = _Copy(tree, source, record, delivery, root)
                    copy.write(made, counts, with_suffix=with_suffix)
                else:
                    counts.missing += 1
        finally:
            write_made(tree, made.values())  # also when it ends early: what is there can be taken back
    return counts


@dataclass(frozen=True)
class _Copy:
    tree: Path
    source: Path
    record: Record
    delivery: Delivery
    root: str

    def write(self, made: dict[str, Made], counts: EmbedCounts, *, with_suffix: bool) -> None:
        target = self.tree / COPIES / inside(self.record.path)
        is_ours = target.relative_to(self.tree).as_posix() in made
        if target.exists() and not is_ours:
            raise DataError(f"{target} is in the way and not of an earlier delivery: choose another folder with -o")
        target.parent.mkdir(parents=True, exist_ok=True)
        content = (target if target.exists() else self.source).read_bytes()
        try:
            packet = merged_packet(read_packet(content), self.record, self.delivery, self.root)
            write_file(target, with_packet(content, packet))
            counts.embedded += 1
        except PacketError as reason:
            self._beside(target, content, made, with_suffix=with_suffix)
            counts.sidecars[str(reason)] += 1
        self._note(made, target)

    def _beside(self, target: Path, content: bytes, made: dict[str, Made], *, with_suffix: bool) -> None:
        if not target.exists():
            write_file(target, content)
        beside = sidecar(target, with_suffix=with_suffix)
        write_sidecar(beside, self.record, self.delivery, self.root)
        self._note(made, beside)

    def _note(self, made: dict[str, Made], file: Path) -> None:
        name = file.relative_to(self.tree).as_posix()
        made[name] = Made(name, self.record.path, "copy", file.stat().st_size)
