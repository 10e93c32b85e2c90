// What mixing adapters in one batch costs, measured on this server with the reader's own prompt.
//
// Three kinds of run, the first two in turn and three times each, so that a machine that warms up or slows down does so
// for both: the columns as they are, in one batch; as many columns of the base model, in one batch; and each column
// alone. A batch's speed counts only while all of its answers were running (meter.js, sharedRate).

import { Meter, sharedRate } from "./meter.js";

export const N_ROUNDS = 3;
const RUN_S = 2; // about how long one batch should take; a machine that is slow for its model takes longer
const MIN_TOKENS = 24; // of each column

/** The answers were too short to measure. */
export class TooShort extends Error {
  constructor() {
    super(
      "The answers are too short to measure: all columns must run together for a moment. Ask for something longer.",
    );
    this.name = "TooShort";
  }
}

/**
 * @param {import("./api.js").Api} api
 * @param {{path: string, body: object}[]} requests one for each column
 * @param {{shared: number|null, signal: AbortSignal, onstep: function(number, number): void}} options `shared`: tokens
 *   a second of these columns together as last seen, by which the length of a run is chosen
 * @returns {Promise<{mixed: number[], plain: number[], alone: number[]}>} tokens a second: of the columns together in
 *   one batch and of as many base columns together, both by round, and of each column alone
 */
export async function measureMixing(api, requests, { shared, signal, onstep }) {
  const n_tokens = Math.max(MIN_TOKENS, Math.round(((shared ?? 0) / requests.length) * RUN_S));
  const limited = requests.map((request) => withLimit(request, n_tokens));
  const plain = limited.map(({ path, body: { lora: _, ...body } }) => ({ path, body }));
  const n_steps = 2 * N_ROUNDS + requests.length;
  const rates = { mixed: [], plain: [] };
  let step = 0;
  for (let round = 0; round < N_ROUNDS; round += 1) {
    for (const [kind, batch] of [
      ["mixed", limited],
      ["plain", plain],
    ]) {
      onstep((step += 1), n_steps);
      rates[kind].push(await rateOf(api, batch, signal));
    }
  }
  const alone = [];
  for (const request of limited) {
    onstep((step += 1), n_steps);
    alone.push(await rateOf(api, [request], signal));
  }
  return { ...rates, alone };
}

async function rateOf(api, batch, signal) {
  const rate = sharedRate(await Promise.all(batch.map((request) => timed(api, request, signal))));
  if (rate === null) throw new TooShort();
  return rate;
}

async function timed(api, request, signal) {
  const meter = new Meter(performance.now());
  for await (const piece of api.complete(request, { streams: true, signal })) {
    if (piece.text) meter.arrive(performance.now());
    if (piece.usage) meter.finish(piece.usage);
  }
  return meter;
}

function withLimit({ path, body }, n_tokens) {
  return { path, body: { ...body, max_tokens: Math.min(body.max_tokens ?? n_tokens, n_tokens) } };
}
