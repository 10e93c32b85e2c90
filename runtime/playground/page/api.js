// The server's public API: completions, models, health and adapters. Knows HTTP, and nothing of the page.

import { eventsOf } from "./sse.js";

const TOKEN_KEY = "gemlane-token";
const BROKEN = "broken"; // our own code: the answer began and did not end
/**
 * A browser opens six HTTP/1.1 connections to a host for requests with credentials, and six more for those without.
 * No request of ours needs a cookie, so streams go without and everything else with: eight columns can stream at once,
 * six of them on one pool and two on the other, and the page still hears from /health.
 */
const MAX_CONNECTIONS = 6;

/** A request that failed. `status` 0: no answer came; `code` is the server's own word for the fault, or "". */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "" } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }

  /** What the reader can do about it, or "". */
  get advice() {
    if (this.status === 200 || this.code === BROKEN) return "What had come is kept; ask again for the whole answer.";
    if (this.status === 0) return "Is the server running, and this page's address still right?";
    if (this.status === 401) return "Enter a token that this server accepts.";
    if (this.status === 404 && this.code === "model_not_found")
      return "The adapter may have been removed: choose another for this column.";
    if (this.code === "context_length_exceeded") return "Shorten the prompt, or begin a new conversation.";
    if (this.status === 429) return "Every place is taken: try again in a moment.";
    if (this.status === 503) return "The engine is being started again: try again in a few seconds.";
    return "";
  }
}

/** One server, the one this page came from. */
export class Api {
  #n_streams = 0;

  /** The bearer token, kept until the tab is closed; "" is none. */
  get token() {
    return sessionStorage.getItem(TOKEN_KEY) ?? "";
  }

  set token(token) {
    if (token) sessionStorage.setItem(TOKEN_KEY, token);
    else sessionStorage.removeItem(TOKEN_KEY);
  }

  /** `GET /health`: also a server that is starting answers, with status 503. */
  async health() {
    const response = await this.#send("/health");
    return response.json();
  }

  /** `GET /adapters`: every adapter with its state. */
  async adapters() {
    return (await this.#json("/adapters")).adapters;
  }

  /**
   * One answer, piece by piece.
   * @param {{path: string, body: object}} request
   * @param {{streams: boolean, signal: AbortSignal}} options
   * @yields {{text: string}|{reason: string}|{usage: object}}
   */
  async *complete({ path, body }, { streams, signal }) {
    const pool = this.#n_streams++ < MAX_CONNECTIONS ? "omit" : "same-origin";
    const asked = streams ? { ...body, stream: true, stream_options: { include_usage: true } } : body;
    try {
      const response = await this.#send(path, {
        method: "POST",
        body: JSON.stringify(asked),
        signal,
        credentials: pool,
      });
      if (!response.ok) throw await errorOf(response);
      if (streams) yield* this.#pieces(response.body);
      else yield* piecesOf(await response.json());
    } catch (error) {
      throw error instanceof TypeError
        ? new ApiError("The connection broke before the answer was whole", { code: BROKEN })
        : error;
    } finally {
      this.#n_streams -= 1;
    }
  }

  async *#pieces(body) {
    for await (const data of eventsOf(body)) {
      if (data === "[DONE]") return;
      yield* piecesOf(JSON.parse(data));
    }
    throw new ApiError("The stream ended before the answer did", { code: BROKEN });
  }

  /**
   * `PUT /adapters/{name}` with files, of which `onprogress` hears the fraction sent. XMLHttpRequest, since fetch does
   * not say how much of a body it has sent.
   * @param {string} name
   * @param {File[]} files
   * @param {{replaces: boolean, onprogress: function(number): void, signal: AbortSignal}} options without `replaces` a
   *   name that is taken is refused with status 412
   * @returns {Promise<object>} the adapter as the server describes it
   */
  upload(name, files, { replaces, onprogress, signal }) {
    const form = new FormData();
    for (const file of files) form.append("file", file, file.name);
    const request = new XMLHttpRequest();
    request.open("PUT", `/adapters/${encodeURIComponent(name)}`);
    if (this.token) request.setRequestHeader("Authorization", `Bearer ${this.token}`);
    if (!replaces) request.setRequestHeader("If-None-Match", "*");
    request.upload.addEventListener(
      "progress",
      (event) => event.lengthComputable && onprogress(event.loaded / event.total),
    );
    signal.addEventListener("abort", () => request.abort());
    return new Promise((resolve, reject) => {
      request.addEventListener("load", () => {
        if (request.status < 300) resolve(JSON.parse(request.responseText));
        else reject(faultOf(request.status, request.responseText));
      });
      request.addEventListener("error", () => reject(new ApiError("The connection broke during the upload")));
      request.addEventListener("abort", () => reject(new ApiError("The upload was cancelled")));
      request.send(form);
    });
  }

  async #json(path) {
    const response = await this.#send(path);
    if (!response.ok) throw await errorOf(response);
    return response.json();
  }

  async #send(path, options = {}) {
    const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}) };
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    try {
      return await fetch(path, { cache: "no-store", ...options, headers });
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError("The server does not answer");
    }
  }
}

/** The pieces that one event, or one whole answer, holds. */
function* piecesOf(value) {
  if (value.error) throw new ApiError(value.error.message, { status: 200, code: value.error.code ?? "" });
  for (const choice of value.choices ?? []) {
    const text = choice.delta?.content ?? choice.message?.content ?? choice.text;
    if (text) yield { text };
    if (choice.finish_reason) yield { reason: choice.finish_reason };
  }
  if (value.usage) yield { usage: value.usage };
}

async function errorOf(response) {
  return faultOf(response.status, await response.text());
}

function faultOf(status, text) {
  try {
    const { message, code } = JSON.parse(text).error;
    return new ApiError(message, { status, code: code ?? "" });
  } catch {
    return new ApiError(`The server answered with status ${status}`, { status });
  }
}
