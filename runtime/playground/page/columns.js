// The heads of the columns: what each one applies, its scales, and how to change, add or remove it.

import { MAX_COLUMNS, MAX_SCALE, MIN_SCALE, SCALE_LIMIT, SCALE_STEP, parseScale, titleOf } from "./blends.js";
import { announce, byId, element, icon, iconButton } from "./dom.js";
import { openPicker } from "./picker.js";

/** Shows the heads of `session`, whose picker offers the adapters of `catalogue`. */
export class ColumnHeads {
  constructor(session, catalogue) {
    this.session = session;
    this.catalogue = catalogue;
    this.place = byId("heads");
    session.addEventListener("change", ({ detail }) => {
      if (["conversation", "columns", "running"].includes(detail)) this.render();
    });
    catalogue.addEventListener("change", () => this.render());
    this.render();
  }

  /** Let the reader choose the adapters of a new column. */
  add() {
    if (this.session.isRunning || this.session.columns.length >= MAX_COLUMNS) return;
    openPicker(this.catalogue, [], "New column", (members) => this.session.addColumn(members));
  }

  render() {
    const { columns, isRunning } = this.session;
    byId("grid").style.setProperty("--columns", columns.length);
    const focused = document.activeElement?.dataset?.focus;
    const add = element(
      "button",
      {
        type: "button",
        class: "add-column",
        title: "Add a column (C)",
        "data-focus": "add",
        disabled: isRunning || columns.length >= MAX_COLUMNS,
        onclick: () => this.add(),
      },
      icon("new"),
      element("span", { class: "visually-hidden" }, "Add a column"),
    );
    this.place.replaceChildren(...columns.map((column, place) => this.#head(column, place)), add);
    if (focused) this.place.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  }

  #head(column, place) {
    const { isRunning, columns } = this.session;
    const title = titleOf(column.members);
    const missing = column.members.filter(({ name }) => !this.catalogue.isUsable(name));
    const choose = element(
      "button",
      {
        type: "button",
        class: "choose",
        disabled: isRunning,
        title: "Choose adapters",
        "aria-label": `${title}, choose adapters`,
        "data-focus": `choose-${column.id}`,
        onclick: () =>
          openPicker(this.catalogue, column.members, "Adapters of this column", (members) =>
            this.session.setMembers(column.id, members),
          ),
      },
      element("span", { class: "choose-title" }, title),
      icon("down"),
    );
    const remove = iconButton("close", `Remove the column ${title}`, () => this.#remove(column), {
      disabled: isRunning || columns.length < 2,
    });
    return element(
      "section",
      {
        class: "head",
        "data-lane": laneOf(columns, place),
        "data-column": column.id,
        "aria-label": `Column ${place + 1}: ${title}`,
      },
      element("div", { class: "head-row" }, choose, remove),
      missing.length > 0 &&
        element(
          "p",
          { class: "head-fault" },
          `${missing.map(({ name }) => name).join(", ")} cannot be used: ${this.catalogue.reasonOf(missing[0].name)}`,
        ),
      column.members.length === 0 && element("p", { class: "head-note" }, "without adapters"),
      ...column.members.map((member) => this.#scale(column, member)),
    );
  }

  #remove(column) {
    const title = titleOf(column.members);
    this.session.removeColumn(column.id);
    announce(`Removed the column ${title}`);
  }

  #scale(column, { name, scale }) {
    const many = column.members.length > 1;
    const { isRunning } = this.session;
    const label = `Scale of ${name}`;
    const slider = element("input", {
      type: "range",
      min: MIN_SCALE,
      max: MAX_SCALE,
      step: SCALE_STEP,
      value: scale,
      "aria-label": label,
      disabled: isRunning,
    });
    const number = element("input", {
      type: "number",
      min: -SCALE_LIMIT,
      max: SCALE_LIMIT,
      step: SCALE_STEP,
      value: scale,
      "aria-label": `${label}, as a number`,
      disabled: isRunning,
    });
    const set = (text) => {
      const wanted = parseScale(text);
      if (wanted === null) return;
      this.session.setScale(column.id, name, wanted);
      const title = titleOf(this.session.columns.find(({ id }) => id === column.id).members);
      this.place.querySelector(`[data-column="${column.id}"] .choose-title`).textContent = title;
    };
    slider.addEventListener("input", () => set((number.value = slider.value)));
    number.addEventListener("input", () => set((slider.value = number.value)));
    number.addEventListener("change", () => {
      number.value = slider.value = parseScale(number.value) ?? 1;
      set(number.value);
    });
    return element(
      "div",
      { class: "scale" },
      many && element("span", { class: "scale-name", title: name }, name),
      slider,
      number,
    );
  }
}

/** The colour of a column: the base model has its own, adapters take theirs in turn. */
export function laneOf(columns, place) {
  if (columns[place].members.length === 0) return "base";
  return String(columns.slice(0, place).filter(({ members }) => members.length > 0).length % 7);
}
