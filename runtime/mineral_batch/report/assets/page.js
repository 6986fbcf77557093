"use strict";
// The gallery of a report. What comes from outside (names, labels, reasons) is only ever set as text.
(() => {
  const PER_PAGE = 60;
  const SHOWN = 3; // scores on a card
  const FULL_SCALE = 65535;
  const byId = (id) => document.getElementById(id);

  // --- Data -------------------------------------------------------------------------------------------------

  const parsed = (element) => JSON.parse(element.textContent);
  const frame = parsed(document.querySelector("script.frame"));
  const labels = frame.labels;
  const width = labels.length;
  const paths = [];
  const called = [];
  const captured = [];
  const truth = [];
  const hasFile = []; // in a report that is a folder
  const mapped = new Map(); // picture -> the labels that have a map of where the model looks
  const scores = new Uint16Array(frame.count * width);

  function bytesOf(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  function append(page) {
    const view = new DataView(bytesOf(page.scores).buffer);
    const start = paths.length;
    const first = start * width;
    for (let i = 0; i < view.byteLength / 2; i++) scores[first + i] = view.getUint16(2 * i, true);
    for (let i = 0; i < page.paths.length; i++) {
      paths.push(page.paths[i]);
      called.push(page.called[i]);
      captured.push(page.captured ? page.captured[i] : "");
      truth.push(page.truth ? page.truth[i] : null);
      hasFile.push(page.thumbnails ? page.thumbnails[i] === 1 : false);
    }
    for (const [i, found] of Object.entries(page.maps ?? {})) mapped.set(start + Number(i), found);
  }
  for (const element of document.querySelectorAll("script.rows")) append(parsed(element));
  for (const page of window.mineralPages ?? []) append(page);

  const blockOf = new Map(); // picture, or picture-label for a map -> the element that holds it
  for (const element of document.querySelectorAll("script.thumbnails, script.maps")) {
    for (const key of element.dataset.keys.split(" ")) {
      blockOf.set(key, element);
      const [item, label] = key.split("-").map(Number);
      if (label !== undefined) mapped.set(item, [...(mapped.get(item) ?? []), label]);
    }
  }
  const opened = new Map();

  function embedded(key) {
    const element = blockOf.get(key);
    if (!element) return null;
    if (!opened.has(element)) {
      if (opened.size > 100) opened.clear();
      opened.set(element, parsed(element));
    }
    return `data:image/jpeg;base64,${opened.get(element)[key]}`;
  }

  const fileOf = (folder, item, suffix) => {
    const thousand = String(Math.floor(item / 1000)).padStart(5, "0");
    return `${folder}/${thousand}/${String(item).padStart(8, "0")}${suffix}.jpg`;
  };
  const thumbnailOf = (item) => (hasFile[item] ? fileOf("thumbs", item, "") : embedded(String(item)));
  const mapOf = (item, label) => embedded(`${item}-${label}`) ?? fileOf("maps", item, `-${label}`);
  const mapsOf = (item) => mapped.get(item) ?? [];

  const isFailure = (item) => item >= frame.count;
  const failure = (item) => frame.failures[item - frame.count];
  const pathOf = (item) => (isFailure(item) ? failure(item)[0] : paths[item]);
  const score = (item, label) => scores[item * width + label] / FULL_SCALE;
  const percent = (value) => (value > 0 && value < 0.001 ? "<0.1 %" : `${(100 * value).toFixed(1)} %`);
  const logOdds = (p) => Math.log(Math.max(p, 1e-5)) - Math.log(Math.max(1 - p, 1e-5));

  function best(item) {
    let found = 0;
    for (let label = 1; label < width; label++) if (score(item, label) > score(item, found)) found = label;
    return found;
  }

  let distances = null; // of each picture's odds to the nearest threshold's, made when first asked for
  function distance(item) {
    if (!distances) {
      const cuts = frame.thresholds.map(logOdds);
      distances = new Float32Array(frame.count).fill(Infinity);
      for (let i = 0; i < frame.count; i++) {
        for (let label = 0; label < width; label++) {
          distances[i] = Math.min(distances[i], Math.abs(logOdds(score(i, label)) - cuts[label]));
        }
      }
    }
    return isFailure(item) ? Infinity : distances[item];
  }

  const isNear = (item, label) => score(item, label) >= frame.low[label] && score(item, label) <= frame.high[label];

  // --- What is chosen ---------------------------------------------------------------------------------------

  const kinds = {
    all: () => true,
    found: (item) => called[item].length > 0,
    several: (item) => called[item].length > 1,
    nothing: (item) => called[item].length === 0,
    unsure: (item, mineral) => (mineral >= 0 ? isNear(item, mineral) : labels.some((_, label) => isNear(item, label))),
    failed: () => false,
    explained: (item) => mapsOf(item).length > 0,
    right: (item) => truth[item] !== null && wrong(item).length + missed(item).length === 0,
    wrong: (item) => truth[item] !== null && wrong(item).length > 0,
    missed: (item) => truth[item] !== null && missed(item).length > 0,
  };
  const wrong = (item) => called[item].filter((label) => !truth[item].includes(label));
  const missed = (item) => truth[item].filter((label) => !called[item].includes(label));

  function choice() {
    return {
      query: byId("query").value.trim().toLowerCase(),
      mineral: labels.indexOf(byId("mineral").value),
      least: Number(byId("least").value),
      kind: byId("kind").value,
      order: byId("order").value,
    };
  }

  // Of a mineral that is chosen the least probability counts alone, so that one can look below its threshold.
  function hasScore(item, wanted) {
    if (wanted.mineral < 0) return wanted.least === 0 || score(item, best(item)) >= wanted.least;
    if (wanted.least > 0) return score(item, wanted.mineral) >= wanted.least;
    const missing = wanted.kind === "missed" && truth[item] !== null && missed(item).includes(wanted.mineral);
    return missing || wanted.kind === "unsure" || called[item].includes(wanted.mineral);
  }

  function chosen(wanted) {
    const items = [];
    const named = (item) => !wanted.query || pathOf(item).toLowerCase().includes(wanted.query);
    const fits = kinds[wanted.kind];
    for (let item = 0; item < frame.count; item++) {
      if (hasScore(item, wanted) && fits(item, wanted.mineral) && named(item)) items.push(item);
    }
    const withFailures = wanted.kind === "failed" || (wanted.kind === "all" && wanted.mineral < 0 && wanted.least === 0);
    for (let item = frame.count; withFailures && item < frame.count + frame.failures.length; item++) {
      if (named(item)) items.push(item);
    }
    return items;
  }

  const keyOf = (item, mineral) => (isFailure(item) ? -1 : score(item, mineral >= 0 ? mineral : best(item)));
  const orders = {
    probable: (items, mineral) => items.sort((a, b) => keyOf(b, mineral) - keyOf(a, mineral) || a - b),
    unsure: (items) => items.sort((a, b) => distance(a) - distance(b) || a - b),
    file: (items) => items,
    name: (items) => {
      const collator = new Intl.Collator("en", { numeric: true });
      return items.sort((a, b) => collator.compare(pathOf(a), pathOf(b)) || a - b);
    },
  };

  // [{item, group}]: in the order of minerals a photograph comes once with each of its minerals.
  function arranged(wanted) {
    const items = chosen(wanted);
    if (wanted.order !== "mineral") {
      return orders[wanted.order](items, wanted.mineral).map((item) => ({ item, label: wanted.mineral, group: null }));
    }
    return grouped(items, wanted);
  }

  function grouped(items, wanted) {
    const groups = new Map();
    const into = (name) => groups.get(name) ?? groups.set(name, []).get(name);
    for (const item of items) {
      if (isFailure(item)) into(width + 1).push(item);
      else if (wanted.mineral >= 0) into(wanted.mineral).push(item);
      else if (called[item].length === 0) into(width).push(item);
      else for (const label of called[item]) into(label).push(item);
    }
    const names = [...labels, "Without a mineral", "Could not be read"];
    return [...groups.keys()]
      .sort((a, b) => (a >= width || b >= width ? a - b : labels[a].localeCompare(labels[b])))
      .flatMap((key) => {
        const members = orders.probable(groups.get(key), key < width ? key : -1);
        const group = `${names[key]} (${members.length.toLocaleString("en")})`;
        return members.map((item) => ({ item, label: key < width ? key : -1, group }));
      });
  }

  // --- Elements ---------------------------------------------------------------------------------------------

  function make(name, className, ...children) {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.append(...children.filter((child) => child !== null)); // strings become text, never markup
    return element;
  }

  // The photograph, or with a label its map over it.
  function picture(item, label = -1) {
    const source = isFailure(item) ? null : label >= 0 ? mapOf(item, label) : thumbnailOf(item);
    if (!source) return make("span", "picture", isFailure(item) ? "cannot be read" : "no thumbnail");
    const image = make("img");
    image.src = source;
    image.alt = label >= 0 ? `where the model looks for ${labels[label]}` : "";
    image.loading = "lazy";
    return make("span", "picture", image, label >= 0 ? make("span", "chip", labels[label]) : null);
  }

  // Of which label a card shows the map: the one that it is about, or else the most probable one.
  function mapToShow(item, label) {
    if (!looks() || mapsOf(item).length === 0) return -1;
    return mapsOf(item).includes(label) ? label : label < 0 ? mapsOf(item)[0] : -1;
  }
  const looks = () => byId("maps")?.checked ?? false;

  function meter(item, label) {
    const part = make("span", "part");
    part.style.width = `${100 * score(item, label)}%`;
    const cut = make("span", "cut");
    cut.style.left = `${100 * frame.thresholds[label]}%`;
    const element = make("span", "meter", part, cut);
    element.setAttribute("aria-hidden", "true");
    return element;
  }

  function scoreRow(item, label) {
    const isCalled = called[item].includes(label);
    const row = make("span", isCalled ? "score called" : "score");
    row.append(make("span", "label", mark(item, label), labels[label]));
    row.append(make("span", "value", percent(score(item, label))), meter(item, label));
    return row;
  }

  // A sign beside the colour, for those who do not see it.
  function mark(item, label) {
    if (!truth[item]) return null;
    const isTrue = truth[item].includes(label);
    const isCalled = called[item].includes(label);
    if (!isTrue && !isCalled) return null;
    const right = isTrue && isCalled;
    const sign = make("span", right ? "good" : "bad", right ? "✓ " : isTrue ? "○ " : "✗ ");
    sign.title = right ? "labelled" : isTrue ? "labelled, but not called" : "not labelled";
    return sign;
  }

  const ranked = (item) => labels.map((_, label) => label).sort((a, b) => score(item, b) - score(item, a));

  function about(item, focus) {
    const name = make("span", "name", pathOf(item).split("/").pop());
    name.title = pathOf(item);
    const children = [name];
    if (isFailure(item)) return make("span", "about", ...children, make("span", "bad", failure(item)[2]));
    const shown = ranked(item).slice(0, SHOWN);
    if (focus >= 0 && !shown.includes(focus)) shown[SHOWN - 1] = focus;
    children.push(...shown.map((label) => scoreRow(item, label)));
    const lacking = truth[item] ? missed(item) : [];
    if (lacking.length) {
      children.push(make("span", "bad verdict", `○ missed: ${lacking.map((label) => labels[label]).join(", ")}`));
    }
    return make("span", "about", ...children);
  }

  // A card is about `label` where it stands in a group of that mineral or is one of its mistakes.
  function card(item, at, list, focus, label) {
    const button = make("button", "card", picture(item, mapToShow(item, label)), about(item, focus));
    button.type = "button";
    button.addEventListener("click", () => showDetail(list, at, button));
    return make("li", "", button);
  }

  // --- The gallery ------------------------------------------------------------------------------------------

  let entries = [];
  let page = 0;
  const lastPage = () => Math.max(0, Math.ceil(entries.length / PER_PAGE) - 1);

  function update() {
    const wanted = choice();
    byId("least-value").value = wanted.least.toFixed(2);
    entries = arranged(wanted);
    page = 0;
    const items = new Set(entries.map((entry) => entry.item)).size;
    const all = frame.count + frame.failures.length;
    byId("found").textContent = `${items.toLocaleString("en")} of ${all.toLocaleString("en")} photographs`;
    draw();
  }

  function draw() {
    const shown = entries.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
    const focus = labels.indexOf(byId("mineral").value);
    const content = [];
    let group;
    let cards;
    for (const [at, entry] of shown.entries()) {
      if (!cards || entry.group !== group) {
        group = entry.group;
        cards = make("ul", "cards");
        content.push(...(group ? [make("h3", "", group), cards] : [cards]));
      }
      cards.append(card(entry.item, at, shown, focus, entry.label));
    }
    byId("cards").replaceChildren(...content);
    buttons().forEach((button, index) => (button.tabIndex = index === 0 ? 0 : -1));
    drawPages();
  }

  function drawPages() {
    const go = (text, to) => {
      const button = make("button", "", text);
      button.disabled = to < 0 || to > lastPage();
      button.addEventListener("click", () => turn(to, true));
      return button;
    };
    const place = make("span", "", `page ${page + 1} of ${(lastPage() + 1).toLocaleString("en")}`);
    const parts = [go("First", page ? 0 : -1), go("Previous", page - 1), place, go("Next", page + 1)];
    byId("pages").replaceChildren(...parts, go("Last", page < lastPage() ? lastPage() : -1));
    byId("pages").hidden = lastPage() === 0;
  }

  function turn(to, scroll) {
    page = to;
    draw();
    if (scroll) byId("gallery").scrollIntoView();
  }

  const buttons = () => [...byId("cards").querySelectorAll(".card")];

  function focusCard(button) {
    for (const other of buttons()) other.tabIndex = other === button ? 0 : -1;
    button.focus();
  }

  // The card above or below: the nearest one in the next row.
  function vertical(from, direction) {
    const place = from.getBoundingClientRect();
    const places = buttons().map((button) => ({ button, box: button.getBoundingClientRect() }));
    const beyond = places.filter(({ box }) => direction * (box.top - place.top) > 4);
    const gap = ({ box }) => 100 * Math.abs(box.top - place.top) + Math.abs(box.left - place.left);
    return beyond.sort((a, b) => gap(a) - gap(b))[0]?.button;
  }

  function step(from, direction) {
    const all = buttons();
    const to = all.indexOf(from) + direction;
    if (to >= 0 && to < all.length) return all[to];
    const next = page + direction;
    if (next < 0 || next > lastPage()) return null;
    turn(next, false);
    return buttons().at(direction > 0 ? 0 : -1);
  }

  const moves = {
    ArrowRight: (from) => step(from, 1),
    ArrowLeft: (from) => step(from, -1),
    ArrowDown: (from) => vertical(from, 1),
    ArrowUp: (from) => vertical(from, -1),
    Home: () => buttons()[0],
    End: () => buttons().at(-1),
  };

  byId("cards").addEventListener("keydown", (event) => {
    const from = event.target.closest(".card");
    if (!from || !(event.key in moves) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const to = moves[event.key](from);
    if (to) focusCard(to);
  });

  // --- One photograph ---------------------------------------------------------------------------------------

  const dialog = byId("detail");
  // map: the label whose map is seen, -1 for the photograph; looks: whether maps come first in the next one, too.
  let detail = { list: [], at: 0, from: null, map: -1, looks: false };

  function showDetail(list, at, from) {
    const map = mapToShow(list[at].item, list[at].label);
    detail = { list, at, from, map, looks: looks() };
    drawDetail();
    if (!dialog.open) dialog.showModal();
  }

  function drawDetail() {
    const { item } = detail.list[detail.at];
    const name = make("h2", "", pathOf(item));
    name.id = "detail-name";
    const close = make("button", "close", "Close");
    close.addEventListener("click", () => dialog.close());
    const turns = [-1, 1].map((by) => {
      const button = make("button", "", by < 0 ? "← Previous" : "Next →");
      button.disabled = !(detail.at + by in detail.list);
      button.addEventListener("click", () => turnDetail(by));
      return button;
    });
    const right = isFailure(item)
      ? make("p", "", `Could not be read (${failure(item)[1]}): ${failure(item)[2]}`)
      : make("div", "scores", ...facts(item), ...ranked(item).map((label) => scoreRow(item, label)));
    const views = viewsOf(item);
    const left = make("div", "", picture(item, detail.map), views.length > 1 ? switcher(item, views) : null);
    dialog.replaceChildren(make("div", "buttons", ...turns, close), name, make("div", "two", left, right));
  }

  const viewsOf = (item) => [-1, ...mapsOf(item)];

  // Small pictures of the photograph and its maps, side by side: a click puts one in the large place.
  function switcher(item, views) {
    const buttons = views.map((label) => {
      const caption = label < 0 ? "photograph" : `${labels[label]} ${percent(score(item, label))}`;
      const small = picture(item, label);
      small.querySelector(".chip")?.remove();
      const button = make("button", "view", small, make("span", "", caption));
      button.dataset.label = label;
      button.setAttribute("aria-pressed", String(label === detail.map));
      button.addEventListener("click", () => look(label));
      return button;
    });
    const strip = make("div", "views", ...buttons);
    strip.setAttribute("role", "group");
    strip.setAttribute("aria-label", "Where the model looks");
    const note = make("p", "note", "Yellow: what speaks most for the mineral; dark: what does not. ");
    note.append(make("span", "keys", "The key M goes through photograph and maps."));
    return make("div", "", strip, note);
  }

  function look(label) {
    const { item } = detail.list[detail.at];
    detail.map = label;
    detail.looks = label >= 0;
    dialog.querySelector(".two .picture").replaceWith(picture(item, label));
    for (const button of dialog.querySelectorAll(".view")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.label) === label));
    }
  }

  function facts(item) {
    const lines = [];
    if (captured[item]) lines.push(make("p", "note", `Taken ${captured[item].replace("T", " ")}`));
    if (truth[item]) {
      const names = truth[item].map((label) => labels[label]).join(", ") || "none of these minerals";
      lines.push(make("p", "", `Labelled: ${names}`));
    }
    const link = original(pathOf(item));
    if (link) lines.push(link);
    return lines;
  }

  function original(path) {
    let address;
    try {
      address = path.split("/").map(encodeURIComponent).join("/");
    } catch {
      return null; // a name that is no text has no address
    }
    const link = make("a", "", "Open the photograph itself");
    link.href = path.startsWith("/") ? `file://${address}` : frame.origin + address;
    link.target = "_blank";
    link.rel = "noreferrer";
    return make("p", "", link);
  }

  function turnDetail(by) {
    if (!(detail.at + by in detail.list)) return;
    detail.at += by;
    const { item, label } = detail.list[detail.at];
    if (detail.looks) detail.map = mapsOf(item).includes(label) ? label : (mapsOf(item)[0] ?? -1);
    drawDetail();
    const [previous, next] = dialog.querySelectorAll("button");
    const same = by < 0 ? previous : next;
    (same.disabled ? dialog.querySelector(".close") : same).focus();
  }

  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) turnDetail(by);
    const views = viewsOf(detail.list[detail.at].item);
    if (event.key.toLowerCase() === "m") look(views[(views.indexOf(detail.map) + 1) % views.length]);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => {
    // Back to the photograph that was looked at last, where it is in sight.
    const seen = detail.from?.closest("#cards") ? buttons()[detail.at] : null;
    if (seen) focusCard(seen);
    else detail.from?.focus();
  });

  // --- Start ------------------------------------------------------------------------------------------------

  function strip(id, mistakes) {
    const list = mistakes.map(([item, label]) => ({ item, label }));
    const cards = make("ul", "cards", ...list.map(({ item, label }, at) => card(item, at, list, label, label)));
    byId(id)?.replaceChildren(cards);
  }
  function drawMistakes() {
    strip("alarms", frame.alarms ?? []);
    strip("misses", frame.misses ?? []);
  }
  drawMistakes();

  for (const button of document.querySelectorAll("button[data-mineral]")) {
    button.addEventListener("click", () => {
      byId("controls").reset();
      byId("mineral").value = button.dataset.mineral;
      update();
      byId("gallery").scrollIntoView();
    });
  }

  // Other pictures on the same cards: nothing is chosen anew and the page stays where it is.
  function drawMaps() {
    byId("legend").hidden = !looks();
    draw();
    drawMistakes();
  }

  let waiting = null;
  byId("controls").addEventListener("input", (event) => {
    if (event.target.id === "maps") {
      drawMaps();
      return;
    }
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("controls").addEventListener("reset", () =>
    setTimeout(() => {
      if (byId("maps")) drawMaps();
      update();
    }),
  );

  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const isDark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
  });

  update();
})();
