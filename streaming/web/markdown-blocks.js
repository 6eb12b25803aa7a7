/**
 * Markdown's blocks, as CommonMark and GitHub have them: lines to headings, paragraphs, lists, quotes, code and tables.
 *
 * Where it departs from CommonMark it is for text that models write and that is read while it grows: a heading is
 * underlined by three signs at least (a list's first dash below a line would make one), a nested list may be indented
 * by two columns under any marker, and there are no link definitions and no HTML.
 */

const DEEPEST = 24;

const FENCE = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})[ \t]*(\S*)/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)(.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^( {0,3})([-+*]|\d{1,9}[.)])(?=[ \t]|$)/;
const UNDERLINE = /^ {0,3}(={3,}|-{3,})[ \t]*$/;
const DELIMITERS = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?$/;
const TASK = /^\[([ xX])\][ \t]+/;

/**
 * @typedef {object} Block
 * @property {"heading" | "paragraph" | "code" | "quote" | "list" | "table" | "rule"} kind
 * @property {number} line of its first line
 * @property {string} [text] of a heading, a paragraph or code
 * @property {number} [level] of a heading
 * @property {string} [language] of code
 * @property {Block[]} [blocks] of a quote
 * @property {number | null} [start] of a list: its first number, null if it has bullets
 * @property {boolean} [loose] of a list: its items are paragraphs apart
 * @property {{task: boolean | null, blocks: Block[]}[]} [items] of a list
 * @property {("left" | "center" | "right" | null)[]} [align] of a table's columns
 * @property {string[][]} [rows] of a table; the first is its head
 */

/**
 * Read lines as blocks.
 * @param {string[]} lines
 * @returns {Block[]}
 */
export function readBlocks(lines, depth = 0) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = readBlock(lines, at, depth);
    block.line = at;
    blocks.push(block);
    at = next;
  }
  return blocks;
}

/** Read the block that begins at a line; returns it and the line after it. */
function readBlock(lines, at, depth) {
  const line = lines[at];
  if (depth < DEEPEST) {
    if (QUOTE.test(line)) return readQuote(lines, at, depth);
    if (MARKER.test(line) && !RULE.test(line)) return readList(lines, at, depth);
  }
  if (FENCE.test(line)) return readFence(lines, at);
  if (indent(line) >= 4) return readIndented(lines, at);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: withoutClosing(heading[2]) }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (startsTable(lines, at)) return readTable(lines, at);
  return readParagraph(lines, at);
}

/** Whether a line ends the paragraph before it. */
function interrupts(lines, at) {
  const line = lines[at];
  const marker = MARKER.exec(line);
  // A number in the middle of a sentence may come to stand at the beginning of a line.
  const list = marker && !blank(line.slice(marker[0].length)) && (/^\D/.test(marker[2]) || /^1\D/.test(marker[2]));
  return list || [FENCE, HEADING, RULE, QUOTE].some((start) => start.test(line)) || startsTable(lines, at);
}

function readParagraph(lines, at) {
  const text = [lines[at].trim()];
  let next = at + 1;
  for (; next < lines.length && !blank(lines[next]); next += 1) {
    const underline = UNDERLINE.exec(lines[next]);
    const level = underline?.[1][0] === "=" ? 1 : 2;
    if (underline) return [{ kind: "heading", level, text: text.join("\n") }, next + 1];
    if (interrupts(lines, next)) break;
    text.push(lines[next].trimStart());
  }
  return [{ kind: "paragraph", text: text.join("\n").trimEnd() }, next];
}

/** The closing signs that a heading may have, left out. */
function withoutClosing(text) {
  const trimmed = text.trim();
  let end = trimmed.length;
  while (trimmed[end - 1] === "#") end -= 1;
  return end === 0 || /[ \t]/.test(trimmed[end - 1]) ? trimmed.slice(0, end).trimEnd() : trimmed;
}

// Code

function readFence(lines, at) {
  const [, fence, language] = FENCE.exec(lines[at]);
  const margin = indent(lines[at]);
  const text = [];
  let next = at + 1;
  for (; next < lines.length; next += 1) {
    const closing = lines[next].trim();
    if (closing.length >= fence.length && indent(lines[next]) < 4 && closing === fence[0].repeat(closing.length)) {
      next += 1;
      break;
    }
    text.push(outdent(lines[next], margin));
  }
  return [{ kind: "code", language, text: text.join("\n") }, next];
}

function readIndented(lines, at) {
  let end = at;
  for (let next = at; next < lines.length && (blank(lines[next]) || indent(lines[next]) >= 4); next += 1) {
    if (!blank(lines[next])) end = next + 1;
  }
  return [{ kind: "code", language: "", text: lines.slice(at, end).map((line) => outdent(line, 4)).join("\n") }, end];
}

// Containers

function readQuote(lines, at, depth) {
  const inside = [];
  let next = at;
  for (; next < lines.length && !blank(lines[next]); next += 1) {
    // A line without its sign goes on with the paragraph before it.
    if (!QUOTE.test(lines[next]) && (blank(inside.at(-1)) || interrupts(lines, next))) break;
    inside.push(lines[next].replace(QUOTE, ""));
  }
  return [{ kind: "quote", blocks: readBlocks(inside, depth + 1) }, next];
}

function readList(lines, at, depth) {
  const sign = MARKER.exec(lines[at])[2];
  const list = { kind: "list", start: /^\d/.test(sign) ? Number.parseInt(sign, 10) : null, loose: false, items: [] };
  let next = at;
  let apart = false;
  while (next < lines.length && sameList(lines[next], sign)) {
    list.loose ||= apart;
    const item = readItem(lines, next, depth);
    list.loose ||= item.apart;
    list.items.push({ task: item.task, blocks: item.blocks });
    next = item.next;
    const filled = next;
    while (next < lines.length && blank(lines[next])) next += 1;
    apart = next > filled;
    if (next === lines.length || !sameList(lines[next], sign)) return [list, filled];
  }
  return [list, next];
}

/** Whether a line begins another item of the list that has this sign. */
function sameList(line, sign) {
  const other = MARKER.exec(line)?.[2];
  return other?.at(-1) === sign.at(-1) && /^\d/.test(other) === /^\d/.test(sign) && !RULE.test(line);
}

function readItem(lines, at, depth) {
  const [marker, before] = MARKER.exec(lines[at]);
  const first = untab(lines[at].slice(marker.length), marker.length);
  const space = indent(first);
  const width = marker.length + (blank(first) || space > 4 ? 1 : space);
  const inside = [first.slice(width - marker.length)];
  let fenced = FENCE.test(inside[0]);
  let next = at + 1;
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    const deep = indent(line);
    const nested = deep >= before.length + 2 && MARKER.test(line.trimStart());
    if (!blank(line) && deep < width && !nested) {
      // Only the text of a paragraph may go on without its indentation.
      if (fenced || blank(inside.at(-1)) || MARKER.test(line) || interrupts(lines, next)) break;
    }
    if (blank(line) && inside.length === 1 && blank(inside[0])) break;
    inside.push(outdent(line, width));
    if (FENCE.test(inside.at(-1))) fenced = !fenced;
  }
  while (inside.length > 1 && blank(inside.at(-1))) {
    inside.pop();
    next -= 1;
  }
  const task = TASK.exec(inside[0]);
  if (task) inside[0] = inside[0].slice(task[0].length);
  const blocks = readBlocks(inside, depth + 1);
  const apart = blocks.some((block, n) => n > 0 && blank(inside[block.line - 1]));
  return { task: task ? task[1] !== " " : null, blocks, apart, next };
}

// Tables

function startsTable(lines, at) {
  const [head, below] = [lines[at], lines[at + 1]];
  if (below === undefined || !head.includes("|") || !DELIMITERS.test(below.trim())) return false;
  return cells(head).length === cells(below).length;
}

function readTable(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : left ? "left" : null;
  });
  const rows = [cells(lines[at])];
  let next = at + 2;
  for (; next < lines.length && !blank(lines[next]); next += 1) {
    if (!lines[next].includes("|") && interrupts(lines, next)) break;
    const row = cells(lines[next]);
    rows.push(align.map((_, column) => row[column] ?? ""));
  }
  return [{ kind: "table", align, rows }, next];
}

/** The cells of a row; a pipe behind a backslash belongs to its cell. */
function cells(line) {
  const parts = line.trim().split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  if (parts[0] === "") parts.shift();
  if (parts.length > 1 && parts.at(-1) === "") parts.pop();
  return parts;
}

// Lines

/** Split text into lines, tabs at their beginnings as spaces. */
export function splitLines(text) {
  return text.split("\n").map((line) => untab(line, 0));
}

function untab(line, column) {
  if (!/^ *\t/.test(line)) return line;
  let spaces = 0;
  let at = 0;
  for (; line[at] === " " || line[at] === "\t"; at += 1) spaces += line[at] === "\t" ? 4 - ((column + spaces) % 4) : 1;
  return " ".repeat(spaces) + line.slice(at);
}

function outdent(line, columns) {
  return line.slice(Math.min(columns, indent(line)));
}

function indent(line) {
  const text = line.search(/[^ ]/);
  return text < 0 ? line.length : text;
}

function blank(line) {
  return line.trim() === "";
}
