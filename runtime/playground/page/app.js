// The page put together: what each part is given, and what it tells the others.

import { Api } from "./api.js";
import { Archive } from "./archive.js";
import { Catalogue } from "./catalogue.js";
import { CodeDialog } from "./code.js";
import { ColumnHeads } from "./columns.js";
import { Composer } from "./composer.js";
import { announce, byId, element } from "./dom.js";
import { HistoryDialog } from "./history.js";
import { ParameterPanel } from "./panel.js";
import { Runner, endingOf } from "./runner.js";
import { ServerWatch } from "./server.js";
import { openServerDialog } from "./server_dialog.js";
import { Session, newColumn, newConversation } from "./session.js";
import { listenForShortcuts, openHelp } from "./shortcuts.js";
import { startTheme } from "./theme.js";
import { Thread } from "./thread.js";
import { askToken } from "./token.js";
import { Uploads } from "./upload.js";

const LAST_KEY = "gemlane-last";
const N_FIRST_ADAPTERS = 2;
const EXAMPLES = ["What is the capital of France?", "What does the owl do?", "What is the opposite of happy?"];

const api = new Api();
const archive = new Archive();
const catalogue = new Catalogue(api);
const watch = new ServerWatch(api);
const session = new Session(newConversation([newColumn()]));
const runner = new Runner(api, session, {
  onpiece: (turn, column) => thread.onpiece(turn, column),
  onend: (turn, column) => ended(turn, column),
});
const thread = new Thread(session, {
  edit: (index) => composer.edit(index),
  ask: (index, columns) => runner.run(index, columns),
  measure: (index, columns, onstep) => runner.measure(index, columns, watch.health?.adapter_batching, onstep),
});
const heads = new ColumnHeads(session, catalogue);
const composer = new Composer(session, { ask, stop: () => runner.stop() });
const panel = new ParameterPanel(session);
const history = new HistoryDialog(archive, session, (conversation) => session.open(conversation));
const code = new CodeDialog(api, session, () => composer.draft);
const uploads = new Uploads(api, session, catalogue, () => needToken());

/** Ask every column; with an index, instead of the turn there and all after it. */
async function ask(prompt, index) {
  if (index !== null) session.branch(index);
  const place = session.addTurn(prompt);
  announce(session.columns.length === 1 ? "Asking one column" : `Asking ${session.columns.length} columns`);
  await runner.run(place, session.columns);
}

function ended(turn, column) {
  const answer = turn.answers[column.id];
  thread.onpiece(turn, column);
  announce(endingOf(column, answer));
  if (answer.status === "failed") watch.look();
  if (answer.error?.status === 401) needToken();
}

/** Keep the conversation when something of it changed for good; an empty one is not worth a place. */
async function keep() {
  if (session.turns.length === 0 || session.isRunning) return;
  localStorage.setItem(LAST_KEY, session.conversation.id);
  try {
    await archive.put(session.conversation);
  } catch {
    banner("This browser cannot keep the conversation; export it before you close the page.");
  }
}

function banner(words) {
  byId("banner").hidden = words === "";
  byId("banner").textContent = words;
}

let isAsking = false;

/** Ask for a token until one is accepted, or the reader gives up. */
async function needToken() {
  if (isAsking) return;
  isAsking = true;
  const refused = "The server does not accept this token. Enter another.";
  let words = api.token ? refused : "This server wants a token.";
  while (await askToken(api, words)) {
    await watch.look();
    if (watch.state !== "locked") break;
    words = refused;
  }
  isAsking = false;
  if (watch.state === "locked") banner("This server wants a token: open the server's state above and enter one.");
}

async function meetServer() {
  banner(watch.trouble);
  if (watch.state === "locked") await needToken();
  if (watch.state !== "ok") return;
  const wasKnown = catalogue.isKnown;
  try {
    await catalogue.refresh();
  } catch (error) {
    banner(error.message);
    return;
  }
  if (!wasKnown) await firstColumns();
}

/** The conversation of the last visit, or the base model beside the first adapters. */
async function firstColumns() {
  const last = await archive.get(localStorage.getItem(LAST_KEY) ?? "").catch(() => undefined);
  if (last) session.open(last);
  else if (session.turns.length === 0) {
    const first = catalogue.adapters.filter(({ isUsable }) => isUsable).slice(0, N_FIRST_ADAPTERS);
    session.open(newConversation([newColumn(), ...first.map(({ name }) => newColumn([{ name, scale: 1 }]))]));
  }
}

function renew() {
  if (session.isRunning) return;
  session.renew();
  localStorage.removeItem(LAST_KEY);
  composer.focus();
}

function openServer() {
  openServerDialog(watch, catalogue, {
    chooseFile: () => uploads.choose(false),
    chooseFolder: () => uploads.choose(true),
    enterToken: () => needToken(),
  });
}

startTheme();
byId("examples").append(
  ...EXAMPLES.map((words) =>
    element("li", {}, element("button", { type: "button", onclick: () => ask(words, null) }, words)),
  ),
);
byId("open-new").addEventListener("click", renew);
byId("status").addEventListener("click", openServer);
session.addEventListener("change", keep);
watch.addEventListener("change", meetServer);
const shortcuts = [
  { key: "/", words: "Write a prompt", act: () => composer.focus() },
  { key: "c", words: "Add a column", act: () => heads.add() },
  { key: "n", words: "New conversation", act: renew },
  { key: "h", words: "History", act: () => history.open() },
  { key: "p", words: "Parameters", act: () => panel.toggle() },
  { key: "s", words: "Code", act: () => code.open() },
  { key: "?", words: "This list", act: () => openHelp(shortcuts) },
];
listenForShortcuts(shortcuts, () => session.isRunning && runner.stop());
setInterval(
  () =>
    watch.state === "ok" &&
    document.visibilityState === "visible" &&
    !session.isRunning &&
    catalogue.refresh().catch(() => {}),
  10_000,
);
watch.look();
