// The settings panel: what a request asks for beyond the server's defaults. The model's card tells
// which rules and options there are.

import { make } from "./markdown.js";

const KEEP = "a2d-ray settings";
const KEEP_KEY = "a2d-ray api key"; // for this tab only

export class Settings {
  constructor(form) {
    this.form = form;
    this.options = {};
    this.restore();
    form.addEventListener("input", () => { this.show(); this.keep(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    this.show();
  }

  /** Offers the rules and options that a model's card names, and shows its defaults. */
  offer(card) {
    const fields = this.form.elements;
    const { rules, options, defaults } = card.diffusion;
    const chosen = fields.rule.value || this.wanted.rule || defaults.rule;
    fields.rule.replaceChildren(...rules.map((rule) => new Option(rule, rule)));
    fields.rule.value = rules.includes(chosen) ? chosen : defaults.rule;
    this.options = options;
    this.form.querySelector("#rule-options").replaceChildren(
      ...Object.entries(options).map(([name, schema]) => optionField(name, schema)),
    );
    for (const name of [...Object.keys(options), "temperature"]) {
      fields[name].value = this.wanted[name] ?? defaults[name] ?? "";
    }
    fields.max_tokens.placeholder = defaults.max_new_tokens;
    fields.block_size.placeholder = defaults.block_size ?? "the model's";
    this.show();
  }

  get apiKey() { return this.form.elements.api_key.value; }
  get system() { return this.form.elements.system.value.trim(); }

  /** The fields of a request. */
  request() {
    const fields = this.form.elements;
    const number = (name) => (fields[name].value === "" ? undefined : Number(fields[name].value));
    const known = Object.entries(this.options).filter(([name]) => this.isKnown(name));
    return {
      n: 1, // whatever the model's default
      max_tokens: number("max_tokens"),
      temperature: number("temperature"),
      seed: number("seed"),
      diffusion: {
        rule: fields.rule.value,
        ...Object.fromEntries(known.map(([name, schema]) => [name, read(fields[name], schema)])),
        block_size: number("block_size"),
        stream_mode: fields.stream_mode.value,
      },
    };
  }

  /** Whether the chosen rule knows an option. */
  isKnown(name) {
    return this.options[name].rules.includes(this.form.elements.rule.value);
  }

  show() {
    for (const name of Object.keys(this.options)) {
      this.form.elements[name].closest("label").hidden = !this.isKnown(name);
    }
    for (const output of this.form.querySelectorAll("output")) {
      output.textContent = output.closest("label").querySelector("input").value;
    }
  }

  keep() {
    const values = Object.fromEntries(new FormData(this.form));
    sessionStorage.setItem(KEEP_KEY, values.api_key);
    delete values.api_key;
    localStorage.setItem(KEEP, JSON.stringify(values));
    this.wanted = values;
  }

  restore() {
    try {
      this.wanted = JSON.parse(localStorage.getItem(KEEP) ?? "{}");
    } catch {
      this.wanted = {};
    }
    for (const [name, value] of Object.entries(this.wanted)) {
      if (this.form.elements[name]) this.form.elements[name].value = value;
    }
    this.form.elements.api_key.value = sessionStorage.getItem(KEEP_KEY) ?? "";
  }
}

/** The part of a schema that says what a value is; what remains says that null may be one. */
function kindOf(schema) {
  return schema.anyOf ? schema.anyOf.find(({ type }) => type !== "null") : schema;
}

/** A labelled field for an option, of the form that its JSON schema asks for. */
function optionField(name, schema) {
  const kind = kindOf(schema);
  const choices = kind.type === "boolean" ? ["false", "true"] : kind.enum;
  const label = make("label", { title: schema.description, hidden: true }, `${schema.title} `);
  if (choices) {
    const options = choices.map((choice) => new Option(choice, choice));
    label.append(make("select", { name }, ...options));
  } else if (kind.type === "number" && "minimum" in kind && "maximum" in kind) {
    const { minimum: min, maximum: max } = kind;
    label.append(make("output"), make("input", { type: "range", name, min, max, step: 0.01 }));
  } else {
    const step = kind.type === "integer" ? 1 : "any";
    const { minimum: min = "", maximum: max = "" } = kind;
    const placeholder = schema.default ?? "automatic";
    label.append(make("input", { type: "number", name, min, max, step, placeholder }));
  }
  return label;
}

/** The value of an option's field; undefined where it is empty. */
function read(field, schema) {
  if (field.value === "") return undefined;
  const { type } = kindOf(schema);
  if (type === "boolean") return field.value === "true";
  return type === "string" ? field.value : Number(field.value);
}
