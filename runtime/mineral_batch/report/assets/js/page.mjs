// The page's data and elements. What comes from outside (names, labels, reasons) is only ever set as text.

import { Table } from "./table.mjs";

/** @param {Element} element */
const parsed = (element) => JSON.parse(element.textContent ?? "");

/** @param {string} id @returns {any} the element, of whatever kind it is in the page */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * An element with a class and children; strings become text, never markup.
 *
 * @param {string} name @param {string} className @param {...(Node | string | null)} children
 */
export function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  for (const child of children) if (child !== null) element.append(child);
  return element;
}

/** @param {string} text @param {() => void} onClick @param {string} className */
export function makeButton(text, onClick, className = "") {
  const button = /** @type {HTMLButtonElement} */ (make("button", className, text));
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}

function readTable() {
  const read = new Table(parsed(/** @type {Element} */ (document.querySelector("script.frame"))));
  for (const element of document.querySelectorAll("script.rows")) read.append(parsed(element));
  for (const rows of /** @type {any} */ (window).mineralPages ?? []) read.append(rows);
  return read;
}
export const table = readTable();

// Images inside the page: "item", or "item-label" for a map -> the element that holds it among others.
/** @type {Map<string, Element>} */
const blockOf = new Map();
for (const element of document.querySelectorAll("script.thumbnails, script.maps")) {
  for (const key of /** @type {HTMLElement} */ (element).dataset.keys?.split(" ") ?? []) {
    blockOf.set(key, element);
    const [item, label] = key.split("-").map(Number);
    if (label !== undefined) table.addMap(item, label);
  }
}
/** @type {Map<Element, Record<string, string>>} */
const openBlocks = new Map();

/** @param {string} key @returns {string | null} */
function embedded(key) {
  const element = blockOf.get(key);
  if (!element) return null;
  let block = openBlocks.get(element);
  if (!block) {
    if (openBlocks.size > 100) openBlocks.clear();
    block = /** @type {Record<string, string>} */ (parsed(element));
    openBlocks.set(element, block);
  }
  return `data:image/jpeg;base64,${block[key]}`;
}

/** @param {string} folder @param {number} item @param {string} suffix */
function fileOf(folder, item, suffix) {
  const thousand = String(Math.floor(item / 1000)).padStart(5, "0");
  return `${folder}/${thousand}/${String(item).padStart(8, "0")}${suffix}.jpg`;
}

/** @param {number} item @returns {string | null} the address of the thumbnail */
export function thumbnailOf(item) {
  return table.hasFile[item] ? fileOf("thumbs", item, "") : embedded(String(item));
}

/** @param {number} item @param {number} label @returns {string} the address of the map */
export function mapOf(item, label) {
  return embedded(`${item}-${label}`) ?? fileOf("maps", item, `-${label}`);
}

/** @param {string} path @returns {string | null} the address of the image itself; null for a name that is not text */
export function originalOf(path) {
  try {
    const address = path.split("/").map(encodeURIComponent).join("/");
    return path.startsWith("/") ? `file://${address}` : table.frame.origin + address;
  } catch {
    return null;
  }
}

/** Whether the cards show where the model looks. */
export function showsMaps() {
  return byId("maps")?.checked ?? false;
}
