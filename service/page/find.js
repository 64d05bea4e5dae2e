// Find: photos in, an answer out.

import { asProblem, getJSON, Problem } from "./api.js";
import { AnswerView } from "./answer.js";
import { noteSnapshot } from "./collection.js";
import { byId, el, showProblem } from "./dom.js";
import { Filters } from "./filters.js";
import { Intake, tooMuch } from "./intake.js";

export class Find {
  constructor(settings, onRefused) {
    this.settings = settings;
    this.onRefused = onRefused;
    this.answer = new AnswerView(settings);
    this.intake = new Intake("find", () => this.ask());
    this.filters = new Filters(settings, () => this.ask());
  }

  /** Ask about the photos at hand; a question that is still on its way is dropped. */
  async ask() {
    this.running?.abort();
    const { files } = this.intake;
    if (!files.length) {
      this.#clear();
      return;
    }
    const running = new AbortController();
    this.running = running;
    this.#busy(true);
    try {
      const started = performance.now();
      const answer = await this.#post(files, running.signal);
      byId("answer-error").replaceChildren();
      this.filters.blame(null);
      noteSnapshot(answer.snapshot);
      this.answer.show(answer, files, performance.now() - started);
      byId("summary-title").focus({ preventScroll: true });
      const box = byId("answer");
      if (box.getBoundingClientRect().top > innerHeight / 2) box.scrollIntoView(); // below the fold of a phone
    } catch (error) {
      if (error.name === "AbortError") return;
      this.#refuse(asProblem(error));
    } finally {
      if (this.running === running) this.#busy(false);
    }
  }

  #post(files, signal) {
    const detail = tooMuch(files, this.settings);
    if (detail) throw new Problem({ title: "Too much at once", detail });
    const body = new FormData();
    for (const file of files) body.append("image", file, file.name);
    const params = this.filters.params();
    if (files.length === 1) params.set("matches", "true"); // a clip is not verified
    const path = files.length > 1 ? "v1/query/clip" : "v1/query";
    return getJSON(params.size ? `${path}?${params}` : path, { method: "POST", body, signal });
  }

  #refuse(problem) {
    byId("answer-empty").hidden = true;
    byId("answer-body").hidden = true;
    const again = el("button", { type: "button", class: "button", onclick: () => this.ask() }, "Try again");
    const retry = problem.status === 0 || problem.status === 429 || problem.status >= 500;
    showProblem(byId("answer-error"), problem, retry ? again : this.onRefused(problem));
    this.filters.blame(problem.field);
  }

  #busy(is) {
    byId("answer").setAttribute("aria-busy", String(is));
  }

  #clear() {
    this.#busy(false);
    byId("answer-error").replaceChildren();
    byId("answer-body").hidden = true;
    byId("answer-empty").hidden = false;
  }
}
