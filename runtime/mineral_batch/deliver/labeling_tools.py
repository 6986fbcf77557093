"""The answers as files for labeling tools: Label Studio, CVAT, COCO, FiftyOne.

`mineral_batch.evaluation.labeling_tools` reads back what people made of them, and names the formats' documentation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from mineral_batch.deliver.records import Delivery, Record, printable
from mineral_batch.files import atomic_file, write_errors
from mineral_batch.storage.urls import is_url

#: Format -> the files that it writes.
FILES = {
    "label-studio": ("tasks.json", "config.xml"),
    "cvat": ("annotations.xml", "labels.json"),
    "coco": ("annotations/labels_default.json",),
    "fiftyone": ("labels.json", "predictions.json", "data.json"),
}


def write_label_studio(delivery: Delivery, folder: Path) -> None:
    """Write tasks to import, with the model's answers as predictions and people's as annotations, and a labeling setup.

    Raises:
        DataError: if a file cannot be written.
    """
    names = _names(delivery)
    with _opened(folder, FILES["label-studio"]) as (tasks, config):
        _array(tasks, (_task(record, delivery) for record in delivery.photographs()))
        tasks.write(b"\n")
        config.write(_config(names).encode())


def write_cvat(delivery: Delivery, folder: Path) -> None:
    """Write tags as CVAT for images 1.1, and the labels for the task's setup ("Raw"); errors as above."""
    names, common = _names(delivery), _common(delivery)
    with _opened(folder, FILES["cvat"]) as (annotations, labels):
        _array(labels, ({"name": name, "type": "tag", "attributes": []} for name in names))
        declared = "".join(f"<label><name>{_element(name)}</name><attributes/></label>\n" for name in names)
        annotations.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><task><labels>\n{declared}</labels></task></meta>\n".encode()
        )
        for number, record in enumerate(delivery.photographs()):
            annotations.write(_cvat_image(number, record, common).encode())
        annotations.write(b"</annotations>\n")


def write_coco(delivery: Delivery, folder: Path) -> None:
    """Write COCO JSON with a category per label and an annotation without a box per answer; errors as above.

    So Datumaro's `coco_labels` has it. Numbers of categories begin with 1 and follow the labels of the model.
    """
    names, common = _names(delivery), _common(delivery)
    category = {name: number for number, name in enumerate(names, 1)}
    with _opened(folder, FILES["coco"]) as (file,):
        file.write(
            b'{"info": ' + _json({"description": "mineral-batch", "model": delivery.model}) + b',\n"licenses": ['
        )
        file.write(b'],\n"categories": ')
        _array(file, ({"id": number, "name": name, "supercategory": ""} for name, number in category.items()))
        file.write(b',\n"images": ')
        _array(
            file,
            (_coco_image(number, record, delivery, common) for number, record in enumerate(delivery.photographs(), 1)),
        )
        file.write(b',\n"annotations": ')
        _array(file, _coco_annotations(delivery, category))
        file.write(b"}\n")


def write_fiftyone(delivery: Delivery, folder: Path) -> None:
    """Write a FiftyOneImageClassificationDataset: people's labels, the model's, and where the images are.

    FiftyOne takes the suffix off the names in `data.json`: they have it twice, so that `a.jpg` and `a.png` stay two.
    """
    classes = b'"classes": ' + _json(_names(delivery)) + b',\n"labels": {'
    starts = (b"{" + classes, b'{"evidence": "machine", ' + classes, b"{")
    with _opened(folder, FILES["fiftyone"]) as files:
        labels, predictions, data = (_Members(file, start) for file, start in zip(files, starts, strict=True))
        for record in delivery.photographs():
            path = printable(record.path)
            if record.evidence == "human":
                decided = {"evidence": "human", "reviewer": record.reviewer, "time": record.time}
                labels.add(path, [{"label": name, "attributes": decided} for name in record.names])
            predictions.add(path, [_prediction(name, value, delivery) for name, value in _machine(record, delivery)])
            data.add(
                path + Path(path).suffix, path if is_url(path) else printable(str(delivery.file(record).absolute()))
            )
        for file, end in zip(files, (b"\n}}\n", b"\n}}\n", b"\n}\n"), strict=True):
            file.write(end)


# --- parts ---------------------------------------------------------------------------------------------


@contextmanager
def _opened(folder: Path, names: Sequence[str]) -> Iterator[list[BinaryIO]]:
    """Files in a folder, which is made if need be, that appear together when the block ends well."""
    with write_errors(folder):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
        with ExitStack() as stack:
            yield [stack.enter_context(atomic_file(folder / name)) for name in names]


def _names(delivery: Delivery) -> list[str]:
    """All names in use: the labels of the model, then those of people and broader ones, as the collection has them."""
    names = dict.fromkeys(map(delivery.name, delivery.labels))
    for record in delivery:
        names.update(dict.fromkeys(record.names))
    return [*names]


def _common(delivery: Delivery) -> int:
    """How many characters the folder of all images has: Datumaro and CVAT name images by the rest of their paths."""
    paths = [printable(record.path) for record in delivery.photographs()]
    first, last = (path.split("/")[:-1] for path in (min(paths, default=""), max(paths, default="")))
    return sum(len(one) + 1 for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _array(file: BinaryIO, values: Iterable[Any]) -> None:
    file.write(b"[")
    for number, value in enumerate(values):
        file.write((b",\n" if number else b"\n") + _json(value))
    file.write(b"\n]")


class _Members:
    """Writes the members of a JSON object."""

    def __init__(self, file: BinaryIO, start: bytes) -> None:
        self._file, self._separator = file, b"\n"
        file.write(start)

    def add(self, key: str, value: Any) -> None:
        self._file.write(self._separator + _json(key) + b": " + _json(value))
        self._separator = b",\n"


def _machine(record: Record, delivery: Delivery) -> list[tuple[str, float]]:
    """What the model said, with its probability: its labels and, where nobody decided, broader names."""
    names = record.minerals if record.evidence == "machine" and not record.reviewer else record.machine
    known = ((name, record.probability(name)) for name in names)
    return [(delivery.name(name), value) for name, value in known if value is not None]


def _prediction(name: str, probability: float, delivery: Delivery) -> dict[str, Any]:
    return {"label": name, "confidence": probability, "attributes": {"model": delivery.model}}


# --- Label Studio --------------------------------------------------------------------------------------


def _task(record: Record, delivery: Delivery) -> dict[str, Any]:
    path = printable(record.path)
    data = {
        "image": path if is_url(path) else f"/data/local-files/?d={quote(path.lstrip('/'))}",
        "path": path,
        "probabilities": dict(_machine(record, delivery)),
    }
    if record.evidence != "machine":
        data |= {"reviewer": record.reviewer, "decided": record.time}
    prediction = {
        "model_version": delivery.model,
        "score": record.probabilities[record.best],
        "result": _choices([name for name, _ in _machine(record, delivery)]),
    }
    task: dict[str, Any] = {"data": data, "predictions": [prediction]}
    if record.evidence != "machine":
        task["annotations"] = [{"result": _choices(record.names), "was_cancelled": record.evidence == "unsure"}]
    return task


def _choices(names: Sequence[str]) -> list[dict[str, Any]]:
    choices = {"from_name": "mineral", "to_name": "image", "type": "choices", "value": {"choices": list(names)}}
    return [choices] if names else []


def _config(names: Sequence[str]) -> str:
    choices = "".join(f"    <Choice value={_attribute(name)}/>\n" for name in names)
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        '  <Choices name="mineral" toName="image" choice="multiple" showInline="true">\n'
        f"{choices}  </Choices>\n</View>\n"
    )


# --- CVAT ----------------------------------------------------------------------------------------------


def _cvat_image(number: int, record: Record, common: int) -> str:
    path = printable(record.path)
    source = "manual" if record.evidence == "human" else "auto"
    tags = "".join(f'<tag label={_attribute(name)} source="{source}"></tag>' for name in record.names)
    return (
        f'<image id="{number}" name={_attribute(path[common:])} path={_attribute(path)} evidence="{record.evidence}">'
        f"{tags}</image>\n"
    )


def _attribute(text: str) -> str:
    return quoteattr(_xml_text(text))


def _element(text: str) -> str:
    return escape(_xml_text(text))  # `>` too: a label may hold `]]>`


def _xml_text(text: str) -> str:
    """The text with the signs that XML 1.0 cannot hold replaced."""
    return "".join(sign if sign >= " " or sign in "\t\n\r" else "\N{REPLACEMENT CHARACTER}" for sign in text)


# --- COCO ----------------------------------------------------------------------------------------------


def _coco_image(number: int, record: Record, delivery: Delivery, common: int) -> dict[str, Any]:
    path = printable(record.path)
    image = {"id": number, "file_name": path[common:], "width": 0, "height": 0}
    image |= {"path": path, "evidence": record.evidence}
    decided = {"reviewer": record.reviewer, "decided": record.time, "model_says": dict(_machine(record, delivery))}
    return image if record.evidence == "machine" else image | decided


def _coco_annotations(delivery: Delivery, category: dict[str, int]) -> Iterator[dict[str, Any]]:
    number = 0
    for image, record in enumerate(delivery.photographs(), 1):
        for label, name in zip(record.minerals, record.names, strict=True):
            number += 1
            annotation: dict[str, Any] = {"id": number, "image_id": image, "category_id": category[name]}
            if record.evidence == "machine" and (value := record.probability(label)) is not None:
                annotation["score"] = value
            yield annotation | {"attributes": {"evidence": record.evidence}}


#: Format -> what writes it.
WRITERS: dict[str, Callable[[Delivery, Path], None]] = {
    "label-studio": write_label_studio,
    "cvat": write_cvat,
    "coco": write_coco,
    "fiftyone": write_fiftyone,
}
