// Which adapters the server has, as of the last look.

/** States in which a request may name an adapter: the engine gets it before the request. */
const USABLE = ["checked", "offered", "ready"];

/** Tells "change" whenever the list did change. */
export class Catalogue extends EventTarget {
  #adapters = [];
  #seen = "";

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    super();
    this.api = api;
    this.isKnown = false;
  }

  /** @returns {{name: string, isUsable: boolean, state: string, reason: string, detail: string}[]} by name */
  get adapters() {
    return this.#adapters;
  }

  /** Whether a request may name this adapter; while nothing is known, any may. */
  isUsable(name) {
    return !this.isKnown || this.#adapters.some((adapter) => adapter.name === name && adapter.isUsable);
  }

  /** Why it may not. */
  reasonOf(name) {
    return this.#adapters.find((adapter) => adapter.name === name)?.reason || "this server has no such adapter";
  }

  /** Look again. */
  async refresh() {
    const adapters = (await this.api.adapters()).map(describe);
    this.#adapters = adapters.sort((one, other) => one.name.localeCompare(other.name));
    this.isKnown = true;
    const seen = JSON.stringify(this.#adapters);
    if (seen === this.#seen) return;
    this.#seen = seen;
    this.dispatchEvent(new Event("change"));
  }
}

function describe({ name, state, reason, rank, bytes, pinned, replacement }) {
  const isUsable = USABLE.includes(state);
  const parts = [
    rank && `rank ${rank}`,
    bytes && `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`,
    pinned && "pinned",
    !isUsable && state,
    replacement && `next generation ${replacement.state}${replacement.reason ? `: ${replacement.reason}` : ""}`,
  ];
  return {
    name,
    isUsable,
    state,
    reason: reason ?? (isUsable ? "" : `it is ${state}`),
    detail: parts.filter(Boolean).join(" · "),
  };
}
