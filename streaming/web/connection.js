/**
 * One session's websocket: opens it, goes on with it after a loss, and says how it stands.
 *
 * `baton.sequence` tells how far the server's log has been told. After a loss we ask for what follows, so nothing is
 * missed; an item that was open is announced again from its beginning, so whoever shows it must replace what it has.
 */

import { verdict } from "/web/api.js";

const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 5_000;
const NORMAL_CLOSURE = 1000;
const TOO_BIG = 1009;

/** Refusals in a row, by a server that answers, before a session is taken for unknown. One may be a restart. */
const REFUSALS = 2;

/** @typedef {"connecting" | "connected" | "lost" | "locked"} State `locked`: a key is needed. */

export class Connection {
  #handlers;
  #socket = null;
  #session = null;
  #attached = null;
  #seq = 0;
  #failures = 0;
  #refusals = 0;
  #timer;

  /**
   * @param {object} handlers
   * @param {(state: State, message?: string) => void} handlers.onState
   * @param {() => void} handlers.onReplaced the session that was asked for is unknown, and this is a new one
   * @param {(session: string) => void} handlers.onKept the session has begun, and can be gone back to
   * @param {(event: object) => void} handlers.onEvent every other event of the server
   */
  constructor(handlers) {
    this.#handlers = handlers;
    addEventListener("online", () => this.#timer && this.#connect());
  }

  /** Begin with a session from its start; null asks for a new one. Drops the connection there was. */
  open(session) {
    this.#session = session;
    this.#seq = this.#failures = this.#refusals = 0;
    this.#handlers.onState("connecting");
    this.#connect();
  }

  /** Connect again to the same session, where it was left. */
  retry() {
    this.#handlers.onState("connecting");
    this.#connect();
  }

  /** The session that this connection is attached to, kept already or not; null before. */
  get session() {
    return this.#attached;
  }

  /** Send an event; returns false, having done nothing, if there is no connection. */
  send(event) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(event));
    return true;
  }

  #connect() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const wanted = this.#refusals < REFUSALS ? this.#session : null;
    const url = new URL("/v1/realtime", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.search = new URLSearchParams({ baton: "events", ...(wanted && { session: wanted, after: this.#seq }) });

    this.#socket?.close(NORMAL_CLOSURE);
    const socket = (this.#socket = new WebSocket(url, "realtime"));
    let opened = false;
    socket.onopen = () => (opened = true);
    socket.onmessage = ({ data }) => socket === this.#socket && this.#take(JSON.parse(data));
    socket.onclose = ({ code }) => socket === this.#socket && (opened ? this.#lose(code) : this.#refused(wanted));
  }

  #take(event) {
    if (event.type === "baton.session.attached") {
      const replaced = this.#session !== null && this.#session !== event.session_id;
      if (replaced) {
        this.#session = null;
        this.#seq = 0;
      }
      this.#attached = event.session_id;
      this.#failures = this.#refusals = 0;
      if (replaced) this.#handlers.onReplaced();
      this.#handlers.onState("connected");
    } else if (event.type === "baton.sequence") {
      // A session is kept from its first row on; until then there is nothing to go back to.
      this.#seq = event.seq;
      if (this.#session === this.#attached) return;
      this.#session = this.#attached;
      this.#handlers.onKept(this.#session);
    } else {
      this.#handlers.onEvent(event);
    }
  }

  #lose(code) {
    this.#later("lost", code === TOO_BIG ? "This message is too long for the server. Send a shorter one." : undefined);
  }

  /** Nobody let us in: find out why, and go on accordingly. */
  async #refused(wanted) {
    const socket = this.#socket;
    const { status, message } = await verdict();
    if (socket !== this.#socket) return;
    if (status === 401) {
      this.#handlers.onState("locked", message);
    } else {
      // Refused without a session too: the server is full, and the session may well be there.
      if (wanted === null) this.#refusals = 0;
      else if (status !== undefined && message === undefined) this.#refusals += 1;
      this.#later("lost", message);
    }
  }

  #later(state, message) {
    this.#socket = null;
    this.#handlers.onState(state, message);
    const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.#failures++);
    this.#timer = setTimeout(() => this.#connect(), wait * (0.75 + Math.random() / 2));
  }
}
