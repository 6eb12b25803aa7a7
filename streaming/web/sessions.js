/** The side bar: the conversations there are, newest first, to be found, renamed, downloaded and deleted. */

import { changeSession, deleteSession, exportAddress, listSessions } from "/web/api.js";
import { confirm } from "/web/dialogs.js";
import { $, element, iconButton } from "/web/dom.js";
import { openMenu } from "/web/menu.js";
import { note } from "/web/notes.js";

/** A search looks through so many pages of conversations at most. */
const SEARCHED_PAGES = 20;
const DAY_MS = 24 * 3600 * 1000;

export const UNTITLED = "Untitled conversation";

/** @typedef {{id: string, title: string | null, updated_at: number}} Session as the server tells it */

export class SessionList {
  /** @type {Session[]} */
  #sessions = [];
  #more = false;
  #known = false;
  #current = null;
  #renaming = null;
  #deleted;

  /** @param {(id: string) => void} deleted called after a conversation was deleted */
  constructor(deleted) {
    this.#deleted = deleted;
    $("search").addEventListener("input", () => this.#search());
    $("search").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || $("search").value === "") return;
      event.stopPropagation();
      $("search").value = "";
      this.#show();
    });
    // Other tabs and other clients begin and end conversations too.
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
  }

  /** Ask the server anew. */
  async refresh() {
    try {
      const { data, has_more: more } = await listSessions();
      this.#sessions = data;
      this.#more = more;
      this.#known = true;
      this.#show();
    } catch (error) {
      // Without the server, or a key, what is known stays; the connection says so already.
      if (error.status !== undefined && error.status !== 401) note(error.message);
    }
  }

  /** Mark the conversation that is open; null for one that is new. */
  setCurrent(id) {
    this.#current = id;
    this.#show();
  }

  /** A conversation has begun, gone on, or been named anew; `title` left out stays. */
  touched(id, { title, active = false }) {
    const now = Date.now() / 1000;
    let session = this.#sessions.find((other) => other.id === id);
    if (!session) {
      if (!active) return;
      session = { id, title: null, updated_at: now };
      this.#sessions.push(session);
    }
    if (title !== undefined) session.title = title;
    if (active) session.updated_at = now;
    this.#sessions.sort((a, b) => b.updated_at - a.updated_at);
    this.#show();
  }

  async #next() {
    const { data, has_more: more } = await listSessions(this.#sessions.at(-1)?.id);
    const known = new Set(this.#sessions.map(({ id }) => id));
    this.#sessions.push(...data.filter(({ id }) => !known.has(id)));
    this.#more = more && data.length > 0;
    this.#show();
  }

  async #search() {
    this.#show();
    const wanted = $("search").value;
    try {
      for (let page = 0; page < SEARCHED_PAGES; page += 1) {
        if (!this.#more || $("search").value !== wanted) break;
        await this.#next();
      }
    } catch (error) {
      note(error.message);
    }
  }

  // What is shown

  #show() {
    if (this.#renaming) return;
    const list = $("sessions");
    const focused = list.contains(document.activeElement) && document.activeElement.closest("li")?.dataset.id;
    const wanted = $("search").value.trim().toLowerCase();
    const found = this.#sessions.filter(({ title }) => (title ?? UNTITLED).toLowerCase().includes(wanted));
    const groups = Map.groupBy(found, ({ updated_at: at }) => groupOf(at * 1000));
    list.replaceChildren(...[...groups].map(([name, sessions]) => this.#group(name, sessions)));
    if (this.#known && found.length === 0) {
      const words = wanted ? "No conversation has this in its title." : "What you talk about is kept here.";
      list.append(element("p", { class: "nothing" }, words));
    }
    if (this.#more && !wanted) {
      const more = () => this.#next().catch((error) => note(error.message));
      list.append(element("button", { type: "button", class: "more", click: more }, "Show older"));
    }
    if (focused) list.querySelector(`[data-id="${CSS.escape(focused)}"] a`)?.focus();
  }

  #group(name, sessions) {
    const heading = element("h3", {}, name);
    const entries = sessions.map((session) => this.#entry(session));
    return element("section", { "aria-label": name }, heading, element("ul", {}, ...entries));
  }

  #entry(session) {
    const title = session.title ?? UNTITLED;
    const link = element("a", { href: `#${session.id}`, title }, title);
    const entry = element("li", { "data-id": session.id });
    if (session.id === this.#current) link.setAttribute("aria-current", "page");
    link.addEventListener("dblclick", () => this.#rename(entry, session));
    link.addEventListener("keydown", (event) => {
      if (event.key === "F2") this.#rename(entry, session);
      else if (event.key === "Delete") this.#delete(session);
    });
    const more = iconButton("more", `More about “${title}”`, () => this.#menu(more, entry, session));
    more.setAttribute("aria-haspopup", "menu");
    entry.append(link, more);
    return entry;
  }

  #menu(anchor, entry, session) {
    openMenu(anchor, "Conversation", [
      { label: "Rename", icon: "rename", run: () => this.#rename(entry, session) },
      { label: "Export as Markdown", icon: "save", href: exportAddress(session.id, "markdown") },
      { label: "Export as JSON", icon: "save", href: exportAddress(session.id, "json") },
      { label: "Delete…", icon: "trash", danger: true, run: () => this.#delete(session) },
    ]);
  }

  // What is done

  #rename(entry, session) {
    if (!entry.isConnected || this.#renaming) return;
    this.#renaming = session.id;
    const before = session.title ?? "";
    const field = element("input", { type: "text", "aria-label": "Title", maxlength: 200, value: before });
    const end = async (keep) => {
      if (this.#renaming === null) return;
      this.#renaming = null;
      const title = field.value.trim();
      const change = keep && title !== "" && title !== before;
      if (change) session.title = title;
      this.#show();
      $("sessions").querySelector(`[data-id="${CSS.escape(session.id)}"] a`)?.focus();
      if (!change) return;
      try {
        await changeSession(session.id, { title });
      } catch (error) {
        session.title = before || null;
        this.#show();
        note(error.message);
      }
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) end(true);
      else if (event.key === "Escape") end(false);
    });
    field.addEventListener("blur", () => end(true));
    entry.replaceChildren(field);
    field.focus();
    field.select();
  }

  async #delete(session) {
    const title = session.title ?? UNTITLED;
    const text = `“${title}” and all its messages go for good.`;
    if (!(await confirm({ title: "Delete this conversation?", text, action: "Delete" }))) return;
    try {
      await deleteSession(session.id);
    } catch (error) {
      if (error.status !== 404) return note(error.message);
    }
    this.#sessions = this.#sessions.filter(({ id }) => id !== session.id);
    this.#show();
    this.#deleted(session.id);
    return undefined;
  }
}

function groupOf(ms) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (ms >= midnight) return "Today";
  return ms >= midnight - DAY_MS ? "Yesterday" : "Earlier";
}
