/** Menus: a short list that opens beside a button, for the mouse and for the keyboard. */

import { element, icon } from "/web/dom.js";

const GAP_PX = 6;
const MARGIN_PX = 8;

/**
 * @typedef {object} Entry
 * @property {string} label
 * @property {string} [detail] a second line
 * @property {string} [icon]
 * @property {boolean} [checked] whether it is the one chosen; left out where there is nothing to choose
 * @property {boolean} [danger]
 * @property {string} [href] what it downloads, instead of `run`
 * @property {() => void} [run]
 */

/**
 * Open a menu at a button, or close the one that is open there.
 * @param {HTMLElement} anchor
 * @param {string} label
 * @param {Entry[]} entries
 */
export function openMenu(anchor, label, entries) {
  if (anchor.getAttribute("aria-expanded") === "true") {
    document.querySelector(".menu:popover-open")?.hidePopover();
    return;
  }
  const menu = element("div", { class: "menu", role: "menu", "aria-label": label, popover: "auto" });
  menu.append(...entries.map((entry) => makeEntry(entry, () => menu.hidePopover())));
  menu.addEventListener("keydown", (event) => onKey(event, menu));
  menu.addEventListener("toggle", ({ newState }) => {
    if (newState === "open") return;
    anchor.setAttribute("aria-expanded", "false");
    const focused = menu.contains(document.activeElement);
    menu.remove();
    if (focused) anchor.focus();
  });
  document.body.append(menu);
  anchor.setAttribute("aria-expanded", "true");
  menu.showPopover({ source: anchor });
  place(menu, anchor);
  (menu.querySelector("[aria-checked=true]") ?? menu.firstElementChild)?.focus();
}

function makeEntry({ label, detail, icon: name, checked, danger, href, run }, close) {
  const words = element("span", { class: "words" }, element("span", { class: "label" }, label));
  if (detail) words.append(element("span", { class: "detail" }, detail));
  const attributes = {
    class: danger ? "entry danger" : "entry",
    role: checked === undefined ? "menuitem" : "menuitemradio",
    "aria-checked": checked === undefined ? null : String(checked),
    tabindex: -1,
    click: () => {
      close();
      run?.();
    },
  };
  const made = href
    ? element("a", { ...attributes, href, download: "" })
    : element("button", { ...attributes, type: "button" });
  made.append(...(name ? [icon(name)] : []), words, ...(checked ? [icon("done")] : []));
  return made;
}

function onKey(event, menu) {
  const entries = [...menu.children];
  const at = entries.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
  if (event.key === "Tab") menu.hidePopover();
  if (to === undefined) return;
  event.preventDefault();
  entries.at(to % entries.length).focus();
}

/** Below the button if there is room, else above; never beyond the window. */
function place(menu, anchor) {
  const button = anchor.getBoundingClientRect();
  const { width, height } = menu.getBoundingClientRect();
  const below = button.bottom + GAP_PX;
  const top = below + height + MARGIN_PX <= innerHeight ? below : Math.max(MARGIN_PX, button.top - GAP_PX - height);
  const left = button.left + width + MARGIN_PX <= innerWidth ? button.left : button.right - width;
  menu.style.top = `${top}px`;
  menu.style.left = `${Math.max(MARGIN_PX, Math.min(left, innerWidth - width - MARGIN_PX))}px`;
}
