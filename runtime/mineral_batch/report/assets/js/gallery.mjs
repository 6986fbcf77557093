// The gallery: a page of cards, and moving through them with the keyboard.

import { withCommas } from "./table.mjs";
import { FEW, arrange, showsFew } from "./select.mjs";
import { byId, make, makeButton, table } from "./page.mjs";
import { makeCard } from "./cards.mjs";
import { showDetail } from "./detail.mjs";

/** @typedef {import("./select.mjs").Choice} Choice */
/** @typedef {import("./select.mjs").Entry} Entry */
/** @typedef {import("./select.mjs").Group} Group */

const PER_PAGE = 60;

/** @type {Entry[]} */
let entries = [];
let page = 0;

function lastPage() {
  return Math.max(0, Math.ceil(entries.length / PER_PAGE) - 1);
}

/** @returns {Choice} */
function choice() {
  return {
    query: byId("query").value.trim(),
    mineral: table.mineralOf(byId("mineral").value),
    least: Number(byId("least").value),
    kind: byId("kind").value,
    order: byId("order").value,
  };
}

/** Select and order the images anew, by the controls. */
export function update() {
  const chosen = choice();
  byId("least-value").value = chosen.least.toFixed(2);
  entries = arrange(table, chosen);
  page = 0;
  const items = new Set(entries.map((entry) => entry.item)).size;
  const few = showsFew(chosen) && items < table.size ? `: up to ${FEW} of each mineral, the most probable` : "";
  byId("found").textContent = `${withCommas(items)} of ${withCommas(table.size)} photographs${few}`;
  drawGallery();
}

/** Show all images of a mineral, the most probable first. */
export function showMineral(/** @type {string} */ name) {
  byId("controls").reset();
  byId("mineral").value = table.keyOf(table.mineralOf(name));
  byId("order").value = "probable";
  update();
  byId("gallery").scrollIntoView();
}

export function drawGallery() {
  const shown = entries.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const focus = table.mineralOf(byId("mineral").value);
  /** @type {Group | null} */
  let group = null;
  const cards = shown.map((entry, at) => {
    const card = makeCard(entry, focus, () => showDetail(shown, at, focusNth));
    // Groups flow on in one grid: the first card of each carries its name.
    if (entry.group && entry.group !== group) card.prepend(heading(entry.group));
    group = entry.group;
    return card;
  });
  byId("cards").replaceChildren(make("ul", "cards", ...cards));
  buttons().forEach((button, index) => (button.tabIndex = index === 0 ? 0 : -1));
  drawPages();
}

/** @param {Group} group */
function heading({ name, label, size, answer }) {
  const text = `${name} (${withCommas(size)})`;
  if (answer) return make("h3", "group", text, make("span", "answer", answer));
  return make("h3", "group", label < 0 ? text : makeButton(text, () => showMineral(table.keyOf(label))));
}

function drawPages() {
  /** @param {string} text @param {number} to */
  const go = (text, to) => {
    const button = makeButton(text, () => turn(to, true));
    button.disabled = to < 0 || to > lastPage();
    return button;
  };
  const place = make("span", "", `page ${page + 1} of ${withCommas(lastPage() + 1)}`);
  const parts = [go("First", page ? 0 : -1), go("Previous", page - 1), place, go("Next", page + 1)];
  byId("pages").replaceChildren(...parts, go("Last", page < lastPage() ? lastPage() : -1));
  byId("pages").hidden = lastPage() === 0;
}

/** @param {number} to @param {boolean} scroll */
function turn(to, scroll) {
  page = to;
  drawGallery();
  if (scroll) byId("gallery").scrollIntoView();
}

/** @returns {HTMLElement[]} */
function buttons() {
  return [...byId("cards").querySelectorAll(".card")];
}

/** @param {HTMLElement} button */
function focusCard(button) {
  for (const other of buttons()) other.tabIndex = other === button ? 0 : -1;
  button.focus();
}

/** @param {number} at */
function focusNth(at) {
  focusCard(buttons()[at]);
}

/** @param {HTMLElement} from @param {number} direction @returns {HTMLElement | undefined} the nearest in the next row */
function vertical(from, direction) {
  const place = from.getBoundingClientRect();
  const places = buttons().map((button) => ({ button, box: button.getBoundingClientRect() }));
  const beyond = places.filter(({ box }) => direction * (box.top - place.top) > 4);
  /** @param {{ box: DOMRect }} other */
  const gap = ({ box }) => 100 * Math.abs(box.top - place.top) + Math.abs(box.left - place.left);
  return beyond.sort((a, b) => gap(a) - gap(b))[0]?.button;
}

/** @param {HTMLElement} from @param {number} direction @returns {HTMLElement | undefined} also on the next page */
function step(from, direction) {
  const all = buttons();
  const to = all.indexOf(from) + direction;
  if (to >= 0 && to < all.length) return all[to];
  const next = page + direction;
  if (next < 0 || next > lastPage()) return undefined;
  turn(next, false);
  return buttons().at(direction > 0 ? 0 : -1);
}

/** @type {Record<string, (from: HTMLElement) => HTMLElement | undefined>} */
const MOVES = {
  ArrowRight: (from) => step(from, 1),
  ArrowLeft: (from) => step(from, -1),
  ArrowDown: (from) => vertical(from, 1),
  ArrowUp: (from) => vertical(from, -1),
  Home: () => buttons()[0],
  End: () => buttons().at(-1),
};

export function startGallery() {
  byId("cards").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const from = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest(".card"));
    if (!from || !(event.key in MOVES) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const to = MOVES[event.key](from);
    if (to) focusCard(to);
  });
}
