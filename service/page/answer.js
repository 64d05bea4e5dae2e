// An answer of the service, as people read it.

import { byId, el, sentence } from "./dom.js";
import { duration, heading, matched, metres, placeName, position } from "./format.js";
import { fit, makeMap, numberMarker, uncertainty } from "./map.js";
import { thumb } from "./thumbs.js";
import { enlarge } from "./viewer.js";

const STAGES = { decode: "decoding", embed: "network", search: "search", verify: "verifying" };

export class AnswerView {
  constructor(settings) {
    this.settings = settings;
  }

  /** Show an answer to a question about `files` that took `milliseconds` from here. */
  show(answer, files, milliseconds) {
    byId("answer-empty").hidden = true;
    byId("answer-body").hidden = false;
    byId("summary-title").textContent = headline(answer);
    byId("facts").replaceChildren(...facts(answer, files, milliseconds));
    showPair(answer, files);
    this.#showMap(answer);
    byId("matches").replaceChildren(...answer.places.map((place, index) => match(place, index, files)));
  }

  #showMap(answer) {
    const placed = answer.places.filter((place) => place.lat !== null && place.lon !== null);
    const card = byId("answer-map-card");
    card.hidden = !placed.length && !answer.position;
    if (card.hidden) return;
    if (!this.map) {
      this.map = makeMap(byId("answer-map"), this.settings, "Map of the answer");
      this.layer = L.layerGroup().addTo(this.map);
    }
    this.map.invalidateSize({ animate: false });
    this.layer.clearLayers();
    const points = placed.map((place) => [place.lat, place.lon]);
    if (answer.position) {
      const { lat, lon, radius_m: radius } = answer.position;
      points.push(...corners(L.latLng(lat, lon).toBounds(2 * radius)));
    }
    fit(this.map, points);
    if (answer.position) uncertainty(answer.position).addTo(this.layer);
    answer.places.forEach((place, index) => {
      if (place.lat === null || place.lon === null) return;
      const title = `${index + 1}: ${placeName(place)}`;
      const marker = numberMarker([place.lat, place.lon], index + 1, title, () => goTo(index));
      marker.addTo(this.layer);
    });
    byId("answer-legend").textContent = answer.position
      ? `The circle is the position found, give or take ${metres(answer.position.radius_m)}; numbers are the places below.`
      : "Numbers are the places below; no position was found.";
  }
}

/** On a narrow screen, the photo asked about and the best match side by side: the one above is scrolled away. */
function showPair(answer, files) {
  const pair = byId("pair");
  const before = pair.querySelector("img[src^='blob:'].asked");
  if (before) URL.revokeObjectURL(before.src);
  const photos = answer.places[0]?.photos ?? [];
  pair.hidden = !photos.length;
  if (pair.hidden) return;
  const image = el("img", { class: "asked", alt: "", src: URL.createObjectURL(files[0]) });
  const asked = el("figure", {}, el("span", { class: "thumb-photo" }, image), el("figcaption", {}, "your photo"));
  image.addEventListener("error", () => asked.remove()); // a format that this browser does not show
  const file = files.length === 1 ? files[0] : null;
  pair.replaceChildren(asked, thumb(photos[0], "best match", () => enlarge(photos, 0, file)));
}

const corners = (box) => [box.getSouthWest(), box.getNorthEast()];

function goTo(index) {
  const row = byId("matches").children[index];
  row.scrollIntoView({ block: "nearest" });
  row.querySelector("a").focus();
}

function headline(answer) {
  if (!answer.places.length) return "No photo of the index is left to compare with";
  if (answer.known === false) return "Probably not a place of this index";
  const [best] = answer.places;
  return best.name ?? `Most like place ${best.id}`;
}

function facts(answer, files, milliseconds) {
  const { position: found } = answer;
  const rows = [
    fact(
      "Position",
      found ? `${position(found.lat, found.lon, 6)}` : "Not known",
      found ? aim(found) : "the photos found have none",
    ),
    fact(
      "Confidence",
      answer.confidence === null ? "Not calibrated" : `${Math.round(100 * answer.confidence)} %`,
      answer.note ? sentence(answer.note) : known(answer.known),
    ),
    fact("Time", duration(milliseconds), timings(answer.timings_ms)),
  ];
  if (files.length > 1) rows.push(fact("Asked about", `${files.length} photos`, "pooled as one clip"));
  return rows;
}

const aim = (found) =>
  [`give or take ${metres(found.radius_m)}`, found.heading === null ? "" : `looking ${heading(found.heading)}`]
    .filter(Boolean)
    .join(", ");

const known = (value) => ({ true: "a place of this index", false: "probably a place not in this index" })[value] ?? "";

function fact(name, value, note) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, note)));
}

function timings(stages) {
  const shown = Object.entries(STAGES).filter(([stage]) => stages[stage] !== null);
  return shown.map(([stage, name]) => `${name} ${duration(stages[stage])}`).join(" · ");
}

function match(place, index, files) {
  const score = Math.max(0, Math.min(1, place.score));
  const bar = el("span", { class: "score-bar", "aria-hidden": "true" });
  bar.style.setProperty("--share", score);
  const about = [];
  if (place.confidence !== null) about.push(`${Math.round(100 * place.confidence)} % sure`);
  const [best] = place.photos;
  if (best && best.inliers !== null) about.push(matched(best));
  if (place.distance_m !== null) about.push(`${metres(place.distance_m)} from the point given`);
  if (place.lat !== null) about.push(position(place.lat, place.lon));
  const file = files.length === 1 ? files[0] : null;
  const thumbs = place.photos.map((photo, number) =>
    thumb(photo, `score ${photo.score.toFixed(3)}`, () => enlarge(place.photos, number, file)),
  );
  return el(
    "li",
    { class: "card match" },
    el(
      "div",
      { class: "match-head" },
      el("span", { class: index === 0 ? "rank first" : "rank", "aria-hidden": "true" }, String(index + 1)),
      el(
        "div",
        { class: "match-name" },
        el("a", { href: `#places/${encodeURIComponent(place.id)}` }, placeName(place)),
        el("span", { class: "quiet" }, about.join(" · ")),
      ),
      el("span", { class: "score" }, el("span", {}, place.score.toFixed(3)), bar),
    ),
    el("div", { class: "thumbs" }, ...thumbs),
  );
}
