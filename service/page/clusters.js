// Many places on one map: what lies close together is drawn as one circle with its count.

import { colour } from "./dom.js";

const CELL = 56; // pixels that are one circle
const CLOSE = 19; // from this zoom on, only what is at the very same spot is drawn as one

/** A circle on the canvas with a number in it. Leaflet draws the circle, this the number. */
const Counted = L.CircleMarker.extend({
  _updatePath() {
    L.CircleMarker.prototype._updatePath.call(this);
    const pen = this._renderer._ctx;
    if (!this.options.label || !pen || !this._renderer._drawing || this._empty()) return;
    pen.globalAlpha = 1;
    pen.fillStyle = this.options.labelColour;
    pen.font = "600 12px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(this.options.label, this._point.x, this._point.y + 0.5);
  },
});

/** Draws places that have a position; only those in view, however many there are. */
export class Clusters {
  #places = [];
  #chosen = null;

  constructor(map, onPlace) {
    this.map = map;
    this.onPlace = onPlace;
    this.layer = L.layerGroup().addTo(map);
    this.renderer = L.canvas({ padding: 0.3 });
    map.on("moveend resize", () => this.draw()); // a zoom ends a move, too
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(places) {
    this.#places = places.filter((place) => place.lat !== null && place.lon !== null);
    this.draw();
  }

  choose(id) {
    this.#chosen = id;
    this.draw();
  }

  get points() {
    return this.#places.map((place) => [place.lat, place.lon]);
  }

  draw() {
    this.layer.clearLayers();
    const inks = Object.fromEntries(["card", "accent", "warm", "on-accent"].map((name) => [name, colour(name)]));
    for (const cell of this.#cells().values()) this.layer.addLayer(this.#circle(cell, inks));
  }

  /** What is in view, by square of the map; squares do not move with the view, so circles do not jump. */
  #cells() {
    const cells = new Map();
    const zoom = this.map.getZoom();
    const size = zoom >= CLOSE ? 4 : CELL;
    const box = this.map.getBounds().pad(0.3);
    for (const place of this.#places) {
      if (!box.contains([place.lat, place.lon])) continue;
      const point = this.map.project([place.lat, place.lon], zoom);
      const name = `${Math.floor(point.x / size)} ${Math.floor(point.y / size)}`;
      if (!cells.has(name)) cells.set(name, []);
      cells.get(name).push(place);
    }
    return cells;
  }

  #circle(places, inks) {
    const chosen = places.some((place) => place.id === this.#chosen);
    const middle = (pick) => places.reduce((sum, place) => sum + pick(place), 0) / places.length;
    const alone = places.length === 1;
    const circle = new Counted([middle((place) => place.lat), middle((place) => place.lon)], {
      renderer: this.renderer,
      radius: alone ? 7 : 13 + 3 * Math.log10(places.length),
      color: inks.card,
      weight: 2,
      fillColor: chosen ? inks.warm : inks.accent,
      fillOpacity: alone || chosen ? 1 : 0.88,
      label: alone ? "" : String(places.length),
      labelColour: inks["on-accent"],
      bubblingMouseEvents: false,
    });
    circle.on("click", () => (alone ? this.onPlace(places[0]) : this.#open(places)));
    return circle;
  }

  /** Zoom into a circle; where its places cannot be told apart, show the first. */
  #open(places) {
    if (this.map.getZoom() >= CLOSE) {
      this.onPlace(places[0]);
      return;
    }
    const box = L.latLngBounds(places.map((place) => [place.lat, place.lon]));
    this.map.fitBounds(box, { maxZoom: Math.max(CLOSE, this.map.getZoom() + 1), padding: [48, 48] });
  }
}
