/** Keys that work everywhere on the page; the help sheet lists them. */

import { covered, showHelp } from "/web/dialogs.js";
import { $ } from "/web/dom.js";
import { closeDrawer, openSide } from "/web/shell.js";

/** Set up the keys; `fresh` begins a conversation, `stop` stops an answer. */
export function setUpShortcuts({ fresh, stop }) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || covered()) return;
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    const typing = event.target.matches?.("input, textarea, [contenteditable]");
    if (key === "escape") {
      if (!closeDrawer()) stop();
    } else if (command && event.shiftKey && key === "o") act(event, fresh);
    else if (command && !event.shiftKey && key === "k") act(event, search);
    else if (!typing && !command && !event.altKey && key === "/") act(event, search);
    else if (!typing && !command && !event.altKey && key === "?") act(event, showHelp);
  });
}

function act(event, action) {
  event.preventDefault();
  action();
}

function search() {
  if (document.body.dataset.side !== "open") openSide(true);
  $("search").focus();
  $("search").select();
}
