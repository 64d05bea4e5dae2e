// Maps: a grid of degrees that needs no network, tiles above it where the service names some.

import { colour, el, reducedMotion } from "./dom.js";

const WORLD = [[-60, -170], [75, 170]];
const LABEL = 72; // pixels
const STEPS = [60, 30, 10, 5, 2, 1].concat(
  [1, 2, 3, 4, 5, 6, 7].flatMap((power) => [5, 2, 1].map((digit) => digit / 10 ** power)),
);

/** Lines of latitude and longitude, drawn beneath the map's panes. */
const Graticule = L.Layer.extend({
  onAdd(map) {
    this._canvas = L.DomUtil.create("canvas", "graticule", map.getContainer());
    this._canvas.setAttribute("aria-hidden", "true");
    map.on("move viewreset resize", this._draw, this);
    this._scheme = matchMedia("(prefers-color-scheme: dark)");
    this._onScheme = () => this._draw();
    this._scheme.addEventListener("change", this._onScheme);
    this._draw();
  },

  onRemove(map) {
    map.off("move viewreset resize", this._draw, this);
    this._scheme.removeEventListener("change", this._onScheme);
    this._canvas.remove();
  },

  _draw() {
    const map = this._map;
    if (!map._loaded) return;
    const size = map.getSize();
    const scale = window.devicePixelRatio || 1;
    Object.assign(this._canvas, { width: size.x * scale, height: size.y * scale });
    const pen = this._canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.strokeStyle = colour("grid");
    pen.fillStyle = colour("quiet");
    pen.font = "11px system-ui, sans-serif";
    const step = this._step();
    const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
    const box = map.getBounds();
    pen.beginPath();
    for (const lon of ticks(box.getWest(), box.getEast(), step)) {
      const { x } = map.latLngToContainerPoint([0, lon]);
      line(pen, Math.round(x) + 0.5, 0, Math.round(x) + 0.5, size.y);
      if (x > size.x - LABEL) continue; // the latitudes' corner
      pen.fillText(`${L.Util.wrapNum(lon, [-180, 180], true).toFixed(digits)}°`, x + 4, 13);
    }
    const [south, north] = [Math.max(box.getSouth(), -85), Math.min(box.getNorth(), 85)];
    for (const lat of ticks(south, north, step)) {
      const { y } = map.latLngToContainerPoint([lat, 0]);
      line(pen, 0, Math.round(y) + 0.5, size.x, Math.round(y) + 0.5);
      pen.textAlign = "right";
      if (y > 16) pen.fillText(`${lat.toFixed(digits)}°`, size.x - 4, y - 4);
      pen.textAlign = "left";
    }
    pen.stroke();
  },

  /** The finest step that leaves the labels apart. */
  _step() {
    const pixels = (256 * 2 ** this._map.getZoom()) / 360; // a degree of longitude
    return STEPS.findLast((step) => step * pixels >= 96) ?? STEPS[0];
  },
});

function ticks(from, to, step) {
  const first = Math.ceil(from / step);
  return Array.from({ length: Math.max(0, Math.floor(to / step) - first + 1) }, (_, n) => (first + n) * step);
}

function line(pen, x, y, toX, toY) {
  pen.moveTo(x, y);
  pen.lineTo(toX, toY);
}

/** Make a map in `container`, with the grid, a scale, and the tiles that `settings` name. */
export function makeMap(container, settings, label) {
  const moving = !reducedMotion();
  const map = L.map(container, {
    attributionControl: false,
    fadeAnimation: moving,
    inertia: moving,
    markerZoomAnimation: moving,
    maxZoom: 22,
    minZoom: 1,
    preferCanvas: true,
    scrollWheelZoom: false, // else a page cannot be scrolled past its map
    zoomAnimation: moving,
  });
  container.setAttribute("role", "application");
  container.setAttribute("aria-label", `${label}; arrow keys move it, plus and minus zoom`);
  map.on("focus", () => map.scrollWheelZoom.enable());
  map.on("blur", () => map.scrollWheelZoom.disable());
  map.fitBounds(WORLD, { animate: false });
  new Graticule().addTo(map);
  L.control.scale({ imperial: false, position: "bottomleft" }).addTo(map);
  if (settings.map_tiles) addTiles(map, container, settings);
  new ResizeObserver(() => map.invalidateSize({ animate: false })).observe(container);
  return map;
}

function addTiles(map, container, settings) {
  L.tileLayer(settings.map_tiles, {
    maxNativeZoom: 19,
    maxZoom: 22,
    referrerPolicy: "strict-origin-when-cross-origin", // tile servers want to know who asks
  }).addTo(map);
  if (settings.map_attribution) container.append(el("p", { class: "attribution" }, settings.map_attribution));
}

/** Show everything in `points`, no closer than a street. */
export function fit(map, points) {
  if (!points.length) return;
  map.fitBounds(L.latLngBounds(points), { animate: false, maxZoom: 19, padding: [36, 36] });
}

/** A place's number on the map, the same as in the list. */
export function numberMarker(latLng, number, title, onClick) {
  const html = el("span", {}, String(number));
  const size = number === 1 ? 32 : 26;
  const icon = L.divIcon({ className: number === 1 ? "pin first" : "pin", html, iconSize: [size, size] });
  const marker = L.marker(latLng, { icon, title, zIndexOffset: -10 * number });
  marker.on("add", () => marker.getElement().setAttribute("aria-label", title));
  marker.on("click", onClick);
  marker.on("keypress", (event) => event.originalEvent.key === "Enter" && onClick());
  return marker;
}

/** The position found and how far off it may be. */
export function uncertainty({ lat, lon, radius_m: radius }) {
  const ink = colour("accent");
  return L.layerGroup([
    L.circle([lat, lon], { radius, color: ink, weight: 2, fillColor: ink, fillOpacity: 0.16, interactive: false }),
    L.circleMarker([lat, lon], {
      radius: 5,
      color: colour("card"),
      weight: 2,
      fillColor: ink,
      fillOpacity: 1,
      interactive: false,
    }),
  ]);
}
