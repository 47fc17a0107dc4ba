// Markdown to DOM nodes. Text only ever becomes text nodes, so nothing that a model writes can
// become an element, an attribute or a script; links are http(s) and mailto only.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/;
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;
const MAX_DEPTH = 8;

export function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** The blocks of a Markdown text as a fragment. */
export function render(text, depth = 0) {
  const root = document.createDocumentFragment();
  const lines = text.split("\n");
  let at = 0;
  while (at < lines.length) {
    const [node, next] = block(lines, at, depth);
    if (node) root.append(node);
    at = next;
  }
  return root;
}

function block(lines, at, depth) {
  const line = lines[at];
  let found;
  if (!line.trim()) return [null, at + 1];
  if ((found = FENCE.exec(line))) return fenced(lines, at, found);
  if ((found = HEADING.exec(line))) {
    const heading = make(`h${Math.min(found[1].length, 4)}`);
    inline(heading, found[2]);
    return [heading, at + 1];
  }
  if (RULE.test(line)) return [make("hr"), at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) {
    const end = endOf(lines, at, (l) => QUOTE.test(l));
    const inner = lines.slice(at, end).map((l) => l.replace(QUOTE, "")).join("\n");
    return [make("blockquote", {}, render(inner, depth + 1)), end];
  }
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && TABLE_RULE.test(lines[at + 1] ?? "")) return table(lines, at);
  const end = endOf(lines, at + 1, (l) => l.trim() && !opensBlock(l));
  const paragraph = make("p");
  inline(paragraph, lines.slice(at, end).join("\n"));
  return [paragraph, end];
}

function opensBlock(line) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((form) => form.test(line));
}

function endOf(lines, at, holds) {
  while (at < lines.length && holds(lines[at])) at++;
  return at;
}

function fenced(lines, at, [, fence, language]) {
  const closes = (l) => l.trim().startsWith(fence) && !l.trim().replaceAll(fence[0], "");
  const end = endOf(lines, at + 1, (l) => !closes(l));
  const code = make("code", {}, lines.slice(at + 1, end).join("\n"));
  const copy = make("button", { type: "button", className: "quiet copy", textContent: "Copy" });
  const head = make("div", {}, make("span", { textContent: language || "code" }), copy);
  return [make("div", { className: "code" }, head, make("pre", {}, code)), end + 1];
}

function list(lines, at, depth) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(marker);
  const root = make(isOrdered ? "ol" : "ul");
  if (isOrdered) root.start = parseInt(marker, 10);
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (!found || found[1].length > indent.length + 1 || /\d/.test(found[2]) !== isOrdered) break;
    if (found[1].length < indent.length) break;
    const own = [found[3]];
    const width = found[1].length + found[2].length + 1;
    at++;
    while (at < lines.length) {
      const spaces = /^\s*/.exec(lines[at])[0].length;
      const isBlank = !lines[at].trim();
      const goesOn = isBlank ? /^\s/.test(lines[at + 1] ?? "") : spaces > indent.length;
      if (!goesOn) break;
      own.push(lines[at].slice(Math.min(spaces, width)));
      at++;
    }
    const item = make("li");
    const [head, ...rest] = own;
    inline(item, head);
    if (rest.length) item.append(render(rest.join("\n"), depth + 1));
    root.append(item);
    const next = endOf(lines, at, (l) => !l.trim()); // blank lines between items
    if (ITEM.test(lines[next] ?? "")) at = next;
  }
  return [root, at];
}

function table(lines, at) {
  const end = endOf(lines, at + 2, (l) => l.includes("|") && l.trim());
  const row = (line, tag) => {
    const cells = line.trim().replace(/^\||\|$/g, "").split("|");
    return make("tr", {}, ...cells.map((text) => inline(make(tag), text.trim())));
  };
  const body = lines.slice(at + 2, end).map((line) => row(line, "td"));
  const whole = make("table", {}, make("thead", {}, row(lines[at], "th")), make("tbody", {}, ...body));
  return [make("div", { className: "table" }, whole), end];
}

// One alternative per kind of span; what matches none is text. No nested quantifiers, so no input
// makes these slow.
const SPAN = new RegExp(
  [
    "(?<ticks>`+)(?<code>[^`]+)\\k<ticks>(?!`)",
    "\\*\\*(?<bold>[^*\\s](?:[^*]*[^*\\s])?)\\*\\*",
    "(?<![\\w*])[*_](?<italic>[^*_\\s](?:[^*_]*[^*_\\s])?)[*_](?![\\w*])",
    "~~(?<gone>[^~]+)~~",
    "\\[(?<label>[^\\[\\]]+)\\]\\((?<target>[^()\\s]+)\\)",
    "(?<bare>https?://[^\\s<>()]+[^\\s<>().,;:!?'\"])",
    "\\\\(?<escaped>[\\\\`*_{}\\[\\]()#+.!|~>-])",
  ].join("|"),
  "g",
);

function inline(parent, text, depth = 0) {
  let from = 0;
  for (const found of text.matchAll(SPAN)) {
    parent.append(text.slice(from, found.index), span(found, depth));
    from = found.index + found[0].length;
  }
  parent.append(text.slice(from));
  return parent;
}

function span(found, depth) {
  const { code, bold, italic, gone, label, target, bare, escaped } = found.groups;
  if (code !== undefined) return make("code", {}, code.trim() || code);
  if (escaped !== undefined) return escaped;
  const nested = (tag, inner) =>
    depth < MAX_DEPTH ? inline(make(tag), inner, depth + 1) : make(tag, {}, inner);
  if (bold !== undefined) return nested("strong", bold);
  if (italic !== undefined) return nested("em", italic);
  if (gone !== undefined) return nested("del", gone);
  const href = bare ?? target;
  if (!SAFE_LINK.test(href)) return found[0];
  const link = make("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" });
  link.append(bare ?? label);
  return link;
}
