/** The server's REST surface, as far as the page uses it. */

/** A refusal, with the server's own words for people. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const GONE = "The server does not answer. Try again in a moment.";

/**
 * Ask the server.
 * @returns {Promise<object | null>} the body, null if there is none
 * @throws {Refused}
 */
async function ask(method, path, body) {
  const headers = body && { "content-type": "application/json" };
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
  } catch {
    throw new Refused(GONE);
  }
  if (!response.ok) throw new Refused(await errorMessage(response), response.status);
  return response.status === 204 ? null : response.json();
}

/** The server's explanation of an answer that is not a success. */
export async function errorMessage(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The server answered with status ${response.status}.`;
}

const session = (id) => `/v1/sessions/${encodeURIComponent(id)}`;

/** A page of conversations, newest first: `{data, has_more}`. */
export function listSessions(before = null, limit = 50) {
  const query = new URLSearchParams({ limit: String(limit), ...(before && { before }) });
  return ask("GET", `/v1/sessions?${query}`);
}

/** Change a conversation's title, instructions or model; null clears one. */
export const changeSession = (id, changes) => ask("PATCH", session(id), changes);

export const deleteSession = (id) => ask("DELETE", session(id));

/** Where a conversation is downloaded: `markdown` or `json`. */
export const exportAddress = (id, format) => `${session(id)}/export?format=${format}`;

export const listModels = () => ask("GET", "/v1/models");

/**
 * How far the models are. A server that is not ready says so with 503, and the same body.
 * @returns {Promise<{status: string, models: object[]} | null>} null if it cannot be told now
 */
export async function readiness() {
  try {
    const response = await fetch("/readyz", { cache: "no-store" });
    const body = response.ok || response.status === 503 ? await response.json() : null;
    return Array.isArray(body?.models) ? body : null;
  } catch {
    return null;
  }
}

/** Exchange a key for a cookie. Returns undefined, or why it was not taken. */
export async function signIn(key) {
  try {
    await ask("POST", "/v1/login", { key });
    return undefined;
  } catch (error) {
    return error.message;
  }
}

/** Drop the cookie. */
export const signOut = () => ask("POST", "/v1/logout");

/**
 * Whether the realtime endpoint would have us: no status if the server does not answer, a message if it lets nobody, or
 * not us, in. A browser does not say why a websocket was refused.
 * @returns {Promise<{status?: number, message?: string}>}
 */
export async function verdict() {
  try {
    // A GET without an upgrade passes the gate, or does not, and finds nothing behind it (404).
    const response = await fetch("/v1/realtime", { cache: "no-store" });
    const { status } = response;
    const barred = [401, 403, 429].includes(status) || status >= 500;
    return { status, message: barred ? await errorMessage(response) : undefined };
  } catch {
    return {};
  }
}
