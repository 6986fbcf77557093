// A card per image: its thumbnail or map, and its most probable minerals.

import { percent } from "./table.mjs";
import { make, makeButton, mapOf, showsMaps, table, thumbnailOf } from "./page.mjs";

/** @typedef {import("./select.mjs").Entry} Entry */

const SHOWN = 3; // scores on a card

/** @param {number} item @param {number} label the map to show, or -1 for the photograph */
export function picture(item, label = -1) {
  const source = table.isFailure(item) ? null : label >= 0 ? mapOf(item, label) : thumbnailOf(item);
  if (!source) return make("span", "picture", table.isFailure(item) ? "cannot be read" : "no thumbnail");
  const image = /** @type {HTMLImageElement} */ (make("img", ""));
  image.src = source;
  image.alt = label >= 0 ? `where the model looks for ${table.labels[label]}` : "";
  image.loading = "lazy";
  return make("span", "picture", image, label >= 0 ? make("span", "chip", table.labels[label]) : null);
}

/** @param {Entry} entry @returns {number} the label whose map its card shows: its own, else the most probable; or -1 */
export function mapToShow({ item, label }) {
  const maps = table.mapsOf(item);
  if (!showsMaps() || maps.length === 0) return -1;
  return maps.includes(label) ? label : label < 0 ? maps[0] : -1;
}

/** @param {number} item @param {number} label */
export function scoreRow(item, label) {
  const row = make("span", table.isFound(item, label) ? "score found" : "score");
  row.append(make("span", "label", labelMark(item, label), table.nameOf(label)));
  row.append(make("span", "value", percent(table.score(item, label))), meter(item, label));
  return row;
}

/** @param {number} item @param {number} label */
function meter(item, label) {
  const part = make("span", "part");
  part.style.width = `${100 * table.score(item, label)}%`;
  const cut = label < table.width ? make("span", "cut") : null; // broader names have no threshold
  if (cut) cut.style.left = `${100 * table.frame.thresholds[label]}%`;
  const element = make("span", "meter", part, cut);
  element.setAttribute("aria-hidden", "true");
  return element;
}

/**
 * A sign beside the color, for those who do not see colors.
 *
 * @param {number} item @param {number} label
 */
function labelMark(item, label) {
  const isTrue = table.isTrue(item, label);
  const isFound = table.isFound(item, label);
  if (!table.truth[item] || (!isTrue && !isFound)) return null;
  const right = isTrue && isFound;
  const sign = make("span", right ? "good" : "bad", right ? "✓ " : isTrue ? "○ " : "✗ ");
  sign.title = right ? "labeled" : isTrue ? "labeled, but not found" : "not labeled";
  return sign;
}

/** @param {number} item @param {number} focus a label to show in any case, or -1 */
function about(item, focus) {
  const name = make("span", "name", table.path(item).split("/").pop() ?? "");
  name.title = table.path(item);
  if (table.isFailure(item)) return make("span", "about", name, make("span", "bad", table.failure(item)[2]));
  const shown = [...table.answersOf(item), ...table.ranked(item)].slice(0, SHOWN);
  if (focus >= 0 && !shown.includes(focus)) shown[SHOWN - 1] = focus;
  const missed = table.missed(item).map((label) => table.labels[label]);
  const verdict = missed.length ? make("span", "bad verdict", `○ missed: ${missed.join(", ")}`) : null;
  const strange = table.unfamiliar.has(item) ? make("span", "verdict note", "unlike the training images") : null;
  const reason = table.damaged.get(item);
  const damaged = reason ? make("span", "verdict note", `only a part could be decoded: ${reason}`) : null;
  return make("span", "about", name, ...shown.map((label) => scoreRow(item, label)), verdict, strange, damaged);
}

/** @param {Entry} entry @param {number} focus @param {(from: HTMLElement) => void} onOpen */
export function makeCard(entry, focus, onOpen) {
  const button = makeButton("", () => onOpen(button), "card");
  button.append(picture(entry.item, mapToShow(entry)), about(entry.item, focus));
  return make("li", "", button);
}
