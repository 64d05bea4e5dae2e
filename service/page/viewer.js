// A photo of the index, enlarged, beside the one that was asked about.

import { photoPath, showImage } from "./api.js";
import { byId } from "./dom.js";
import { aboutPhoto, count, fileName } from "./format.js";
import { Lines } from "./lines.js";

const dialog = byId("viewer");
const image = byId("viewer-image");
const query = byId("viewer-query");
const toggle = byId("viewer-toggle");
const lines = new Lines(byId("viewer-lines"), query.querySelector("img"), image);
const ENOUGH = 20; // matches: fewer may be chance, and are drawn only when asked for
let shown = [];
let at = 0;
let chosen = null; // whether lines are wanted, once someone said so

/** Open the viewer at one of `photos`; `file` is the photo that was asked about, if any. */
export function enlarge(photos, index, file = null) {
  shown = photos;
  at = index;
  query.hidden = file === null;
  const asked = query.querySelector("img");
  if (asked.src) URL.revokeObjectURL(asked.src);
  if (file) asked.src = URL.createObjectURL(file);
  show();
  dialog.showModal();
}

function show() {
  const photo = shown[at];
  byId("viewer-title").textContent = fileName(photo.path);
  byId("viewer-caption").textContent = aboutPhoto(photo);
  byId("viewer-count").textContent = `${count(at + 1)} of ${count(shown.length)}`;
  byId("viewer-previous").disabled = at === 0;
  byId("viewer-next").disabled = at === shown.length - 1;
  lines.show([]);
  toggle.hidden = !matches().length;
  toggle.setAttribute("aria-pressed", String(wanted()));
  image.alt = fileName(photo.path);
  image.onerror = () => {
    image.onerror = null;
    showImage(image, photoPath(photo.id, "thumbnail")); // a format that browsers do not show
  };
  showImage(image, photoPath(photo.id, "image"));
}

/** What the two photos that are shown have in common. */
const matches = () => (query.hidden ? [] : (shown[at].matches ?? []));

const wanted = () => chosen ?? matches().length >= ENOUGH;

const drawLines = () => lines.show(wanted() ? matches() : []);

function step(by) {
  const next = at + by;
  if (next < 0 || next >= shown.length) return;
  at = next;
  show();
}

image.addEventListener("load", drawLines); // not over the photo before it
toggle.addEventListener("click", () => {
  chosen = !wanted();
  toggle.setAttribute("aria-pressed", String(chosen));
  drawLines();
});
byId("viewer-close").addEventListener("click", () => dialog.close());
byId("viewer-previous").addEventListener("click", () => step(-1));
byId("viewer-next").addEventListener("click", () => step(1));
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // outside the box
});
