// The dialog with the lines that ask what is on the screen.

import { titleOf } from "./blends.js";
import { byId, copyText, element, openDialog } from "./dom.js";
import { requestOf } from "./requests.js";
import { snippetsOf } from "./snippets.js";

const EXAMPLE = "What is the capital of France?";

/** `draft()` is what stands in the prompt's field. */
export class CodeDialog {
  #language = "curl";

  constructor(api, session, draft) {
    this.api = api;
    this.session = session;
    this.draft = draft;
    byId("open-code").addEventListener("click", () => this.open());
  }

  open(columnId = this.session.columns[0].id) {
    const { columns } = this.session;
    const column = columns.find(({ id }) => id === columnId) ?? columns[0];
    const snippets = snippetsOf(this.#request(column), location.origin, this.api.token !== "");
    const lines = element("pre", { tabindex: 0, "aria-label": "Code" }, element("code", {}));
    const languages = Object.keys(snippets).map((language) => {
      const radio = element("input", { type: "radio", name: "language", value: language });
      radio.checked = language === this.#language;
      radio.addEventListener("change", () => show(language));
      return element("label", {}, radio, element("span", {}, language));
    });
    const show = (language) => {
      this.#language = language;
      lines.firstChild.textContent = snippets[language];
    };
    show(this.#language);
    const choose = element(
      "select",
      { id: "code-column" },
      ...columns.map(({ id, members }) =>
        element("option", { value: id, selected: id === column.id }, titleOf(members)),
      ),
    );
    choose.addEventListener("change", () => {
      this.open(choose.value);
      byId("code-column").focus();
    });
    const copy = element(
      "button",
      {
        type: "button",
        class: "primary",
        id: "copy-code",
        onclick: ({ currentTarget }) => copyText(lines.textContent, currentTarget),
      },
      "Copy",
    );
    openDialog(
      byId("code"),
      "Code",
      element(
        "div",
        { class: "dialog-body" },
        element(
          "div",
          { class: "code-bar" },
          element("div", { class: "modes", role: "radiogroup", "aria-label": "Language" }, ...languages),
          element("div", { class: "code-column" }, element("label", { for: "code-column" }, "Column"), choose),
        ),
        lines,
        this.api.token !== "" &&
          element("p", { class: "hint" }, "The token is read from the environment variable GEMLANE_TOKEN."),
      ),
      element("div", { class: "dialog-actions" }, copy),
    );
  }

  /** The draft if there is one, else the last prompt, else an example. */
  #request(column) {
    const { conversation, turns } = this.session;
    const draft = this.draft().trim() ? this.draft() : turns.length ? null : EXAMPLE;
    if (draft === null) return requestOf(conversation, column, turns.length - 1);
    return requestOf({ ...conversation, turns: [...turns, { prompt: draft, answers: {} }] }, column, turns.length);
  }
}
