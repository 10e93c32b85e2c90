// Below the answers of a turn: what the batch took together, and on demand what mixing its adapters cost.

import { element } from "./dom.js";
import { N_ROUNDS } from "./measure.js";
import { median } from "./meter.js";

const HOW =
  `Measured from this page on this server with this prompt: the columns as they are, all at once, and as many columns of ` +
  `the base model at once, in turn and ${N_ROUNDS} times each (shown: the median, the least and the most), then each column alone. A ` +
  `batch's speed is counted from the last column's first token to the first column's last, while all of them run.`;

/** The row, or null where there is nothing to say. */
export function costRow(session, turn, index, actions) {
  const { cost } = turn;
  if (!cost || cost.nColumns < 2) return null;
  const columns = session.columns.filter(({ id }) => turn.answers[id]?.status === "done");
  const together = element(
    "p",
    { class: "cost-line" },
    element("b", {}, `${cost.nColumns} columns`),
    ` · ${cost.nTokens} tokens in ${cost.seconds.toFixed(2)} s`,
    cost.shared === null ? "" : ` · ${speed(cost.shared)} tokens a second together`,
  );
  const progress = element("span", { class: "cost-progress", role: "status" });
  const measure = element(
    "button",
    {
      type: "button",
      class: "small",
      disabled: session.isRunning,
      "data-idle": true,
      "data-focus": `measure-${turn.id}`,
      onclick: () => actions.measure(index, columns, (step, n_steps) => byStep(turn, step, n_steps)),
    },
    cost.measured ? "Measure again" : "Measure what mixing costs",
  );
  progress.dataset.progress = turn.id;
  return element(
    "div",
    { class: "cost" },
    together,
    cost.measured && table(cost),
    cost.fault && element("p", { class: "cost-fault" }, cost.fault),
    columns.length > 1 && measure,
    progress,
  );
}

function byStep(turn, step, n_steps) {
  const progress = document.querySelector(`[data-progress="${turn.id}"]`);
  if (progress) progress.textContent = `Measuring, run ${step} of ${n_steps}`;
}

function table({ measured }) {
  const { mixed, plain } = measured;
  const alone = Object.values(measured.alone);
  const inTurn = alone.length / alone.reduce((sum, rate) => sum + 1 / rate, 0); // of equal shares of tokens
  const rows = [
    [`These columns, ${measured.batching === "grouped" ? "adapters in turns" : "mixed in one batch"}`, mixed, ""],
    ["As many columns of the base model", plain, costOf(median(mixed) / median(plain))],
    ["The same columns, one after another", [inTurn], gainOf(median(mixed) / inTurn)],
  ];
  const widest = Math.max(...rows.map(([, rates]) => median(rates)));
  return element(
    "figure",
    { class: "cost-table" },
    element(
      "table",
      {},
      element(
        "thead",
        { class: "visually-hidden" },
        element(
          "tr",
          {},
          ...["Run", "Tokens a second", "From and to", "Bar", "Meaning"].map((words) =>
            element("th", { scope: "col" }, words),
          ),
        ),
      ),
      element("tbody", {}, ...rows.map((row) => tableRow(row, widest))),
    ),
    element(
      "figcaption",
      {},
      element("details", {}, element("summary", {}, `How this is measured (${alone.length} columns)`), HOW),
    ),
  );
}

function tableRow([words, rates, note], widest) {
  const bar = element("div");
  bar.style.setProperty("--share", `${(100 * median(rates)) / widest}%`);
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, words),
    element("td", { class: "number" }, `${speed(median(rates))} tok/s`),
    element(
      "td",
      { class: "spread" },
      rates.length > 1 ? `${speed(Math.min(...rates))} to ${speed(Math.max(...rates))}` : "",
    ),
    element("td", { class: "bar", "aria-hidden": "true" }, element("div", {}, bar)),
    element("td", { class: "note" }, note),
  );
}

function costOf(ratio) {
  const percent = (1 - ratio) * 100;
  return percent < 1 ? "mixing costs nothing measurable" : `mixing costs ${percent.toFixed(0)} %`;
}

function gainOf(ratio) {
  if (ratio < 0.95) return `one batch is slower, ${ratio.toFixed(2)} times as fast`;
  return ratio < 1.05 ? "one batch is as fast" : `one batch is ${ratio.toFixed(1)} times as fast`;
}

/** Tokens a second, as short as it is honest. */
export function speed(rate) {
  return rate < 10 ? rate.toFixed(1) : String(Math.round(rate));
}
