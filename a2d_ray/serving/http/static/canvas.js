// Draws an answer that is being denoised: final text as Markdown, then tokens and masks.

import { make, render } from "./markdown.js";

const OPEN_ENDED = new Set(["P", "LI", "UL", "OL", "BLOCKQUOTE", "DIV", "PRE", "CODE", "H1", "H2", "H3", "H4"]);

/** Shows `frame` = {text, canvas} in `root`; tokens that `before` did not have yet land softly. */
export function draw(root, frame, before = null) {
  const content = render(frame.text);
  if (frame.canvas.length) whereTextEnds(content).append(cells(frame, before));
  root.replaceChildren(content);
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

/** The canvas as a span: committed tokens shaded by confidence, masks as cells. */
export function cells({ canvas, text }, before) {
  const isSameBlock = before && before.text === text && before.canvas.length === canvas.length;
  const root = make("span", { className: "canvas" });
  root.setAttribute("aria-hidden", "true"); // read out when it is final
  canvas.forEach((slot, index) => {
    const isNew = slot && isSameBlock && !before.canvas[index];
    root.append(slot ? token(slot, isNew) : mask(index));
  });
  return root;
}

function token(slot, isNew) {
  const shown = slot.text.replaceAll("\n", "⏎\n") || "∎"; // a special token has no text
  const node = make("span", { className: isNew ? "token new" : "token", textContent: shown });
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
    root.replaceChildren(cells({ text: "", canvas }, before));
    setTimeout(step, 450);
  };
  restart();
  if (isStill) canvas = words.map((word, index) => ({ text: (index ? " " : "") + word, confidence: 1 }));
  root.replaceChildren(cells({ text: "", canvas }, null));
  if (!isStill) setTimeout(step, 900);
}
