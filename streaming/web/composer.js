/** Where a message is written. */

import { $ } from "/web/dom.js";

const input = $("input");

/** Set up the composer; `send`, `changed` and `up` (the arrow in an empty field) are called without arguments. */
export function setUpComposer({ send, changed, up }) {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  // A click beside the field is meant for it too.
  $("composer").addEventListener("click", (event) => event.target === event.currentTarget && input.focus());
  input.addEventListener("input", () => {
    fit();
    changed();
  });
  input.addEventListener("keydown", (event) => {
    // While an input method composes, its keys belong to it.
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && input.value === "") {
      event.preventDefault();
      up();
    }
  });
}

/** What is written. */
export const draft = () => input.value;

/** Write something in its place. */
export function write(text) {
  input.value = text;
  fit();
  input.focus();
}

/** Set the height of the field to its text's. */
function fit() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}
