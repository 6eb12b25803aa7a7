/** Beside an answer: who gave it and why, and where its time went. */

import { compact, duration, element } from "/web/dom.js";

/** Shorter writing than this says nothing about a speed. */
const SHORTEST_WRITING_MS = 20;

export class Facts {
  #route = element("ul", { class: "reasons" });
  #model = element("span", { class: "model" });
  #phase = element("span", { class: "phase" });
  #bar = element("span", { class: "split", "aria-hidden": "true" });
  #times = element("dl", { class: "times" });
  #measured = {};

  constructor() {
    this.root = element(
      "details",
      { class: "facts" },
      element("summary", {}, this.#model, this.#bar, this.#phase),
      element("div", { class: "more" }, this.#times, this.#route),
    );
    this.root.addEventListener("toggle", () => this.root.open && this.root.scrollIntoView({ block: "nearest" }));
    this.#bar.append(element("i", { class: "working" }));
    this.#phase.textContent = "choosing a model";
  }

  /** Who answers, why, and who does not. */
  routed({ model, reasons, refused }) {
    this.#model.textContent = model;
    this.#phase.textContent = "reading";
    const others = refused.map(({ model: other, reason }) =>
      element("li", { class: "other" }, element("span", {}, `Not ${other}`), `: ${reason}`),
    );
    this.#route.replaceChildren(...reasons.map((reason) => element("li", {}, reason)), ...others);
  }

  /** The first word is there. */
  writing() {
    if (this.#phase.isConnected && this.#phase.textContent === "reading") this.#phase.textContent = "writing";
  }

  /** How long everything took. */
  timed({ decided_ms: decided, first_delta_ms: first, duration_ms: total }) {
    Object.assign(this.#measured, { decided, first, total });
    this.#show();
  }

  /** It has ended, having read and written so many tokens. */
  ended(usage) {
    this.#measured.read = usage?.input_tokens;
    this.#measured.written = usage?.output_tokens;
    this.#show();
  }

  #show() {
    const { decided, first, total, read, written } = this.#measured;
    const start = Math.min(decided ?? 0, first ?? total ?? 0);
    const parts = [
      ["decided", "Deciding", decided == null ? null : start],
      ["waited", "Waiting", total == null ? null : (first ?? total) - start],
      ["wrote", "Writing", first == null || total == null ? null : Math.max(0, total - first)],
    ].filter(([, , ms]) => ms !== null);
    const bars = parts.map(([name, , ms]) => {
      const piece = element("i", { class: name });
      piece.style.flexGrow = String(Math.max(ms, 0.001));
      return piece;
    });
    this.#bar.replaceChildren(...bars);
    this.#bar.hidden = bars.length === 0;

    const writing = first == null || total == null ? 0 : total - first;
    const measurable = written > 1 && writing >= SHORTEST_WRITING_MS;
    const speed = measurable ? `${compact((written * 1000) / writing)} tokens/s` : null;
    this.#phase.textContent = total == null ? "" : duration(total);
    if (speed) this.#phase.append(element("span", { class: "speed" }, ` · ${speed}`));

    const rows = parts.map(([name, label, ms]) => [label, duration(ms), name]);
    if (total != null) rows.push(["Altogether", duration(total), "total"]);
    if (written != null) rows.push(["Tokens", `${compact(read ?? 0)} read, ${compact(written)} written`, "tokens"]);
    if (speed) rows.push(["Speed", speed, "speed"]);
    this.#times.replaceChildren(
      ...rows.flatMap(([label, value, name]) => [
        element("dt", { class: name }, label),
        element("dd", { class: name }, value),
      ]),
    );
  }
}
