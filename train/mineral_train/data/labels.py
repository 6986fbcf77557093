"""Names of labels: the label set of a model, its checks, and the nearest name to a misspelled one."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from mineral_batch.errors import DataError, plain_reason
from mineral_batch.evaluation.labels import NEGATIVE_NAMES, split_labels
from mineral_batch.minerals import MINERALS
from mineral_batch.results.schema import SEPARATOR

__all__ = [
    "NEGATIVE_NAMES",
    "SEPARATOR",
    "describe_unknown",
    "label_faults",
    "nearest",
    "raise_faults",
    "read_labels",
    "read_names",
    "split_labels",
    "unknown_labels",
]

_LISTED = 5


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Read a label set from a text file: one name per line, in the order of the model's outputs.

    Raises:
        DataError: if the file is missing, empty, or has names that cannot be labels together (see `label_faults`).
    """
    names = read_names(path)
    raise_faults(f"the label file {path}", label_faults(names))
    return names


def read_names(path: str | Path) -> tuple[str, ...]:
    """Read a label set as `read_labels` does, without checking the names: `inspect_manifest` does that, too.

    Raises:
        DataError: if the file is missing or empty.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = plain_reason(error)
        raise DataError(f"cannot read the labels {path}: {why}; it must be UTF-8 text, one name per line") from None
    # Not splitlines: it also splits at U+2028 and its like, which `label_faults` refuses.
    names = tuple(line.strip(" \t\r") for line in text.split("\n") if line.strip(" \t\r"))
    if not names:
        raise DataError(f"the label file {path} has no names; it needs one per line")
    return names


def label_faults(labels: Sequence[str]) -> list[str]:
    """Find what keeps names from being a label set: separators, line breaks, reserved names, names that look alike.

    Two names that differ only in case, or in how Unicode composes an accent (NFC and NFD), are one label for a reader
    and two for a model, which then learns half of each.
    """
    faults = [f"label {name!r} {fault}" for name in labels if (fault := _name_fault(name))]
    first: dict[str, int] = {}
    for place, name in enumerate(labels):
        other = first.setdefault(unicodedata.normalize("NFC", name).casefold(), place)
        if other != place:
            alike = f"looks like label {labels[other]!a}; keep one of them"
            faults.append(f"label {name!r} {'is there twice' if labels[other] == name else alike}")
    return faults


def _name_fault(name: str) -> str:
    if not name or name != name.strip():
        return "is empty or has blanks around it; rename it"
    if SEPARATOR in name:
        return f"contains {SEPARATOR!r}, which separates labels; rename it"
    if len(name.splitlines()) > 1 or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        return "contains a line break or a control character; rename it"
    if name.casefold() in NEGATIVE_NAMES:
        return "is reserved for photographs that show none of the labels; rename it"
    return ""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Find the most similar of `names`, None if nothing is similar."""
    lower = {known.casefold(): known for known in names}
    matches = difflib.get_close_matches(name.casefold(), lower, n=1)
    return lower[matches[0]] if matches else None


def describe_unknown(unknown: Iterable[str], known: Sequence[str], limit: int = _LISTED) -> str:
    """List the unknown names, each with the nearest known one: `'sulfer' (did you mean 'sulfur'?), 'mica'`."""
    names = sorted(unknown)
    guesses = [(name, nearest(name, known)) for name in names[:limit]]
    text = ", ".join(f"{name!r}" + (f" (did you mean {guess!r}?)" if guess else "") for name, guess in guesses)
    return text + (f" and {len(names) - limit} more" if len(names) > limit else "")


def unknown_labels(unknown: Iterable[str], labels: Sequence[str]) -> str:
    """Say which labels are unknown and how to fix that."""
    which = "the paper's 36 minerals" if tuple(labels) == MINERALS else f"the {len(labels)} labels"
    return (
        f"labels not among {which}: {describe_unknown(unknown, labels)}; "
        "correct them, or give your own label set: --labels FILE, one name per line"
    )


def raise_faults(where: str, *kinds: Sequence[str], limit: int = _LISTED) -> None:
    """Raise one `DataError` for all faults of a file, if there are any; the first few of each kind are listed.

    Raises:
        DataError: in one line.
    """
    total = sum(map(len, kinds))
    if total:
        count = f"{total:,} faults: " if total > 1 else ""
        raise DataError(f"{where}: {count}{'; '.join(_first(faults, limit) for faults in kinds if faults)}")


def _first(faults: Sequence[str], limit: int) -> str:
    more = f"; and {len(faults) - limit:,} more" if len(faults) > limit else ""
    return "; ".join(faults[:limit]) + more
