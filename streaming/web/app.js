/**
 * The page: between the connection, the view and the person.
 *
 * A message is sent in two steps: it is added to the conversation, and once the server has it in its log an answer is
 * asked for. So a connection lost at any moment leaves no doubt about what has arrived.
 */

import { Connection, signIn } from "/web/connection.js";
import * as view from "/web/view.js";

const $ = (id) => document.getElementById(id);
const input = $("input");

/** @type {{id: string, text: string} | null} the message under way, until the server has it */
let sending = null;
/** @type {{id: string, text: string} | null} a message put back into the input, which may have arrived all the same */
let doubtful = null;
let asking = false;
/** @type {string | null} the response that is being written */
let running = null;
let connected = false;

const connection = new Connection({ onState, onReplaced, onKept, onEvent });

// From the person

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  say(input.value);
});
input.addEventListener("input", () => {
  view.fit();
  refresh();
});
input.addEventListener("keydown", (event) => {
  // While an input method composes, Enter belongs to it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  say(input.value);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => say(example.dataset.text));
}
$("stop").addEventListener("click", stop);
$("ask").addEventListener("click", ask);
$("new").addEventListener("click", () => {
  history.pushState(null, "", location.pathname);
  open(null);
  input.focus();
});
addEventListener("hashchange", () => open(sessionInAddress()));

$("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const refusal = await signIn($("key").value.trim());
  view.signInError(refusal);
  if (refusal !== undefined) return;
  $("key").value = "";
  connection.retry();
  input.focus();
});

function say(text) {
  if (text.trim() === "" || !free()) return;
  sending = { id: newId("item"), text };
  doubtful = null;
  const item = { id: sending.id, type: "message", role: "user", content: [{ type: "input_text", text }] };
  if (!connection.send({ type: "conversation.item.create", event_id: sending.id, item })) {
    sending = null;
    return;
  }
  view.said(item, { pending: true });
  view.write("");
  refresh();
}

function ask() {
  asking = connection.send({ type: "response.create", event_id: newId("ask") });
  refresh();
}

function stop() {
  if (running !== null) connection.send({ type: "response.cancel", response_id: running });
}

// From the connection

function open(session) {
  forget();
  connection.open(session);
}

/** Forget the conversation; what was being sent goes back into the input. */
function forget() {
  takeBack();
  doubtful = running = null;
  asking = false;
  view.clear();
}

function onReplaced() {
  forget();
  history.replaceState(null, "", location.pathname);
  view.note("That conversation is not known here, so this is a new one.");
}

function onKept(session) {
  history.replaceState(null, "", `#${session}`);
}

function onState(state, message) {
  connected = state === "connected";
  if (!connected) {
    if (sending && state === "lost") message ??= "The connection broke while this message was being sent.";
    takeBack();
    asking = false;
  }
  view.state(state, message);
  refresh();
}

function onEvent(event) {
  switch (event.type) {
    case "conversation.item.added":
      onItem(event.item);
      break;
    case "response.created":
      running = event.response.id;
      asking = false;
      view.answer(running);
      break;
    case "response.output_item.added":
      view.item(event.response_id, event.item);
      break;
    case "response.output_text.delta":
    case "response.function_call_arguments.delta":
      view.grow(event.item_id, event.delta);
      break;
    case "response.output_text.done":
      view.settle(event.item_id, event.text);
      break;
    case "baton.turn.routed":
      view.routed(event);
      break;
    case "baton.turn.timed":
      view.timed(event);
      break;
    case "response.done":
      if (running === event.response.id) running = null;
      view.ended(event.response);
      break;
    case "error":
      onError(event.error);
      break;
  }
  refresh();
}

function onItem(item) {
  const ours = item.id === sending?.id || item.id === doubtful?.id;
  // An item of an answer is on the page already; it was announced as such before.
  if (!view.has(item.id) || ours) view.said(item);
  if (!ours) return;
  if (item.id === doubtful?.id && input.value === doubtful.text) view.write("");
  sending = doubtful = null;
  ask();
}

function onError({ message, code, event_id: about }) {
  if (about?.startsWith("ask")) asking = false;
  if (about !== null && about === sending?.id) takeBack();
  // Nothing to tell: the answer that was to be stopped has just ended; a session that closes is reconnected to.
  if (code === "response_cancel_not_active" || (code === "session_closed" && about === null)) return;
  view.note(message);
}

/** Put the message that is under way back into the input. */
function takeBack() {
  if (sending === null) return;
  view.unsaid(sending.id);
  view.write(input.value ? `${sending.text}\n${input.value}` : sending.text);
  doubtful = sending;
  sending = null;
}

// State

function free() {
  return connected && sending === null && !asking && running === null;
}

function refresh() {
  view.controls({
    canSend: free() && input.value.trim() !== "",
    canStop: connected && running !== null,
    canAsk: free() && view.unanswered(),
  });
}

function newId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `${prefix}_${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

function sessionInAddress() {
  return /^#([\w-]{1,64})$/.exec(location.hash)?.[1] ?? null;
}

open(sessionInAddress());
