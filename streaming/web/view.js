/**
 * What is on the page. Everything is kept by its id, so that an event that is told twice changes nothing.
 * Text from outside enters as text only, never as markup.
 */

const $ = (id) => document.getElementById(id);
const AT_BOTTOM_PX = 60;

const STATES = {
  connecting: "Connecting…",
  connected: "Connected",
  lost: "Connection lost, trying again…",
  locked: "Signed out",
};

/** How a response ended, when it did not simply end, in words. */
const ENDINGS = { cancelled: "Interrupted", failed: "Failed", incomplete: "Cut at its length limit" };
const CAUSES = {
  server_restarted: "The server was restarted before this answer was whole.",
  server_stopped: "The server was stopped before this answer was whole.",
};

const input = $("input");
const scroll = $("scroll");
const log = $("log");
/** @type {Map<string, HTMLElement>} by id of item or response */
const shown = new Map();
/** Whether the reader is at the newest words, and so wants to see more of them. */
let pinned = true;
let scrolling = false;
let lastTop = 0;

scroll.addEventListener("scroll", () => {
  const { scrollTop, scrollHeight, clientHeight } = scroll;
  // Words that came after our own scrolling leave the bottom behind; only the reader goes up.
  pinned = scrollHeight - scrollTop - clientHeight < AT_BOTTOM_PX || (pinned && scrollTop >= lastTop);
  lastTop = scrollTop;
  $("latest").hidden = pinned;
});
$("latest").addEventListener("click", () => toBottom());
new ResizeObserver(follow).observe(scroll);

/** Forget the conversation. */
export function clear() {
  shown.clear();
  log.replaceChildren();
  $("notes").replaceChildren();
  $("empty").hidden = false;
  toBottom();
}

// What was said

/** Show a message of the user, or what else entered the conversation outside an answer. */
export function said(item, { pending = false } = {}) {
  let entry = shown.get(item.id);
  if (!entry) {
    entry = add(log, item.id, "article", item.role === "assistant" ? "answer" : `said ${item.role ?? "call"}`);
    if (item.role === "user") {
      entry.setAttribute("aria-label", "You");
      toBottom();
    }
  }
  entry.textContent = textOf(item);
  entry.classList.toggle("pending", pending);
}

/** Take back what was said. */
export function unsaid(itemId) {
  shown.get(itemId)?.remove();
  shown.delete(itemId);
  $("empty").hidden = log.childElementCount > 0;
}

export const has = (itemId) => shown.has(itemId);

/** Whether the last word is not an answer's. */
export const unanswered = () => log.lastElementChild?.matches(".said:not(.pending)") ?? false;

// Answers

/** Begin an answer, unless it is there. */
export function answer(responseId) {
  const known = shown.get(responseId);
  if (known) return known;
  const entry = add(log, responseId, "article", "answer");
  entry.setAttribute("aria-label", "Answer");
  entry.setAttribute("aria-busy", "true");
  entry.append(element("div", "body"), element("ul", "facts"));
  return entry;
}

/** Begin an item of an answer, or begin it again: its text follows from the start. */
export function item(responseId, { id, type, name }) {
  const place = answer(responseId).querySelector(".body");
  const entry = shown.get(id) ?? add(place, id, "div", type === "message" ? "text" : "call");
  if (name) entry.dataset.name = name;
  entry.textContent = "";
}

/** Add to an item's text. */
export function grow(itemId, text) {
  shown.get(itemId)?.append(text);
  follow();
}

/** Set an item's text: it is whole. */
export function settle(itemId, text) {
  const entry = shown.get(itemId);
  if (entry) entry.textContent = text;
  follow();
}

/** Say who answers, and why. */
export function routed({ response_id, model, reasons, refused }) {
  fact(response_id, "model", model);
  reasons.forEach((reason, n) => fact(response_id, `why why-${n}`, reason));
  refused.forEach((other, n) => fact(response_id, `other other-${n}`, `not ${other.model}: ${other.reason}`));
}

/** Say where the time went. */
export function timed({ response_id, first_delta_ms, duration_ms }) {
  if (first_delta_ms !== null) fact(response_id, "first", `first word ${duration(first_delta_ms)}`);
  if (duration_ms !== null) fact(response_id, "total", `total ${duration(duration_ms)}`);
}

/** End an answer, and say so if it is not whole. */
export function ended({ id, status, status_details: details }) {
  const entry = answer(id);
  entry.setAttribute("aria-busy", "false");
  entry.dataset.status = status;
  if (status in ENDINGS) {
    const cause = details?.error?.message ?? CAUSES[details?.error?.code];
    const ending = entry.querySelector(".ending") ?? entry.insertBefore(element("p", "ending"), entry.lastChild);
    ending.textContent = cause ? `${ENDINGS[status]}. ${cause}` : ENDINGS[status];
  }
  follow();
}

// Around the conversation

/** Show how the connection stands. */
export function state(name, message) {
  document.body.dataset.state = name;
  $("state").textContent = STATES[name];
  const locked = name === "locked";
  const appears = locked && $("sign-in").hidden;
  for (const id of ["scroll", "dock", "new"]) $(id).hidden = locked;
  $("sign-in").hidden = !locked;
  if (appears) $("key").focus();
  else if (!locked && message) note(message);
}

/** Show what can be done now. */
export function controls({ canSend, canStop, canAsk }) {
  const focused = document.activeElement === $("stop") || document.activeElement === $("ask");
  $("send").disabled = !canSend;
  $("send").hidden = canStop;
  $("stop").hidden = !canStop;
  $("ask").hidden = !canAsk;
  if (focused && document.activeElement === document.body) input.focus();
}

/** Show a note until it is dismissed; the same note is not shown twice. */
export function note(message) {
  const notes = $("notes");
  if ([...notes.children].some((child) => child.firstChild.textContent === message)) return;
  const entry = element("div", "note");
  const close = element("button", "quiet", "Dismiss");
  close.type = "button";
  close.addEventListener("click", () => {
    entry.remove();
    input.focus();
  });
  entry.append(element("p", "", message), close);
  notes.append(entry);
}

/** Say why a key was not taken; nothing takes it back. */
export function signInError(message = "") {
  $("sign-in-error").textContent = message;
}

/** Set the height of the input to its text's. */
export function fit() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

/** Put words into the input. */
export function write(text) {
  input.value = text;
  fit();
  input.focus();
}

// Inside

function add(parent, id, tag, className) {
  const entry = element(tag, className);
  shown.set(id, entry);
  parent.append(entry);
  $("empty").hidden = true;
  follow();
  return entry;
}

function fact(responseId, className, text) {
  const facts = answer(responseId).querySelector(".facts");
  const known = facts.getElementsByClassName(className)[0];
  const entry = known ?? facts.appendChild(element("li", className));
  entry.textContent = text;
  follow();
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function textOf(item) {
  if (item.type === "message") return item.content.map((part) => part.text).join("");
  return item.output ?? `${item.name}(${item.arguments})`;
}

function duration(ms) {
  return ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
}

/** Keep the newest words in sight, if the reader was there. */
function follow() {
  if (!pinned || scrolling) return;
  scrolling = true;
  requestAnimationFrame(() => {
    scrolling = false;
    if (pinned) scroll.scrollTop = scroll.scrollHeight;
  });
}

function toBottom() {
  pinned = true;
  $("latest").hidden = true;
  follow();
}
