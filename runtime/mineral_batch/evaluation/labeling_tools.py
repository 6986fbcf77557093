"""Labels from the files of labeling tools, recognized by their content.

| file | source |
|---|---|
| Label Studio's JSON, JSON-MIN and CSV exports | https://labelstud.io/guide/export |
| COCO JSON; for whole images Datumaro's `coco_labels` | https://cocodataset.org/#format-data |
| CVAT for images 1.1 (XML) | https://docs.cvat.ai/docs/manual/advanced/xml_format/ |
| FiftyOneImageClassificationDataset (`labels.json`), FiftyOneDataset (`samples.json`) | https://docs.voxel51.com |

Only what a person said is a label. What `deliver` wrote as the model's answer is left out: Label Studio keeps it apart
as a prediction; elsewhere `evidence` says so, which those tools drop when they export. So they do with `path`, which
images of COCO and CVAT have beside a short name.
"""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.parsers import expat

from mineral_batch.errors import DataError, plain_reason
from mineral_batch.results.csv import listed, shown

_log = logging.getLogger("mineral_batch")

#: Bytes of a JSON file, which is read whole and takes several times as much memory; XML is read piece by piece.
LARGEST_JSON = 512 * 2**20

_LONGEST_CELL = 100_000

#: Of a task in Label Studio: what may hold the path.
_PATH_KEYS = ("path", "image", "img", "photo", "file", "filename", "url")
_LABEL_KEYS = ("labels", "label", "minerals", "mineral", "choice", "choices")
#: The name of an upload: Label Studio puts eight hexadecimal digits in front.
_UPLOAD = re.compile(r"^/data/upload/(?:.*/)?(?:[0-9a-f]{8}-)?([^/]+)$")
#: The same, where nothing else says that the table is Label Studio's.
_UPLOAD_IN_CSV = re.compile(r"^/data/(?:local-files/\?d=|upload/\d+/[0-9a-f]{8}-)")
_CVAT_SHAPES = {"tag", "box", "polygon", "polyline", "points", "mask", "ellipse", "cuboid"}
_NOT_DECIDED = ("machine", "unsure")


class ToolLabels(NamedTuple):
    """The labels of one image; `labels` is None where no person has said anything."""

    path: str
    labels: tuple[str, ...] | None
    split: str = ""


def is_tool_file(path: str | Path) -> bool:
    """Whether a file begins as JSON or XML does; False where it cannot be read."""
    return _first_sign(path) in (b"{", b"[", b"<")


def read_tool_labels(path: str | Path, *, warn: bool = True) -> list[tuple[str, tuple[str, ...], str]]:
    """Read the labels that people gave: (path, labels, split) per image.

    Args:
        path: the file.
        warn: say in the log how many images nobody has labeled.

    Raises:
        DataError: in one line, if the file is none of these formats, is damaged or too large, names an image twice
            with different labels, or has no labels of people.
    """
    path = Path(path)
    try:
        read = _read_cvat if _first_sign(path) == b"<" else _read_json
        tool, found = read(path)
        _require_text(text for image, labels, _ in found for text in (image, *(labels or ())))
    except (ValueError, KeyError, TypeError, RecursionError, expat.ExpatError) as error:
        text = plain_reason(error).encode("utf-8", "replace").decode()  # JSON can hold what is not Unicode text
        raise DataError(f"cannot read the labels in {shown(str(path))}: {text}") from None
    except OSError as error:
        raise DataError(f"cannot read {shown(str(path))}: {error.strerror}") from None
    return _decided(path, tool, found, warn=warn)


def _require_text(names: Iterable[str]) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name!a} is not Unicode text") from None


def _decided(path: Path, tool: str, found: list[ToolLabels], *, warn: bool) -> list[tuple[str, tuple[str, ...], str]]:
    rows: dict[str, tuple[str, tuple[str, ...], str]] = {}
    for image, labels, split in found:
        if labels is None:
            continue
        row = (image, tuple(dict.fromkeys(labels)), split)
        if set(rows.setdefault(image, row)[1]) != set(labels):
            raise DataError(f"{path} names {shown(image)} twice, with different labels: keep one of them")
    if not rows:
        raise DataError(
            f"{path} ({tool}) has {len(found)} images, and no labels that a person gave: label them there, then "
            "export again"
        )
    undecided = len({image for image, *_ in found} - rows.keys())
    if undecided and warn:
        _log.warning(
            "%s (%s): %d of %d images are labeled; nobody has labeled the others, which are left out",
            path,
            tool,
            len(rows),
            len(rows) + undecided,
        )
    return [*rows.values()]


def _first_sign(path: str | Path) -> bytes:
    try:
        with Path(path).open("rb") as file:
            start = file.read(256)
    except OSError:
        return b""
    marks = codecs.BOM_UTF8 + codecs.BOM_UTF16_LE + b"\0 \t\r\n"
    return start.lstrip(marks)[:1]


# --- JSON ----------------------------------------------------------------------------------------------


def _read_json(path: Path) -> tuple[str, list[ToolLabels]]:
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(
            f"it has {size / 2**20:,.0f} MiB, and JSON is read up to {LARGEST_JSON >> 20} MiB: export it in parts"
        )
    document = json.loads(path.read_bytes())
    if isinstance(document, list):
        return "Label Studio", [row for place, task in enumerate(document) for row in _task(place, task)]
    if isinstance(document, dict):
        kinds: dict[str, tuple[str, Callable[[dict[str, Any]], Iterator[ToolLabels]]]] = {
            "images": ("COCO", _coco),
            "labels": ("FiftyOne", lambda found: _fiftyone(found, path.parent)),
            "samples": ("FiftyOne", _samples),
        }
        for key, (tool, read) in kinds.items():
            if key in document:
                return tool, list(read(document))
    raise ValueError(
        "it is none of the formats that are read: a CSV (path,labels), Label Studio's JSON, COCO (images, categories, "
        "annotations), FiftyOne's labels.json or samples.json, CVAT for images 1.1"
    )


def _objects(parent: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    values = parent.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError(f"{key} must be a list of objects")
    return values


def _text(parent: Mapping[str, Any], key: str, what: str) -> str:
    value = parent.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} has no {key}")
    return value.strip()


# --- Label Studio --------------------------------------------------------------------------------------


def _task(place: int, task: object) -> Iterator[ToolLabels]:
    what = f"entry {place + 1}"
    if not isinstance(task, dict):
        raise ValueError(f"{what} of the list is not a task of Label Studio, an object with data and annotations")
    data = task.get("data", task)
    texts = [data[key] for key in _PATH_KEYS if isinstance(data.get(key), str)] if isinstance(data, dict) else []
    source = next(filter(None, texts), None)
    if source is None:
        raise ValueError(f"{what} has no image; it is looked for in data under {', '.join(_PATH_KEYS)}")
    labels = _annotated(task) if "data" in task else _minimal(task)
    yield ToolLabels(_local_path(source), labels)


def _annotated(task: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels of the annotation that counts: the ground truth, else the last one that was not skipped."""
    key = "annotations" if "annotations" in task else "completions"  # before version 1.0
    valid = [one for one in _objects(task, key) if not one.get("was_cancelled")]
    if not valid:
        return None
    chosen = next((one for one in valid if one.get("ground_truth")), valid[-1])
    return tuple(name for result in _objects(chosen, "result") for name in _names(result))


def _names(result: Mapping[str, Any]) -> Iterator[str]:
    """The labels of one result: choices, taxonomies (the last step of each), or the label of a region."""
    value, kind = result.get("value"), result.get("type")
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise ValueError("a result has no type or no value")
    values = value.get(kind, [])
    for value in values if isinstance(values, list) else []:
        name = value[-1] if isinstance(value, list) and value else value
        if not isinstance(name, str):
            raise ValueError(f"a result of type {kind} holds {name!r} in place of a label")
        yield name.strip()


def _minimal(task: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels of a task in JSON-MIN: a text for one choice, an object or a list for several."""
    values = [value for value in task.values() if isinstance(value, dict) and "choices" in value]
    values += [value for key, value in task.items() if str(key).casefold() in _LABEL_KEYS]
    if not values:
        return None
    chosen = [value.get("choices") if isinstance(value, dict) else value for value in values]
    names = [name for value in chosen for name in (value if isinstance(value, list) else [value])]
    texts = [name.strip() for name in names if isinstance(name, str)]
    if len(texts) != len(names):
        raise ValueError("a choice must be a text")
    return tuple(filter(None, texts))


def choices_in(cell: str) -> tuple[str, ...] | None:
    """The labels in a cell of Label Studio's CSV, where they are JSON: `{"choices": ["gold", "quartz"]}`.

    Returns:
        None for any other text: one choice stands there as it is.
    """
    text = cell.strip()
    if text[:1] not in ("{", "[") or len(text) > _LONGEST_CELL:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    names = value.get("choices") if isinstance(value, dict) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def photo_in(cell: str) -> str:
    """The path behind an address of Label Studio in a CSV; any other text stays."""
    return _local_path(cell) if _UPLOAD_IN_CSV.match(cell) else cell


def _local_path(source: str) -> str:
    """The path behind an address of Label Studio: of its local storage, or of an upload; others stay."""
    parts = urlsplit(source)
    if parts.path.startswith("/data/local-files"):
        return parse_qs(parts.query).get("d", [source])[0]
    upload = _UPLOAD.match(unquote(parts.path)) if parts.path.startswith("/data/upload/") else None
    return upload[1] if upload else source


# --- COCO ----------------------------------------------------------------------------------------------


def _coco(document: dict[str, Any]) -> Iterator[ToolLabels]:
    categories = {one.get("id"): _text(one, "name", "a category") for one in _objects(document, "categories")}
    images = _objects(document, "images")
    labels: dict[Any, list[str]] = {}
    for place, image in enumerate(images):
        if not isinstance(image.get("id"), int | str):
            raise ValueError(f"images[{place}] has no id")
        if image["id"] in labels:
            raise ValueError(f"two images have the id {image['id']}")
        labels[image["id"]] = []
    for place, one in enumerate(_objects(document, "annotations")):
        owner, category = one.get("image_id"), one.get("category_id")
        if owner not in labels or category not in categories:
            raise ValueError(f"annotations[{place}] has image_id {owner!r} and category_id {category!r}: no such entry")
        labels[owner].append(categories[category])
    for place, image in enumerate(images):
        is_open = image.get("evidence") in _NOT_DECIDED
        name = _text(image, "path" if "path" in image else "file_name", f"images[{place}]")
        yield ToolLabels(name, None if is_open else tuple(labels[image["id"]]))


# --- FiftyOne ------------------------------------------------------------------------------------------


def _fiftyone(document: dict[str, Any], folder: Path) -> Iterator[ToolLabels]:
    """`labels`: name -> label, several, or the place of one in `classes`; a name has no suffix if FiftyOne wrote it."""
    classes: list[Any] = document.get("classes") or []
    labels: dict[str, Any] = document["labels"]
    if not isinstance(labels, dict):
        raise ValueError("labels must be an object: name of an image -> its label")
    is_open = document.get("evidence") in _NOT_DECIDED
    files = _data_files(folder)
    for name, given in labels.items():
        several = given if isinstance(given, list) else [given]
        names = None if given is None else tuple(_fiftyone_label(one, classes, name) for one in several)
        yield ToolLabels(files.get(name, name), None if is_open else names)


def _data_files(folder: Path) -> dict[str, str]:
    """Name without its suffix -> path, as `data.json` beside the labels says; empty without one."""
    manifest = folder / "data.json"
    if not manifest.is_file() or manifest.stat().st_size > LARGEST_JSON:
        return {}
    files = json.loads(manifest.read_bytes())
    is_map = isinstance(files, dict) and all(isinstance(file, str) for file in files.values())
    return {re.sub(r"\.[^./]*$", "", name): file for name, file in files.items()} if is_map else {}


def _fiftyone_label(given: object, classes: list[Any], image: str) -> str:
    label = given.get("label") if isinstance(given, dict) else given
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(classes):
        label = classes[label]
    if not isinstance(label, str):
        raise ValueError(f"the label of {image} is {label!r}, neither a text nor a place in classes")
    return label.strip()


def _samples(document: dict[str, Any]) -> Iterator[ToolLabels]:
    samples = _objects(document, "samples")
    field = _label_field(samples)
    for place, sample in enumerate(samples):
        path, tags = _text(sample, "filepath", f"samples[{place}]"), sample.get("tags")
        splits = [tag for tag in tags if tag in ("train", "val", "test")] if isinstance(tags, list) else []
        yield ToolLabels(path, _classifications(sample.get(field), path), splits[0] if splits else "")


def _classifications(given: object, image: str) -> tuple[str, ...] | None:
    """The labels of a field: one Classification, or Classifications; None where it is empty."""
    if not isinstance(given, dict):
        return None
    several = _objects(given, "classifications") if "classifications" in given else [given]
    return tuple(_fiftyone_label(one, [], image) for one in several)


def _label_field(samples: list[dict[str, Any]]) -> str:
    """The field of labels: `ground_truth`, or else the only one that has classifications."""
    kinds = ("Classification", "Classifications")
    fields = dict.fromkeys(
        name for one in samples for name, value in one.items() if isinstance(value, dict) and value.get("_cls") in kinds
    )
    if "ground_truth" in fields or len(fields) == 1:
        return "ground_truth" if "ground_truth" in fields else next(iter(fields))
    raise ValueError(f"the field with the labels must be ground_truth, or the only one; there are {listed([*fields])}")


# --- CVAT ----------------------------------------------------------------------------------------------


class _CvatReader:
    """Collects the labels while the parser goes through the file."""

    def __init__(self) -> None:
        self.found: list[ToolLabels] = []
        self._depth = 0
        self._image: dict[str, str] | None = None
        self._labels: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if self._depth == 0 and name != "annotations":
            raise ValueError(f"the XML begins with <{name}>; CVAT for images 1.1 begins with <annotations>")
        self._depth += 1
        if name == "track":
            raise ValueError("it is CVAT for video: export the task as CVAT for images 1.1")
        if name == "image" and self._depth == 2:
            self._image, self._labels = attributes, []
            _text(attributes, "name", "an image")
        elif self._image is not None and name in _CVAT_SHAPES:
            self._labels.append(_text(attributes, "label", f"a {name} of {self._image['name']}"))

    def end(self, name: str) -> None:
        self._depth -= 1
        if name == "image" and self._image is not None:
            labels = None if self._image.get("evidence") in _NOT_DECIDED else tuple(self._labels)
            path = self._image.get("path", self._image["name"])
            self.found.append(ToolLabels(path, labels, _split(self._image.get("subset", ""))))
            self._image = None


def _split(subset: str) -> str:
    return "" if subset.casefold() == "default" else subset.casefold()


def _refuse_doctype(*_: object) -> None:
    raise ValueError("it has a DOCTYPE, which CVAT's files have not")


def _read_cvat(path: Path) -> tuple[str, list[ToolLabels]]:
    reader, parser = _CvatReader(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.StartDoctypeDeclHandler = _refuse_doctype  # no entities: nothing can expand
    with path.open("rb") as file:
        parser.ParseFile(file)
    return "CVAT", reader.found
