// The dialog that asks for a token.

import { announce, byId, element, openDialog } from "./dom.js";

/** Ask for a token. @returns {Promise<boolean>} whether one was entered */
export function askToken(api, words) {
  const dialog = byId("token");
  const field = element("input", { type: "password", id: "token-field", autocomplete: "off", spellcheck: "false" });
  field.value = api.token;
  let isEntered = false;
  return new Promise((resolve) => {
    const form = element(
      "form",
      {
        method: "dialog",
        class: "dialog-body",
        onsubmit: () => {
          api.token = field.value.trim();
          announce(api.token ? "Token set" : "Token removed");
          isEntered = true;
        },
      },
      element("p", {}, words),
      element("label", { for: "token-field" }, "Token"),
      field,
      element(
        "p",
        { class: "hint" },
        "It is kept in this tab until the tab is closed, and is sent to this server alone.",
      ),
      element(
        "div",
        { class: "dialog-actions" },
        element("button", { type: "submit", class: "primary" }, "Use this token"),
      ),
    );
    openDialog(dialog, "Token", form);
    dialog.addEventListener("close", () => resolve(isEntered), { once: true });
    field.focus();
  });
}
