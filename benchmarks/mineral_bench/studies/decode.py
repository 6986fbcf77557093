"""Decoders: milliseconds for one image on one thread, and how near each comes to the full decode.

The reference is Pillow's full decode, resized with the antialiased bicubic filter: what training frameworks do.
"""

from __future__ import annotations

import importlib
import io
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from mineral_batch.errors import DataError, one_line
from mineral_batch.images.decode import decode_image, open_rgb
from mineral_batch.images.discover import find_sources
from mineral_batch.images.formats import open_image
from mineral_batch.images.geometry import resize
from mineral_batch.types import Failure, Pixels
from mineral_bench import images
from mineral_bench.conditions import without_folder
from mineral_bench.measure import Plan, Rounds, interleave, ratio
from mineral_bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Source

    Decoder = Callable[[bytes, InputSpec], Pixels]

REFERENCE = "Pillow, in full"
OURS = "mineral-batch"
SMALLEST = "Pillow, draft 1x"
UNCHECKED = "Pillow, unchecked"

# Largest loss against our own decoder, dB, that still counts as the same fidelity.
_SAME_FIDELITY = 0.5


def pillow(content: bytes, spec: InputSpec) -> Pixels:
    """Decode everything, then resize: what most scripts do, with EXIF orientation applied."""
    return resize(open_rgb(content), spec)


def ours(content: bytes, spec: InputSpec) -> Pixels:
    """Decode as `mineral-batch predict`: a JPEG at the smallest of its own scales that is twice the input's size."""
    return resize(open_rgb(content, target=(spec.width, spec.height)), spec)


def unchecked(content: bytes, spec: InputSpec) -> Pixels:
    """Decode as `ours`, but by Pillow alone: damage that Pillow does not notice is not looked for."""
    with PILImage.open(io.BytesIO(content)) as image:
        image.draft("RGB", (2 * spec.width, 2 * spec.height))
        return resize(image.convert("RGB"), spec)


def draft(content: bytes, spec: InputSpec) -> Pixels:
    """Decode a JPEG at the smallest of its own scales that is the input's size or more."""
    return resize(open_rgb(content, target=((spec.width + 1) // 2, (spec.height + 1) // 2)), spec)


def simplejpeg(content: bytes, spec: InputSpec, times: int = 1) -> Pixels:
    """Decode with libjpeg-turbo without Pillow, at a scale that is `times` the input's size or more."""
    decoder = importlib.import_module("simplejpeg")
    pixels = decoder.decode_jpeg(content, min_height=times * spec.height, min_width=times * spec.width)
    return resize(PILImage.fromarray(pixels), spec)


def simplejpeg_twice(content: bytes, spec: InputSpec) -> Pixels:
    """Decode with simplejpeg at twice the input's size, the scale of our own decoder."""
    return simplejpeg(content, spec, times=2)


def opencv(content: bytes, spec: InputSpec) -> Pixels:
    """Decode with OpenCV: JPEGs at a reduced scale, area interpolation."""
    cv2 = importlib.import_module("cv2")
    with PILImage.open(io.BytesIO(content)) as header:
        scale = min(header.width // spec.width, header.height // spec.height)
    reduced = next((factor for factor in (8, 4, 2) if scale >= factor), 1)
    flag = {8: "IMREAD_REDUCED_COLOR_8", 4: "IMREAD_REDUCED_COLOR_4", 2: "IMREAD_REDUCED_COLOR_2"}.get(reduced)
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), getattr(cv2, flag or "IMREAD_COLOR"))
    small: Pixels = cv2.resize(bgr, (spec.width, spec.height), interpolation=cv2.INTER_AREA)
    return small[..., ::-1]


def pyvips(content: bytes, spec: InputSpec) -> Pixels:
    """Make thumbnails with libvips, which also reads the other formats piece by piece."""
    vips = importlib.import_module("pyvips")
    small = vips.Image.thumbnail_buffer(content, spec.width, height=spec.height, size="force")
    if small.hasalpha():
        small = small.flatten(background=255)
    pixels: Pixels = small.colorspace("srgb").numpy()
    return pixels


@dataclass(frozen=True)
class Candidate:
    """A decoder.

    Attributes:
        run: (bytes, spec) -> (H, W, 3) uint8.
        package: that it needs in addition to the base packages; empty for none.
        jpeg_only: whether it reads no other format.
    """

    run: Decoder
    package: str = ""
    jpeg_only: bool = False

    def is_installed(self) -> bool:
        """Whether its package loads; one whose libraries are missing raises OSError."""
        try:
            return not self.package or bool(importlib.import_module(self.package))
        except (ImportError, OSError):
            return False


CANDIDATES: Mapping[str, Candidate] = {
    REFERENCE: Candidate(pillow),
    OURS: Candidate(ours),
    SMALLEST: Candidate(draft, jpeg_only=True),
    UNCHECKED: Candidate(unchecked),
    "simplejpeg 1x": Candidate(simplejpeg, "simplejpeg", jpeg_only=True),
    "simplejpeg 2x": Candidate(simplejpeg_twice, "simplejpeg", jpeg_only=True),
    "OpenCV": Candidate(opencv, "cv2"),
    "pyvips": Candidate(pyvips, "pyvips"),
}


@dataclass(frozen=True)
class Group:
    """Images that are measured together.

    Attributes:
        name: their format and size.
        contents: their files.
        is_jpeg: by content.
    """

    name: str
    contents: tuple[bytes, ...]
    is_jpeg: bool


def generated() -> list[Group]:
    """Make one rendered image per size and format that Pillow writes here."""
    drawn = {size: images.photograph(*images.SIZES[size]) for size in images.SIZES}
    return [
        Group(f"{name}, {size}", (images.encode(picture, name),), name.startswith("JPEG"))
        for size, picture in drawn.items()
        for name in filter(images.can_encode, images.FORMATS)
    ]


# Limits of the groups of a user's photographs, megapixels, so that small ones do not vanish among large ones.
_LARGEST = (0.3, 1.0, 4.0, 16.0)


def of_user(inputs: Sequence[Path], spec: InputSpec, most: int = 8) -> tuple[list[Group], list[Failure]]:
    """Group the user's photographs by format and size, at most `most` of each; also returns those that cannot be read.

    Raises:
        DataError: if none can be read.
    """
    found: dict[tuple[str, str], list[bytes]] = defaultdict(list)
    failures = []
    for source in find_sources(inputs):
        header = source if isinstance(source, Failure) else _read_header(source)
        if isinstance(header, Failure):
            failures.append(header)
        elif len(found[header.kind]) < most:
            decoded = decode_image(header.name, partial(bytes, header.content), spec)
            if isinstance(decoded, Failure):
                failures.append(decoded)
            else:
                found[header.kind].append(header.content)
    if not any(found.values()):
        reason = f" ({failures[0].path}: {failures[0].reason})" if failures else ""
        raise DataError(f"no readable image under {', '.join(map(str, inputs))}{reason}")
    groups = [
        Group(f"{kind}, {size} ({len(contents)})", tuple(contents), kind in ("JPEG", "MPO"))
        for (kind, size), contents in sorted(found.items())
        if contents
    ]
    return groups, failures


@dataclass(frozen=True)
class _Header:
    """A photograph of which only the header was read.

    Attributes:
        name: of its source.
        kind: format and size in words.
        content: of the file.
    """

    name: str
    kind: tuple[str, str]
    content: bytes


def _read_header(source: Source) -> _Header | Failure:
    try:
        content = source.read()
        assert isinstance(content, bytes), "sources of names are files"
        return _Header(source.name, _kind(content), content)
    except Exception as error:  # damaged files make the decoders raise almost anything, see decode_image
        return Failure(source.name, "read", one_line(error))


def _kind(content: bytes) -> tuple[str, str]:
    """Return format and size in words."""
    with open_image(content)[0] as picture:
        megapixels, kind = picture.width * picture.height / 1e6, str(picture.format)
    limit = next((limit for limit in _LARGEST if megapixels <= limit), None)
    return kind, f"up to {limit:g} MP" if limit else f"over {_LARGEST[-1]:g} MP"


@dataclass(frozen=True)
class DecodeTimes:
    """One group's figures.

    Attributes:
        group: its name.
        images: how many.
        rounds: of all candidates that can read the group.
        psnr: candidate -> dB against the reference over all pixels; infinite where they are identical.
    """

    group: str
    pictures: int
    rounds: Rounds
    psnr: Mapping[str, float]

    def better(self) -> list[str]:
        """Return the candidates that are faster than ours beyond noise, and as near to the full decode."""
        times = self.rounds.cpu
        return [
            name
            for name in times
            if name not in (OURS, UNCHECKED)
            and self.psnr[name] >= self.psnr[OURS] - _SAME_FIDELITY
            and ratio(times[name], times[OURS]).low > 1
        ]


def measure(group: Group, spec: InputSpec, plan: Plan) -> DecodeTimes:
    """Time every decoder that is installed and reads the group, in interleaved rounds."""
    answers = {name: attempt(one, group, spec) for name, one in CANDIDATES.items()}
    usable = {name: CANDIDATES[name].run for name, pixels in answers.items() if pixels}
    near = {name: psnr(answers[name], answers[REFERENCE]) for name in usable}

    def decode_all(run: Decoder) -> Callable[[], object]:
        return lambda: [run(content, spec) for content in group.contents]

    rounds = interleave({name: decode_all(run) for name, run in usable.items()}, plan)
    return DecodeTimes(group.name, len(group.contents), rounds, near)


def attempt(candidate: Candidate, group: Group, spec: InputSpec) -> list[Pixels]:
    """Decode a group; empty if the decoder is absent or cannot read one of its images."""
    if not candidate.is_installed() or (candidate.jpeg_only and not group.is_jpeg):
        return []
    try:
        found = [candidate.run(content, spec) for content in group.contents]
    except Exception:  # each package has its own, and was built with other formats
        return []
    return found if all(pixels.shape == spec.shape for pixels in found) else []


def psnr(found: Sequence[Pixels], exact: Sequence[Pixels]) -> float:
    """Return the peak signal-to-noise ratio, dB: 10 log10(255² / mean squared difference), over all pixels together."""
    squares = [np.square(a.astype(np.float64) - b).mean() for a, b in zip(found, exact, strict=True)]
    mean = float(np.mean(squares))
    return math.inf if mean == 0 else 10 * math.log10(255**2 / mean)


def table(results: Sequence[DecodeTimes], failures: Sequence[Failure] = ()) -> Table:
    """Return one row per group and decoder; a note names what could not be read."""
    rows = [row for result in results for row in _rows(result)]
    columns = ("images", "decoder", "CPU ms an image", "times faster than Pillow in full", "PSNR, dB")
    return Table(
        "Decode and resize, one thread", columns, rows, [verdict(results), cost(results), *_left_out(failures)]
    )


# Unreadable photographs that are named; a folder may have thousands.
_NAMED = 5


def _left_out(failures: Sequence[Failure]) -> list[str]:
    if not failures:
        return []
    told = [f"{without_folder(one.path)}: {one.reason}" for one in failures[:_NAMED]]
    more = [f"{len(failures) - _NAMED} more"] if len(failures) > _NAMED else []
    return [f"Left out, because they cannot be read: {'; '.join([*told, *more])}."]


def _rows(result: DecodeTimes) -> list[tuple[object, ...]]:
    times = result.rounds.cpu  # one thread: the same as by the clock, without the other programs
    return [
        (
            result.group,
            name,
            float(np.median(times[name])) * 1000 / result.pictures,
            None if name == REFERENCE else str(ratio(times[name], times[REFERENCE])),
            "identical" if math.isinf(result.psnr[name]) else f"{result.psnr[name]:.1f}",
        )
        for name in times
    ]


def verdict(results: Sequence[DecodeTimes]) -> str:
    """Say whether another decoder should replace ours: faster beyond noise at the same fidelity."""
    better = {result.group: result.better() for result in results}
    told = [f"{group}: {', '.join(names)}" for group, names in better.items() if names]
    rule = f"faster than {OURS} beyond noise and at most {_SAME_FIDELITY} dB farther from the full decode"
    return f"{rule[0].upper() + rule[1:]}: {'; '.join(told) if told else 'none'}."


def cost(results: Sequence[DecodeTimes]) -> str:
    """Say what the checks for damage cost: the time of our decoder by that of Pillow alone, pair by pair."""
    told = [
        f"{result.group}: {ratio(result.rounds.cpu[UNCHECKED], result.rounds.cpu[OURS])}"
        for result in results
        if UNCHECKED in result.rounds.cpu
    ]
    return f"CPU time of {OURS}, which finds damage, by that of {UNCHECKED}: {'; '.join(told)}."


def figures(results: Sequence[DecodeTimes]) -> list[dict[str, Any]]:
    """Return every round's seconds and every fidelity; null if a decoder gives exactly the reference's pixels."""
    return [
        {
            "group": result.group,
            "pictures": result.pictures,
            "rounds": str(result.rounds),
            "seconds": dict(result.rounds.seconds),
            "cpu_seconds": dict(result.rounds.cpu),
            "psnr_db": {name: None if math.isinf(value) else value for name, value in result.psnr.items()},
        }
        for result in results
    ]
