"""What the stages measured, by row: its rates, the ceiling that bounds it, and whether its output was right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    #: The record of each stage, by its name.
    Found = Mapping[str, dict[str, Any]]

#: Whether the output of a row is right.
RIGHT, WRONG, UNKNOWN = "right", "WRONG", "not compared"
# Last word of a row's name -> the matrix product whose measured rate bounds it; FP16 for all other rows.
_CEILINGS = {"INT8": "int8", "FP8": "float8"}
#: Stages that measure rates by batch, and those that measure from files to probabilities.
STAGES_BY_BATCH = ("engines", "peers", "compiled", "quantized", "starter")
FOLDER_STAGES = ("end_to_end", "decoding", "peers", "compiled", "starter", "rtx")


@dataclass(frozen=True)
class Row:
    """One way to run one model.

    Attributes:
        name: of the row.
        rates: batch -> images a second.
        share: of the measured rate of matrix products that its best batch reaches; None if one is unknown.
        says: what is known of it, in words.
        answers: whether the output is right: `RIGHT`, `WRONG` or `UNKNOWN`.
    """

    name: str
    rates: dict[str, float]
    share: float | None
    says: str
    answers: str

    @property
    def best(self) -> float:
        """Its best rate."""
        return max(self.rates.values())


def rows_by_batch(found: Found, stages: tuple[str, ...] = STAGES_BY_BATCH) -> Iterator[Row]:
    """Yield the rows of every stage that measures by batch."""
    for stage in stages:
        model = found["starter" if stage == "starter" else "models"]
        for name, rates in found[stage].items():
            if isinstance(rates, dict) and rates and all(map(str.isdecimal, rates)) and not name.endswith(" says"):
                kind = _CEILINGS.get(name.split()[-1], "float16")
                ceiling, work = ceiling_of(found["chip"], f"matrix_{kind}_tflops"), model.get("gflop_per_picture")
                share = max(rates.values()) * work / 1e3 / ceiling if ceiling and work else None
                says = dict.fromkeys(found[stage].get(f"{name} says", {}).values())
                yield Row(name, rates, share, "; ".join(says), answers_of(found, stage, name))


def ceiling_of(chip: dict[str, Any], name: str) -> float | None:
    """Return what the chip reached at most; None if it was not measured."""
    value = chip.get(name)
    return value if isinstance(value, float) else None


def fastest(rows: dict[str, Row]) -> Row | None:
    """Return the fastest row whose output is right; if there is none, the fastest that was not compared."""
    candidates = [row for row in rows.values() if row.answers != WRONG]
    return max(candidates, key=lambda row: (row.answers == RIGHT, row.best), default=None)


def fastest_over(found: Found, folder: str, stages: tuple[str, ...]) -> Row | None:
    """Return the fastest row over one folder."""
    rows = [
        Row(name, {"": value["pictures_per_s"]}, None, "", answers_of(found, stage, name))
        for stage in stages
        for name, value in folder_rows(found[stage]).items()
        if name.endswith(f", {folder}") and "pictures_per_s" in value
    ]
    return fastest({row.name: row for row in rows})


def wrong_rows(found: Found) -> list[str]:
    """Return the rows with a rate whose output is wrong."""
    over = [
        (stage, name)
        for stage in FOLDER_STAGES
        for name, row in folder_rows(found[stage]).items()
        if "pictures_per_s" in row
    ]
    by_batch = [(stage, row.name) for stage in STAGES_BY_BATCH for row in rows_by_batch(found, (stage,))]
    return [name for stage, name in [*by_batch, *over] if answers_of(found, stage, name) == WRONG]


def answers_of(found: Found, stage: str, row: str) -> str:
    """Say whether a row's output is right, according to the comparison that it names; see `Record.judged_by`."""
    judge = found[stage].get("answers", {}).get(row)
    comparison = found[judge[0]].get(judge[1], {}) if judge else {}
    if "within_budget" not in comparison:
        return UNKNOWN
    return RIGHT if comparison["within_budget"] else WRONG


def folder_rows(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a stage's rows from files to probabilities, also those that failed."""
    known = ("pictures_per_s", "failed", "left_out")
    return {
        name: value
        for name, value in stage.items()
        if isinstance(value, dict) and not name.endswith(" ended") and any(key in value for key in known)
    }


def is_verified(stage: str, name: str) -> bool:
    """Whether a row compares output and measures no rate."""
    return stage in ("verify", "quantized") or name.startswith("starter on ") or name == "tensorrt-rtx"
