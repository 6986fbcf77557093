// Small tables to select from.

import { Table } from "./table.mjs";

const THRESHOLD = 0.5;
const BROADER = [
  ["quartz", "species", [0, 2]],
  ["Oxides", "class", [0, 2]],
  ["Elements", "class", [1]],
];
const NAMES = [
  ["agate", "achat", "quartz", "oxides"],
  ["gold", "oro", "elements"],
  ["quartz", "quarz", "oxides"],
];
const SPECIMENS = [
  ["X-10", "gold 90%"],
  ["X-9", "no mineral"],
];

/** Three labels, agate, gold and quartz, with thresholds of 0.5; what reaches them is found. */
export function makeTable(images, failures = []) {
  const labels = ["agate", "gold", "quartz"];
  const table = new Table({
    labels,
    thresholds: labels.map(() => THRESHOLD),
    low: labels.map(() => 1 / 3),
    high: labels.map(() => 2 / 3),
    count: images.length + 1, // with room for one more
    origin: "./",
    failures,
    broader: BROADER,
    names: NAMES,
    specimens: SPECIMENS,
  });
  table.count = images.length;
  table.size = images.length + failures.length;
  const scores = images.map((image) => image.scores ?? [0, 0, 0]);
  table.append({
    paths: images.map((image) => image.path),
    scores: Buffer.from(Uint16Array.from(scores.flat().map((score) => Math.round(score * 65535))).buffer).toString("base64"),
    found: scores.map((row) => [0, 1, 2].filter((i) => row[i] >= THRESHOLD).sort((a, b) => row[b] - row[a])),
    captured: null,
    unfamiliar: images.flatMap((image, i) => (image.isUnfamiliar ? [i] : [])),
    answers: Object.fromEntries(images.flatMap((image, i) => (image.answers ? [[i, image.answers]] : []))),
    specimen: images.map((image) => image.specimen ?? -1),
    implausible: images.flatMap((image, i) => (image.isImplausible ? [i] : [])),
    truth: images.map((image) => image.truth ?? null),
  });
  return table;
}
