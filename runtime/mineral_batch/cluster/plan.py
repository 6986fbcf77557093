"""The plan of a run in pieces: what is to be predicted, cut into stretches of about 2,000 images.

A piece's identifier is its index and a digest of the run's fingerprint, the images' names and what tells their versions
(size and time of change, or ETag). So a part that exists under the identifier holds these images' results, whoever made
it: what is left to do is the plan without the names under `parts/`. There is no other state.

| object | content |
|---|---|
| plan.json | fingerprint, model, inputs, table options, and the identifiers of all pieces; written once |
| plan/ID.jsonl.gz | the images of a piece: name, size, modified; for a folder that cannot be read the failure |
| parts/ID.jsonl.gz | the results of a piece (`mineral_batch.cluster.parts`) |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any

from mineral_batch.cluster.parts import PlannedImage, encode_images
from mineral_batch.cluster.place import Place
from mineral_batch.errors import DataError
from mineral_batch.model.contract import ModelContract
from mineral_batch.results.journal_rows import source_identity
from mineral_batch.results.write import Tables
from mineral_batch.storage.errors import may_pass
from mineral_batch.types import Failure, Source

PLAN = "plan.json"
IMAGES, PARTS, ATTEMPTS = "plan/", "parts/", "attempts/"
#: Images in a piece: a minute or two of work, so that a crash costs little and a part is a few hundred KB.
PIECE_IMAGES = 2000
# So many names at most are held in memory to see whether there is a piece for each worker.
_AHEAD = 200_000
_VERSION = 2


@dataclass(frozen=True)
class Piece:
    """One stretch of the images.

    Attributes:
        id: index and digest, such as `000003-9f8e7d6c5b4a3f2e`.
        images: how many.
    """

    id: str
    images: int

    @property
    def part(self) -> str:
        """The key of its results."""
        return f"{PARTS}{self.id}.jsonl.gz"

    @property
    def planned(self) -> str:
        """The key of the list of its images."""
        return f"{IMAGES}{self.id}.jsonl.gz"


@dataclass(frozen=True)
class Plan:
    """A whole run; see above.

    Attributes:
        fingerprint: as `mineral_batch.results.fingerprint` makes it.
        model: the model's part of run.json.
        contract: of the model, as JSON.
        inputs: the first of them, as they were named, without secrets.
        inputs_named: how many there are.
        inputs_digest: of all of them, see `Inputs.digest`.
        tables: what to write when all pieces are done, unless the merge says otherwise.
        started: when the plan was made, ISO 8601.
        pieces: all of them, in the order of the tables' rows.
        options: of the command that made the plan.
        not_read: counts of what lay beside the images when they were listed, as in run.json.
        not_read_line: the same as one line for the user; empty if there is nothing to say.
    """

    fingerprint: Mapping[str, str]
    model: Mapping[str, Any]
    contract: str
    inputs: Sequence[str]
    inputs_named: int
    inputs_digest: str
    tables: Tables
    started: str
    pieces: Sequence[Piece]
    options: Mapping[str, Any] = field(default_factory=dict)
    not_read: Mapping[str, Any] = field(default_factory=dict)
    not_read_line: str = ""

    @property
    def images(self) -> int:
        """All images, those that cannot be read included."""
        return sum(piece.images for piece in self.pieces)

    def read_contract(self) -> ModelContract:
        """Return the model's labels, thresholds and calibration."""
        return ModelContract.from_json(self.contract)

    def to_do(self, place: Place) -> list[Piece]:
        """Return the pieces without a part."""
        done = set(place.keys(PARTS))
        return [piece for piece in self.pieces if piece.part not in done]

    def to_json(self) -> bytes:
        """Return the content of plan.json."""
        pieces = [[piece.id, piece.images] for piece in self.pieces]
        record = {"version": _VERSION, **vars(self), "tables": asdict(self.tables), "pieces": pieces}
        return (json.dumps(record, indent=1) + "\n").encode()


def read_plan(place: Place) -> Plan | None:
    """Return the plan that was made there; None if there is none.

    Raises:
        DataError: if it is damaged or of another release.
    """
    content = place.get(PLAN)
    if content is None:
        return None
    try:
        record = json.loads(content)
        version = record.pop("version")
        if version != _VERSION:
            raise DataError(
                f"{place.name}/{PLAN} was made by another release of mineral-batch (version {version}, this one reads "
                f"{_VERSION}): choose another output with -o"
            )
        tables: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in record.pop("tables").items()
        }
        pieces = [Piece(str(name), int(images)) for name, images in record.pop("pieces")]
        return Plan(**record, tables=Tables(**tables), pieces=pieces)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{place.name}/{PLAN} is damaged: choose another output with -o, or remove it") from None


def write_pieces(
    place: Place,
    sources: Iterable[Source | Failure],
    fingerprint: Mapping[str, str],
    piece_images: int | None = None,
    *,
    workers: int = 1,
    dry: bool = False,
) -> list[Piece]:
    """Write the lists of all pieces' images and return the pieces; few pieces are in memory at a time.

    Args:
        place: of the run.
        sources: all images, each once, in the order of the tables.
        fingerprint: of the run.
        piece_images: images in a piece; None: `PIECE_IMAGES`, fewer where some of the workers would get none.
        workers: how many share the run.
        dry: write nothing.

    Raises:
        DataError: if a source cannot be read now for a reason that may pass.
    """
    run = hashlib.sha256(json.dumps(sorted(fingerprint.items())).encode()).digest()
    pieces = []
    for index, images in enumerate(_stretches(map(planned, sources), piece_images, workers)):
        digest = hashlib.sha256(run)
        for image in images:
            digest.update(repr(image).encode("utf-8", "surrogateescape"))
        piece = Piece(f"{index:06d}-{digest.hexdigest()[:16]}", len(images))
        if not dry:
            place.put(piece.planned, encode_images(images))
        pieces.append(piece)
    return pieces


def _stretches(images: Iterator[PlannedImage], count: int | None, workers: int) -> Iterator[list[PlannedImage]]:
    if count is None:
        most = min(PIECE_IMAGES * workers, _AHEAD)
        ahead = list(islice(images, most))
        count = PIECE_IMAGES if len(ahead) == most else max(1, -(-len(ahead) // workers))
        images = chain(ahead, images)
    while stretch := list(islice(images, count)):
        yield stretch


def planned(source: Source | Failure) -> PlannedImage:
    """Return what the plan keeps of an image."""
    name, size, modified = source_identity(source)
    if isinstance(source, Failure):
        if may_pass(source.reason):  # in the plan it would fail for ever
            raise DataError(f"cannot list the images now: {source.reason}; rerun the same command")
        return PlannedImage(name, size, modified, source.stage, source.reason)
    return PlannedImage(name, size, modified)


def write_plan(place: Place, plan: Plan) -> Plan:
    """Write plan.json unless another worker has; return the one that holds."""
    if place.put(PLAN, plan.to_json()):
        return plan
    found = read_plan(place)
    return plan if found is None else found
