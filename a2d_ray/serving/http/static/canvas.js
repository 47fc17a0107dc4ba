// Draws an answer that is being denoised: final text as Markdown, then tokens and masks, or drafts.

import { make, render } from "./markdown.js";

const OPEN_ENDED = new Set(["P", "LI", "UL", "OL", "BLOCKQUOTE", "DIV", "PRE", "CODE", "H1", "H2", "H3", "H4"]);

/**
 * Shows `frame` = {text, canvas, isDraft} in `root`; `before` is the frame before. Tokens that it
 * did not have yet land softly. Of its drafts those that came true settle, the others fade.
 */
export function draw(root, frame, before = null) {
  const { settled, own, refused } = verdict(frame, before);
  const raw = settled ? settled.length + own.length : 0; // Markdown takes it with the next frame
  const content = render(frame.text.slice(0, frame.text.length - raw));
  const tail = make("span", { className: "canvas" });
  tail.setAttribute("aria-hidden", "true"); // read out when it is final
  if (settled) tail.append(make("span", { className: "settled", textContent: settled }), own);
  if (frame.canvas.length) tail.append(...cells(frame, before));
  if (refused.length) tail.append(ghost(refused));
  if (tail.hasChildNodes()) whereTextEnds(content).append(tail);
  root.replaceChildren(content);
}

/** What became of the drafts of `before`: text that settled, the model's own text behind it, and
 *  drafts that it refused. */
function verdict(frame, before) {
  const added = before?.isDraft ? frame.text.slice(before.text.length) : "";
  if (!added) return { settled: "", own: "", refused: [] };
  let settled = "";
  let num = 0;
  while (num < before.canvas.length && added.startsWith(settled + before.canvas[num].text)) {
    settled += before.canvas[num++].text;
  }
  return { settled, own: added.slice(settled.length), refused: before.canvas.slice(num) };
}

/** Refused drafts: they take no room, and are gone in a moment. */
function ghost(slots) {
  const node = make("span", { className: "refused" });
  node.append(make("span", { textContent: slots.map(shown).join("") }));
  return node;
}

function whereTextEnds(content) {
  let place = content.lastElementChild;
  if (!place || !OPEN_ENDED.has(place.tagName)) {
    place = make("p");
    content.append(place);
    return place;
  }
  while (place.lastElementChild && OPEN_ENDED.has(place.lastElementChild.tagName)) {
    place = place.lastElementChild;
  }
  return place;
}

/** The canvas as spans: committed tokens shaded by confidence, masks as cells; or drafts. */
function cells({ canvas, text, isDraft }, before) {
  const isSameBlock = before && before.text === text && before.canvas.length === canvas.length;
  return canvas.map((slot, index) => {
    const isNew = slot && isSameBlock && !before.canvas[index];
    return slot ? token(slot, isDraft ? "draft" : isNew && "new") : mask(index);
  });
}

function shown(slot) {
  return slot.text.replaceAll("\n", "⏎\n") || "∎"; // a special token has no text
}

function token(slot, kind) {
  const className = kind ? `token ${kind}` : "token";
  const node = make("span", { className, textContent: shown(slot) });
  node.title = `confidence ${slot.confidence.toFixed(2)}`;
  node.style.setProperty("--c", slot.confidence);
  return node;
}

function mask(index) {
  const node = make("span", { className: "mask" });
  node.style.setProperty("--i", index % 16);
  return node;
}

/** Lets a sentence emerge from masks, again and again, until `root` is hidden. */
export function demonstrate(root) {
  const words = "Diffusion writes many tokens at once , the surest first".split(" ");
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let canvas = [];
  const restart = () => { canvas = words.map(() => null); };
  const step = () => {
    if (root.closest("[hidden]")) {
      root.replaceChildren();
      return;
    }
    const open = canvas.flatMap((slot, index) => (slot ? [] : [index]));
    if (!open.length) {
      setTimeout(() => { restart(); step(); }, 4000);
      return;
    }
    const before = { text: "", canvas: [...canvas] };
    for (let n = 0; n < 2 && open.length; n++) {
      const [index] = open.splice(Math.floor(Math.random() * open.length), 1);
      const isGlued = index === 0 || words[index] === ",";
      canvas[index] = { text: (isGlued ? "" : " ") + words[index], confidence: 0.35 + 0.65 * Math.random() };
    }
    root.replaceChildren(...cells({ text: "", canvas }, before));
    setTimeout(step, 450);
  };
  restart();
  if (isStill) canvas = words.map((word, index) => ({ text: (index ? " " : "") + word, confidence: 1 }));
  root.replaceChildren(...cells({ text: "", canvas }, null));
  if (!isStill) setTimeout(step, 900);
}
