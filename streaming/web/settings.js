/**
 * What holds for this conversation: its title, its instructions, its model.
 *
 * The server keeps them with the conversation. Before the first message there is none to keep them with, so they wait
 * here, and are sent along with it.
 */

import { changeSession } from "/web/api.js";
import { $ } from "/web/dom.js";
import { note } from "/web/notes.js";

const NOTHING = { title: null, instructions: null, model: null };

export class Settings {
  #stored = NOTHING;
  /** What is to be stored with the first message. */
  #waiting = {};
  #session = null;
  #changed;

  /** @param {() => void} changed called after every change */
  constructor(changed) {
    this.#changed = changed;
    $("settings-open").addEventListener("click", () => this.#open());
    $("settings-form").addEventListener("submit", ({ submitter }) => submitter.value === "save" && this.#save());
  }

  get current() {
    return { ...this.#stored, ...this.#waiting };
  }

  /** Begin with a conversation, or with a new one (null), of which nothing is known yet. */
  reset(session) {
    this.#session = session;
    this.#stored = NOTHING;
    this.#waiting = {};
    this.#changed();
  }

  /** The server keeps this conversation from now on. */
  kept(session) {
    this.#session = session;
  }

  /** Take what the server says. */
  take({ title, instructions, model }) {
    this.#stored = { title: title ?? null, instructions: instructions ?? null, model: model ?? null };
    this.#changed();
  }

  /** Change some of it. A refusal is shown, and changes nothing. */
  async change(changes) {
    if (this.#session === null) {
      Object.assign(this.#waiting, changes);
      this.#changed();
      return;
    }
    try {
      await this.#store(this.#session, changes);
    } catch (error) {
      note(error.message);
    }
  }

  /** Whether something waits for the first message. */
  get waits() {
    return Object.keys(this.#waiting).length > 0;
  }

  /** Store what waits. Throws what the server refuses. */
  async flush(session) {
    await this.#store(session, this.#waiting);
    this.#waiting = {};
  }

  async #store(session, changes) {
    const stored = await changeSession(session, changes);
    if (this.#session === null || this.#session === session) this.take(stored);
  }

  #open() {
    $("instructions").value = this.current.instructions ?? "";
    $("settings").showModal();
  }

  #save() {
    const instructions = $("instructions").value.trim() || null;
    if (instructions !== this.current.instructions) this.change({ instructions });
  }
}
