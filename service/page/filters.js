// The filters of a question: what the form says → query parameters, by the names of the interface.

import { byId } from "./dom.js";
import { Picker } from "./picker.js";

const NAMES = ["lat", "lon", "radius_m", "taken_after", "taken_before", "heading", "heading_tolerance", "place", "k"];

export class Filters {
  constructor(settings, onAsk) {
    this.form = byId("filter-form");
    this.box = byId("filters");
    this.picker = new Picker(byId("filter-picker"), this.form, settings);
    this.box.addEventListener("toggle", () => this.box.open && this.picker.show());
    this.form.addEventListener("input", () => this.#count());
    this.form.addEventListener("reset", () => setTimeout(() => this.#count()));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.form.reportValidity()) onAsk();
    });
  }

  /** Only what was filled in; the service judges what belongs together. */
  params() {
    const given = NAMES.map((name) => [name, this.form.elements[name].value.trim()]);
    return new URLSearchParams(given.filter(([, value]) => value !== ""));
  }

  /** Point at the field that the service complained about. */
  blame(name) {
    const field = NAMES.includes(name) ? this.form.elements[name] : null;
    for (const other of this.form.querySelectorAll("[aria-invalid]")) other.removeAttribute("aria-invalid");
    if (!field) return;
    this.box.open = true;
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }

  /** Look only among the photos of one place. */
  choosePlace(id) {
    this.form.elements.place.value = id;
    this.box.open = true;
    this.#count();
  }

  #count() {
    const used = [...this.params().keys()].filter((name) => name !== "k").length;
    const badge = byId("filter-count");
    badge.hidden = used === 0;
    badge.textContent = `${used} set`;
  }
}
