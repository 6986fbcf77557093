"""Ground truth: the one reader of label tables, and the one matcher of its paths with those of images.

A label table is a CSV with the columns `path`, `labels` (joined with `;`) and, if it has splits, `split`. It may come
from a spreadsheet, or from a labeling tool (`labeling_tools`): see `read_labels`.
"""

from __future__ import annotations

import difflib
import logging
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mineral_batch.errors import DataError
from mineral_batch.evaluation.labeling_tools import choices_in, is_tool_file, photo_in, read_tool_labels
from mineral_batch.images.names import has_image_suffix
from mineral_batch.minerals import canonical
from mineral_batch.results.csv import listed, open_csv, require_distinct, shown
from mineral_batch.results.schema import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path


_log = logging.getLogger("mineral_batch")

#: What people call the columns of such a table, in lower case.
COLUMN_NAMES = {
    **dict.fromkeys(("path", "file", "filename", "file name", "image", "photo"), "path"),
    **dict.fromkeys(("labels", "label", "minerals", "mineral"), "labels"),
    **dict.fromkeys(("split", "subset"), "split"),
}

#: What stands for "shows none of the labels": the content of a cell, or the name of a folder.
NEGATIVE_NAMES = ("none", "_none")
#: What people write where they do not know what it is; such an image is no evidence for or against any label.
UNDETERMINED = ("?", "unknown", "unidentified", "undetermined")
#: Letters of a name in which two may be wrong; in a shorter one, one.
_LONG_NAME = 8
_NAMED = 5


class LabelRow(NamedTuple):
    """One row of a label table; `line` is its place in the file, 0 in one that has no lines."""

    path: str
    labels: tuple[str, ...]
    split: str
    line: int


@dataclass(frozen=True)
class Matches:
    """Which labeled path is which image.

    Attributes:
        index: labeled path -> place in the sequence of images.
        by_name: labeled paths that only the file name matched, because their folders differ.
    """

    index: dict[str, int]
    by_name: tuple[str, ...] = ()

    def note(self, images: Sequence[str]) -> str | None:
        """One line about the matches by file name, with an example; None if there are none."""
        if not self.by_name:
            return None
        first = self.by_name[0]
        return (
            f"{len(self.by_name)} labeled paths matched by file name only, their folders differ: "
            f"for example {shown(first)} is {shown(images[self.index[first]])}"
        )

    def log(self, images: Sequence[str]) -> None:
        """Warn with that line, in a command that prints no text of its own about the match."""
        if note := self.note(images):
            _log.warning("%s", note)


def read_labels(path: str | Path) -> list[LabelRow]:
    """Read a label table as people keep it.

    The columns are separated by `,`, `;` or tabs; the text is UTF-8 or UTF-16, with or without a byte order mark; the
    headers are in any case, and `COLUMN_NAMES` has their other names. JSON and XML are read as those of labeling tools
    (`labeling_tools.read_tool_labels`). Names of labels stay as they are written; `name_labels` gives them the names
    of a label set.

    Returns:
        The rows; without a column `split` every split is the empty string.

    Raises:
        DataError: if the file is missing, has no column `path` or `labels`, or names an image twice.
    """
    if is_tool_file(path):
        return [LabelRow(*row, 0) for row in read_tool_labels(path)]
    with open_csv(path, ("path", "labels"), sniff=("path", "labels"), synonyms=COLUMN_NAMES) as table:
        at, labels = table.index("path"), table.index("labels")
        split = table.index("split") if "split" in table.header else None
        rows = [
            LabelRow(
                photo_in(fields[at]),
                split_labels(fields[labels]),
                fields[split].strip() if split is not None else "",
                line,
            )
            for line, fields in table
        ]
    require_distinct(path, [(row.path, row.line) for row in rows])
    return rows


def split_labels(cell: str, separator: str = SEPARATOR) -> tuple[str, ...]:
    """Split one cell into its distinct names, in order, without the blanks around them.

    `none` is no name; the `{"choices": [...]}` of Label Studio's CSV are its names.
    """
    parts = choices_in(cell)
    names = dict.fromkeys(
        name for part in (cell.split(separator) if parts is None else parts) if (name := part.strip())
    )
    return () if len(names) == 1 and next(iter(names)).casefold() in NEGATIVE_NAMES else tuple(names)


def read_other_columns(path: str | Path) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Read what a label table has besides paths and labels: splits, specimens, notes.

    Returns:
        The names of these columns, and path -> their cells; neither for a labeling tool's file.

    Raises:
        DataError: as `read_labels`.
    """
    if is_tool_file(path):
        return (), {}
    with open_csv(path, ("path", "labels"), sniff=("path", "labels"), synonyms=COLUMN_NAMES) as table:
        at = table.index("path")
        others = [place for place, name in enumerate(table.header) if name not in ("path", "labels")]
        cells = {photo_in(fields[at]): tuple(fields[place] for place in others) for _, fields in table}
    return tuple(table.header[place] for place in others), cells


def name_labels(rows: Sequence[LabelRow], labels: Sequence[str]) -> tuple[list[LabelRow], dict[str, str]]:
    """Give the labels of a table the names of a label set, as `minerals.canonical` reads them: `Amethyst` is quartz.

    A name that stands for no label stays as it is.

    Args:
        rows: of the table.
        labels: the label set.

    Returns:
        The rows, and each name that was changed with the label that it became.
    """
    names = {name for row in rows for name in row.labels}
    meant = {name: labels_meant(name, labels) for name in names}
    renamed = [row._replace(labels=tuple(dict.fromkeys(n for name in row.labels for n in meant[name]))) for row in rows]
    return renamed, {name: "; ".join(to) for name, to in sorted(meant.items()) if to != (name,)}


def labels_meant(name: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that one name stands for: several if it is a list with another separator, `quartz, gold`.

    A name that stands for no label comes back as it is.
    """
    if label := canonical(name, labels):
        return (label,)
    parts = [canonical(part.strip(), labels) for part in re.split(r"[,|/+]", name)]
    known = tuple(part for part in parts if part)
    return known if len(known) == len(parts) else (name,)


def require_known(
    rows: Sequence[LabelRow], labels: Sequence[str], path: str | Path, what: str, *, ignore_unknown: bool = False
) -> None:
    """Check that a table is about the label set: a misspelled label would count as an absent mineral.

    Other labels outside the set may be there: an image of feldspar shows none of the 36 minerals.

    Args:
        rows: of the table.
        labels: the label set.
        path: of the table, for the message.
        what: what is wrong with an unknown label, such as `the model does not have`.
        ignore_unknown: allow labels that look like a misspelling, too.

    Raises:
        DataError: naming the labels that look misspelled with their lines and the nearest known ones; or the first
            unknown ones, if no label is known at all.
    """
    unknown = {name: row for row in reversed(rows) for name in row.labels if name not in labels}
    near = {name: guess for name in unknown if (guess := _misspelled(name, labels))}
    if near and not ignore_unknown:
        named = _with_places({name: unknown[name] for name in near}, near)
        raise DataError(
            f"{path} has labels that {what} and that look misspelled: {named}; correct them, or count them as other "
            "minerals with --ignore-unknown"
        )
    if unknown and not any(name in labels for row in rows for name in row.labels):
        raise DataError(f"{path} has only labels that {what}: {_with_places(unknown, {})}; there are {listed(labels)}")


def _misspelled(name: str, labels: Sequence[str]) -> str | None:
    """The label that a name looks like a misspelling of: one letter is another, or two of a long name."""
    allowed = 1 if len(name) < _LONG_NAME else 2
    lower = {label.casefold(): label for label in labels if abs(len(label) - len(name)) <= allowed}
    near = difflib.get_close_matches(name.casefold(), lower, n=1)
    return lower[near[0]] if near and _edits(name.casefold(), near[0]) <= allowed else None


def _edits(one: str, other: str) -> int:
    """About how many letters must be changed, added or taken out of a name to make it another."""
    changes = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in changes if kind != "equal")


def _with_places(unknown: Mapping[str, LabelRow], near: Mapping[str, str]) -> str:
    """`'sulfer' (line 4, did you mean 'sulfur'?)`, for the first of these names."""
    named = []
    for name, row in sorted(unknown.items(), key=lambda item: item[1].line)[:_NAMED]:
        place = f"line {row.line}" if row.line else shown(row.path)
        named.append(f"{shown(name)!r} ({place}" + (f", did you mean {near[name]!r}?)" if name in near else ")"))
    return ", ".join(named) + (f" and {len(unknown) - len(named)} more" if len(unknown) > len(named) else "")


def is_undetermined(row: LabelRow, labels: Sequence[str]) -> bool:
    """Whether the table says of an image that nobody knows what it shows (`?`, `unknown`)."""
    return any(name.casefold() in UNDETERMINED and name not in labels for name in row.labels)


def unknown_note(names: Iterable[Sequence[str]]) -> str | None:
    """One line about the labels outside the label set, with the number of images of each; None if there are none.

    Args:
        names: of each image, those outside the label set.
    """
    counts = Counter(name for several in names for name in several)
    if not counts:
        return None
    first = ", ".join(f"{shown(name)} ({count:,})" for name, count in counts.most_common(_NAMED))
    more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
    return f"Labels that the model does not have, counted as other minerals (and their images): {first}{more}"


def of_split(rows: Sequence[LabelRow], split: str | None, path: str | Path) -> list[LabelRow]:
    """The rows of one split; all rows for None.

    Raises:
        DataError: if there are none, naming the splits that the table has.
    """
    chosen = [row for row in rows if split in (None, row.split)]
    if not chosen:
        raise DataError(f"{path} {_lacking_split(split, rows) if split and rows else 'has no rows'}")
    return chosen


def _lacking_split(split: str, rows: Sequence[LabelRow]) -> str:
    splits = sorted({row.split for row in rows} - {""})
    if splits:
        return f"has no rows of split {split!r}; it has {listed(splits)}"
    return f"has no column `split`, or only empty cells in it, so there is no split {split!r}: leave out --split"


def match_paths(images: Sequence[str], labeled: Sequence[str]) -> Matches:
    r"""Match labeled paths with those of images.

    Two paths match if they are equal after normalizing (`\` is `/`, `.` and leading `..` dropped, Unicode NFC),
    or one is the end of the other by whole components: `images/a.jpg` matches `/data/images/a.jpg`. Equal paths
    match first; of several ends the longest counts. What is left matches by file name, as after a folder was renamed,
    if that name is in either list only once; a labeled name without a suffix, as labeling tools write it, is any
    image's of that name.

    Args:
        images: paths of N images.
        labeled: paths of a label table.

    Raises:
        DataError: if one path matches two, naming both.
    """
    theirs_exact, ours_exact = _by_components(images), _by_components(labeled)
    exact = {ours_exact[key]: theirs_exact[key] for key in ours_exact.keys() & theirs_exact.keys()}
    theirs, ours = _composed(theirs_exact), _composed(ours_exact)
    taken = {*exact.values()}
    alike = {ours[key]: theirs[key] for key in ours.keys() & theirs.keys() if theirs[key] not in taken}
    pairs = {**alike, **exact}
    left_theirs = {key: path for key, path in theirs.items() if key not in ours}
    left_ours = {key: path for key, path in ours.items() if key not in theirs}
    ends = {(left_ours[end], path) for key, path in left_theirs.items() if (end := _longest_end(key, left_ours))}
    ends |= {(path, left_theirs[end]) for key, path in left_ours.items() if (end := _longest_end(key, left_theirs))}
    pairs |= _one_to_one(ends)
    by_name = _by_name(theirs, ours, pairs)
    by_name |= _by_bare_name(theirs, ours, pairs | by_name)
    index = {path: i for i, path in enumerate(images)}
    return Matches({label: index[image] for label, image in (pairs | by_name).items()}, tuple(sorted(by_name)))


Components = tuple[str, ...]


def _components(path: str) -> Components:
    """The parts of a normalized path; an absolute one begins with `/`, so that it is the end of no other."""
    clean = posixpath.normpath(path.strip().replace("\\", "/"))
    parts = clean.lstrip("/").split("/")
    while parts and parts[0] == "..":
        parts.pop(0)
    return ("/", *parts) if clean.startswith("/") else tuple(parts)


def _by_components(paths: Iterable[str]) -> dict[Components, str]:
    found: dict[Components, str] = {}
    for path in paths:
        other = found.setdefault(_components(path), path)
        if other != path:
            raise DataError(f"{shown(other)} and {shown(path)} in one table are the same path: keep one of them")
    return found


def _composed(paths: dict[Components, str]) -> dict[Components, str]:
    """The same with accents composed (NFC), but for files whose names differ in nothing else: those stay apart."""
    composed = {key: tuple(unicodedata.normalize("NFC", part) for part in key) for key in paths}
    counts = Counter(composed.values())
    return {(composed[key] if counts[composed[key]] == 1 else key): path for key, path in paths.items()}


def _longest_end(key: Components, among: Collection[Components]) -> Components | None:
    """The longest proper end of a path that is in `among`."""
    return next((key[start:] for start in range(1, len(key)) if key[start:] in among), None)


def _one_to_one(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs as a mapping, if no path is in two of them."""
    pairs = sorted(pairs)
    for side, name in ((0, "labeled path"), (1, "image")):
        partners = defaultdict(list)
        for pair in pairs:
            partners[pair[side]].append(pair[1 - side])
        for path, both in partners.items():
            if len(both) > 1:
                raise DataError(
                    f"the {name} {shown(path)} matches both {shown(both[0])} and {shown(both[1])}: "
                    f"write more of the path into the label table"
                )
    return dict(pairs)


def _by_name(images: dict[Components, str], labeled: dict[Components, str], matched: dict[str, str]) -> dict[str, str]:
    """Labeled path -> image, for those that nothing matched and whose file name is in each list only once."""
    counts = [Counter(key[-1] for key in side if key) for side in (images, labeled)]
    taken = {*matched.values()}
    free = {key[-1]: path for key, path in images.items() if key and path not in taken}
    return {
        path: free[key[-1]]
        for key, path in labeled.items()
        if key and path not in matched and key[-1] in free and all(count[key[-1]] == 1 for count in counts)
    }


def _by_bare_name(
    images: dict[Components, str], labeled: dict[Components, str], matched: dict[str, str]
) -> dict[str, str]:
    """Labeled path without a suffix -> image, where the image's name without its suffix is in each list only once."""
    names = [(posixpath.splitext(key[-1])[0], path) for key, path in images.items() if key]
    counts = Counter(name for name, _ in names)
    taken = {*matched.values()}
    free = {name: path for name, path in names if counts[name] == 1 and path not in taken}
    bare = [(key[-1], path) for key, path in labeled.items() if key and path not in matched]
    counts = Counter(name for name, _ in bare if not has_image_suffix(name))
    return {path: free[name] for name, path in bare if name in free and counts[name] == 1}
