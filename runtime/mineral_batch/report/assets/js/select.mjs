// Which images the gallery shows, and in which order.

import { folded } from "./table.mjs";

/** @typedef {import("./table.mjs").Table} Table */

/**
 * @typedef {object} Choice
 * @property {string} query part of the path, or the beginning of a mineral's name
 * @property {number} mineral a mineral, or -1
 * @property {number} least lowest probability
 * @property {string} kind a key of KINDS
 * @property {string} order a key of ORDERS, "mineral", "specimen" or "overview"
 */

/**
 * @typedef {object} Entry
 * @property {number} item
 * @property {number} label the label that the entry is about, or -1
 * @property {Group | null} group what it belongs to
 */

/**
 * @typedef {object} Group
 * @property {string} name
 * @property {number} label -1 where the group is not one of a mineral
 * @property {number} size how many images, shown or not
 * @property {string} [answer] of a specimen
 */

const UNREADABLE = -2;
/** @type {Record<number, [name: string, answer: string]>} what is no specimen */
const OTHERS = { [-1]: ["of no specimen", ""], [UNREADABLE]: ["could not be read", ""] };
/** @param {number} key of a group of images */
const rank = (key) => Math.max(0, -key);

/** Images of each mineral in the overview. */
export const FEW = 3;

/** @type {Record<string, (table: Table, item: number, mineral: number) => boolean>} */
export const KINDS = {
  all: () => true,
  found: (table, item) => table.found[item].length > 0,
  several: (table, item) => table.found[item].length > 1,
  nothing: (table, item) => table.found[item].length === 0,
  unsure: (table, item, mineral) =>
    mineral >= 0 ? table.isNear(item, mineral) : table.labels.some((_, label) => table.isNear(item, label)),
  failed: () => false,
  unfamiliar: (table, item) => table.unfamiliar.has(item),
  damaged: (table, item) => table.damaged.has(item),
  implausible: (table, item) => table.implausible.has(item),
  explained: (table, item) => table.mapsOf(item).length > 0,
  right: (table, item) =>
    table.truth[item] !== null && table.wrong(item).length === 0 && table.missed(item).length === 0,
  wrong: (table, item) => table.wrong(item).length > 0,
  missed: (table, item) => table.missed(item).length > 0,
};

/** @type {Record<string, (table: Table, items: number[], mineral: number) => number[]>} */
export const ORDERS = {
  probable: (table, items, mineral) => {
    const key = new Map(items.map((item) => [item, probability(table, item, mineral)]));
    return items.sort((a, b) => (key.get(b) ?? 0) - (key.get(a) ?? 0) || a - b);
  },
  unsure: (table, items) => items.sort((a, b) => table.distance(a) - table.distance(b) || a - b),
  file: (_, items) => items,
  name: (table, items) => {
    const collator = new Intl.Collator("en", { numeric: true });
    return items.sort((a, b) => collator.compare(table.path(a), table.path(b)) || a - b);
  },
};

/** @param {Table} table @param {number} item @param {number} mineral */
function probability(table, item, mineral) {
  return table.isFailure(item) ? -1 : table.score(item, mineral >= 0 ? mineral : table.best(item));
}

/**
 * With a mineral, its probability decides alone once there is a lowest one, so that one can look below its threshold.
 *
 * @param {Table} table @param {number} item @param {Choice} choice
 */
function isProbable(table, item, choice) {
  const { mineral, least, kind } = choice;
  if (mineral < 0) return least === 0 || table.score(item, table.best(item)) >= least;
  if (least > 0) return table.score(item, mineral) >= least;
  if (kind === "missed") return table.isTrue(item, mineral) || table.isFound(item, mineral);
  return kind === "unsure" || table.isFound(item, mineral);
}

/** @param {Table} table @param {Choice} choice @returns {number[]} items */
export function select(table, choice) {
  const items = [];
  const fits = KINDS[choice.kind];
  const query = folded(choice.query);
  const minerals = [...table.called(query)];
  /** @param {number} item */
  const isNamed = (item) =>
    !query ||
    folded(table.path(item)).includes(query) ||
    (!table.isFailure(item) && minerals.some((label) => table.isFound(item, label)));
  for (let item = 0; item < table.count; item++) {
    if (isProbable(table, item, choice) && fits(table, item, choice.mineral) && isNamed(item)) items.push(item);
  }
  const withFailures = choice.kind === "failed" || (choice.kind === "all" && choice.mineral < 0 && choice.least === 0);
  for (let item = table.count; withFailures && item < table.size; item++) if (isNamed(item)) items.push(item);
  return items;
}

/**
 * The overview is one of everything; whoever filters wants to see all that is left.
 *
 * @param {Choice} choice @returns {boolean} whether only the first few images of each mineral are shown
 */
export function showsFew({ order, query, mineral, least, kind }) {
  return order === "overview" && !query && mineral < 0 && least === 0 && kind === "all";
}

/** @param {Table} table @param {Choice} choice @returns {Entry[]} in order */
export function arrange(table, choice) {
  const items = select(table, choice);
  if (choice.order === "specimen") return bySpecimen(table, items, choice);
  if (choice.order === "mineral" || choice.order === "overview") return byMineral(table, items, choice);
  return ORDERS[choice.order](table, items, choice.mineral).map((item) => ({ item, label: choice.mineral, group: null }));
}

/**
 * The photographs of a specimen together, specimens by name; then those of none, and those that could not be read.
 *
 * @param {Table} table @param {number[]} items @param {Choice} choice @returns {Entry[]}
 */
function bySpecimen(table, items, choice) {
  const collator = new Intl.Collator("en", { numeric: true });
  /** @type {Map<number, number[]>} */
  const groups = new Map();
  for (const item of items) {
    const key = table.isFailure(item) ? UNREADABLE : table.specimen[item];
    const members = groups.get(key);
    if (members) members.push(item);
    else groups.set(key, [item]);
  }
  const named = [...groups].map(([key, members]) => {
    const [name, answer] = OTHERS[key] ?? table.specimens[key];
    return { key, members, group: { name, answer, label: -1, size: members.length } };
  });
  return named
    .sort((a, b) => rank(a.key) - rank(b.key) || collator.compare(a.group.name, b.group.name) || a.key - b.key)
    .flatMap(({ members, group }) => members.map((item) => ({ item, label: choice.mineral, group })));
}

/**
 * An image comes once with each of its minerals. The largest group is first; images without a mineral and those that
 * could not be read come last.
 *
 * @param {Table} table @param {number[]} items @param {Choice} choice @returns {Entry[]}
 */
function byMineral(table, items, choice) {
  const nothing = table.width + table.broader.length;
  const unreadable = nothing + 1;
  /** @type {Map<number, number[]>} */
  const groups = new Map();
  for (const item of items) {
    const found = table.isFailure(item) ? [unreadable] : [...table.found[item], ...table.answersOf(item)];
    let keys = found.length ? found : [nothing];
    if (choice.mineral >= 0 && !table.isFailure(item)) keys = [choice.mineral];
    for (const key of keys) {
      const members = groups.get(key);
      if (members) members.push(item);
      else groups.set(key, [item]);
    }
  }
  /** @param {number} key */
  const nameOf = (key) => (key === nothing ? "no mineral" : key === unreadable ? "could not be read" : table.nameOf(key));
  return [...groups]
    .sort(([a, some], [b, others]) => Number(a >= nothing) - Number(b >= nothing) || others.length - some.length || a - b)
    .flatMap(([key, members]) => {
      const label = key < nothing ? key : -1;
      const group = { name: nameOf(key), label, size: members.length };
      const shown = ORDERS.probable(table, members, label).slice(0, showsFew(choice) ? FEW : undefined);
      return shown.map((item) => ({ item, label, group }));
    });
}
