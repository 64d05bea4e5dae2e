// Places: all of them as a list and on a map, and the photos of one.

import { asProblem, getJSON, key, request } from "./api.js";
import { Clusters } from "./clusters.js";
import { forgetPlaces, loadPlaces } from "./collection.js";
import { byId, el, showProblem } from "./dom.js";
import { count, fileName, heading, placeName, plural, position, when } from "./format.js";
import { fit, makeMap } from "./map.js";
import { thumb } from "./thumbs.js";
import { enlarge } from "./viewer.js";

const ROWS = 100; // at once
const PHOTOS = 60;

export class Places {
  constructor(settings, onSearchHere, onRefused) {
    this.settings = settings;
    this.onSearchHere = onSearchHere;
    this.onRefused = onRefused;
    this.places = [];
    this.chosen = null;
    this.rows = ROWS;
    byId("place-search").addEventListener("input", () => this.#list(ROWS));
    byId("place-more").addEventListener("click", () => this.#list(this.rows + ROWS));
    document.addEventListener("loci-key", () => this.place && this.#photos(this.place));
  }

  /** Show the list and the map, and the place `id` when one is named. */
  async show(id) {
    this.chosen = id;
    byId("place-total").textContent ||= "Loading …";
    try {
      this.places = await loadPlaces();
    } catch (error) {
      const problem = asProblem(error);
      byId("place-total").textContent = "";
      showProblem(byId("places-error"), problem, this.onRefused(problem));
      return;
    }
    byId("places-error").replaceChildren();
    this.#list(this.rows);
    this.#showMap();
    await this.#showPlace(id);
  }

  #list(rows) {
    this.rows = rows;
    const wanted = byId("place-search").value.trim().toLowerCase();
    const found = this.places.filter((place) => placeName(place).toLowerCase().includes(wanted));
    byId("place-rows").replaceChildren(...found.slice(0, rows).map((place) => this.#row(place)));
    byId("place-more").hidden = found.length <= rows;
    byId("place-total").textContent = wanted
      ? `${count(found.length)} of ${plural(this.places.length, "place")}`
      : this.places.length
        ? plural(this.places.length, "place")
        : "The index has no places yet.";
  }

  #row(place) {
    const where = place.lat === null ? "no position" : position(place.lat, place.lon);
    return el(
      "li",
      {},
      el(
        "a",
        { href: `#places/${encodeURIComponent(place.id)}`, "aria-current": place.id === this.chosen && "true" },
        el("span", { class: "row-name" }, placeName(place)),
        el("span", { class: "quiet" }, `${plural(place.photo_count, "photo")} · ${where}`),
      ),
    );
  }

  #showMap() {
    const placed = this.places.some((place) => place.lat !== null);
    byId("places-map-card").hidden = !placed;
    if (!placed) return;
    if (!this.map) {
      this.map = makeMap(byId("places-map"), this.settings, "Map of all places");
      const open = (place) => (location.hash = `#places/${encodeURIComponent(place.id)}`);
      this.clusters = new Clusters(this.map, open);
    }
    this.map.invalidateSize({ animate: false });
    if (this.shownPlaces !== this.places) {
      this.shownPlaces = this.places;
      this.clusters.show(this.places);
      fit(this.map, this.clusters.points);
    }
    this.clusters.choose(this.chosen);
  }

  async #showPlace(id) {
    const box = byId("place");
    this.place = null;
    if (!id) {
      const hint = "Choose a place in the list or on the map to see its photos.";
      box.replaceChildren(...(this.places.length ? [el("p", { class: "empty-note" }, hint)] : []));
      return;
    }
    try {
      const place = await getJSON(`v1/places/${encodeURIComponent(id)}`);
      if (this.chosen !== id) return; // another one was chosen meanwhile
      this.place = place;
      this.#photos(place);
      if (place.lat !== null && !this.map?.getBounds().pad(-0.1).contains([place.lat, place.lon])) {
        this.map?.panTo([place.lat, place.lon], { animate: false });
      }
      byId("place-title").focus({ preventScroll: true });
      if (box.getBoundingClientRect().top > innerHeight - 120) box.scrollIntoView();
    } catch (error) {
      const problem = asProblem(error);
      showProblem(box, problem, this.onRefused(problem));
    }
  }

  #photos(place) {
    const where = place.lat === null ? "no position" : position(place.lat, place.lon, 6);
    const here = el("button", { type: "button", class: "button" }, "Search only here");
    here.addEventListener("click", () => this.onSearchHere(place));
    const grid = el("ul", { class: "grid" });
    const more = el("button", { type: "button", class: "button" }, "Show more photos");
    const add = () => {
      const start = grid.children.length;
      const next = place.photos.slice(start, start + PHOTOS);
      grid.append(...next.map((photo, index) => this.#photo(place, photo, start + index)));
      more.hidden = grid.children.length >= place.photos.length;
    };
    more.addEventListener("click", add);
    add();
    byId("place").replaceChildren(
      el(
        "header",
        { class: "place-head" },
        el("div", {}, el("h2", { id: "place-title", tabindex: "-1" }, placeName(place)),
          el("p", { class: "quiet" }, `${plural(place.photo_count, "photo")} · ${where}`)),
        here,
      ),
      el("div", { id: "place-error" }),
      grid,
      more,
    );
  }

  #photo(place, photo, index) {
    const note = photo.taken_at ? when(photo.taken_at) : fileName(photo.path);
    const facing = photo.heading === null ? null : el("span", { class: "quiet" }, heading(photo.heading));
    const remove = key.value
      ? el("button", { type: "button", class: "plain danger", onclick: () => this.#delete(place, photo) }, "Delete")
      : null;
    remove?.setAttribute("aria-label", `Delete ${fileName(photo.path)}`);
    const foot = facing || remove ? el("div", { class: "grid-foot" }, facing ?? el("span"), remove) : null;
    return el("li", {}, thumb(photo, note, () => enlarge(place.photos, index)), foot);
  }

  async #delete(place, photo) {
    if (!(await confirmed(`${fileName(photo.path)} is taken out of the index, and will not be found any more.`))) return;
    try {
      await request(`v1/photos/${encodeURIComponent(photo.id)}`, { method: "DELETE" });
    } catch (error) {
      const problem = asProblem(error);
      showProblem(byId("place-error"), problem, this.onRefused(problem));
      return;
    }
    forgetPlaces();
    document.dispatchEvent(new Event("loci-changed"));
    const last = place.photos.length === 1;
    if (last) location.hash = "#places";
    else await this.show(place.id);
  }
}

/** Ask before something is lost. */
function confirmed(text) {
  const dialog = byId("confirm-dialog");
  byId("confirm-text").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
