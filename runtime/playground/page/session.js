// The conversation on the screen and its changes. Code that shows a part of it listens for the topic of that part:
// "conversation" (another one), "columns", "scales", "turns", "settings", "running".

import { MAX_COLUMNS, isSameBlend } from "./blends.js";
import { defaultParameters } from "./parameters.js";

const MAX_TITLE = 80;

/** An identifier; crypto.randomUUID exists only on https and loopback pages. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** An empty conversation with these columns. */
export function newConversation(columns, settings = {}) {
  const now = new Date().toISOString();
  return {
    id: newId(),
    title: "",
    createdAt: now,
    updatedAt: now,
    mode: "chat",
    system: "",
    streams: true,
    parameters: defaultParameters(),
    ...settings,
    columns,
    turns: [],
  };
}

/** A column of these adapters; none is the base model. */
export function newColumn(members = []) {
  return { id: newId(), members };
}

/** The one conversation that is open. */
export class Session extends EventTarget {
  #isRunning = false;

  /** @param {object} conversation */
  constructor(conversation) {
    super();
    this.conversation = conversation;
  }

  get columns() {
    return this.conversation.columns;
  }

  get turns() {
    return this.conversation.turns;
  }

  get isRunning() {
    return this.#isRunning;
  }

  set isRunning(isRunning) {
    this.#isRunning = isRunning;
    this.#tell("running");
  }

  /** Show another conversation. */
  open(conversation) {
    this.conversation = conversation;
    this.#tell("conversation");
  }

  /** Begin again with the same columns and settings. */
  renew() {
    const { mode, system, streams, parameters, columns } = this.conversation;
    this.open(newConversation(structuredClone(columns), { mode, system, streams, parameters: { ...parameters } }));
  }

  /** Another column, unless all places are taken. */
  addColumn(members) {
    if (this.columns.length >= MAX_COLUMNS) return;
    this.columns.push(newColumn(members));
    this.#changed("columns");
  }

  removeColumn(id) {
    if (this.columns.length < 2) return;
    this.conversation.columns = this.columns.filter((column) => column.id !== id);
    this.#changed("columns");
  }

  /** Other adapters for a column. */
  setMembers(id, members) {
    const column = this.columns.find((one) => one.id === id);
    if (!column || isSameBlend(column.members, members)) return;
    column.members = members;
    this.#changed("columns");
  }

  setScale(id, name, scale) {
    const member = this.columns.find((one) => one.id === id)?.members.find((one) => one.name === name);
    if (!member) return;
    member.scale = scale;
    this.#changed("scales");
  }

  /** Change `mode`, `system`, `streams` or `parameters`. */
  set(settings) {
    Object.assign(this.conversation, settings);
    this.#changed("settings");
  }

  /** A parameter's value; null sends none. */
  setParameter(name, value) {
    const { [name]: _, ...others } = this.conversation.parameters;
    this.set({ parameters: value === null ? others : { ...others, [name]: value } });
  }

  /** A new turn at the end. @returns {number} its index */
  addTurn(prompt) {
    this.turns.push({ id: newId(), prompt, answers: {}, cost: null });
    this.conversation.title ||= prompt.trim().replace(/\s+/g, " ").slice(0, MAX_TITLE);
    this.#changed("turns");
    return this.turns.length - 1;
  }

  /** Drop the turn at `index` and all after it. The conversation becomes another one, so that the old one is kept. */
  branch(index) {
    const copy = structuredClone(this.conversation);
    this.conversation = {
      ...copy,
      id: newId(),
      createdAt: new Date().toISOString(),
      turns: copy.turns.slice(0, index),
    };
    this.#changed("turns");
  }

  /** An answer or a cost of a turn changed for good (not one more piece). */
  touch() {
    this.#changed("answers");
  }

  #changed(topic) {
    this.conversation.updatedAt = new Date().toISOString();
    this.#tell(topic);
  }

  #tell(topic) {
    this.dispatchEvent(new CustomEvent("change", { detail: topic }));
  }
}
