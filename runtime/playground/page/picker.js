// The dialog that chooses the adapters of a column: none is the base model, several are a blend.

import { byId, element, openDialog } from "./dom.js";
import { parseScale } from "./blends.js";

/**
 * @param {import("./catalogue.js").Catalogue} catalogue
 * @param {{name: string, scale: number}[]} members what is chosen now
 * @param {string} title
 * @param {function({name: string, scale: number}[]): void} onchoose
 */
export function openPicker(catalogue, members, title, onchoose) {
  const dialog = byId("picker");
  const chosen = new Map(members.map(({ name, scale }) => [name, scale]));
  const search = element("input", {
    type: "search",
    placeholder: "Search adapters",
    "aria-label": "Search adapters",
    autocomplete: "off",
  });
  const list = element("ul", { class: "picks", "aria-label": "Adapters" });
  const count = element("p", { class: "hint", role: "status" });
  const done = element("button", { type: "submit", class: "primary" }, "Use the base model");

  const say = () => {
    done.textContent =
      chosen.size === 0
        ? "Use the base model"
        : chosen.size === 1
          ? `Use ${[...chosen.keys()][0]}`
          : `Blend ${chosen.size} adapters`;
  };
  const show = () => {
    const words = search.value.trim().toLowerCase();
    const found = catalogue.adapters.filter(({ name }) => name.toLowerCase().includes(words));
    list.replaceChildren(...found.map((adapter) => row(adapter, chosen, say)));
    count.textContent = countOf(catalogue.adapters.length, found.length, words);
  };
  search.addEventListener("input", show);
  const form = element(
    "form",
    {
      method: "dialog",
      class: "dialog-body",
      onsubmit: () => onchoose([...chosen].map(([name, scale]) => ({ name, scale }))),
    },
    element(
      "p",
      { class: "hint" },
      "One adapter, several for a blend, or none for the base model. Their scales stay on the column.",
    ),
    search,
    list,
    count,
    element("div", { class: "dialog-actions" }, done),
  );
  show();
  say();
  openDialog(dialog, title, form);
  search.focus();
}

function row({ name, isUsable, reason, detail }, chosen, say) {
  const box = element("input", {
    type: "checkbox",
    checked: chosen.has(name),
    disabled: !isUsable && !chosen.has(name),
  });
  box.checked = chosen.has(name);
  box.addEventListener("change", () => {
    if (box.checked) chosen.set(name, parseScale("1"));
    else chosen.delete(name);
    say();
  });
  const note = isUsable ? detail : `${detail ? `${detail}: ` : ""}${reason}`;
  return element(
    "li",
    { class: isUsable ? "pick" : "pick unusable" },
    element(
      "label",
      {},
      box,
      element("span", { class: "pick-name" }, name),
      note && element("span", { class: "pick-note" }, note),
    ),
  );
}

function countOf(n_all, n_found, words) {
  if (n_all === 0) return "This server has no adapters yet. Drop one onto the page to add it.";
  return words ? `${n_found} of ${n_all} adapters` : `${n_all} ${n_all === 1 ? "adapter" : "adapters"}`;
}
