// Which images the gallery shows, and in which order.

import assert from "node:assert/strict";
import { test } from "node:test";

import { makeTable } from "./tables.mjs";
import { FEW, KINDS, ORDERS, arrange, select, showsFew } from "./select.mjs";

const ALL = { query: "", mineral: -1, least: 0, kind: "all", order: "file" };
const [AGATE, GOLD, QUARTZ] = [0, 1, 2];

const table = makeTable(
  [
    { path: "box/agate 10.jpg", scores: [0.9, 0.1, 0.1], truth: [AGATE], isImplausible: true },
    { path: "box/agate 9.jpg", scores: [0.8, 0.45, 0.1], truth: [GOLD] },
    { path: "both.jpg", scores: [0.7, 0.1, 0.95], truth: [AGATE, QUARTZ] },
    { path: "nothing.jpg", scores: [0.2, 0.1, 0.25], truth: [GOLD], isUnfamiliar: true },
  ],
  [["torn.jpg", "decode", "truncated"]],
);
const TORN = 4;
const chosen = (change) => select(table, { ...ALL, ...change });
const items = (change) => arrange(table, { ...ALL, ...change }).map((entry) => entry.item);

test("everything includes what could not be read", () => {
  assert.deepEqual(chosen({}), [0, 1, 2, 3, TORN]);
});

for (const [kind, expected] of Object.entries({
  found: [0, 1, 2],
  several: [2],
  nothing: [3],
  unsure: [1],
  failed: [TORN],
  unfamiliar: [3],
  explained: [],
  implausible: [0],
  right: [0, 2],
  wrong: [1],
  missed: [1, 3],
})) {
  test(`kind ${kind}`, () => assert.deepEqual(chosen({ kind }), expected));
}

test("every kind and order of the page exists", () => {
  const page = ["all", "found", "several", "nothing", "unsure", "failed", "unfamiliar", "damaged", "implausible", "explained", "right", "wrong", "missed"];
  assert.deepEqual(Object.keys(KINDS), page);
  assert.deepEqual(Object.keys(ORDERS), ["probable", "unsure", "file", "name"]);
});

test("a mineral shows where it is found, and leaves out what could not be read", () => {
  assert.deepEqual(chosen({ mineral: QUARTZ }), [2]);
});

test("a lowest probability looks below the threshold of its mineral", () => {
  assert.deepEqual(chosen({ mineral: GOLD, least: 0.4 }), [1]);
  assert.deepEqual(chosen({ least: 0.9 }), [0, 2]);
});

test("missed with a mineral shows where that mineral is missed", () => {
  assert.deepEqual(chosen({ kind: "missed", mineral: GOLD }), [1, 3]);
});

test("the query is a part of the path", () => {
  assert.deepEqual(chosen({ query: "box/" }), [0, 1]);
  assert.deepEqual(chosen({ query: "torn" }), [TORN]);
});

test("most probable first, by the chosen mineral or by the best one", () => {
  assert.deepEqual(items({ order: "probable" }), [2, 0, 1, 3, TORN]);
  assert.deepEqual(items({ order: "probable", mineral: AGATE }), [0, 1, 2]);
});

test("nearest to a threshold first, unreadable last", () => {
  assert.deepEqual(items({ order: "unsure" }).slice(0, 2), [1, 2]);
  assert.equal(items({ order: "unsure" }).at(-1), TORN);
});

test("names sort by their numbers", () => {
  assert.deepEqual(items({ order: "name" }).slice(1, 3), [1, 0]);
});

test("by mineral: each of an image's minerals, the largest group first", () => {
  const entries = arrange(table, { ...ALL, order: "mineral" });
  const groups = entries.map(({ item, group }) => `${group.name} ${group.size}: ${item}`);
  assert.deepEqual(groups, ["agate 3: 0", "agate 3: 1", "agate 3: 2", "quartz 1: 2", "no mineral 1: 3", "could not be read 1: 4"]);
  assert.deepEqual(entries.map((entry) => entry.label), [AGATE, AGATE, AGATE, QUARTZ, -1, -1]);
});

test("the overview shows a few of each mineral, unless something is filtered", () => {
  const many = makeTable(Array.from({ length: 20 }, (_, i) => ({ path: `${i}.jpg`, scores: [0.5 + i / 100, 0, 0] })));
  const overview = { ...ALL, order: "overview" };
  assert.deepEqual(arrange(many, overview).map((entry) => entry.item), [19, 18, 17]);
  assert.equal(arrange(many, overview)[0].group.size, 20);
  assert.equal(FEW, 3);
  for (const change of [{ mineral: 0 }, { query: "jpg" }, { least: 0.1 }, { kind: "found" }]) {
    assert.equal(showsFew({ ...overview, ...change }), false);
    assert.equal(arrange(many, { ...overview, ...change }).length, 20);
  }
});

test("fifty thousand images are arranged", () => {
  const many = makeTable(Array.from({ length: 50_000 }, (_, i) => ({ path: `${i}`, scores: [(i % 997) / 997, (i % 89) / 89, 0] })));
  const entries = arrange(many, { ...ALL, order: "mineral" });
  assert.ok(entries.length > 50_000);
  assert.equal(new Set(entries.map((entry) => entry.item)).size, 50_000);
});

const grouped = makeTable(
  [
    { path: "a.jpg", scores: [0.4, 0.1, 0.45], answers: [0], specimen: 0 },
    { path: "b.jpg", scores: [0.9, 0.1, 0.1], truth: [QUARTZ], specimen: 1 },
    { path: "c.jpg", scores: [0.1, 0.8, 0.1] },
    { path: "Müll.jpg", scores: [0.1, 0.1, 0.1], specimen: 1 },
  ],
  [["torn.jpg", "decode", "truncated"]],
);
const SPECIES = grouped.mineralOf("species:quartz");
const found = (change) => select(grouped, { ...ALL, ...change });

test("a mineral is found by its names in other languages, by what is broader, and by their beginnings", () => {
  assert.deepEqual(found({ query: "Achat" }), [1]);
  assert.deepEqual(found({ query: "elem" }), [2]);
  assert.deepEqual(found({ query: "or" }), [TORN], "too short for a name: only in the path");
  assert.deepEqual(found({ query: "muell" }), []);
  assert.deepEqual(found({ query: "MULL" }), [3], "accents do not count");
});

test("a broader name covers its labels, and the images whose answer it is", () => {
  assert.deepEqual(found({ mineral: SPECIES }), [0, 1]);
  assert.deepEqual(found({ mineral: grouped.mineralOf("Oxides") }), [1]);
  assert.deepEqual(found({ mineral: SPECIES, least: 0.6 }), [0, 1]);
  assert.ok(Math.abs(grouped.score(0, SPECIES) - 0.67) < 1e-4);
  assert.equal(grouped.keyOf(SPECIES), "species:quartz");
  assert.equal(grouped.mineralOf("quartz"), QUARTZ, "the label comes first");
  assert.equal(grouped.mineralOf(""), -1);
  assert.ok(grouped.isTrue(1, SPECIES));
});

test("an image whose answer is a broader name is grouped by it", () => {
  const names = arrange(grouped, { ...ALL, order: "mineral" }).map((entry) => entry.group.name);
  assert.deepEqual(names, ["agate", "gold", "quartz", "no mineral", "could not be read"]);
});

test("photographs of a specimen come together, specimens by number", () => {
  const entries = arrange(grouped, { ...ALL, order: "specimen" });
  assert.deepEqual(entries.map((entry) => entry.item), [1, 3, 0, 2, TORN]);
  const groups = [...new Set(entries.map((entry) => entry.group))].map(({ name, answer, size }) => [name, answer, size]);
  assert.deepEqual(groups, [
    ["X-9", "no mineral", 2],
    ["X-10", "gold 90%", 1],
    ["of no specimen", "", 1],
    ["could not be read", "", 1],
  ]);
});
