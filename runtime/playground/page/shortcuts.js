// Keyboard shortcuts, and the dialog that lists them. Single keys can be switched off (WCAG 2.1.4).

import { byId, element, openDialog } from "./dom.js";

const OFF_KEY = "gemlane-shortcuts";
const FIXED = [
  ["Enter", "Send the prompt"],
  ["Shift + Enter", "New line"],
  ["Esc", "Stop the answers"],
];

/** @param {{key: string, words: string, act: function(): void}[]} shortcuts @param {function(): void} stop */
export function listenForShortcuts(shortcuts, stop) {
  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") stop();
    if (
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      isWriting(event.target) ||
      localStorage.getItem(OFF_KEY) === "off"
    )
      return;
    const shortcut = shortcuts.find(({ key }) => key === event.key.toLowerCase());
    if (!shortcut) return;
    event.preventDefault();
    shortcut.act();
  });
  byId("open-help").addEventListener("click", () => openHelp(shortcuts));
}

/** Show what there is. */
export function openHelp(shortcuts) {
  const rows = [...FIXED, ...shortcuts.map(({ key, words }) => [key.toUpperCase(), words])];
  const single = element("input", { type: "checkbox", id: "single-keys" });
  single.checked = localStorage.getItem(OFF_KEY) !== "off";
  single.addEventListener("change", () => localStorage.setItem(OFF_KEY, single.checked ? "on" : "off"));
  openDialog(
    byId("help"),
    "Keyboard shortcuts",
    element(
      "div",
      { class: "dialog-body" },
      element(
        "dl",
        { class: "keys" },
        ...rows.flatMap(([key, words]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, words)]),
      ),
      element(
        "div",
        { class: "field check" },
        single,
        element("label", { for: "single-keys" }, "Single keys act while no field has the focus"),
      ),
    ),
  );
}

function isWriting(target) {
  return (
    target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName))
  );
}
