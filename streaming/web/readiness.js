/** How far the models are: asked until one can answer, and shown meanwhile. */

import { readiness } from "/web/api.js";
import { $, element, megabytes } from "/web/dom.js";

const AGAIN_MS = 800;

const WORDS = {
  waiting: () => "Waiting for its turn",
  fetching: ({ done_bytes: done, total_bytes: total }) =>
    total ? `Downloading, ${megabytes(done)} of ${megabytes(total)}` : `Downloading, ${megabytes(done)} so far`,
  converting: () => "Preparing it for this machine, once",
  loading: () => "Loading it into memory",
  ready: () => "Ready",
  failed: ({ message }) => message ?? "It failed. The server's log says why.",
};

export class Readiness {
  #changed;
  #timer;
  #asking = false;
  #status = null;
  /** @type {Map<string, {root: HTMLElement, words: HTMLElement, bar: HTMLProgressElement}>} by model */
  #rows = new Map();

  /** @param {() => void} changed called when it has changed whether a message can be answered */
  constructor(changed) {
    this.#changed = changed;
  }

  /** Whether a message can be answered; null before it is known. */
  get ready() {
    return this.#status === null ? null : this.#status === "ready";
  }

  /** Ask now, and again until a model is ready. */
  async watch() {
    clearTimeout(this.#timer);
    if (this.#asking) return;
    this.#asking = true;
    const told = await readiness();
    this.#asking = false;
    const before = this.#status;
    // Where it cannot be told, a message is the way to find out.
    if (told) this.#status = told.models.some(({ state }) => state === "ready") ? "ready" : told.status;
    else this.#status ??= "ready";
    if (told) this.#show(told.models);
    if (this.#status !== before) this.#changed();
    if (this.#status === "loading") this.#timer = setTimeout(() => this.watch(), AGAIN_MS);
  }

  #show(models) {
    const waiting = this.#status !== "ready";
    $("loading").hidden = !waiting;
    if (!waiting) return;
    const failed = models.length > 0 && models.every(({ state }) => state === "failed");
    $("loading").dataset.state = failed ? "failed" : "loading";
    $("loading-title").textContent = failed ? "No model could be started" : "Getting ready to answer";
    $("loading-help").textContent = failed
      ? "Put right what it says here, then start the server again."
      : "You can write already; your message can be sent as soon as a model is ready.";
    for (const model of models) this.#showModel(model);
    for (const [id, { root }] of this.#rows) root.hidden = !models.some((model) => model.id === id);
  }

  #showModel(model) {
    let row = this.#rows.get(model.id);
    if (!row) {
      const words = element("span", { class: "words" });
      const bar = element("progress", { max: 1, "aria-label": model.id });
      const root = element("li", {}, element("strong", {}, model.id), words, bar);
      row = { root, words, bar };
      this.#rows.set(model.id, row);
      $("loading-models").append(root);
    }
    row.root.dataset.state = model.state;
    row.words.textContent = (WORDS[model.state] ?? (() => model.state))(model);
    row.bar.hidden = model.state === "failed" || model.state === "waiting";
    if (model.state === "ready") row.bar.value = 1;
    else if (model.state === "fetching" && model.total_bytes) row.bar.value = model.done_bytes / model.total_bytes;
    else row.bar.removeAttribute("value");
  }
}
