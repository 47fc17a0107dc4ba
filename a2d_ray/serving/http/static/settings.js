// The settings panel: what a request asks for beyond the server's defaults.

const KEEP = "a2d-ray settings";
const KEEP_KEY = "a2d-ray api key"; // for this tab only

export class Settings {
  constructor(form) {
    this.form = form;
    this.restore();
    form.addEventListener("input", () => { this.show(); this.keep(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    this.show();
  }

  /** Offers the rules that a model's card names, and shows its defaults. */
  offer(card) {
    const fields = this.form.elements;
    const { rules, defaults } = card.diffusion;
    const chosen = fields.rule.value || this.wanted.rule || defaults.rule;
    fields.rule.replaceChildren(...rules.map((rule) => new Option(rule, rule)));
    fields.rule.value = rules.includes(chosen) ? chosen : defaults.rule;
    for (const name of ["threshold", "temperature"]) {
      fields[name].value = this.wanted[name] ?? defaults[name];
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
    const rule = fields.rule.value;
    return {
      n: 1, // whatever the model's default
      max_tokens: number("max_tokens"),
      temperature: number("temperature"),
      seed: number("seed"),
      diffusion: {
        rule,
        threshold: this.has("threshold", rule) ? number("threshold") : undefined,
        steps: this.has("steps", rule) ? number("steps") : undefined,
        block_size: number("block_size"),
        stream_mode: fields.stream_mode.value,
      },
    };
  }

  has(name, rule) {
    return this.form.elements[name].closest("label").dataset.rules.split(" ").includes(rule);
  }

  show() {
    const rule = this.form.elements.rule.value;
    for (const label of this.form.querySelectorAll("label[data-rules]")) {
      label.hidden = !label.dataset.rules.split(" ").includes(rule);
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
