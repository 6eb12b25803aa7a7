/** Notes above the composer: what went wrong, and what to do. Each stays until it is dismissed. */

import { $, element } from "/web/dom.js";

/** Show a note; the same one is not shown twice. */
export function note(message) {
  const notes = $("notes");
  if ([...notes.children].some((child) => child.firstChild.textContent === message)) return;
  const dismiss = () => {
    entry.remove();
    $("input").focus();
  };
  const close = element("button", { type: "button", class: "quiet", click: dismiss }, "Dismiss");
  const entry = element("div", { class: "note" }, element("p", {}, message), close);
  notes.append(entry);
}

/** Take all notes away. */
export const clearNotes = () => $("notes").replaceChildren();
