/**
 * The conversation on the page. Everything is kept by its id, so that an event that is told twice changes nothing.
 * The order of the elements is the order of the conversation.
 */

import { Answer } from "/web/answer.js";
import { $, announce, copyButton, element, iconButton } from "/web/dom.js";
import { follow, toBottom } from "/web/scroll.js";

const log = $("log");
/** @type {Map<string, HTMLElement>} what was said outside an answer, by id of its item */
const said = new Map();
/** @type {Map<string, Answer>} by id of the response, or of the item that was put in by itself */
const answers = new Map();
/** @type {Map<string, Answer>} by id of an item */
const answerOf = new Map();
/** @type {{edit: (id: string, text: string) => void, regenerate: () => void}} */
let actions;

/** Say what the buttons of messages and answers do. */
export function setActions(given) {
  actions = given;
}

/** Forget the conversation. */
export function clear() {
  for (const known of [said, answers, answerOf]) known.clear();
  log.replaceChildren();
  refreshEmpty();
  toBottom();
}

export const has = (itemId) => said.has(itemId) || answerOf.has(itemId);

/** Whether the last word is not an answer's. */
export const unanswered = () => log.lastElementChild?.matches(".said:not(.pending)") ?? false;

function refreshEmpty() {
  const empty = log.childElementCount === 0;
  $("empty").hidden = !empty;
  document.body.toggleAttribute("data-empty", empty);
}

function put(node) {
  log.append(node);
  refreshEmpty();
  follow();
}

// What was said

/** Show a message of the user, or what else entered the conversation outside an answer. */
export function say(item, { pending = false } = {}) {
  if (item.role === "assistant") return sayAnswer(item);
  let entry = said.get(item.id);
  if (!entry) {
    entry = element("article", { class: `said ${item.role ?? "call"}`, "data-item": item.id });
    said.set(item.id, entry);
    if (item.role === "user") entry.setAttribute("aria-label", "You");
    put(entry);
    if (item.role === "user") toBottom();
  }
  entry.classList.toggle("pending", pending);
  fill(entry, item.role, textOf(item));
  return undefined;
}

function fill(entry, role, text) {
  const tools = element("div", { class: "tools" });
  if (role === "user") {
    const edit = iconButton("edit", "Edit and send again", () => editMessage(entry.dataset.item), "tool edit");
    tools.append(copyButton("Copy", () => text), edit);
  }
  entry.replaceChildren(element("p", { class: "words" }, text), tools);
}

/** An assistant's message that no response of this session wrote. */
function sayAnswer(item) {
  if (answerOf.has(item.id)) return;
  const answer = new Answer(actions, true);
  answers.set(item.id, answer);
  answerOf.set(item.id, answer);
  answer.begin(item);
  answer.settle(item.id, textOf(item));
  put(answer.root);
}

/** Take an item back: it is not part of the conversation (any more). */
export function remove(itemId) {
  const entry = said.get(itemId);
  if (entry) {
    // Answers that failed before their first word belong to the message before them.
    while (entry.nextElementSibling?.matches(".answer") && isEmpty(entry.nextElementSibling)) {
      entry.nextElementSibling.remove();
    }
    entry.remove();
    said.delete(itemId);
  }
  const answer = answerOf.get(itemId);
  if (answer && !answer.remove(itemId)) answer.root.remove();
  answerOf.delete(itemId);
  refreshEmpty();
}

function isEmpty(node) {
  return node.getAttribute("aria-busy") === "false" && node.querySelector("[data-item]") === null;
}

function textOf(item) {
  if (item.type === "message") return item.content.map((part) => part.text).join("");
  return item.output ?? `${item.name}(${item.arguments})`;
}

// What to delete before a part of the conversation is done again

/** The last message of the user: its id and its words, or null. */
export function lastMessage() {
  const entry = [...log.querySelectorAll(".said.user:not(.pending)")].at(-1);
  return entry ? { id: entry.dataset.item, text: entry.querySelector(".words")?.textContent ?? "" } : null;
}

/** Ids of all items from the end back to this one, it included. */
export function backTo(itemId) {
  const ids = allIds();
  return ids.slice(ids.indexOf(itemId)).reverse();
}

/** Ids of all items from the end back to the last message of the user, which stays. */
export function afterLastMessage() {
  const ids = allIds();
  return ids.slice(ids.indexOf(lastMessage()?.id) + 1).reverse();
}

const allIds = () => [...log.querySelectorAll("[data-item]")].map((node) => node.dataset.item);

/** Take answers without words from the end: another is asked for in their place. */
export function dropEmptyAnswers() {
  while (log.lastElementChild && log.lastElementChild.matches(".answer") && isEmpty(log.lastElementChild)) {
    log.lastElementChild.remove();
  }
}

/** Let a message of the user be changed where it stands. */
export function editMessage(itemId) {
  const entry = said.get(itemId);
  if (!entry || entry.querySelector("form") || document.body.hasAttribute("data-running")) return;
  const text = entry.querySelector(".words").textContent;
  const area = element("textarea", { "aria-label": "Message", rows: 1 });
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  };
  const leave = () => {
    fill(entry, "user", text);
    $("input").focus();
  };
  const send = (event) => {
    event.preventDefault();
    if (area.value.trim() === "") return;
    const wanted = area.value;
    leave();
    actions.edit(itemId, wanted);
  };
  const key = (event) => {
    if (event.key === "Escape") leave();
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
    else return;
    event.stopPropagation();
  };
  const buttons = element(
    "div",
    { class: "buttons" },
    element("p", {}, "What follows this message goes."),
    element("button", { type: "button", class: "quiet", click: leave }, "Cancel"),
    element("button", { type: "submit", class: "main" }, "Send"),
  );
  entry.replaceChildren(element("form", { submit: send, keydown: key, input: fit }, area, buttons));
  area.value = text;
  fit();
  area.focus();
}

// Answers

/** Begin an answer, unless it is there. */
export function answer(responseId) {
  const known = answers.get(responseId);
  if (known) return known;
  dropEmptyAnswers();
  const begun = new Answer(actions);
  answers.set(responseId, begun);
  put(begun.root);
  return begun;
}

/** Begin an item of an answer. */
export function item(responseId, given) {
  const target = answer(responseId);
  answerOf.set(given.id, target);
  target.begin(given);
}

/** Add to an item's text. */
export const grow = (itemId, text) => answerOf.get(itemId)?.grow(itemId, text);

/** Set an item's text: it is whole. */
export const settle = (itemId, text) => answerOf.get(itemId)?.settle(itemId, text);

export const routed = (event) => answer(event.response_id).routed(event);

export const timed = (event) => answer(event.response_id).timed(event);

/** End an answer; `heard` says that somebody was waiting for it. */
export function ended(response, { heard = false } = {}) {
  const target = answer(response.id);
  target.end(response);
  if (heard) announce(target.text || target.root.querySelector(".ending")?.textContent || "");
  follow();
}
