/** The model picker: which models there are, and which of them answers in this conversation. */

import { listModels } from "/web/api.js";
import { $, compact } from "/web/dom.js";
import { openMenu } from "/web/menu.js";
import { note } from "/web/notes.js";

const STATES = {
  waiting: "waiting", fetching: "downloading", converting: "preparing", loading: "loading", failed: "failed",
};

export class ModelPicker {
  /** As the server told them last: models, and other names for them. */
  #known = [];
  #settings;

  /** @param {import("/web/settings.js").Settings} settings where the choice is kept */
  constructor(settings) {
    this.#settings = settings;
    $("model").addEventListener("click", () => this.#open());
  }

  /** Show the choice. */
  show() {
    const chosen = this.#settings.current.model;
    $("model-name").textContent = chosen ?? "Automatic";
    $("model").setAttribute("aria-label", `Model: ${chosen ?? "Automatic"}`);
  }

  async #refresh() {
    try {
      this.#known = (await listModels()).data;
    } catch (error) {
      note(error.message);
    }
  }

  async #open() {
    await this.#refresh();
    const chosen = this.#settings.current.model;
    const pick = (model) => () => this.#settings.change({ model });
    const automatic = {
      label: "Automatic",
      detail: "The smallest model that does it well",
      checked: chosen === null,
      run: pick(null),
    };
    // Another name for a model is shown where somebody has chosen it.
    const offered = this.#known.filter(({ id, baton }) => id === chosen || (!baton?.alias_of && (baton?.port ?? "generate") === "generate"));
    const entries = offered.map(({ id, baton }) => ({
      label: id,
      detail: describe(baton ?? {}),
      checked: chosen === id,
      run: pick(id),
    }));
    if (chosen !== null && !entries.some((entry) => entry.checked)) {
      entries.push({ label: chosen, detail: "Not served here any more", checked: true });
    }
    openMenu($("model"), "Model", [automatic, ...entries]);
  }
}

/** A context window, which is counted in powers of two. */
function windowOf(tokens) {
  return tokens < 1024 ? String(tokens) : `${Math.round(tokens / 1024)}K`;
}

function describe({ alias_of: other, parameters, context_tokens: context, engine, state }) {
  if (other) return `Another name for ${other}`;
  return [
    parameters ? `${compact(parameters)} parameters` : engine,
    context && `${windowOf(context)} tokens of context`,
    STATES[state],
  ].filter(Boolean).join(" · ");
}
