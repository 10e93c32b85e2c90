// The dialog with what the server says of itself.

import { byId, element, openDialog } from "./dom.js";

/** `actions`: {chooseFile, chooseFolder, enterToken}. */
export function openServerDialog(watch, catalogue, { chooseFile, chooseFolder, enterToken }) {
  const facts = watch.state === "ok" ? factsOf(watch.health) : [["State", watch.trouble || watch.summary]];
  const refused = catalogue.adapters.filter(({ isUsable }) => !isUsable);
  openDialog(
    byId("server"),
    "Server",
    element(
      "div",
      { class: "dialog-body" },
      element(
        "dl",
        { class: "facts" },
        ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
      ),
      refused.length > 0 && element("h3", {}, "Adapters that cannot be used"),
      refused.length > 0 &&
        element(
          "ul",
          { class: "refused" },
          ...refused.map(({ name, reason }) => element("li", {}, element("b", {}, name), ` ${reason}`)),
        ),
    ),
    element(
      "div",
      { class: "dialog-actions" },
      button("Token", enterToken),
      button("Upload an adapter file", chooseFile),
      button("Upload a folder", chooseFolder),
    ),
  );
}

/** A button that makes way for what it opens. */
function button(words, act) {
  const onclick = () => {
    byId("server").close();
    act();
  };
  return element("button", { type: "button", onclick }, words);
}

function factsOf(health) {
  const { model, engine, adapters, requests } = health;
  const memory = [
    ["the model", model.size_bytes],
    ["key-value cache", model.cache_bytes],
    ["adapter lanes", model.lanes_bytes],
  ].filter(([, n_bytes]) => n_bytes);
  return [
    ["Model", `${model.name}, ${count(model.n_params)} parameters`],
    ["Runs on", model.device],
    ["Memory", memory.map(([name, n_bytes]) => `${name} ${size(n_bytes)}`).join(", ")],
    ["Context", `${model.n_ctx} tokens a request`],
    ["At once", `${model.n_parallel} answers; more wait their turn`],
    ["Adapters", `${adapters.length}, ${health.adapter_batching}: ${health.adapter_batching_reason}`],
    ["Running now", String(requests.in_flight)],
    ...(engine?.reason ? [["Engine", engine.reason]] : []),
    ...(engine?.n_deaths ? [["Crashes", `${engine.n_deaths}; the engine was started again each time`]] : []),
    ...(model.warnings ?? []).map((warning) => ["Warning", warning]),
  ];
}

function count(number) {
  return number < 1e9
    ? `${(number / 1e6).toFixed(number < 1e8 ? 1 : 0)} million`
    : `${(number / 1e9).toFixed(1)} billion`;
}

function size(n_bytes) {
  return n_bytes < 1e9 ? `${(n_bytes / 1e6).toFixed(n_bytes < 1e7 ? 1 : 0)} MB` : `${(n_bytes / 1e9).toFixed(2)} GB`;
}
