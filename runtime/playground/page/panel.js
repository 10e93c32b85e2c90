// The panel of parameters: system prompt, every parameter of the model's schema with its range, streaming.

import { announce, byId, element, iconButton } from "./dom.js";
import { PARAMETERS, faultOf } from "./parameters.js";

const OPEN_KEY = "gemlane-parameters";

/** Shows the settings of `session`. */
export class ParameterPanel {
  constructor(session) {
    this.session = session;
    this.place = byId("parameters");
    this.opener = byId("open-parameters");
    this.opener.addEventListener("click", () => this.toggle());
    session.addEventListener("change", ({ detail }) => detail === "conversation" && this.render());
    this.render();
    this.#show(localStorage.getItem(OPEN_KEY) === "open" && matchMedia("(min-width: 60rem)").matches);
  }

  toggle() {
    const isOpen = this.place.hidden;
    this.#show(isOpen);
    localStorage.setItem(OPEN_KEY, isOpen ? "open" : "closed");
    if (isOpen) this.place.querySelector("textarea").focus();
    else this.opener.focus();
  }

  #show(isOpen) {
    this.place.hidden = !isOpen;
    this.opener.setAttribute("aria-expanded", String(isOpen));
  }

  render() {
    const { conversation } = this.session;
    const system = element("textarea", { id: "system", rows: 3, placeholder: "None" });
    system.value = conversation.system;
    system.addEventListener("input", () => this.session.set({ system: system.value }));
    const streams = element("input", { type: "checkbox", id: "streams" });
    streams.checked = conversation.streams;
    streams.addEventListener("change", () => this.session.set({ streams: streams.checked }));
    this.place.replaceChildren(
      element(
        "div",
        { class: "panel-head" },
        element("h2", {}, "Parameters"),
        iconButton("close", "Close the parameters", () => this.toggle()),
      ),
      element(
        "div",
        { class: "field" },
        element("label", { for: "system" }, "System prompt"),
        system,
        element("p", { class: "hint" }, "Chat only; it goes before the first prompt"),
      ),
      ...PARAMETERS.map((parameter) => this.#field(parameter)),
      element(
        "div",
        { class: "field check" },
        streams,
        element("label", { for: "streams" }, "Stream the answers"),
        element("p", { class: "hint" }, "Speeds are measured on streams only"),
      ),
    );
  }

  #field(parameter) {
    const { name, label, min, max, step, slider: end, fallback, hint } = parameter;
    const value = this.session.conversation.parameters[name];
    const id = `parameter-${name}`;
    const number = element("input", {
      type: "number",
      id,
      min,
      max,
      step: step === 1 ? 1 : "any",
      placeholder: fallback,
      "aria-describedby": `${id}-hint ${id}-fault`,
    });
    const slider = element("input", {
      type: "range",
      min,
      max: end || max,
      step,
      "aria-label": `${label}, slider`,
      tabindex: -1,
    });
    const fault = element("p", { class: "fault", id: `${id}-fault`, role: "alert" });
    const reset = element(
      "button",
      { type: "button", "aria-label": `Reset ${label}`, onclick: () => set(null) },
      "Reset",
    );
    const show = (shown) => {
      number.value = shown ?? "";
      slider.value = shown ?? (Number.isFinite(Number(fallback)) ? Number(fallback) : min);
      slider.classList.toggle("unset", shown === null);
      reset.hidden = shown === null;
    };
    const set = (wanted) => {
      const words = wanted === null ? null : faultOf(parameter, wanted);
      fault.textContent = words ?? "";
      number.setAttribute("aria-invalid", String(words !== null));
      if (words === null) {
        this.session.setParameter(name, wanted);
        show(wanted);
        if (wanted !== null) return;
        announce(`${label}: ${fallback}`);
        number.focus(); // the button under the focus went away
      }
    };
    number.addEventListener("change", () =>
      set(number.value.trim() === "" && !number.validity.badInput ? null : Number(number.value || NaN)),
    );
    slider.addEventListener("input", () => set(Number(slider.value)));
    show(value ?? null);
    return element(
      "div",
      { class: "field" },
      element("div", { class: "field-head" }, element("label", { for: id }, label), reset),
      element("div", { class: "field-row" }, end !== false && slider, number),
      element(
        "p",
        { class: "hint", id: `${id}-hint` },
        `${min} to ${max ?? "what fits the context"}${hint ? `. ${hint}` : ""}`,
      ),
      fault,
    );
  }
}
