// One answer on the page: the canvas while it is denoised, its figures, and the replay afterwards.

import { draw } from "./canvas.js";
import { make } from "./markdown.js";

export class AnswerView {
  constructor(log) {
    this.frame = { text: "", canvas: [], isDraft: false };
    this.frames = []; // what the replay shows
    this.counts = { tokens: 0, forwards: 0, drafted: 0, accepted: 0 };
    this.started = performance.now();
    this.body = make("div", { className: "answer" });
    this.meta = make("div", { className: "meta" });
    this.root = make("article", { className: "turn assistant" }, this.body, this.meta);
    this.root.setAttribute("aria-label", "answer");
    this.root.setAttribute("aria-busy", "true");
    log.append(this.root);
  }

  /** Takes a chunk; drawing waits for the browser's next frame. */
  push(chunk) {
    const choice = chunk.choices[0];
    if (choice) {
      const text = this.frame.text + (choice.delta.content ?? "");
      const { canvas = [], is_draft: isDraft = false } = choice.diffusion ?? {};
      this.frame = { text, canvas, isDraft };
      if (choice.delta.content || choice.diffusion) this.frames.push(this.frame);
      if (choice.diffusion) this.count(choice.diffusion.completion_tokens, choice.diffusion);
      this.firstText ??= choice.delta.content ? performance.now() : undefined;
      this.reason = choice.finish_reason ?? this.reason;
    }
    if (chunk.usage) this.count(chunk.usage.completion_tokens, chunk.usage.diffusion);
    this.schedule();
  }

  count(tokens, { forwards, drafted, accepted }) {
    this.counts = { tokens, forwards, drafted, accepted };
  }

  schedule() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = undefined;
      if (this.isDone) return;
      draw(this.body, this.frame, this.drawn);
      this.drawn = this.frame;
      this.meta.textContent = this.figures();
      this.onDraw?.();
    });
  }

  figures() {
    const seconds = ((this.ended ?? performance.now()) - this.started) / 1e3;
    const { tokens, forwards, drafted, accepted } = this.counts;
    const masks = this.frame.canvas.filter((slot) => !slot).length;
    return [
      `${tokens} tokens`,
      `${(tokens / Math.max(seconds, 1e-3)).toFixed(1)} tokens/s`,
      forwards ? `${(tokens / forwards).toFixed(2)} tokens per forward` : "",
      drafted ? `${Math.round((100 * accepted) / drafted)} % of ${drafted} drafts accepted` : "",
      this.firstText ? `first text after ${((this.firstText - this.started) / 1e3).toFixed(2)} s` : "",
      masks && !this.ended ? `${masks} masked` : "",
    ].filter(Boolean).join(" · ");
  }

  /** Ends the answer: `note` says how, if it did not end by itself. */
  finish(note, onAgain) {
    this.isDone = true;
    this.ended = performance.now();
    const final = { text: this.frame.text, canvas: [] };
    this.frames.push(final);
    draw(this.body, final);
    this.root.removeAttribute("aria-busy");
    const figures = make("span", { textContent: [this.figures(), note].filter(Boolean).join(" · ") });
    const copy = make("button", { type: "button", className: "quiet", textContent: "Copy" });
    copy.onclick = () => copyText(copy, this.frame.text);
    const again = make("button", { type: "button", className: "quiet again", textContent: "Again" });
    again.onclick = onAgain;
    this.meta.replaceChildren(figures, copy, again);
    if (this.frames.some((frame) => frame.canvas.length)) this.meta.append(this.replay());
  }

  /** A slider through the denoise steps. */
  replay() {
    const slider = make("input", { type: "range", min: 0, max: this.frames.length - 1 });
    slider.value = this.frames.length - 1;
    slider.setAttribute("aria-label", "Replay the denoising");
    slider.oninput = () => {
      const frame = this.frames[slider.value];
      draw(this.body, frame, this.frames[slider.value - 1]);
      slider.setAttribute("aria-valuetext", `step ${Number(slider.value) + 1} of ${this.frames.length}`);
    };
    return make("label", { className: "replay" }, "Replay", slider);
  }

  fail(message, onAgain) {
    this.finish("failed", onAgain);
    this.body.append(make("p", { className: "failure", textContent: message }));
  }
}

export function copyText(button, text) {
  const was = button.textContent;
  const done = (word) => {
    button.textContent = word;
    setTimeout(() => { button.textContent = was; }, 1200);
  };
  navigator.clipboard?.writeText(text).then(() => done("Copied"), () => done("No clipboard"));
}
