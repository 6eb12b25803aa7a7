/** The page's dialogs: what they share, the help sheet, and a question before something is lost. */

import { $ } from "/web/dom.js";

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    // Only the backdrop is the dialog itself; everything in it lies on its form.
    if (event.target === dialog) dialog.close();
  });
}

$("help-open").addEventListener("click", showHelp);

export function showHelp() {
  $("help").showModal();
}

/** Whether something lies over the page that Escape closes. */
export const covered = () => document.querySelector("dialog[open], :popover-open") !== null;

/**
 * Ask whether something is to be done; resolves to whether.
 * @param {{title: string, text: string, action: string}} question
 * @returns {Promise<boolean>}
 */
export function confirm({ title, text, action }) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = action;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
