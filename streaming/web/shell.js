/** Around the conversation: the state of the connection, what can be done now, the side bar as a drawer, signing in. */

import { signIn, signOut } from "/web/api.js";
import { $ } from "/web/dom.js";
import { note } from "/web/notes.js";

const STATES = {
  connecting: "Connecting…",
  connected: "Connected",
  lost: "Connection lost, trying again…",
  locked: "Signed out",
};

/** Show how the connection stands. */
export function showState(name, message) {
  document.body.dataset.state = name;
  $("state").textContent = STATES[name];
  const locked = name === "locked";
  const appears = locked && $("sign-in").hidden;
  for (const id of ["side", "main"]) $(id).hidden = locked;
  $("sign-in").hidden = !locked;
  if (appears) $("key").focus();
  else if (!locked && message) note(message);
}

/** Show what can be done now. */
export function showControls({ canSend, canStop, canAsk, running }) {
  const focused = [$("stop"), $("ask")].includes(document.activeElement);
  $("send").disabled = !canSend;
  $("send").hidden = canStop;
  $("stop").hidden = !canStop;
  $("ask").hidden = !canAsk;
  document.body.toggleAttribute("data-running", running);
  if (focused && document.activeElement === document.body) $("input").focus();
}

/** Show what this conversation is called. */
export function showTitle(title) {
  $("title").textContent = title;
  document.title = `${title} · Baton`;
}

// The side bar: beside the conversation where there is room, else a drawer over it.

const narrow = matchMedia("(max-width: 56rem)");
const SIDE = "baton.side";

/** Open or close the side bar. Beside the conversation, that is remembered. */
export function openSide(open) {
  document.body.dataset.moved = "";
  setSide(open);
  (open ? $("side-close") : $("side-open")).focus();
  if (!narrow.matches) remember(SIDE, open ? null : "closed");
}

function setSide(open) {
  const over = open && narrow.matches;
  document.body.dataset.side = open ? "open" : "closed";
  $("side").inert = !open;
  $("main").inert = over;
  $("backdrop").hidden = !over;
  $("side-open").setAttribute("aria-expanded", String(open));
}

/** Close the side bar if it lies over the conversation; returns whether it did. */
export function closeDrawer() {
  if (!narrow.matches || document.body.dataset.side !== "open") return false;
  openSide(false);
  return true;
}

function settle() {
  delete document.body.dataset.moved;
  setSide(!narrow.matches && recall(SIDE) !== "closed");
}

narrow.addEventListener("change", settle);
settle();
$("side-open").addEventListener("click", () => openSide(true));
$("side-close").addEventListener("click", () => openSide(false));
$("backdrop").addEventListener("click", () => openSide(false));

// Signing in

const SIGNED_IN = "baton.signed-in";

/** Set up the sign-in; `done` is called once the server has taken the key. */
export function setUpSignIn(done) {
  $("sign-in-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const refusal = await signIn($("key").value.trim());
    $("sign-in-error").textContent = refusal ?? "";
    if (refusal !== undefined) return;
    $("key").value = "";
    remember(SIGNED_IN, "yes");
    $("sign-out").hidden = false;
    done();
  });
  // The cookie is out of sight of scripts, so we note that there is one.
  $("sign-out").hidden = recall(SIGNED_IN) === null;
  $("sign-out").addEventListener("click", async () => {
    try {
      await signOut();
      remember(SIGNED_IN, null);
      location.replace(location.pathname);
    } catch (error) {
      note(error.message);
    }
  });
}

// What this browser remembers, if it remembers anything.

function remember(key, value) {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, value);
  } catch {
    // Then it lasts as long as the page.
  }
}

function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}
