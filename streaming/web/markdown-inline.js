/**
 * Markdown within a block, as CommonMark has it: text to a flat list of tokens.
 *
 * Flat, so that no input can nest deeper than whoever shows it allows. Every search ahead is bounded or remembered, so
 * that time grows with the length of the text. HTML is text here, except `<br>`, which models write in tables; a link
 * to anything but http, https and mail is text; an image is a link, since the page loads nothing from elsewhere.
 */

/**
 * @typedef {object} Token
 * @property {"text" | "code" | "open" | "close"} kind `close` closes the nearest that is open
 * @property {string} [text] of text and code
 * @property {"em" | "strong" | "del" | "a"} [tag] of `open`
 * @property {string} [href] of a link
 */

const LONGEST_ADDRESS = 1_000;
const SPECIAL = /[\\`*_~[\]!<&\n]|https?:\/\//gi;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const BARE_ADDRESS = /https?:\/\/[^\s<>[\]`]{1,1000}/iy;
const ANGLE_ADDRESS = /<((?:https?:\/\/|mailto:)[^\s<>]{1,1000})>/iy;
const ANGLE_MAIL = /<([\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+)>/y;
const BREAK = /<br\s{0,8}\/?>/iy;
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,8}));/iy;
const ENTITIES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™", hellip: "…",
  mdash: "—", ndash: "–", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", times: "×", deg: "°",
  euro: "€",
};

/**
 * Read one block's text.
 * @param {string} text
 * @param {boolean} growing more of it is to come; a `**` or a backtick at work in the last line then already counts
 * @returns {Token[]}
 */
export function readInline(text, growing = false) {
  return new Reader(text, growing).read();
}

class Reader {
  #text;
  #growing;
  #at = 0;
  /** Tokens, and runs of delimiters, which become tokens at the end. */
  #nodes = [];
  /** Runs that may still open or close something, and brackets that may still open a link. */
  #runs = [];
  #brackets = [];
  #serial = 0;
  /** Lengths of backtick runs of which no more will come. */
  #spent = new Set();

  constructor(text, growing) {
    this.#text = text;
    this.#growing = growing;
  }

  read() {
    const text = this.#text;
    while (this.#at < text.length) {
      SPECIAL.lastIndex = this.#at;
      const found = SPECIAL.exec(text);
      const next = found?.index ?? text.length;
      if (next > this.#at) this.#say(text.slice(this.#at, next));
      this.#at = next;
      if (found) this.#special(found[0]);
    }
    this.#pair(0);
    if (this.#growing) this.#runs.filter((run) => run.left > 1).forEach((run) => this.#assume(run));
    return this.#nodes.flatMap((node) => (node.kind === "run" ? spread(node) : [node]));
  }

  #say(text) {
    this.#nodes.push({ kind: "text", text });
  }

  /** Take what stands at this place as plain text, so many characters of it. */
  #plain(length) {
    this.#say(this.#text.slice(this.#at, this.#at + length));
    this.#at += length;
  }

  #match(pattern) {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text);
    if (found) this.#at += found[0].length;
    return found;
  }

  #special(mark) {
    switch (mark) {
      case "\\":
        return this.#escape();
      case "`":
        return this.#code();
      case "*":
      case "_":
      case "~":
        return this.#run(mark);
      case "[":
        return this.#bracket(false);
      case "!":
        return this.#text[this.#at + 1] === "[" ? this.#bracket(true) : this.#plain(1);
      case "]":
        return this.#close();
      case "<":
        return this.#angle();
      case "&":
        return this.#entity();
      case "\n":
        return this.#line();
      default:
        return this.#bare(mark);
    }
  }

  #escape() {
    const next = this.#text[this.#at + 1] ?? "";
    if (next !== "\n" && !ESCAPABLE.test(next)) return this.#plain(1);
    this.#at += 1;
    return next === "\n" ? this.#line() : this.#plain(1);
  }

  /** The end of a line, with the spaces before it, which would only tell a hard break. Here every one is. */
  #line() {
    const last = this.#nodes.at(-1);
    if (last?.kind === "text") last.text = last.text.trimEnd();
    this.#say("\n");
    this.#at += 1;
    while (this.#text[this.#at] === " ") this.#at += 1;
  }

  #code() {
    const length = this.#runLength("`");
    const from = this.#at + length;
    const end = this.#spent.has(length) ? -1 : this.#closingTicks(from, length);
    if (end < 0) {
      this.#spent.add(length);
      const open = this.#growing && length < 3 && from < this.#text.length && !this.#text.includes("\n", from);
      if (!open) return this.#plain(length);
      this.#nodes.push({ kind: "code", text: this.#text.slice(from) });
      this.#at = this.#text.length;
      return undefined;
    }
    const inside = this.#text.slice(from, end).replaceAll("\n", " ");
    const padded = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim() !== "";
    this.#nodes.push({ kind: "code", text: padded ? inside.slice(1, -1) : inside });
    this.#at = end + length;
    return undefined;
  }

  #closingTicks(from, length) {
    const ticks = /`+/g;
    ticks.lastIndex = from;
    for (let run = ticks.exec(this.#text); run; run = ticks.exec(this.#text)) {
      if (run[0].length === length) return run.index;
    }
    return -1;
  }

  #runLength(mark) {
    let end = this.#at;
    while (this.#text[end] === mark) end += 1;
    return end - this.#at;
  }

  // Emphasis

  #run(mark) {
    const length = this.#runLength(mark);
    if (mark === "~" && length !== 2) return this.#plain(length);
    const before = this.#text[this.#at - 1] ?? " ";
    const after = this.#text[this.#at + length] ?? " ";
    const [spaceBefore, spaceAfter] = [/\s/.test(before), /\s/.test(after)];
    const [markBefore, markAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
    const leftFlanking = !spaceAfter && (!markAfter || spaceBefore || markBefore);
    const rightFlanking = !spaceBefore && (!markBefore || spaceAfter || markAfter);
    const inWord = mark === "_" && leftFlanking && rightFlanking;
    const run = {
      kind: "run",
      serial: this.#serial++,
      mark,
      length,
      left: length,
      opens: leftFlanking && (!inWord || markBefore),
      closes: rightFlanking && (!inWord || markAfter),
      opened: [],
      closed: 0,
    };
    this.#nodes.push(run);
    if (run.opens || run.closes) this.#runs.push(run);
    this.#at += length;
    return undefined;
  }

  /** Pair the runs from index `from` on, CommonMark's "process emphasis"; those that could still open stay. */
  #pair(from) {
    /** Below which serial an opener was looked for in vain, by kind of closer. */
    const searched = new Map();
    const openers = [];
    for (const run of this.#runs.splice(from)) {
      const kind = `${run.mark}${run.opens}${run.length % 3}`;
      while (run.closes && run.left > 0) {
        const floor = searched.get(kind) ?? 0;
        let at = openers.length - 1;
        while (at >= 0 && openers[at].serial >= floor && !fits(openers[at], run)) at -= 1;
        if (at < 0 || openers[at].serial < floor) {
          searched.set(kind, run.serial);
          break;
        }
        const opener = openers[at];
        const taken = opener.left > 1 && run.left > 1 ? 2 : 1;
        opener.opened.push(run.mark === "~" ? "del" : taken === 2 ? "strong" : "em");
        run.closed += 1;
        opener.left -= taken;
        run.left -= taken;
        openers.length = opener.left > 0 ? at + 1 : at;
      }
      if (run.opens && run.left > 0) openers.push(run);
    }
    for (const opener of openers) this.#runs.push(opener);
  }

  /** Take a run for open although nothing has closed it yet. */
  #assume(run) {
    run.opened.push(run.mark === "~" ? "del" : "strong");
    run.left -= 2;
  }

  // Links

  #bracket(image) {
    const node = { kind: "text", text: image ? "![" : "[" };
    this.#nodes.push(node);
    this.#brackets.push({ node, image, live: true, runs: this.#runs.length });
    this.#at += node.text.length;
  }

  #close() {
    const bracket = this.#brackets.pop();
    const target = bracket?.live ? destination(this.#text, this.#at + 1) : null;
    if (target === null) return this.#plain(1);
    const { node, image } = bracket;
    if (image && this.#nodes.at(-1) === node) this.#say("image");
    Object.assign(node, { kind: "open", tag: "a", href: target.href });
    this.#pair(bracket.runs);
    this.#runs.length = bracket.runs;
    this.#nodes.push({ kind: "close" });
    this.#at = target.end;
    // There are no links within links.
    if (!image) for (const outer of this.#brackets) outer.live &&= outer.image;
    return undefined;
  }

  #link(href, text) {
    this.#nodes.push({ kind: "open", tag: "a", href }, { kind: "text", text }, { kind: "close" });
  }

  #angle() {
    if (this.#match(BREAK)) return this.#say("\n");
    const from = this.#at;
    const found = this.#match(ANGLE_ADDRESS) ?? this.#match(ANGLE_MAIL);
    const href = found && safeAddress(found[1].includes(":") ? found[1] : `mailto:${found[1]}`);
    if (href) return this.#link(href, found[1]);
    this.#at = from;
    return this.#plain(1);
  }

  #bare(start) {
    const before = this.#text[this.#at - 1] ?? " ";
    BARE_ADDRESS.lastIndex = this.#at;
    const found = /[\p{L}\p{N}]/u.test(before) ? null : BARE_ADDRESS.exec(this.#text);
    const text = found && withoutTrail(found[0]);
    const href = text && safeAddress(text);
    if (!href) return this.#plain(start.length);
    this.#link(href, text);
    this.#at += text.length;
    return undefined;
  }

  #entity() {
    const from = this.#at;
    const [, decimal, hex, name] = this.#match(ENTITY) ?? [];
    const code = decimal ? Number(decimal) : Number.parseInt(hex ?? "0", 16);
    if (Object.hasOwn(ENTITIES, name ?? "")) return this.#say(ENTITIES[name]);
    if (code > 0 && code <= 0x10ffff) return this.#say(String.fromCodePoint(code));
    this.#at = from;
    return this.#plain(1);
  }
}

/** Whether one run can open what the other closes. */
function fits(opener, closer) {
  if (!opener.opens || opener.mark !== closer.mark) return false;
  if (!opener.closes && !closer.opens) return true;
  return (opener.length + closer.length) % 3 !== 0 || (opener.length % 3 === 0 && closer.length % 3 === 0);
}

/** A run of delimiters as tokens: what it closes, what is left of it, what it opens. */
function spread({ mark, left, closed, opened }) {
  const tokens = Array.from({ length: closed }, () => ({ kind: "close" }));
  if (left > 0) tokens.push({ kind: "text", text: mark.repeat(left) });
  return [...tokens, ...opened.reverse().map((tag) => ({ kind: "open", tag }))];
}

/** Read `(address "title")` at a place: where the link goes and where it ends, or null. */
function destination(text, from) {
  if (text[from] !== "(") return null;
  const part = text.slice(from, from + LONGEST_ADDRESS);
  if (!part.includes(")")) return null;
  const bracketed = /^\([ \n]*<([^<>\n]*)>/.exec(part);
  let end = bracketed?.[0].length;
  let address = bracketed?.[1];
  if (!bracketed) {
    const start = /^\([ \n]*/.exec(part)[0].length;
    end = start;
    for (let depth = 0; end < part.length; end += 1) {
      if (part[end] <= " " || part[end] === "<") break;
      if (part[end] === "\\") end += 1;
      else if (part[end] === "(") depth += 1;
      else if (part[end] === ")" && --depth < 0) break;
    }
    address = part.slice(start, end);
  }
  const rest = /^(?:[ \n]+(?:"[^"]*"|'[^']*'|\([^()]*\)))?[ \n]*\)/.exec(part.slice(end));
  const href = rest && safeAddress(address.replace(/\\([!-/:-@[-`{-~])/g, "$1"));
  return href ? { href, end: from + end + rest[0].length } : null;
}

/** The address in full, if it is one that the page may link to; else null. */
function safeAddress(address) {
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return null;
  return URL.canParse(address) ? new URL(address).href : null;
}

/** A bare address without the punctuation of the sentence that it ends. */
function withoutTrail(address) {
  let end = address.length;
  let surplus = 0;
  for (const char of address) surplus += char === ")" ? 1 : char === "(" ? -1 : 0;
  for (; end > 0; end -= 1) {
    const last = address[end - 1];
    if (last === ")" && surplus > 0) surplus -= 1;
    else if (!"?!.,:;*_~'\"".includes(last)) break;
  }
  return address.slice(0, end);
}
