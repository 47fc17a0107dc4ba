// The page: conversation, keyboard, theme. Nothing leaves the browser but requests to this server.

import { ApiError, listModels, streamChat } from "./api.js";
import { demonstrate } from "./canvas.js";
import { make } from "./markdown.js";
import { Settings } from "./settings.js";
import { AnswerView, copyText } from "./turn.js";

const $ = (id) => document.getElementById(id);
const log = $("log"), question = $("question"), status = $("status"), model = $("model");
const settings = new Settings($("settings"));
let messages = [];
let cards = [];
let running = null; // AbortController of the answer that is being written

// -- conversation

async function ask(text) {
  $("welcome").hidden = true;
  messages.push({ role: "user", content: text });
  const bubble = make("div", { textContent: text });
  log.append(make("article", { className: "turn user" }, bubble));
  await respond();
}

async function respond() {
  const view = new AnswerView(log);
  const history = messages;
  view.onDraw = follow;
  running = new AbortController();
  toggleRunning(true);
  follow(true);
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const asked = { model: model.value, messages: [...system, ...messages] };
  const body = { ...asked, separate_reasoning: false, ...settings.request() }; // shown as written
  const again = () => repeat(view, history);
  try {
    const options = { apiKey: settings.apiKey, signal: running.signal };
    for await (const chunk of streamChat(body, options)) view.push(chunk);
    view.finish(view.reason === "length" ? "reached the longest answer" : "", again);
    say("Answered.");
  } catch (error) {
    if (error.name === "AbortError") {
      view.finish("stopped", again);
      say("Stopped.");
    } else {
      view.fail(error.message, again);
      explain(error);
    }
  }
  if (messages === history) {
    if (view.frame.text) messages.push({ role: "assistant", content: view.frame.text });
    toggleRunning(false);
  }
  follow();
}

/** Asks for the last answer once more; earlier ones stay as they are. */
function repeat(view, history) {
  if (running || messages !== history || view.root !== log.lastElementChild) return;
  if (messages.at(-1).role === "assistant") messages.pop(); // none, if it failed at once
  view.root.remove();
  respond();
}

function reset() {
  running?.abort();
  messages = [];
  for (const turn of log.querySelectorAll(".turn")) turn.remove();
  $("welcome").hidden = false;
  toggleRunning(false);
  demonstrate($("demo"));
  say("");
  question.focus();
}

function toggleRunning(isRunning) {
  if (!isRunning) running = null;
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  if (isRunning) say("Denoising …");
}

/** Keeps the end in sight, unless the reader scrolled up. */
function follow(always = false) {
  const distance = log.scrollHeight - log.scrollTop - log.clientHeight;
  if (always || distance < 160) log.scrollTop = log.scrollHeight;
}

function say(text, isFailure = false) {
  status.textContent = text;
  status.className = isFailure ? "failure" : "";
}

function explain(error) {
  say(error.message, true);
  if (error instanceof ApiError && error.status === 401) openSettings("api_key");
}

// -- controls

function submit() {
  const text = question.value.trim();
  if (!text || running) return;
  question.value = "";
  grow();
  ask(text);
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

function openSettings(field) {
  const panel = $("settings"), toggle = $("settings-toggle");
  panel.hidden = field ? false : !panel.hidden;
  toggle.setAttribute("aria-expanded", String(!panel.hidden));
  if (panel.hidden) question.focus();
  else panel.elements[field ?? "rule"].focus();
}

const THEMES = { "": "Auto", light: "Light", dark: "Dark" };

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  $("theme").textContent = THEMES[theme] ?? "Auto";
  localStorage.setItem("a2d-ray theme", theme);
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const now = document.documentElement.dataset.theme ?? "";
  setTheme(names[(names.indexOf(now) + 1) % names.length]);
}

async function loadModels() {
  try {
    cards = await listModels(settings.apiKey);
  } catch (error) {
    explain(error);
    return;
  }
  model.replaceChildren(...cards.map((card) => new Option(card.id, card.id)));
  settings.offer(cards[0]);
  say("");
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", reset);
$("theme").addEventListener("click", nextTheme);
$("settings-toggle").addEventListener("click", () => openSettings());
model.addEventListener("change", () => settings.offer(cards.find((card) => card.id === model.value)));
settings.form.elements.api_key.addEventListener("change", loadModels);
question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
  else if (event.key === "Escape" && !settings.form.hidden) openSettings();
  else if (event.key === "," && (event.ctrlKey || event.metaKey)) { event.preventDefault(); openSettings(); }
  else if (event.key.toLowerCase() === "o" && event.ctrlKey && event.shiftKey) { event.preventDefault(); reset(); }
  else if (event.key === "/" && document.activeElement === document.body) { event.preventDefault(); question.focus(); }
});
document.addEventListener("click", (event) => {
  if (event.target.matches(".copy")) copyText(event.target, event.target.closest(".code").querySelector("code").textContent);
  if (event.target.matches(".examples button")) ask(event.target.textContent);
});

for (const cell of document.querySelectorAll(".legend i")) cell.style.setProperty("--c", cell.dataset.c);
setTheme(localStorage.getItem("a2d-ray theme") ?? "");
demonstrate($("demo"));
loadModels();
