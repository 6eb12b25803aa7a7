/**
 * The page: between the connection, what is shown, and the person.
 *
 * A message is sent in two steps: it is added to the conversation, and once the server has it in its log an answer is
 * asked for. So a connection lost at any moment leaves no doubt about what has arrived. To do a part of the
 * conversation again, its items are first deleted from the end backwards, each once the server has confirmed the one
 * before.
 */

import * as composer from "/web/composer.js";
import { Connection } from "/web/connection.js";
import * as conversation from "/web/conversation.js";
import { $ } from "/web/dom.js";
import { ModelPicker } from "/web/models.js";
import { clearNotes, note } from "/web/notes.js";
import { Readiness } from "/web/readiness.js";
import { SessionList, UNTITLED } from "/web/sessions.js";
import { Settings } from "/web/settings.js";
import { closeDrawer, setUpSignIn, showControls, showState, showTitle } from "/web/shell.js";
import { setUpShortcuts } from "/web/shortcuts.js";

/** @type {{id: string, text: string} | null} the message under way, until the server has it */
let sending = null;
/** @type {{id: string, text: string} | null} a message put back into the input, which may have arrived all the same */
let doubtful = null;
let asking = false;
/** Whether the answer that is being written was asked for here. */
let ours = false;
/** @type {string | null} the response that is being written */
let running = null;
/** @type {{ids: string[], text: string | null, then: () => void} | null} what is being deleted, to be done again */
let rewriting = null;
let connected = false;

const settings = new Settings(onSettings);
const picker = new ModelPicker(settings);
const sessions = new SessionList((deleted) => deleted === sessionInAddress() && fresh());
const readiness = new Readiness(refresh);
const connection = new Connection({ onState, onReplaced, onKept, onEvent });

// From the person

composer.setUpComposer({ send: () => say(composer.draft()), changed: refresh, up: editLast });
conversation.setActions({ edit, regenerate });
setUpShortcuts({ fresh, stop });
setUpSignIn(() => {
  connection.retry();
  $("input").focus();
});
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    const { text } = example.dataset;
    if (free()) say(text);
    else composer.write(text);
    refresh();
  });
}
for (const button of document.querySelectorAll(".new")) button.addEventListener("click", fresh);
$("sessions").addEventListener("click", ({ target }) => target.closest("a") && closeDrawer());
$("stop").addEventListener("click", stop);
$("ask").addEventListener("click", ask);
addEventListener("hashchange", () => open(sessionInAddress()));

async function say(text) {
  if (text.trim() === "" || !free()) return;
  const message = (sending = { id: newId("item"), text });
  doubtful = null;
  const item = { id: message.id, type: "message", role: "user", content: [{ type: "input_text", text }] };
  conversation.say(item, { pending: true });
  composer.write("");
  refresh();
  try {
    if (settings.waits) await settings.flush(connection.session);
  } catch (error) {
    if (sending === message) takeBack();
    note(error.message);
    refresh();
  }
  if (sending !== message) return;
  if (!connection.send({ type: "conversation.item.create", event_id: message.id, item })) takeBack();
  refresh();
}

function ask() {
  asking = ours = connection.send({ type: "response.create", event_id: newId("ask") });
  refresh();
}

function stop() {
  if (running !== null) connection.send({ type: "response.cancel", response_id: running });
}

function fresh() {
  closeDrawer();
  history.pushState(null, "", location.pathname);
  open(null);
  $("input").focus();
}

function regenerate() {
  rewrite(conversation.afterLastMessage(), null, () => {
    conversation.dropEmptyAnswers();
    ask();
  });
}

function edit(itemId, text) {
  rewrite(conversation.backTo(itemId), text, () => say(text));
}

function editLast() {
  const last = conversation.lastMessage();
  if (last && free()) conversation.editMessage(last.id);
}

/** Delete items, the last one first, then go on; `text` is what would be lost if that fails. */
function rewrite(ids, text, then) {
  if (!free()) {
    if (text !== null) composer.write(text);
    return;
  }
  rewriting = { ids, text, then };
  deleteNext();
}

function deleteNext() {
  const [next] = rewriting.ids;
  if (next === undefined) {
    const { then } = rewriting;
    rewriting = null;
    then();
  } else if (!connection.send({ type: "conversation.item.delete", event_id: newId("cut"), item_id: next })) {
    giveUpRewriting();
  }
  refresh();
}

function giveUpRewriting() {
  if (rewriting?.text) composer.write(rewriting.text);
  rewriting = null;
}

// From the connection

function open(session) {
  forget();
  settings.reset(session);
  sessions.setCurrent(session);
  connection.open(session);
}

/** Forget the conversation; what was being sent goes back into the input. */
function forget() {
  takeBack();
  giveUpRewriting();
  doubtful = running = null;
  asking = ours = false;
  conversation.clear();
  clearNotes();
}

function onReplaced() {
  forget();
  settings.reset(null);
  sessions.setCurrent(null);
  history.replaceState(null, "", location.pathname);
  note("That conversation is not known here, so this is a new one.");
}

function onKept(session) {
  history.replaceState(null, "", `#${session}`);
  settings.kept(session);
  sessions.touched(session, { active: true, title: settings.current.title ?? undefined });
  sessions.setCurrent(session);
  onSettings();
}

function onState(state, message) {
  connected = state === "connected";
  if (connected) {
    readiness.watch();
    sessions.refresh();
  } else {
    if (sending && state === "lost") message ??= "The connection broke while this message was being sent.";
    takeBack();
    giveUpRewriting();
    asking = false;
  }
  showState(state, message);
  refresh();
}

function onSettings() {
  const { title, instructions } = settings.current;
  showTitle(title ?? (sessionInAddress() ? UNTITLED : "New conversation"));
  $("settings-open").toggleAttribute("data-set", instructions !== null);
  picker.show();
}

function onEvent(event) {
  switch (event.type) {
    case "conversation.item.added":
      onItem(event.item);
      break;
    case "conversation.item.deleted":
      onDeleted(event.item_id);
      break;
    case "response.created":
      running = event.response.id;
      asking = false;
      conversation.answer(running);
      break;
    case "response.output_item.added":
      conversation.item(event.response_id, event.item);
      break;
    case "response.output_text.delta":
    case "response.function_call_arguments.delta":
      conversation.grow(event.item_id, event.delta);
      return;
    case "response.output_text.done":
      if (!event.content_index) conversation.settle(event.item_id, event.text); // what comes behind another part is added
      break;
    case "baton.turn.routed":
      conversation.routed(event);
      break;
    case "baton.turn.timed":
      conversation.timed(event);
      break;
    case "baton.session.updated":
      settings.take(event);
      sessions.touched(event.session_id, { title: event.title });
      break;
    case "response.done":
      onDone(event.response);
      break;
    case "error":
      onError(event.error);
      break;
  }
  refresh();
}

function onItem(item) {
  const expected = item.id === sending?.id || item.id === doubtful?.id;
  // An item of an answer is on the page already; it was announced as such before.
  if (!conversation.has(item.id) || expected) conversation.say(item);
  if (!expected) return;
  if (item.id === doubtful?.id && composer.draft() === doubtful.text) composer.write("");
  sending = doubtful = null;
  ask();
}

function onDeleted(itemId) {
  conversation.remove(itemId);
  if (rewriting === null) return;
  const head = rewriting.ids[0] === itemId;
  rewriting.ids = rewriting.ids.filter((id) => id !== itemId);
  if (head) deleteNext();
}

function onDone(response) {
  if (running === response.id) running = null;
  conversation.ended(response, { heard: ours });
  if (!ours) return;
  ours = false;
  if (connection.session) sessions.touched(connection.session, { active: true });
}

function onError({ message, code, event_id: about }) {
  if (about?.startsWith("ask")) asking = ours = false;
  if (about?.startsWith("cut")) giveUpRewriting();
  if (about !== null && about === sending?.id) takeBack();
  // Nothing to tell: the answer that was to be stopped has just ended; a session that closes is reconnected to.
  if (code === "response_cancel_not_active" || (code === "session_closed" && about === null)) return;
  note(message);
}

/** Put the message that is under way back into the input. */
function takeBack() {
  if (sending === null) return;
  conversation.remove(sending.id);
  const draft = composer.draft();
  composer.write(draft ? `${sending.text}\n${draft}` : sending.text);
  doubtful = sending;
  sending = null;
}

// State

function free() {
  const idle = sending === null && !asking && running === null && rewriting === null;
  return connected && idle && readiness.ready === true;
}

function refresh() {
  showControls({
    canSend: free() && composer.draft().trim() !== "",
    canStop: connected && running !== null,
    canAsk: free() && conversation.unanswered(),
    running: running !== null || asking || sending !== null || rewriting !== null,
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
