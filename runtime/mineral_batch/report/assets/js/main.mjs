// The script of the report's page.

import { byId, make, showsMaps, table } from "./page.mjs";
import { makeCard } from "./cards.mjs";
import { showDetail, startDetail } from "./detail.mjs";
import { drawGallery, showMineral, startGallery, update } from "./gallery.mjs";

function drawMistakes() {
  for (const [id, mistakes] of Object.entries({ alarms: table.frame.alarms, misses: table.frame.misses })) {
    const list = (mistakes ?? []).map(([item, label]) => ({ item, label, group: null }));
    const cards = list.map((entry, at) => makeCard(entry, entry.label, (from) => showDetail(list, at, () => from.focus())));
    byId(id)?.replaceChildren(make("ul", "cards", ...cards));
  }
}

/** Change the images on the cards; the selection and the place on the page stay. */
function drawMaps() {
  if (!byId("maps")) return;
  byId("legend").hidden = !showsMaps();
  drawGallery();
  drawMistakes();
}

function startControls() {
  /** @type {number | undefined} */
  let waiting;
  byId("controls").addEventListener("input", (/** @type {Event} */ event) => {
    if (event.target === byId("maps")) {
      drawMaps();
      return;
    }
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  byId("controls").addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
  byId("controls").addEventListener("reset", () =>
    setTimeout(() => {
      drawMaps();
      update();
    }),
  );
  for (const button of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("button[data-mineral]"))) {
    button.addEventListener("click", () => showMineral(button.dataset.mineral ?? ""));
  }
}

/** On a telephone the controls would fill the first screen. */
function startFilters() {
  const isNarrow = matchMedia("(max-width: 36rem)");
  const fold = () => (byId("filters").open = !isNarrow.matches);
  isNarrow.addEventListener("change", fold);
  fold();
}

function startTheme() {
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const isDark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
  });
}

startGallery();
startDetail();
startControls();
startFilters();
startTheme();
drawMistakes();
update();
