// Server-sent events out of a response body: bytes in, the data of each event out.

/**
 * The data of every event. An event ends with an empty line; several data lines are joined by newlines.
 * Source: WHATWG HTML, "Interpreting an event stream".
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>}
 */
export async function* eventsOf(body) {
  // The reader takes each piece as it comes. A pipe (TextDecoderStream) would hold pieces, and drop them when the
  // connection breaks: the last one of a broken stream says why.
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/** Text in pieces of any size to whole events. */
export class EventParser {
  #rest = "";
  #data = [];

  /** @param {string} text @returns {string[]} the data of each event that is whole now */
  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return events;
  }
}
