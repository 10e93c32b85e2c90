// What is known of the server: its state in the top bar and in words.

import { byId } from "./dom.js";

const POLL_MS = 10_000;
const POLL_TROUBLED_MS = 1_000;
const POLL_GROUPED_MS = 2_000; // lanes are proven with the first adapter, and then the server batches otherwise
const SERVING = ["ok", "degraded"];
const ENGINE_WORDS = {
  starting: "engine starting",
  restarting: "engine restarting",
  failed: "engine failed",
  stopped: "server stopping",
};

/**
 * Watches /health. `state` is "ok", "waiting" (the engine is not ready), "locked" (a token is needed) or "gone".
 * Tells "change" whenever the state did change.
 */
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
      this.state = stateOf(this.health);
    } catch {
      this.health = null;
      this.state = "gone";
    }
    this.#show();
    this.#timer = setTimeout(() => this.look(), this.#pause);
    if (this.state !== before) this.dispatchEvent(new Event("change"));
  }

  /** The state in a few words. */
  get summary() {
    if (this.state === "locked") return "token needed";
    if (this.state === "gone") return "no connection";
    if (this.state === "waiting") return ENGINE_WORDS[this.health.status] ?? "engine not ready";
    const { model, adapter_batching: batching } = this.health;
    return `${model.name} · ${model.device} · ${batching === "mixed" ? "adapters mixed in one batch" : "adapters take turns"}`;
  }

  /** What a reader should know while requests are not answered as usual, or "". */
  get trouble() {
    if (this.state === "gone") return "The server does not answer. This page goes on trying.";
    if (this.state !== "waiting") return "";
    const reason = this.health.engine?.reason ? ` (${this.health.engine.reason})` : "";
    if (this.health.status === "failed") return `The engine cannot be started${reason}. The server tries again.`;
    return `The engine is not ready yet${reason}. Prompts that are sent now wait for it.`;
  }

  get #pause() {
    if (this.state !== "ok") return POLL_TROUBLED_MS;
    return this.health.adapter_batching === "mixed" ? POLL_MS : POLL_GROUPED_MS;
  }

  #show() {
    const status = byId("status");
    status.dataset.state = this.state === "ok" && this.health.status === "degraded" ? "waiting" : this.state;
    status.lastElementChild.textContent = this.summary;
    status.setAttribute("aria-label", `Server: ${this.summary}. Details`);
  }
}

/** Without a token the server says its status and nothing else. */
function stateOf({ status, engine, model }) {
  if (!SERVING.includes(status)) return "waiting";
  if (!engine) return "locked";
  return model ? "ok" : "waiting";
}
