// Where conversations are kept: this browser's IndexedDB, and JSON files for taking them elsewhere.

import { parseScale } from "./blends.js";
import { PARAMETERS } from "./parameters.js";
import { newId } from "./session.js";

const DATABASE = "gemlane";
const TABLE = "conversations";
const FORMAT = "gemlane-conversations";
const MAX_FILE_BYTES = 64 << 20;

/** The conversations that this browser keeps. Every method rejects where the browser keeps none (private windows). */
export class Archive {
  #database = null;

  /** Keep a conversation under its id, over what was kept there. */
  async put(conversation) {
    await this.#do("readwrite", (table) => table.put(structuredClone(conversation)));
  }

  async get(id) {
    return this.#do("readonly", (table) => table.get(id));
  }

  async remove(id) {
    await this.#do("readwrite", (table) => table.delete(id));
  }

  /** All of them, the last changed first. */
  async all() {
    const found = await this.#do("readonly", (table) => table.getAll());
    return found.sort((one, other) => other.updatedAt.localeCompare(one.updatedAt));
  }

  async #do(mode, act) {
    this.#database ??= open();
    const database = await this.#database;
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(TABLE, mode);
      const request = act(transaction.objectStore(TABLE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }
}

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Conversations as the text of a JSON file. */
export function exportOf(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, exportedAt: new Date().toISOString(), conversations }, null, 2);
}

/**
 * The conversations of an exported file, under new ids, so that none replaces one that is here.
 * @param {File} file
 * @throws {Error} with a sentence for the reader, where the file is not one of ours
 */
export async function importOf(file) {
  if (file.size > MAX_FILE_BYTES) throw new Error(`${file.name} is larger than 64 MB`);
  let value;
  try {
    value = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not JSON`);
  }
  if (value?.format !== FORMAT || !Array.isArray(value.conversations))
    throw new Error(`${file.name} holds no exported conversations`);
  if (value.version !== 1) throw new Error(`${file.name} is of version ${value.version}; this page reads version 1`);
  return value.conversations.map((one, index) => readConversation(one, `conversation ${index + 1} of ${file.name}`));
}

function readConversation(value, place) {
  const check = (holds, words) => {
    if (!holds) throw new Error(`${place}: ${words}`);
  };
  check(value !== null && typeof value === "object", "not an object");
  check(["chat", "raw"].includes(value.mode), "mode must be chat or raw");
  check(Array.isArray(value.columns) && value.columns.length >= 1 && value.columns.length <= 8, "needs 1 to 8 columns");
  check(Array.isArray(value.turns), "turns must be a list");
  const columns = value.columns.map((column) => {
    check(typeof column?.id === "string" && Array.isArray(column.members), "a column needs an id and members");
    return { id: column.id, members: readMembers(column.members, check) };
  });
  return {
    id: newId(),
    title: String(value.title ?? "").slice(0, 200),
    createdAt: readDate(value.createdAt),
    updatedAt: readDate(value.updatedAt),
    mode: value.mode,
    system: String(value.system ?? ""),
    streams: value.streams !== false,
    parameters: Object.fromEntries(
      PARAMETERS.flatMap(({ name }) =>
        Number.isFinite(value.parameters?.[name]) ? [[name, value.parameters[name]]] : [],
      ),
    ),
    columns,
    turns: value.turns.map((turn) => readTurn(turn, columns, check)),
  };
}

function readMembers(members, check) {
  return members.map((member) => {
    const scale = parseScale(String(member?.scale ?? ""));
    check(typeof member?.name === "string" && scale !== null, "a member needs a name and a scale");
    return { name: member.name, scale };
  });
}

function readTurn(turn, columns, check) {
  check(
    typeof turn?.prompt === "string" && turn.answers !== null && typeof turn.answers === "object",
    "a turn needs a prompt and answers",
  );
  const answers = {};
  for (const { id } of columns) {
    const answer = turn.answers[id];
    if (answer === undefined) continue;
    check(typeof answer?.text === "string" && Array.isArray(answer.members), "an answer needs a text and members");
    const number = (value) => (Number.isFinite(value) ? value : null);
    answers[id] = {
      status: ["done", "stopped"].includes(answer.status) ? answer.status : "stopped",
      text: answer.text,
      members: readMembers(answer.members, check),
      reason: typeof answer.reason === "string" ? answer.reason : null,
      error: null,
      firstTokenMs: number(answer.firstTokenMs),
      rate:
        number(answer.rate?.perSecond) === null
          ? null
          : { perSecond: answer.rate.perSecond, isWhole: answer.rate.isWhole === true },
      nTokens: number(answer.nTokens) ?? 0,
      usage: null,
    };
  }
  return { id: newId(), prompt: turn.prompt, answers, cost: null };
}

function readDate(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? new Date().toISOString() : date.toISOString();
}
