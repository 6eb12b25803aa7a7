/** What the page's other modules are built of: elements, icons, the clipboard, words for those who listen. */

/** The element of the page that has this id. */
export const $ = (id) => document.getElementById(id);

/**
 * Make an element. Text becomes text, never markup.
 * @param {string} tag
 * @param {Record<string, unknown>} attributes null and false leave one out; a function hears the event of that name
 * @param {...(Node | string)} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  copy: "M7 7h8.5v9.5H7zM4.5 13V3.5H13",
  done: "M4.5 10.5l3.5 3.5 7.5-8",
  again: "M15.5 10a5.5 5.5 0 1 1-1.7-4M14 2.8V6.2h-3.4",
  edit: "M4 16l.8-3.4L13.2 4.2l2.6 2.6-8.4 8.4zM11.3 6.1l2.6 2.6",
  more: "M4.5 10h.01M10 10h.01M15.5 10h.01",
  rename: "M4 16l.8-3.4L13.2 4.2l2.6 2.6-8.4 8.4z",
  trash: "M4 5.5h12M8 5.5V3.5h4v2M5.5 5.5l.7 11h7.6l.7-11M8.5 8.5v5M11.5 8.5v5",
  save: "M10 3v9.5M6 8.8l4 4 4-4M4 16.5h12",
};

/** Make one of the icons. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Make a button that shows an icon; its name is for those who do not see it. */
export function iconButton(name, label, click, className = "tool") {
  return element("button", { type: "button", class: className, "aria-label": label, title: label, click }, icon(name));
}

const COPIED_MS = 1_600;

/** Make a button that copies what `text` returns, and says for a moment that it did. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const copied = await copy(text());
    announce(copied ? "Copied" : "This browser does not let the page copy");
    if (!copied) return;
    button.replaceChildren(icon("done"));
    button.dataset.copied = "";
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      delete button.dataset.copied;
    }, COPIED_MS);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without https a browser keeps its clipboard to itself, except by this older way.
    const area = element("textarea", { class: "unseen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

/** Say something to those who listen to the page. */
export function announce(words) {
  $("announcer").textContent = words;
}

/** A duration in words that are easy to compare. */
export function duration(ms) {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  return `${(ms / 1_000).toFixed(ms < 10_000 ? 2 : 1)} s`;
}

/** An amount of bytes in megabytes. */
export function megabytes(bytes) {
  const amount = bytes / 1_000_000;
  return `${amount < 10 ? amount.toFixed(1) : Math.round(amount)} MB`;
}

/** A number as people say it: 8.2K, 135M. */
export function compact(number) {
  const digits = number < 10 ? 2 : 3;
  return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: digits }).format(number);
}
