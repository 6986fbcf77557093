// The data behind the page: read as Python wrote them, and what follows from labels and thresholds.
// Run by tests/runtime/report/test_script.py, which puts the script's modules beside this file.

import assert from "node:assert/strict";
import { test } from "node:test";

import { makeTable } from "./tables.mjs";
import { Table, percent } from "./table.mjs";

test("scores are little-endian uint16 with 65535 for 1, over several pages", () => {
  const table = new Table({ labels: ["a", "b"], thresholds: [0.5, 0.5], low: [0, 0], high: [1, 1], count: 2, origin: "./", failures: [] });
  const page = (...values) => Buffer.from(Uint16Array.from(values).buffer).toString("base64");
  table.append({ paths: ["x.jpg"], scores: page(65535, 0), found: [[0]], captured: null, truth: null, unfamiliar: [] });
  table.append({ paths: ["y.jpg"], scores: page(256, 32768), found: [[1]], captured: ["2026"], truth: [[1]], unfamiliar: [0] });
  assert.equal(table.score(0, 0), 1);
  assert.equal(table.score(0, 1), 0);
  assert.equal(table.score(1, 0), 256 / 65535);
  assert.deepEqual([table.best(0), table.best(1)], [0, 1]);
  assert.deepEqual(table.captured, ["", "2026"]);
  assert.deepEqual(table.truth, [null, [1]]);
  assert.deepEqual([...table.unfamiliar], [1]);
});

test("maps of a later page belong to its own images", () => {
  const table = makeTable([{ path: "x" }, { path: "y" }]);
  const more = { paths: ["z"], scores: Buffer.from(new Uint8Array(6)).toString("base64"), found: [[]], captured: null, truth: null, unfamiliar: [], maps: { 0: [2] } };
  table.append(more);
  table.addMap(0, 1);
  table.addMap(0, 2);
  assert.deepEqual([0, 1, 2].map((item) => table.mapsOf(item)), [[1, 2], [], [2]]);
});

test("wrong and missed compare what is found with the labels", () => {
  const table = makeTable([
    { path: "right", scores: [0.9, 0.1, 0.1], truth: [0] },
    { path: "wrong and missed", scores: [0.9, 0.1, 0.1], truth: [1, 2] },
    { path: "no labels known", scores: [0.9, 0.1, 0.1] },
  ]);
  assert.deepEqual([0, 1, 2].map((item) => table.wrong(item)), [[], [0], []]);
  assert.deepEqual([0, 1, 2].map((item) => table.missed(item)), [[], [1, 2], []]);
});

test("the distance is that of the nearest threshold in log-odds", () => {
  const table = makeTable([{ path: "near", scores: [0.52, 0.0, 0.0] }, { path: "far", scores: [0.99, 0.01, 0.01] }]);
  const expected = Math.log(0.52 / 0.48);
  assert.ok(Math.abs(table.distance(0) - expected) < 1e-3, String(table.distance(0)));
  assert.ok(table.distance(1) > 4);
});

test("percent keeps one decimal and never shows a probability as zero", () => {
  assert.deepEqual([0, 0.0004, 0.001, 0.4567, 1].map(percent), ["0.0%", "<0.1%", "0.1%", "45.7%", "100.0%"]);
});
