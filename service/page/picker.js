// A small map that fills in the fields lat and lon of a form.

import { Clusters } from "./clusters.js";
import { colour, el } from "./dom.js";
import { fit, makeMap } from "./map.js";
import { loadPlaces } from "./collection.js";

const DIGITS = 6;

export class Picker {
  constructor(container, form, settings) {
    this.form = form;
    this.settings = settings;
    this.canvas = el("div", { class: "map small" });
    this.useCentre = el("button", { type: "button", class: "plain" }, "take its centre");
    const hint = el("p", { class: "hint" }, "Click the map to set a position, or ", this.useCentre);
    container.append(this.canvas, hint);
    form.addEventListener("input", () => this.draw());
    form.addEventListener("reset", () => setTimeout(() => this.draw()));
    this.useCentre.addEventListener("click", () => this.map && this.set(this.map.getCenter()));
  }

  /** Make the map, once its place on the page has a size. */
  async show() {
    if (this.map) return;
    this.map = makeMap(this.canvas, this.settings, "Map to pick a position");
    this.layer = L.layerGroup().addTo(this.map);
    this.map.on("click", (event) => this.set(event.latlng));
    this.draw();
    const places = await loadPlaces().catch(() => []);
    const clusters = new Clusters(this.map, ({ lat, lon }) => this.set(L.latLng(lat, lon)));
    clusters.show(places);
    if (!this.point) fit(this.map, clusters.points);
  }

  set(latLng) {
    const { lat, lng } = latLng.wrap();
    this.form.elements.lat.value = lat.toFixed(DIGITS);
    this.form.elements.lon.value = lng.toFixed(DIGITS);
    this.form.elements.lat.dispatchEvent(new Event("input", { bubbles: true }));
  }

  get point() {
    const [lat, lon] = [this.form.elements.lat, this.form.elements.lon].map((field) => field.value);
    const valid = lat !== "" && lon !== "" && Math.abs(lat) <= 90 && Math.abs(lon) <= 180;
    return valid ? L.latLng(Number(lat), Number(lon)) : null;
  }

  draw() {
    if (!this.map) return;
    this.layer.clearLayers();
    const { point } = this;
    if (!point) return;
    const ink = colour("warm");
    const radius = Number(this.form.elements.radius_m?.value);
    if (radius > 0) L.circle(point, { radius, color: ink, weight: 2, interactive: false }).addTo(this.layer);
    const dot = { radius: 7, color: colour("card"), weight: 2, fillColor: ink, fillOpacity: 1, interactive: false };
    L.circleMarker(point, dot).addTo(this.layer);
    if (!this.map.getBounds().contains(point)) this.map.panTo(point, { animate: false });
  }
}
