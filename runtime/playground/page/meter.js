// When the tokens of one answer came, and what follows from it. Pure: the caller says what time it is, in milliseconds.

/** Fewer tokens in a window, or a shorter one, and a speed would say more of the clock than of the server. */
export const MIN_WINDOW_TOKENS = 16;
export const MIN_WINDOW_MS = 100;

/** The arrivals of one answer. */
export class Meter {
  #arrivals = [];
  #usage = null;

  /** @param {number} startedAt when the request was sent */
  constructor(startedAt) {
    this.startedAt = startedAt;
  }

  /** A piece of text came. */
  arrive(now) {
    this.#arrivals.push(now);
  }

  /** The server's own count of tokens came; until then each piece counts as one token. */
  finish(usage) {
    this.#usage = usage;
  }

  /** From the request to the first piece of text, in milliseconds, or null. */
  get firstTokenMs() {
    return this.#arrivals.length ? this.#arrivals[0] - this.startedAt : null;
  }

  get firstAt() {
    return this.#arrivals[0] ?? null;
  }

  get lastAt() {
    return this.#arrivals.at(-1) ?? null;
  }

  get nTokens() {
    return this.#usage?.completion_tokens ?? this.#arrivals.length;
  }

  get usage() {
    return this.#usage;
  }

  /**
   * Tokens a second between the first piece and the last. Where that time is too short to tell, tokens over the whole
   * time since the request, reading the prompt included: `isWhole` says so. Null before the second piece.
   * @returns {{perSecond: number, isWhole: boolean}|null}
   */
  get rate() {
    if (this.#arrivals.length < 2) return null;
    const isWhole = this.lastAt - this.firstAt < MIN_WINDOW_MS;
    const from = isWhole ? this.startedAt : this.firstAt;
    const n_tokens = isWhole ? this.nTokens : this.tokensWithin(from, this.lastAt);
    return { perSecond: n_tokens / ((this.lastAt - from) / 1000), isWhole };
  }

  /** Tokens that came after `from`, up to and including `to`. */
  tokensWithin(from, to) {
    const n_pieces = this.#arrivals.filter((at) => at > from && at <= to).length;
    return n_pieces * (this.nTokens / Math.max(1, this.#arrivals.length));
  }
}

/**
 * The speed of a batch while every one of its answers was running: from the last first token to the first last token.
 * @param {Meter[]} meters
 * @returns {number|null} tokens a second over all answers together; null where that time is too short to tell
 */
export function sharedRate(meters) {
  if (!meters.length || meters.some(({ firstAt }) => firstAt === null)) return null;
  const from = Math.max(...meters.map(({ firstAt }) => firstAt));
  const to = Math.min(...meters.map(({ lastAt }) => lastAt));
  const n_tokens = meters.reduce((sum, meter) => sum + meter.tokensWithin(from, to), 0);
  if (to - from < MIN_WINDOW_MS || n_tokens < MIN_WINDOW_TOKENS) return null;
  return n_tokens / ((to - from) / 1000);
}

/** The whole of a batch: tokens, and seconds from the first request to the last piece. */
export function totalOf(meters) {
  const ended = meters.filter(({ lastAt }) => lastAt !== null);
  if (!ended.length) return null;
  const from = Math.min(...ended.map(({ startedAt }) => startedAt));
  const to = Math.max(...ended.map(({ lastAt }) => lastAt));
  return { nTokens: ended.reduce((sum, { nTokens }) => sum + nTokens, 0), seconds: (to - from) / 1000 };
}

/** The middle of some numbers. */
export function median(numbers) {
  const sorted = [...numbers].sort((one, other) => one - other);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
