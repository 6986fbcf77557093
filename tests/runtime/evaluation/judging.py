"""A table of predictions with labels, and the command that judges it."""

from __future__ import annotations

import csv
import re

import numpy as np
import onnx
from click.testing import CliRunner
from onnx import TensorProto, helper

from mineral_batch.cli import main
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.onnx_file import write_contract

LABELS = ("agate", "gold", "quartz", "topaz")
COUNT = 60


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def fails(*arguments, code=1):
    """The one line of an error."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    assert re.fullmatch(r"Error: [^\n]+\n", result.stderr)
    return result.stderr


def write(path, header, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


class World:
    """Sixty pictures, four labels of which topaz is in none, thirty pictures in each of two splits."""

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(0)
        self.truth = rng.random((COUNT, 4)) < [0.3, 0.4, 0.5, 0.0]
        self.scores = 1 / (1 + np.exp(1.5 - rng.normal(size=(COUNT, 4)) - 2 * self.truth))
        self.called = self.scores >= 0.5
        self.val = np.arange(COUNT) < COUNT // 2

    @property
    def prediction_rows(self):
        return [
            [f"photos/images/{i:02d}.jpg", names(called), *(f"{v:.9g}" for v in scores)]
            for i, (called, scores) in enumerate(zip(self.called, self.scores, strict=True))
        ]

    @property
    def label_rows(self):
        splits = np.where(self.val, "val", "test")
        return [[f"images/{i:02d}.jpg", names(truth), splits[i]] for i, truth in enumerate(self.truth)]

    def predictions(self, rows=None, header=("path", "minerals", *LABELS)):
        return write(self.folder / "predictions.csv", header, self.prediction_rows if rows is None else rows)

    def labels(self, rows=None, header=("path", "labels", "split")):
        return write(self.folder / "labels.csv", header, self.label_rows if rows is None else rows)

    def model(self, labels=LABELS):
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        path = self.folder / "model.onnx"
        onnx.save(helper.make_model(helper.make_graph([], "g", [value], [value])), path)
        write_contract(path, ModelContract(labels=labels, thresholds=(0.9,) * len(labels), provenance={"by": "me"}))
        return path


def names(row):
    return ";".join(name for name, present in zip(LABELS, row, strict=True) if present)
