// Which adapters the server has, as of the last look.

/** Tells "change" whenever the list did change. */
export class Catalogue extends EventTarget {
  #adapters = [];
  #seen = "";

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    super();
    this.api = api;
    this.isKnown = false;
    this.limits = null;
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

  /** Look again. Names come from /v1/models, all else from /adapters where the server has it. */
  async refresh() {
    const [names, listing] = await Promise.all([this.api.adapterNames(), this.api.adapters()]);
    const usable = new Set(names);
    const described = (listing?.adapters ?? []).map((adapter) => describe(adapter, usable));
    const known = new Set(described.map(({ name }) => name));
    const bare = names
      .filter((name) => !known.has(name))
      .map((name) => ({ name, isUsable: true, state: "ready", reason: "", detail: "" }));
    this.#adapters = [...described, ...bare].sort((one, other) => one.name.localeCompare(other.name));
    this.limits = listing?.limits ?? null;
    this.isKnown = true;
    const seen = JSON.stringify(this.#adapters);
    if (seen === this.#seen) return;
    this.#seen = seen;
    this.dispatchEvent(new Event("change"));
  }
}

function describe({ name, state, reason, rank, bytes, replacement }, usable) {
  const isUsable = usable.has(name);
  const size = bytes ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB` : "";
  const parts = [
    rank ? `rank ${rank}` : "",
    size,
    isUsable ? "" : state,
    replacement ? `next generation ${replacement.state}` : "",
  ];
  return {
    name,
    isUsable,
    state,
    reason: reason || (isUsable ? "" : `it is ${state}`),
    detail: parts.filter(Boolean).join(" · "),
  };
}
