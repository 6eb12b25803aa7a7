/** One answer: its items as they are written, how it ended, and the facts beside it. */

import { copyButton, element, iconButton } from "/web/dom.js";
import { Prose } from "/web/markdown.js";
import { follow } from "/web/scroll.js";
import { Facts } from "/web/timing.js";

/** How a response ended, when it did not simply end, in words. */
const ENDINGS = { cancelled: "Interrupted", failed: "Failed", incomplete: "Cut at its length limit" };
const CAUSES = {
  server_restarted: "The server was restarted before this answer was whole.",
  server_stopped: "The server was stopped before this answer was whole.",
  storage_failed: "The server could not store this answer. Its log says why.",
};

export class Answer {
  #body = element("div", { class: "body" });
  #tools = element("div", { class: "tools" });
  #facts = null;
  /** @type {Map<string, {node: HTMLElement, prose: Prose | null, text: string}>} by id */
  #items = new Map();
  #drawing = 0;

  /**
   * @param {object} actions
   * @param {() => void} actions.regenerate
   * @param {boolean} [alone] it was put into the conversation, not given: there are no facts
   */
  constructor({ regenerate }, alone = false) {
    this.root = element("article", { class: "answer", "aria-label": "Answer", "aria-busy": alone ? "false" : "true" });
    this.root.append(this.#body);
    this.#tools.append(copyButton("Copy", () => this.text));
    if (!alone) {
      this.#facts = new Facts();
      this.#tools.append(iconButton("again", "Regenerate", regenerate, "tool regenerate"));
      this.root.append(this.#facts.root);
    }
    this.root.append(this.#tools);
  }

  /** What it says, as it was written. */
  get text() {
    return [...this.#items.values()].map((item) => item.text).join("\n\n");
  }

  get ids() {
    return [...this.#items.keys()];
  }

  /** Begin an item, or begin it again: its text follows from the start. */
  begin({ id, type, name }) {
    let item = this.#items.get(id);
    if (!item) {
      const words = type === "message";
      const node = element("div", { class: words ? "text" : "call", "data-item": id, "data-name": name });
      item = { node, prose: words ? new Prose(node) : null, text: "" };
      this.#items.set(id, item);
      this.#body.append(node);
    }
    item.text = "";
    // What is shown stays until there is something to put in its place.
  }

  /** Add to an item's text. It is shown with the next frame: words may come faster than a screen shows them. */
  grow(id, text) {
    const item = this.#items.get(id);
    if (!item) return;
    item.text += text;
    this.#facts?.writing();
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      if (this.#items.get(id) === item) this.#show(item, true);
    });
  }

  /** Set an item's text: it is whole. */
  settle(id, text) {
    const item = this.#items.get(id);
    if (!item) return;
    cancelAnimationFrame(this.#drawing);
    this.#drawing = 0;
    item.text = text;
    this.#show(item, false);
  }

  #show(item, growing) {
    if (item.prose) item.prose.show(item.text, { growing });
    else item.node.textContent = item.text;
    follow();
  }

  /** Forget an item; returns whether anything is left. */
  remove(id) {
    this.#items.get(id)?.node.remove();
    this.#items.delete(id);
    return this.#items.size > 0;
  }

  routed(event) {
    this.#facts?.routed(event);
  }

  timed(event) {
    this.#facts?.timed(event);
  }

  /** End it, and say so if it is not whole. */
  end({ status, status_details: details, usage }) {
    // Whatever was not settled is as whole as it will be.
    for (const item of this.#items.values()) this.#show(item, false);
    this.root.setAttribute("aria-busy", "false");
    this.root.dataset.status = status;
    this.#facts?.ended(usage);
    if (!(status in ENDINGS)) return;
    const cause = details?.error?.message ?? CAUSES[details?.error?.code];
    const words = cause ? `${ENDINGS[status]}. ${cause}` : ENDINGS[status];
    const ending = this.root.querySelector(".ending") ?? element("p", { class: "ending" });
    ending.textContent = words;
    this.#body.after(ending);
  }
}
