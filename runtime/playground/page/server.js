// What is known of the server: its state in the top bar, the rest in a dialog, and the token where one is needed.

import { announce, byId, element, openDialog } from "./dom.js";

const POLL_MS = 10_000;
const POLL_TROUBLED_MS = 1_000;

/** Watches /health. Tells "change" when the state did, which is "ok", "starting", "locked" (a token is needed) or "gone". */
export class ServerWatch extends EventTarget {
  #timer = null;

  constructor(api) {
    super();
    this.api = api;
    this.state = "unknown";
    this.health = null;
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.look());
  }

  /** Look now, and again after a while: sooner while something is wrong. */
  async look() {
    clearTimeout(this.#timer);
    const before = this.state;
    try {
      this.health = await this.api.health();
      this.state = this.health.status !== "ok" ? "starting" : this.health.model ? "ok" : "locked";
    } catch {
      this.state = "gone";
    }
    this.#show();
    this.#timer = setTimeout(() => this.look(), this.state === "ok" ? POLL_MS : POLL_TROUBLED_MS);
    if (this.state !== before) this.dispatchEvent(new Event("change"));
  }

  #show() {
    const status = byId("status");
    const words = {
      ok: () => summaryOf(this.health),
      starting: () => "engine starting",
      locked: () => "token needed",
      gone: () => "no connection",
    }[this.state]();
    status.dataset.state = this.state;
    status.lastElementChild.textContent = words;
    status.setAttribute("aria-label", `Server: ${words}. Details`);
  }
}

function summaryOf({ model, adapter_batching: batching }) {
  return `${model.name} · ${model.device} · ${batching === "mixed" ? "adapters mixed in one batch" : "adapters take turns"}`;
}

/** The dialog with what the server says of itself. */
export function openServerDialog({ state, health }, catalogue, { chooseFile, chooseFolder, enterToken }) {
  const rows =
    state === "ok"
      ? factsOf(health)
      : [
          [
            "State",
            {
              starting: "The engine is loading or is being started again.",
              locked: "It wants a token.",
              gone: "It does not answer.",
            }[state] ?? "Not known yet.",
          ],
        ];
  const refused = catalogue.adapters.filter(({ isUsable }) => !isUsable);
  openDialog(
    byId("server"),
    "Server",
    element(
      "div",
      { class: "dialog-body" },
      element(
        "dl",
        { class: "facts" },
        ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
      ),
      refused.length > 0 && element("h3", {}, "Adapters that cannot be used"),
      refused.length > 0 &&
        element(
          "ul",
          { class: "refused" },
          ...refused.map(({ name, reason }) => element("li", {}, element("b", {}, name), ` ${reason}`)),
        ),
    ),
    element(
      "div",
      { class: "dialog-actions" },
      element("button", { type: "button", onclick: enterToken }, "Token"),
      element("button", { type: "button", onclick: chooseFile }, "Upload an adapter file"),
      element("button", { type: "button", onclick: chooseFolder }, "Upload a folder"),
    ),
  );
}

function factsOf({ model, adapter_batching: batching, adapter_batching_reason: reason, adapters, requests }) {
  const bytes = model.size_bytes;
  return [
    [
      "Model",
      `${model.name}, ${(model.n_params / 1e6).toFixed(model.n_params < 1e8 ? 1 : 0)} million parameters, ${bytes < 1e8 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`}`,
    ],
    ["Runs on", model.device],
    ["Context", `${model.n_ctx} tokens a request`],
    ["At once", `${model.n_parallel} answers; more wait their turn`],
    ["Adapters", `${adapters.length}, ${batching}: ${reason}`],
    ["Running now", `${requests.in_flight}`],
  ];
}

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
