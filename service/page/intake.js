// Photos that a person gives: chosen, dropped, pasted or taken.

import { el, byId } from "./dom.js";
import { size } from "./format.js";

/** Collect photos in the part of the page whose ids begin with `name`; tells `onChange` of every change. With
   * `collects`, photos come beside those before; else only those of an input that adds do. */
export class Intake {
  constructor(name, onChange, collects = false) {
    this.files = [];
    this.collects = collects;
    this.view = byId(`view-${name}`);
    this.drop = byId(`${name}-drop`);
    this.frames = byId(`${name}-frames`);
    this.clearButton = byId(`${name}-clear`);
    this.onChange = onChange;
    for (const input of this.view.querySelectorAll("input[type=file]")) {
      input.addEventListener("change", () => {
        this.take(input.files, collects || "adds" in input.dataset);
        input.value = ""; // so that the same photo can be chosen again
      });
    }
    this.clearButton.addEventListener("click", () => {
      this.set([]);
      this.view.querySelector("input[type=file]").focus();
    });
    this.#listen();
  }

  /** Take up files in place of those before, or beside them. */
  take(list, adds = this.collects) {
    const files = [...list];
    if (files.length) this.set(adds ? [...this.files, ...files] : files);
  }

  set(files) {
    this.files = files;
    this.#show();
    this.onChange(files);
  }

  #listen() {
    document.addEventListener("paste", (event) => {
      if (!this.view.hidden) this.take(event.clipboardData?.files ?? []);
    });
    document.addEventListener("dragover", (event) => {
      if (this.view.hidden || !event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      this.drop.classList.add("over");
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) this.drop.classList.remove("over");
    });
    document.addEventListener("drop", (event) => {
      this.drop.classList.remove("over");
      if (this.view.hidden || !event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      this.take(event.dataTransfer.files);
    });
  }

  #show() {
    for (const image of this.frames.querySelectorAll("img")) URL.revokeObjectURL(image.src);
    this.drop.classList.toggle("filled", this.files.length > 0);
    this.frames.classList.toggle("one", this.files.length === 1);
    this.clearButton.hidden = this.files.length === 0;
    this.frames.replaceChildren(...this.files.map((file, index) => this.#frame(file, index)));
  }

  #frame(file, index) {
    const image = el("img", { alt: `Your photo ${file.name}`, src: URL.createObjectURL(file) });
    const figure = el("figure", { class: "frame" }, image);
    image.addEventListener("error", () => {
      image.replaceWith(el("span", { class: "no-preview" }, `${file.name}: no preview in this browser`));
    });
    if (this.files.length > 1) {
      const remove = () => this.set(this.files.filter((_, other) => other !== index));
      const label = `Remove ${file.name}`;
      figure.append(el("button", { type: "button", class: "remove", "aria-label": label, onclick: remove }, "×"));
    }
    return figure;
  }
}

/** Say why the service would not take these files, or null: a refused upload can cut the connection. */
export function tooMuch(files, settings) {
  if (files.length > settings.max_images) {
    return `${files.length} photos are too many for one clip, at most ${settings.max_images} are taken at once`;
  }
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (bytes <= settings.max_upload_bytes) return null;
  const what = files.length === 1 ? files[0].name : `${files.length} photos together`;
  return `${what} has ${size(bytes)}, more than the ${size(settings.max_upload_bytes)} that this service takes`;
}
