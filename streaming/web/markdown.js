/**
 * Shows Markdown, also while it is being written.
 *
 * Everything is made of nodes, text enters as text, and a link's address was looked at before: there is nothing to
 * escape. While text grows, only its last block is made anew; what is above stays as it is, selection included.
 */

import { copyButton, element } from "/web/dom.js";
import { readBlocks, splitLines } from "/web/markdown-blocks.js";
import { readInline } from "/web/markdown-inline.js";

const DEEPEST = 24;

/** What a growing text may end in that means nothing yet, and would only flicker: a marker alone, an opening fence. */
const UNDECIDED = /(?:^|\n)[ \t]*(?:[-+*#~=_|>]{1,3}|\d{1,9}[.)]?|`{1,2}|`{3}[^\n`]*)[ \t]*$/;

export class Prose {
  #root;
  #text = "";
  /** Where the blocks that may still change begin in the text, and what shows them. */
  #from = 0;
  /** @type {{key: string, block: import("/web/markdown-blocks.js").Block, node: HTMLElement}[]} */
  #tail = [];

  /** @param {HTMLElement} root what it is shown in, empty */
  constructor(root) {
    this.#root = root;
    root.classList.add("prose");
  }

  /** Show a text in place of the one there was; `growing` says that more is to come. */
  show(text, { growing = false } = {}) {
    const end = growing ? (UNDECIDED.exec(text)?.index ?? text.length) : text.length;
    if (!text.startsWith(this.#text) || end < this.#from) this.#clear();
    this.#text = text;
    const lines = splitLines(text.slice(this.#from, end).replaceAll("\r", ""));
    const blocks = readBlocks(lines);
    this.#place(blocks, growing);
    // What the last line is can change until it has ended; before the block that it goes on with, all is settled.
    const settled = blocks.findLastIndex(({ line }) => line < lines.length - 1);
    if (settled < 1) return;
    this.#tail = this.#tail.slice(settled);
    this.#from = startOf(text, this.#from, blocks[settled].line);
  }

  #clear() {
    this.#root.replaceChildren();
    this.#from = 0;
    this.#tail = [];
  }

  #place(blocks, growing) {
    for (const { node } of this.#tail.splice(blocks.length)) node.remove();
    blocks.forEach((block, n) => {
      const open = growing && n === blocks.length - 1;
      const key = JSON.stringify([block, open], (name, value) => (name === "line" ? undefined : value));
      const before = this.#tail[n];
      if (before?.key === key) return;
      if (before?.block.kind === "code" && block.kind === "code" && before.block.language === block.language) {
        growCode(before.node, block.text);
        Object.assign(before, { key, block });
        return;
      }
      const node = makeBlock(block, open);
      if (before) before.node.replaceWith(node);
      else this.#root.append(node);
      this.#tail[n] = { key, block, node };
    });
  }
}

/** Where the line of that number begins, counted from `from`. */
function startOf(text, from, line) {
  let at = from;
  for (let n = 0; n < line; n += 1) at = text.indexOf("\n", at) + 1;
  return at;
}

function makeBlock(block, growing) {
  switch (block.kind) {
    case "heading":
      // The page's own headings come first.
      return withInline(element(`h${Math.min(6, block.level + 2)}`, { class: `h${block.level}` }), block.text, growing);
    case "paragraph":
      return withInline(element("p"), block.text, growing);
    case "code":
      return makeCode(block);
    case "quote":
      return element("blockquote", {}, ...makeBlocks(block.blocks, growing));
    case "list":
      return makeList(block, growing);
    case "table":
      return makeTable(block, growing);
    case "rule":
      return element("hr");
  }
  throw new Error(`Unknown block: ${block.kind}`);
}

function makeBlocks(blocks, growing) {
  return blocks.map((block, n) => makeBlock(block, growing && n === blocks.length - 1));
}

function makeList({ start, loose, items }, growing) {
  const list = element(start === null ? "ul" : "ol", { start: start === null || start === 1 ? null : start });
  items.forEach(({ task, blocks }, n) => {
    const entry = element("li", { class: task === null ? null : "task" });
    if (task !== null) entry.append(element("input", { type: "checkbox", disabled: true, checked: task }));
    const last = growing && n === items.length - 1;
    blocks.forEach((block, m) => {
      if (!loose && block.kind === "paragraph") withInline(entry, block.text, last && m === blocks.length - 1);
      else entry.append(makeBlock(block, last && m === blocks.length - 1));
    });
    list.append(entry);
  });
  return list;
}

function makeTable({ align, rows }, growing) {
  const [head, ...body] = rows.map((row, n) =>
    element("tr", {}, ...row.map((cell, column) => {
      const className = align[column] && `to-${align[column]}`;
      const made = n === 0 ? element("th", { scope: "col", class: className }) : element("td", { class: className });
      return withInline(made, cell, growing && n === rows.length - 1);
    })),
  );
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  // It scrolls by itself where it is too wide, with the keyboard too.
  return element("div", { class: "table", tabindex: 0, role: "region", "aria-label": "Table" }, table);
}

function makeCode({ language, text }) {
  const code = element("code", {}, text);
  const bar = element("div", { class: "bar" }, element("span", {}, language || "text"));
  bar.append(copyButton("Copy code", () => code.textContent));
  const label = language ? `Code, ${language}` : "Code";
  const lines = element("pre", { tabindex: 0, role: "region", "aria-label": label }, code);
  return element("div", { class: "code" }, bar, lines);
}

function growCode(node, text) {
  const code = node.querySelector("code");
  const shown = code.textContent;
  if (text.startsWith(shown)) code.append(text.slice(shown.length));
  else code.textContent = text;
}

/** Put a block's text into an element. */
function withInline(parent, text, growing) {
  const open = [parent];
  for (const token of readInline(text, growing)) {
    const inner = open.at(-1);
    if (token.kind === "text") inner.append(token.text);
    else if (token.kind === "code") inner.append(element("code", {}, token.text));
    else if (token.kind === "close") open.length > 1 && open.pop();
    else open.push(begin(inner, token, open.length));
  }
  return parent;
}

/** Begin an element; where there may be none, what it would hold goes on in the one around it. */
function begin(inner, { tag, href }, depth) {
  if (depth > DEEPEST || (tag === "a" && inner.closest("a"))) return inner;
  const link = tag === "a" ? { href, target: "_blank", rel: "noopener noreferrer" } : {};
  const made = element(tag, link);
  inner.append(made);
  return made;
}
