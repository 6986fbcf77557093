// The dialog with one photograph, its maps and all of its probabilities.

import { percent } from "./table.mjs";
import { byId, make, makeButton, originalOf, showsMaps, table } from "./page.mjs";
import { mapToShow, picture, scoreRow } from "./cards.mjs";

/** @typedef {import("./select.mjs").Entry} Entry */

const dialog = /** @type {HTMLDialogElement} */ (byId("detail"));

/**
 * map: the label whose map is shown, or -1 for the photograph; keepsMaps: whether the next photograph starts with a map.
 *
 * @type {{ list: Entry[], at: number, map: number, keepsMaps: boolean, onClose: (at: number) => void }}
 */
let detail = { list: [], at: 0, map: -1, keepsMaps: false, onClose: () => {} };

/** @param {Entry[]} list to go through @param {number} at @param {(at: number) => void} onClose */
export function showDetail(list, at, onClose) {
  detail = { list, at, map: mapToShow(list[at]), keepsMaps: showsMaps(), onClose };
  drawDetail();
  if (!dialog.open) dialog.showModal();
}

function drawDetail() {
  const { item } = detail.list[detail.at];
  const name = make("h2", "", table.path(item));
  name.id = "detail-name";
  const turns = [-1, 1].map((by) => {
    const button = makeButton(by < 0 ? "← Previous" : "Next →", () => turnDetail(by));
    button.disabled = !(detail.at + by in detail.list);
    return button;
  });
  const buttons = make("div", "buttons", ...turns, makeButton("Close", () => dialog.close(), "close"));
  const right = table.isFailure(item)
    ? make("p", "", `Could not be read (${table.failure(item)[1]}): ${table.failure(item)[2]}`)
    : make("div", "scores", ...facts(item), ...[...table.answersOf(item), ...table.ranked(item)].map((label) => scoreRow(item, label)));
  const left = make("div", "", picture(item, detail.map), viewsOf(item).length > 1 ? switcher(item) : null);
  dialog.replaceChildren(buttons, name, make("div", "two", left, right));
  dialog.scrollTop = 0;
}

/** @param {number} item @returns {number[]} -1 for the photograph, then the labels of its maps */
function viewsOf(item) {
  return [-1, ...table.mapsOf(item)];
}

/**
 * Small images of the photograph and its maps side by side: a click shows one large.
 *
 * @param {number} item
 */
function switcher(item) {
  const views = viewsOf(item).map((label) => {
    const caption = label < 0 ? "photograph" : `${table.labels[label]} ${percent(table.score(item, label))}`;
    const small = picture(item, label);
    small.querySelector(".chip")?.remove();
    const button = makeButton("", () => showView(label), "view");
    button.append(small, make("span", "", caption));
    button.dataset.label = String(label);
    button.setAttribute("aria-pressed", String(label === detail.map));
    return button;
  });
  const strip = make("div", "views", ...views);
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", "Where the model looks");
  const note = make("p", "note", "Yellow: speaks most for the mineral; dark: does not. ");
  note.append(make("span", "hint", "M switches between photograph and maps."));
  return make("div", "", strip, note);
}

/** @param {number} label */
function showView(label) {
  const { item } = detail.list[detail.at];
  detail.map = label;
  detail.keepsMaps = label >= 0;
  dialog.querySelector(".two .picture")?.replaceWith(picture(item, label));
  for (const button of /** @type {NodeListOf<HTMLElement>} */ (dialog.querySelectorAll(".view"))) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.label) === label));
  }
}

/** @param {number} item */
function facts(item) {
  const lines = [];
  if (table.captured[item]) lines.push(make("p", "note", `Taken ${table.captured[item].replace("T", " ")}`));
  if (table.specimen[item] >= 0) {
    const [name, answer] = table.specimens[table.specimen[item]];
    lines.push(make("p", "", `Specimen ${name}: ${answer}`));
  }
  const truth = table.truth[item];
  if (truth) {
    const names = truth.map((label) => table.labels[label]).join(", ") || "none of these minerals";
    lines.push(make("p", "", `Labeled: ${names}`));
  }
  const address = originalOf(table.path(item));
  if (address) {
    const link = /** @type {HTMLAnchorElement} */ (make("a", "", "Open the photograph itself"));
    link.href = address;
    link.target = "_blank";
    link.rel = "noreferrer";
    lines.push(make("p", "", link));
  }
  return lines;
}

/** @param {number} by */
function turnDetail(by) {
  if (!(detail.at + by in detail.list)) return;
  detail.at += by;
  const { item, label } = detail.list[detail.at];
  const maps = table.mapsOf(item);
  if (detail.keepsMaps) detail.map = maps.includes(label) ? label : (maps[0] ?? -1);
  drawDetail();
  const [previous, next, close] = dialog.querySelectorAll("button");
  const same = by < 0 ? previous : next;
  (same.disabled ? close : same).focus();
}

export function startDetail() {
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "ArrowLeft") turnDetail(-1);
    if (event.key === "ArrowRight") turnDetail(1);
    const views = viewsOf(detail.list[detail.at].item);
    if (event.key.toLowerCase() === "m") showView(views[(views.indexOf(detail.map) + 1) % views.length]);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => detail.onClose(detail.at));
}
