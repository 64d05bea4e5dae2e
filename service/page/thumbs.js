// Small pictures that open the viewer.

import { photoPath, showImage } from "./api.js";
import { el } from "./dom.js";
import { fileName } from "./format.js";

/** A button with a photo's thumbnail; `note` is shown below it. */
export function thumb(photo, note, onClick) {
  const image = el("img", { alt: "", loading: "lazy", width: 320, height: 240 });
  image.addEventListener("error", () => image.closest("button").classList.add("gone"));
  showImage(image, photoPath(photo.id, "thumbnail"));
  return el(
    "button",
    { type: "button", class: "thumb", "aria-label": `Enlarge ${fileName(photo.path)}, ${note}`, onclick: onClick },
    el("span", { class: "thumb-photo" }, image),
    el("span", { class: "thumb-note" }, note),
  );
}
