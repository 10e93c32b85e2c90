// Asking: every column's stream at once, its meter, and how each one ends.

import { ApiError } from "./api.js";
import { titleOf } from "./blends.js";
import { Meter, sharedRate, totalOf } from "./meter.js";
import { TooShort, measureMixing } from "./measure.js";
import { requestOf } from "./requests.js";

/** Runs turns of the open conversation, one at a time. Tells a listener of each piece: (turn, column). */
export class Runner {
  #abort = null;

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./session.js").Session} session
   * @param {{onpiece: function(object, object): void, onend: function(object, object): void}} listener
   */
  constructor(api, session, listener) {
    this.api = api;
    this.session = session;
    this.listener = listener;
  }

  /** Ask `columns` for their answers to the turn at `index`; ends when the last one has ended. */
  async run(index, columns) {
    if (this.session.isRunning) return;
    const conversation = this.session.conversation;
    const turn = conversation.turns[index];
    const requests = columns.map((column) => requestOf(conversation, column, index));
    this.#abort = new AbortController();
    turn.cost = null;
    for (const column of columns) turn.answers[column.id] = waitingAnswer(column);
    this.session.isRunning = true;
    this.session.touch();
    const meters = await Promise.all(
      columns.map((column, place) => this.#answer(turn, column, requests[place], conversation.streams)),
    );
    turn.cost = costOf(meters.filter((meter) => meter !== null));
    this.#abort = null;
    this.session.isRunning = false;
    this.session.touch();
  }

  /** Stop what runs; what has come so far stays. */
  stop() {
    this.#abort?.abort();
  }

  /**
   * Measure what mixing the columns of a turn costs, and keep the figures with the turn.
   * @param {string} batching "mixed" or "grouped", as the server batches adapters
   */
  async measure(index, columns, batching, onstep) {
    if (this.session.isRunning) return;
    const conversation = this.session.conversation;
    const { cost } = conversation.turns[index];
    const requests = columns.map((column) => requestOf(conversation, column, index));
    this.#abort = new AbortController();
    this.session.isRunning = true;
    try {
      const { mixed, plain, alone } = await measureMixing(this.api, requests, {
        shared: cost.shared,
        signal: this.#abort.signal,
        onstep,
      });
      cost.measured = {
        batching,
        mixed,
        plain,
        alone: Object.fromEntries(columns.map(({ id }, place) => [id, alone[place]])),
      };
      cost.fault = null;
    } catch (error) {
      this.#abort.abort(); // one request failed: the others of its batch have no use any more
      if (error.name !== "AbortError")
        cost.fault = error instanceof TooShort || error instanceof ApiError ? error.message : String(error);
    } finally {
      this.#abort = null;
      this.session.isRunning = false;
      this.session.touch();
    }
  }

  async #answer(turn, column, request, streams) {
    const answer = turn.answers[column.id];
    const meter = new Meter(performance.now());
    try {
      for await (const piece of this.api.complete(request, { streams, signal: this.#abort.signal })) {
        if (piece.text) {
          answer.status = "streaming";
          answer.text += piece.text;
          meter.arrive(performance.now());
        }
        if (piece.reason) answer.reason = piece.reason;
        if (piece.usage) meter.finish(piece.usage);
        note(answer, meter, streams);
        this.listener.onpiece(turn, column);
      }
      answer.status = "done";
    } catch (error) {
      fail(answer, error);
    }
    note(answer, meter, streams);
    this.listener.onend(turn, column);
    return answer.status === "done" && streams ? meter : null;
  }
}

function waitingAnswer(column) {
  return {
    status: "waiting",
    text: "",
    members: structuredClone(column.members),
    reason: null,
    error: null,
    firstTokenMs: null,
    rate: null,
    nTokens: 0,
    usage: null,
  };
}

function note(answer, meter, streams) {
  answer.firstTokenMs = streams ? meter.firstTokenMs : null;
  answer.rate = streams ? meter.rate : null;
  answer.nTokens = meter.nTokens;
  answer.usage = meter.usage;
}

function fail(answer, error) {
  if (error.name === "AbortError") {
    answer.status = "stopped";
    return;
  }
  answer.status = "failed";
  const known = error instanceof ApiError ? error : new ApiError(String(error));
  answer.error = { message: known.message, status: known.status, advice: known.advice };
}

function costOf(meters) {
  const total = totalOf(meters);
  if (total === null) return null;
  return { ...total, nColumns: meters.length, shared: sharedRate(meters), measured: null, fault: null };
}

/** A sentence for screen readers when a column has ended. */
export function endingOf(column, answer) {
  const title = titleOf(column.members);
  if (answer.status === "failed") return `${title}: ${answer.error.message}`;
  if (answer.status === "stopped") return `${title}: stopped`;
  const rate = answer.rate === null ? "" : `, ${Math.round(answer.rate.perSecond)} tokens a second`;
  return `${title}: ${answer.nTokens} tokens${rate}`;
}
