// The turns of the conversation: each prompt across the board, the columns' answers below it, and what the batch took.

import { isSameBlend, titleOf } from "./blends.js";
import { laneOf } from "./columns.js";
import { costRow, speed } from "./cost.js";
import { byId, copyText, element, icon, iconButton } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

const RENDER_EVERY_MS = 100; // Markdown of a growing answer, ten times a second at most

/** Shows the turns of `session`. `actions`: {edit(index), ask(index, columns), measure(index, columns)}. */
export class Thread {
  #turns = new WeakMap(); // a turn to what is shown of it: {whole, cells by column id, state}
  #due = new Map(); // answers with text that is not shown yet, to their turn and column
  #timer = null;
  #lost = null; // the button that had the focus and is away while its answer runs
  #markdown = new WeakMap(); // an answer to its text and nodes, as last shown

  constructor(session, actions) {
    this.session = session;
    this.actions = actions;
    this.place = byId("turns");
    this.board = byId("board");
    session.addEventListener("change", ({ detail }) => {
      if (["conversation", "columns", "turns", "answers", "running"].includes(detail)) this.render();
    });
    this.render();
  }

  /** A piece of text came: show it with the next batch of pieces. */
  onpiece(turn, column) {
    this.#due.set(turn.answers[column.id], [turn, column]);
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      this.#flush();
    }, RENDER_EVERY_MS);
  }

  /** Show every turn. Those of which nothing has changed stay as they are, so that long conversations stay quick. */
  render() {
    const isAtEnd = this.#isAtEnd();
    const focused = document.activeElement?.dataset?.focus ?? this.#lost;
    const { turns, isRunning } = this.session;
    this.#due.clear();
    byId("welcome").hidden = turns.length > 0;
    const children = turns.map((turn, index) => this.#shown(turn, index));
    children.forEach((child, place) => {
      const before = this.place.children[place] ?? null;
      if (before !== child) this.place.insertBefore(child, before);
    });
    while (this.place.children.length > children.length) this.place.lastElementChild.remove();
    for (const button of this.place.querySelectorAll("[data-idle]")) button.disabled = isRunning;
    if (focused) this.#focus(focused);
    if (isAtEnd) this.#scrollToEnd();
  }

  /** The element of a turn, made again if something of it has changed. */
  #shown(turn, index) {
    const { mode, columns } = this.session.conversation;
    const answers = columns.map(({ id }) => turn.answers[id]);
    const state = JSON.stringify([
      index,
      mode,
      columns,
      turn.cost,
      answers.map((one) => one && [one.status, one.text.length]),
    ]);
    const known = this.#turns.get(turn);
    if (known?.state === state) return known.whole;
    const cells = new Map(columns.map((column, place) => [column.id, this.#cell(turn, index, column, place)]));
    const whole = element(
      "article",
      { class: "turn", "aria-label": `Prompt ${index + 1}` },
      this.#prompt(turn, index),
      ...[...cells.values()].map((cell) => cell.whole),
      costRow(this.session, turn, index, this.actions),
    );
    this.#turns.set(turn, { whole, cells, state });
    return whole;
  }

  /** Give the focus back to the button that had it; while it is away or off, remember which one it was. */
  #focus(name) {
    const button = this.place.querySelector(`[data-focus="${CSS.escape(name)}"]:enabled`);
    this.#lost = button || !this.#isFocusLost() ? null : name;
    if (button && this.#isFocusLost()) button.focus({ preventScroll: true });
  }

  #isFocusLost() {
    return document.activeElement === document.body || document.activeElement === null;
  }

  #flush() {
    const isAtEnd = this.#isAtEnd();
    for (const [answer, [turn, column]] of this.#due) {
      const cell = this.#turns.get(turn)?.cells.get(column.id);
      if (cell) this.#fill(cell, answer);
    }
    this.#due.clear();
    if (isAtEnd) this.#scrollToEnd();
  }

  #prompt(turn, index) {
    const { isRunning, columns, conversation } = this.session;
    return element(
      "div",
      { class: "asked" },
      element("div", { class: conversation.mode === "raw" ? "asked-text raw" : "asked-text" }, turn.prompt),
      element(
        "div",
        { class: "asked-actions" },
        iconButton("edit", "Edit this prompt", () => this.actions.edit(index), {
          disabled: isRunning,
          "data-idle": true,
          "data-focus": `edit-${turn.id}`,
        }),
        iconButton("again", "Ask every column again", () => this.actions.ask(index, columns), {
          disabled: isRunning,
          "data-idle": true,
          "data-focus": `again-${turn.id}`,
        }),
      ),
    );
  }

  #cell(turn, index, column, place) {
    const body = element("div", { class: "answer-text" });
    const foot = element("p", { class: "answer-foot" });
    const fault = element("div", { class: "answer-fault" });
    const tools = element("div", { class: "answer-tools" });
    const title = titleOf(column.members);
    const whole = element(
      "section",
      {
        class: "answer",
        "data-lane": laneOf(this.session.columns, place),
        "data-column": column.id,
        "aria-label": `Answer of ${title}`,
      },
      element("p", { class: "answer-name", "aria-hidden": "true" }, title),
      body,
      fault,
      element("div", { class: "answer-end" }, foot, tools),
    );
    const cell = { whole, body, foot, fault, tools, turn, index, column };
    this.#fill(cell, turn.answers[column.id]);
    return cell;
  }

  #fill(cell, answer) {
    const { whole, body, foot, fault, tools } = cell;
    whole.dataset.status = answer?.status ?? "unasked";
    whole.setAttribute("aria-busy", String(answer?.status === "waiting" || answer?.status === "streaming"));
    body.replaceChildren(...this.#text(answer));
    foot.replaceChildren(...footOf(cell, answer));
    fault.replaceChildren(...this.#fault(cell, answer));
    tools.replaceChildren(...this.#tools(cell, answer));
  }

  #text(answer) {
    if (!answer) return [element("span", { class: "unasked" }, "Not asked yet")];
    if (answer.status === "waiting")
      return [
        element("span", { class: "waiting" }, "waiting", element("span", { class: "dots", "aria-hidden": "true" })),
      ];
    if (answer.status === "done" && answer.text === "")
      return [element("span", { class: "unasked" }, "An empty answer")];
    if (this.session.conversation.mode === "raw") return [element("div", { class: "raw" }, answer.text)];
    return this.#formatted(answer);
  }

  /** The nodes of an answer, made again only where its text has changed. */
  #formatted(answer) {
    const shown = this.#markdown.get(answer);
    if (shown?.text === answer.text) return shown.nodes;
    const nodes = [...renderMarkdown(answer.text).childNodes];
    this.#markdown.set(answer, { text: answer.text, nodes });
    return nodes;
  }

  #fault({ turn, index, column }, answer) {
    if (answer?.status !== "failed") return [];
    const { message, advice } = answer.error;
    const again = element(
      "button",
      {
        type: "button",
        disabled: this.session.isRunning,
        "data-idle": true,
        "data-focus": `ask-${turn.id}-${column.id}`,
        onclick: () => this.actions.ask(index, [column]),
      },
      "Try again",
    );
    return [element("p", {}, element("strong", {}, message), advice && ` ${advice}`), again];
  }

  #tools({ turn, index, column }, answer) {
    const { isRunning } = this.session;
    if (isRunning && (!answer || answer.status === "waiting" || answer.status === "streaming")) return [];
    const title = titleOf(column.members);
    const ask = answer
      ? iconButton("again", `Ask ${title} again`, () => this.actions.ask(index, [column]), {
          disabled: isRunning,
          "data-idle": true,
          "data-focus": `ask-${turn.id}-${column.id}`,
        })
      : element(
          "button",
          {
            type: "button",
            class: "small",
            disabled: isRunning,
            "data-idle": true,
            onclick: () => this.actions.ask(index, [column]),
          },
          icon("send"),
          "Ask this column",
        );
    const copy =
      answer?.text &&
      iconButton("copy", `Copy the answer of ${title}`, ({ currentTarget }) => copyText(answer.text, currentTarget));
    return [copy, ask].filter(Boolean);
  }

  #isAtEnd() {
    return this.board.scrollHeight - this.board.scrollTop - this.board.clientHeight < 48;
  }

  #scrollToEnd() {
    this.board.scrollTop = this.board.scrollHeight;
  }
}

/** The figures below an answer, each with its unit. */
function footOf({ turn, column }, answer) {
  if (!answer || answer.status === "waiting") return [];
  const figures = [];
  if (answer.rate !== null) figures.push(rateFigure(answer.rate));
  if (answer.firstTokenMs !== null)
    figures.push(figure(duration(answer.firstTokenMs), "to first token", reused(answer.usage)));
  if (answer.nTokens) figures.push(figure(String(answer.nTokens), answer.nTokens === 1 ? "token" : "tokens"));
  const alone = turn.cost?.measured?.alone[column.id];
  if (alone) figures.push(figure(speed(alone), "tok/s alone"));
  if (answer.status === "stopped") figures.push(element("span", { class: "ending" }, "stopped"));
  if (answer.reason === "length")
    figures.push(
      element(
        "span",
        { class: "ending", title: "The answer reached the longest length that was asked for" },
        "cut at the limit",
      ),
    );
  if (!isSameBlend(answer.members, column.members))
    figures.push(element("span", { class: "ending" }, `by ${titleOf(answer.members)}`));
  return figures;
}

function rateFigure({ perSecond, isWhole }) {
  const words = isWhole
    ? "Tokens a second over the whole time, reading the prompt included: the answer is too short to time its tokens alone"
    : "Tokens a second, from the first token to the last";
  return figure(`${isWhole ? "≈ " : ""}${speed(perSecond)}`, "tok/s", words);
}

function figure(value, unit, words = null) {
  return element("span", { class: "figure", title: words }, element("b", {}, value), ` ${unit}`);
}

/** How much of the prompt was not read again. */
function reused(usage) {
  const n_cached = usage?.prompt_tokens_details?.cached_tokens;
  return n_cached ? `${n_cached} of ${usage.prompt_tokens} prompt tokens were kept from an earlier request` : null;
}

/** A time as short as it is honest. */
function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}
