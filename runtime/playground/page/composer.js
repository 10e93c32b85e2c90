// Where prompts are written: Enter sends to every column, Shift+Enter makes a new line.

import { PARAMETERS } from "./parameters.js";
import { byId } from "./dom.js";

/** `actions`: {ask(prompt), stop()}. */
export class Composer {
  #editing = null;

  constructor(session, actions) {
    this.session = session;
    this.actions = actions;
    this.form = byId("composer");
    this.field = byId("prompt");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.field.addEventListener("keydown", (event) => {
      const sends = event.ctrlKey || event.metaKey || !(event.shiftKey || hasTouchKeyboard());
      if (event.key === "Enter" && sends && !event.isComposing) {
        event.preventDefault();
        this.#send();
      }
    });
    this.field.addEventListener("input", () => this.#grow());
    byId("stop").addEventListener("click", () => actions.stop());
    byId("cancel-edit").addEventListener("click", () => this.#endEdit());
    for (const radio of this.#modes()) radio.addEventListener("change", () => this.#setMode(radio.value));
    session.addEventListener("change", ({ detail }) => {
      if (detail === "conversation") this.#endEdit();
      this.render();
    });
    this.render();
  }

  /** Put an earlier prompt into the field; sending it replaces that turn and all after it. */
  edit(index) {
    this.#editing = index;
    this.field.value = this.session.turns[index].prompt;
    this.render();
    this.#grow();
    this.field.focus();
  }

  focus() {
    this.field.focus();
  }

  /** What stands in the field. */
  get draft() {
    return this.field.value;
  }

  render() {
    const { isRunning, conversation } = this.session;
    const hasStop = document.activeElement === byId("stop");
    byId("send").hidden = isRunning;
    byId("stop").hidden = !isRunning;
    if (hasStop && !isRunning) this.field.focus(); // the button under the focus went away
    byId("editing").hidden = this.#editing === null;
    for (const radio of this.#modes()) {
      radio.checked = radio.value === conversation.mode;
      radio.disabled = isRunning;
    }
    this.field.placeholder = conversation.mode === "raw" ? "A prompt, without the chat template…" : "Ask every column…";
    byId("summary").textContent = summaryOf(conversation);
  }

  #modes() {
    return this.form.querySelectorAll("input[name=mode]");
  }

  /** A conversation is of one kind: the other kind begins a new one, and the old one stays in the history. */
  #setMode(mode) {
    if (this.session.turns.length) this.session.renew();
    this.session.set({ mode });
  }

  #send() {
    const prompt = this.field.value;
    if (this.session.isRunning || prompt.trim() === "") return;
    const index = this.#editing;
    this.#endEdit();
    this.field.value = "";
    this.#grow();
    this.actions.ask(prompt, index);
  }

  #endEdit() {
    if (this.#editing !== null) this.field.value = "";
    this.#editing = null;
    this.#grow();
    this.render();
  }

  #grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, window.innerHeight * 0.4)}px`;
  }
}

/** On a touch keyboard Enter makes a new line, as everywhere there; the button sends. */
function hasTouchKeyboard() {
  return matchMedia("(pointer: coarse)").matches;
}

/** The settings that are not the server's own, in a line. */
function summaryOf({ parameters, system }) {
  const set = PARAMETERS.filter(({ name }) => parameters[name] !== undefined).map(
    ({ name, label, unit }) => `${label.toLowerCase()} ${parameters[name]}${unit ? ` ${unit}` : ""}`,
  );
  return [system.trim() ? "system prompt" : "", ...set].filter(Boolean).join(" · ");
}
