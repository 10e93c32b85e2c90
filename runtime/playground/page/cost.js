// Below the answers of a turn: what the batch took together, and on demand what mixing its adapters cost.

import { element } from "./dom.js";
import { N_ROUNDS } from "./measure.js";

const HOW =
  `Measured from this page on this server with this prompt: the columns as they are in one batch, and as many columns of ` +
  `the base model in one batch, in turn and ${N_ROUNDS} times each (the medians are shown), then each column alone. A ` +
  `batch's speed is counted from the last column's first token to the first column's last, while all of them run.`;

/** The row, or null where there is nothing to say. */
export function costRow(session, turn, index, actions) {
  const { cost } = turn;
  if (!cost || cost.nColumns < 2) return null;
  const columns = session.columns.filter(({ id }) => turn.answers[id]?.status === "done");
  const together = element(
    "p",
    { class: "cost-line" },
    element("b", {}, `${cost.nColumns} columns`), ` · ${cost.nTokens} tokens in ${cost.seconds.toFixed(2)} s`,
    cost.shared === null ? "" : ` · ${round(cost.shared)} tokens a second together`,
  );
  const progress = element("span", { class: "cost-progress", role: "status" });
  const measure = element(
    "button",
    {
      type: "button", class: "small", disabled: session.isRunning || columns.length < 2, "data-focus": `measure-${turn.id}`,
      onclick: () => actions.measure(index, columns, (step, n_steps) => byStep(turn, step, n_steps)),
    },
    cost.measured ? "Measure again" : "Measure what mixing costs",
  );
  progress.dataset.progress = turn.id;
  return element("div", { class: "cost" }, together, cost.measured && table(cost, columns), cost.fault && element("p", { class: "cost-fault" }, cost.fault), measure, progress);
}

function byStep(turn, step, n_steps) {
  const progress = document.querySelector(`[data-progress="${turn.id}"]`);
  if (progress) progress.textContent = `Measuring, run ${step} of ${n_steps}`;
}

function table({ measured }, columns) {
  const { mixed, plain } = measured;
  const alone = Object.values(measured.alone);
  const inTurn = alone.length / alone.reduce((sum, rate) => sum + 1 / rate, 0);
  const rows = [
    ["These columns, mixed in one batch", mixed, ""],
    ["As many columns of the base model", plain, share(1 - mixed / plain)],
    ["The same columns, one after another", inTurn, `one batch is ${(mixed / inTurn).toFixed(1)} times as fast`],
  ];
  const widest = Math.max(mixed, plain, inTurn);
  return element(
    "figure",
    { class: "cost-table" },
    element(
      "table",
      {},
      element("thead", { class: "visually-hidden" }, element("tr", {}, ...["Run", "Tokens a second", "", "Meaning"].map((words) => element("th", { scope: "col" }, words)))),
      element("tbody", {}, ...rows.map(([words, rate, note]) =>
        element("tr", {},
          element("th", { scope: "row" }, words),
          element("td", { class: "number" }, `${round(rate)} tok/s`),
          element("td", { class: "bar", "aria-hidden": "true" }, element("meter", { min: 0, max: widest, value: rate })),
          element("td", { class: "note" }, note)))),
    ),
    element("figcaption", {}, element("details", {}, element("summary", {}, `How this is measured (${columns.length} columns)`), HOW)),
  );
}

function share(cost) {
  if (cost < 0.005) return "mixing cost nothing that can be measured";
  return `mixing costs ${(cost * 100).toFixed(cost < 0.1 ? 1 : 0)} % of it`;
}

function round(rate) {
  return rate < 10 ? rate.toFixed(1) : String(Math.round(rate));
}
