// Add: photos in, with a key.

import { asProblem, key, Problem, request } from "./api.js";
import { forgetPlaces } from "./collection.js";
import { byId, el, sentence, showProblem } from "./dom.js";
import { plural } from "./format.js";
import { Intake, tooMuch } from "./intake.js";
import { Picker } from "./picker.js";

const NAMES = ["lat", "lon", "heading", "taken_at", "place"];

export class Add {
  constructor(settings, onRefused, askKey) {
    this.settings = settings;
    this.onRefused = onRefused;
    this.form = byId("add-form");
    this.send = byId("add-send");
    this.picker = new Picker(byId("add-picker"), this.form, settings);
    this.intake = new Intake("add", () => this.#refresh(), true);
    this.askKey = askKey;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.form.reportValidity()) this.#sendAll();
    });
    document.addEventListener("loci-key", () => this.#refresh());
  }

  show() {
    this.#refresh();
    this.picker.show();
  }

  #refresh() {
    const { length } = this.intake.files;
    this.send.disabled = length === 0 || Boolean(this.sending);
    this.send.textContent = length ? `Add ${plural(length, "photo")}` : "Add";
    const hint = byId("add-key-hint");
    if (key.value) {
      hint.textContent = "Your key goes along.";
      return;
    }
    const enter = el("button", { type: "button", class: "plain", onclick: () => this.askKey() }, "Enter a key");
    hint.replaceChildren("This needs a key with the role write. ", enter);
  }

  /** Send one after another; what was refused stays in the list of photos, to be sent again. */
  async #sendAll() {
    this.sending = true;
    this.#refresh();
    byId("add-error").replaceChildren();
    const wanted = this.intake.files;
    const refused = [];
    for (const file of wanted) {
      try {
        this.#report(file, await this.#sendOne(file));
      } catch (error) {
        const problem = asProblem(error);
        refused.push(file);
        showProblem(byId("add-error"), { title: `${file.name}: ${problem.title}`, message: problem.message },
          this.onRefused(problem));
        if (problem.status === 0 || problem.status === 401 || problem.status === 403) {
          refused.push(...wanted.slice(wanted.indexOf(file) + 1));
          break; // the others would fare no better
        }
      }
    }
    this.sending = false;
    this.intake.set([...refused, ...this.intake.files.filter((file) => !wanted.includes(file))]);
    forgetPlaces();
    document.dispatchEvent(new Event("loci-changed"));
  }

  async #sendOne(file) {
    const detail = tooMuch([file], this.settings);
    if (detail) throw new Problem({ title: "Too large", detail });
    const body = new FormData();
    for (const name of NAMES) {
      const value = this.form.elements[name].value.trim();
      if (value !== "") body.append(name, value);
    }
    body.append("name", file.name);
    body.append("image", file, file.name);
    return (await request("v1/photos", { method: "POST", body })).json();
  }

  #report(file, photo) {
    const where = photo.lat === null ? "without a position" : `at ${photo.lat.toFixed(5)}, ${photo.lon.toFixed(5)}`;
    const said = photo.created ? `added ${where}` : "was in the index already; nothing was changed";
    const link = photo.place
      ? el("a", { href: `#places/${encodeURIComponent(photo.place)}` }, "See its place")
      : null;
    byId("add-results").prepend(
      el("li", {}, el("span", { class: "row-name" }, file.name), el("span", { class: "quiet" }, sentence(said)), link),
    );
  }
}
