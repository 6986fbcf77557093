// The review page. It holds a few photographs of the chosen order at a time; the server holds the rest.

const $ = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;

const PRELOADED = 3;

const page = {
  labels: [], images: 0, counts: {}, size: 60, left: {}, hasMaps: false,
  items: [], at: 0, next: 0, edition: 0, isEnd: false, // a stretch of the order, the place in it, where the next stretch begins
  chosen: new Set(), map: -1, zoom: 1, x: 0, y: 0, isGrid: false, isBusy: false, isStale: false, confirming: null,
  preloaded: new Map(), // row -> the image that is being fetched
};

class Refused extends Error {}

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused("The program that serves this page has stopped. Start mineral-batch review again; nothing is lost.");
  }
  if (!answer.ok) throw new Refused(await answer.text());
  return answer.json();
}

function fail(error) {
  $("problem").textContent = error.message;
  $("problem").hidden = false;
  if (!(error instanceof Refused)) console.error(error);
}

/** Run one action at a time; what is pressed meanwhile is dropped, so that no key decides an image that is not shown. */
async function act(action) {
  if (page.isBusy) return;
  page.isBusy = true;
  $("problem").hidden = true;
  try {
    await action();
  } catch (error) {
    fail(error);
  } finally {
    page.isBusy = false;
  }
  if (page.isStale) changed();
}

/** Another order was chosen: never dropped, or the page would show something else than its controls say. */
function changed() {
  page.isStale = page.isBusy;
  if (!page.isBusy) act(restart);
}

// ---------------------------------------------------------------- the order

async function load() {
  const limit = page.isGrid ? page.size : 20;
  const query = new URLSearchParams({
    order: $("order").value, label: $("mineral").value, offset: page.next, limit,
    undecided: $("undecided").checked ? "1" : "0", called: page.isGrid && !$("below").checked ? "1" : "0",
  });
  if (page.next > 0) query.set("edition", page.edition); // the server may have a better order by now: that is for later
  const found = await ask(`api/queue?${query}`);
  page.items.push(...found.items);
  page.next = found.next;
  page.edition = found.edition;
  page.isEnd = found.items.length < limit;
}

async function restart() {
  Object.assign(page, { items: [], at: 0, next: 0, isEnd: false });
  $("mineral-field").hidden = $("order").value !== "mineral";
  $("below-field").hidden = !page.isGrid;
  await load();
  show();
}

/** How many photographs are left in each mineral, in the menu. */
async function showLeft() {
  page.left = await ask("api/left");
  for (const entry of $("mineral").options) {
    entry.textContent = page.left[entry.value] === undefined ? entry.value : `${entry.value} (${page.left[entry.value]} left)`;
  }
}

const current = () => page.items[page.at];

async function step(by) {
  const to = page.at + by;
  if (to < 0) return;
  if (to >= page.items.length && !page.isEnd) await load();
  page.at = Math.min(to, page.items.length);
  show();
}

// ---------------------------------------------------------------- one photograph

function show() {
  if (page.isStale) return; // these images were asked for before another order was chosen, which is loaded next
  $("single").hidden = page.isGrid || !current();
  $("grid").hidden = !page.isGrid || page.items.length === 0;
  $("done").hidden = page.isGrid ? page.items.length > 0 : Boolean(current());
  $("done").textContent = page.isGrid && !$("below").checked
    ? `Nothing left in which the model reports ${$("mineral").value}.` : "Nothing left in this order.";
  showProgress();
  if (page.isGrid) showGrid();
  else if (current()) showImage(current());
}

function showProgress() {
  const { labeled = 0, unsure = 0, rejected = 0 } = page.counts;
  const parts = [`${labeled} of ${page.images} labeled`];
  if (unsure) parts.push(`${unsure} unsure`);
  if (rejected) parts.push(`${rejected} rejected`);
  $("progress").textContent = parts.join(", ");
}

function showImage(item) {
  page.chosen = new Set(known(item));
  Object.assign(page, { map: -1, zoom: 1, x: 0, y: 0 });
  $("name").textContent = item.name;
  $("given").textContent = item.given === null ? "" : `Existing label: ${item.given.join(", ") || "none of them"}`;
  $("damaged").textContent = item.damaged ? `Only a part of this file could be decoded: ${item.damaged}` : "";
  $("before").textContent = item.decision ? said(item.decision) : "";
  window.scrollTo(0, 0); // on a narrow screen, Save is below the photograph
  $("search").value = "";
  showPhoto();
  showMaps(item);
  showChoice();
}

function said({ status, minerals, reviewer, time }) {
  const names = minerals.join(", ");
  const what = { labeled: names || "none of them", unsure: "unsure", rejected: `not ${names}` }[status];
  return `Decided: ${what} (${reviewer}, ${time.slice(0, 10)})`;
}

function showPhoto() {
  const item = current();
  const photo = $("photo");
  $("gone").hidden = true;
  photo.hidden = false;
  photo.alt = page.map < 0 ? item.name : `Where the model looks for ${item.maps[page.map]}`;
  photo.src = page.map < 0 ? `image/${item.row}` : `map/${item.row}/${page.map}`;
  wait(!photo.complete); // the browser shows the last photograph until the next one is there
  move();
}

function wait(isOn) {
  $("view").setAttribute("aria-busy", String(isOn));
  if (!isOn) preload(); // the photograph that is waited for comes first
}

const isWaiting = () => $("view").getAttribute("aria-busy") === "true";

/** Get the next photographs, one after the other, while this one is looked at; what is not next any more is let go. */
function preload() {
  const next = page.items.slice(page.at + 1, page.at + 1 + PRELOADED).map(({ row }) => row);
  for (const row of page.preloaded.keys()) if (!next.includes(row)) page.preloaded.delete(row);
  const row = next.find((one) => !page.preloaded.has(one));
  if (isWaiting() || row === undefined || [...page.preloaded.values()].some((image) => !image.complete)) return;
  const image = new Image();
  image.addEventListener("load", preload);
  image.addEventListener("error", preload);
  image.src = `image/${row}`;
  page.preloaded.set(row, image);
}

function showMaps(item) {
  $("maps").hidden = item.maps.length === 0;
  $("maps").replaceChildren($("maps-name"), ...item.maps.map((label, number) => {
    const button = element("button", label);
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.title = `Where the model looks for ${label}`;
    button.addEventListener("click", () => toggleMap(number));
    return button;
  }));
}

function toggleMap(number) {
  page.map = page.map === number ? -1 : number;
  $("maps").querySelectorAll("button").forEach((button, index) => button.setAttribute("aria-pressed", String(index === page.map)));
  showPhoto();
}

function nextMap() {
  const maps = current()?.maps ?? [];
  if (maps.length) return toggleMap(page.map + 1 < maps.length ? page.map + 1 : page.map); // after the last, the photograph
  fail(new Refused(page.hasMaps
    ? "There is no map of this photograph."
    : "There are no maps. Stop with Ctrl-C, make them with mineral-batch explain PHOTOS -o maps, and start the review again with --explained maps."));
}

function showChoice() {
  const item = current();
  const isShown = new Set(item.candidates.map(({ label }) => label));
  const others = [...page.chosen].filter((label) => !isShown.has(label));
  $("candidates").replaceChildren(
    ...item.candidates.map(({ label, probability }, index) => choice(label, percent(probability), String(index + 1))),
    ...others.map((label) => choice(label, "", "")),
  );
  $("chosen").textContent = page.chosen.size ? `Save: ${[...page.chosen].join(", ")}` : "Save: none of them";
  showFound();
}

function choice(label, right, key) {
  const entry = element("li");
  const button = element("button");
  button.type = "button";
  button.setAttribute("aria-pressed", String(page.chosen.has(label)));
  button.append(element("kbd", key), element("span", label), element("span", right));
  button.addEventListener("click", () => toggle(label));
  entry.append(button);
  return entry;
}

function toggle(label) {
  if (!page.chosen.delete(label)) page.chosen.add(label);
  showChoice();
}

// ---------------------------------------------------------------- finding any label

export function matching(labels, text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const starts = labels.filter((label) => label.toLowerCase().startsWith(wanted));
  const inside = labels.filter((label) => !starts.includes(label) && label.toLowerCase().includes(wanted));
  return [...starts, ...inside].slice(0, 8);
}

function showFound() {
  const text = $("search").value.trim();
  const found = matching(page.labels, text);
  const entries = found.map((label) => option(label, label));
  if (text && !page.labels.some((label) => label.toLowerCase() === text.toLowerCase())) {
    const isAsked = page.confirming === text;
    entries.push(option(text, isAsked ? `“${text}” is not a label yet: Enter again adds it` : `New label “${text}”`));
  }
  $("found").replaceChildren(...entries);
}

function option(label, text) {
  const entry = element("li");
  const button = element("button", text);
  button.type = "button";
  button.addEventListener("click", () => pick(label));
  entry.append(button);
  return entry;
}

/** Choose a label that was searched for; a new one only when it is confirmed, as a slip of the finger is none. */
function pick(label) {
  if (!page.labels.includes(label)) {
    if (page.confirming !== label) {
      page.confirming = label;
      return showFound();
    }
    page.labels.push(label);
  }
  page.confirming = null;
  page.chosen.add(label);
  $("search").value = "";
  showChoice();
}

// ---------------------------------------------------------------- deciding

const decide = (status, minerals) => act(async () => {
  const item = current();
  if (!item || isWaiting()) return; // nobody has seen it yet
  const { counts } = await ask("api/decide", { decisions: [{ row: item.row, status, minerals }] });
  page.counts = counts;
  item.decision = { status, minerals, reviewer: "you", time: new Date().toISOString() };
  await step(1);
});

const undo = () => act(async () => {
  const { row, counts } = await ask("api/undo", {});
  page.counts = counts;
  if (row === null) return showProgress();
  if (page.isGrid) await showLeft();
  const fresh = await ask(`api/item/${row}`);
  const at = page.items.findIndex((item) => item.row === row);
  if (at >= 0) page.items[at] = { ...page.items[at], ...fresh };
  else page.items.splice(page.at, 0, fresh);
  page.at = at >= 0 ? at : page.at;
  show();
});

// ---------------------------------------------------------------- the grid

/** What a person said that a photograph shows, here or in the existing labels; null if nobody did. */
const labeled = (item) => (item.decision?.status === "labeled" ? item.decision.minerals : item.given);

/** The same, or else what the model says: what Enter saves. */
const known = (item) => labeled(item) ?? item.machine;

function showGrid() {
  const mineral = $("mineral").value;
  // What the model, or a person, did not call the mineral begins as not the mineral: one key must not label it.
  page.wrong = new Set(page.items.filter((item) => !known(item).includes(mineral)).map(({ row }) => row));
  $("question").textContent = page.wrong.size
    ? `Which of these ${page.items.length} are ${mineral}? Faded: not ${mineral}. Select one to change it.`
    : page.items.length === 1
      ? `Is this ${mineral}? Select it if it is not.`
      : `Are these ${page.items.length} all ${mineral}? Select those that are not.`;
  $("tiles").replaceChildren(...page.items.map((item) => {
    const tile = element("button");
    tile.type = "button";
    tile.setAttribute("aria-pressed", String(page.wrong.has(item.row)));
    tile.setAttribute("aria-label", `${item.name}: not ${mineral}`);
    const image = new Image();
    image.loading = "lazy";
    image.alt = "";
    image.src = `thumbnail/${item.row}`;
    const caption = element("span", item.probability === undefined ? "" : percent(item.probability));
    caption.append(element("i", `not ${mineral}`));
    tile.append(image, caption);
    tile.addEventListener("click", () => {
      if (!page.wrong.delete(item.row)) page.wrong.add(item.row);
      tile.setAttribute("aria-pressed", String(page.wrong.has(item.row)));
    });
    return tile;
  }));
}

const confirmPage = () => act(async () => {
  const mineral = $("mineral").value;
  const decisions = page.items.map((item) => {
    const { row } = item;
    if (!page.wrong.has(row)) return { row, status: "labeled", minerals: [...new Set([...known(item), mineral])] };
    // A person's other minerals stay; of a photograph that nobody labeled, only this one is known.
    if (labeled(item) === null) return { row, status: "rejected", minerals: [mineral] };
    return { row, status: "labeled", minerals: known(item).filter((label) => label !== mineral) };
  });
  const { counts } = await ask("api/decide", { decisions });
  page.counts = counts;
  page.items = [];
  await showLeft();
  if (!page.isEnd) await load();
  show();
});

const toggleGrid = () => act(async () => {
  page.isGrid = !page.isGrid;
  $("mode").textContent = page.isGrid ? "One by one" : "Grid";
  if (page.isGrid) {
    $("order").value = "mineral";
    await showLeft();
    const first = page.labels.find((label) => page.left[label] > 0);
    if (first && !page.left[$("mineral").value]) $("mineral").value = first;
  }
  await restart();
});

// ---------------------------------------------------------------- zoom and keys

function move() {
  $("photo").style.transform = `translate(${page.x}px, ${page.y}px) scale(${page.zoom})`;
}

function zoomBy(factor) {
  page.zoom = Math.min(12, Math.max(1, page.zoom * factor));
  if (page.zoom === 1) page.x = page.y = 0;
  move();
}

const SHIFTED = { U: () => decide("unsure", []), Z: undo, G: toggleGrid, H: () => $("keys").showModal(),
  M: nextMap };
const PAN = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };

function pressed(event) {
  if ($("keys").open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target instanceof HTMLSelectElement) return;
  if (keyAction(event)) event.preventDefault();
}

function keyAction(event) {
  const { key } = event;
  const search = $("search");
  const isTyping = search.value !== "";
  const onButton = event.target instanceof HTMLButtonElement || event.target instanceof HTMLAnchorElement;
  if (event.shiftKey && SHIFTED[key]) return run(SHIFTED[key]);
  if (page.isGrid && PAN[key]) return walk(key);
  if (page.isGrid) return key === "Enter" && (event.shiftKey || !onButton) && run(confirmPage);
  if (event.shiftKey && PAN[key]) return run(() => { page.x += PAN[key][0]; page.y += PAN[key][1]; move(); });
  if (key === "Enter" && isTyping) return run(() => $("found").querySelector("button")?.click());
  if (key === "Enter" && !onButton) return run(() => decide("labeled", [...page.chosen]));
  if (key === "Escape") return run(() => { search.value = ""; showFound(); search.blur(); });
  if (isTyping) return event.target !== search && key.length === 1 && run(() => { search.value += key; search.focus(); showFound(); });
  if (key === "0") return run(() => decide("labeled", []));
  if (/^[1-9]$/.test(key)) return run(() => { const found = current()?.candidates[Number(key) - 1]; if (found) toggle(found.label); });
  if (key === "ArrowRight") return run(() => act(() => step(1)));
  if (key === "ArrowLeft") return run(() => act(() => step(-1)));
  if (key === "+" || key === "=") return run(() => zoomBy(1.25));
  if (key === "-") return run(() => zoomBy(0.8));
  if (/^\p{L}$/u.test(key) && event.target !== search) return run(() => { search.value = key; search.focus(); showFound(); });
  return false;
}

/** Move from tile to tile, as in a table. */
function walk(key) {
  const tiles = [...$("tiles").children];
  const columns = tiles.filter((tile) => tile.offsetTop === tiles[0].offsetTop).length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const at = tiles.indexOf(document.activeElement);
  tiles[at < 0 ? 0 : at + by]?.focus();
  return true;
}

function run(action) {
  action();
  return true;
}

function drag(event) {
  if (page.zoom === 1) return;
  const start = { x: event.clientX - page.x, y: event.clientY - page.y };
  const to = (now) => { page.x = now.clientX - start.x; page.y = now.clientY - start.y; move(); };
  const stop = () => { window.removeEventListener("pointermove", to); window.removeEventListener("pointerup", stop); };
  window.addEventListener("pointermove", to);
  window.addEventListener("pointerup", stop);
  event.preventDefault();
}

// ---------------------------------------------------------------- start

function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => Object.assign(element("option", text), { value })));
}

async function start() {
  const state = await ask("api/state");
  Object.assign(page, { labels: state.labels, images: state.images, counts: state.counts, size: state.page, hasMaps: state.maps });
  fill($("order"), Object.entries(state.orders));
  fill($("mineral"), state.labels.map((label) => [label, label]));
  for (const id of ["order", "mineral", "undecided", "below"]) $(id).addEventListener("change", changed);
  const clicks = {
    mode: toggleGrid, undo, confirm: confirmPage, help: () => $("keys").showModal(),
    accept: () => decide("labeled", [...page.chosen]), none: () => decide("labeled", []), unsure: () => decide("unsure", []),
    previous: () => act(() => step(-1)), next: () => act(() => step(1)),
    "zoom-in": () => zoomBy(1.25), "zoom-out": () => zoomBy(0.8),
  };
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
  $("search").addEventListener("input", showFound);
  $("view").addEventListener("wheel", (event) => { zoomBy(event.deltaY < 0 ? 1.15 : 0.87); event.preventDefault(); }, { passive: false });
  $("view").addEventListener("pointerdown", drag);
  $("photo").addEventListener("load", () => wait(false));
  $("photo").addEventListener("error", () => {
    wait(false);
    $("photo").hidden = true;
    $("gone").hidden = false;
    $("gone").textContent = `This ${page.map < 0 ? "photograph" : "map"} is no longer there, or cannot be read.`;
  });
  document.addEventListener("keydown", pressed);
  await restart();
}

if (typeof document !== "undefined") act(start);
