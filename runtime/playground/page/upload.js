// Adapters dropped onto the page, or chosen in a dialog of the browser: sent with progress, then a column of their own.

import { announce, byId, element, iconButton } from "./dom.js";

/** The files of an adapter; everything else in a training folder (checkpoints, logs, tokenizers) stays where it is. */
const ADAPTER_FILES = new Set(["adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"]);
const PICKLES = /\.(bin|pt|pth|pkl|ckpt)$/i;
const MAX_NAME = 100;
const TAKEN = 412; // the status of a name that is taken

/**
 * What was dropped, as adapters to send.
 * @param {{path: string, file: File}[]} found every file, with its path inside what was dropped
 * @returns {{name: string, files: File[]}[]}
 * @throws {Error} with a sentence for the reader
 */
export function adaptersOf(found) {
  const single = found.filter(({ file }) => /\.(gguf|tar)$/i.test(file.name));
  const folders = new Map();
  for (const { path, file } of found) {
    if (!ADAPTER_FILES.has(file.name)) continue;
    const folder = path.split("/").slice(0, -1).join("/");
    folders.set(folder, [...(folders.get(folder) ?? []), file]);
  }
  const whole = [...folders].filter(([, files]) => files.length > 1);
  if (single.length + whole.length === 0) throw new Error(faultOf(found));
  return [
    ...single.map(({ file }) => ({ name: nameOf(file.name), files: [file] })),
    ...whole.map(([folder, files]) => ({ name: nameOf(folder.split("/").at(-1) || "adapter"), files })),
  ];
}

function faultOf(found) {
  const names = found.map(({ file }) => file.name);
  if (names.some((name) => ADAPTER_FILES.has(name)))
    return "A PEFT adapter is two files: adapter_config.json and adapter_model.safetensors. Drop the folder that holds both.";
  if (names.some((name) => PICKLES.test(name)))
    return "Pickled weights are never opened. Save the adapter as safetensors, which PEFT does by itself since 0.7.";
  return "No adapter was found: drop a GGUF file, or a PEFT or MLX folder with adapter_config.json and its safetensors file.";
}

function nameOf(text) {
  return (
    text
      .replace(/\.(gguf|tar)$/i, "")
      .replace(/[^\w.-]+/g, "-")
      .replace(/^[-.]+|[-.]+$/g, "")
      .slice(0, MAX_NAME) || "adapter"
  );
}

/** Every file of a drop, folders walked. The items are read at once: they are void after the event. */
async function filesOf(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const dropped = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = [];
  for (const one of dropped) {
    if (one instanceof File) found.push({ path: one.name, file: one });
    else await walk(one, "", found);
  }
  return found;
}

async function walk(entry, path, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ path: path + entry.name, file });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const children = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a part at a time
    if (children.length === 0) return;
    for (const child of children) await walk(child, `${path}${entry.name}/`, found);
  }
}

/** Takes drops on the whole page and shows how each upload goes. */
export class Uploads {
  /** `onfault(error)` hears of a refused token. */
  constructor(api, session, catalogue, onfault) {
    this.api = api;
    this.session = session;
    this.catalogue = catalogue;
    this.onfault = onfault;
    this.list = byId("uploads");
    const drop = byId("drop");
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragenter", (event) => hasFiles(event) && (drop.hidden = false));
    addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    drop.addEventListener("dragleave", () => (drop.hidden = true));
    addEventListener("drop", async (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      drop.hidden = true;
      this.take(await filesOf(event.dataTransfer));
    });
  }

  /** Let the reader choose a file or, with `asFolder`, a folder. */
  choose(asFolder) {
    const input = element("input", {
      type: "file",
      webkitdirectory: asFolder,
      multiple: !asFolder,
      accept: asFolder ? null : ".gguf,.tar,.json,.safetensors",
    });
    input.addEventListener("change", () =>
      this.take([...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }))),
    );
    input.click();
  }

  /** Send every adapter among these files. */
  take(found) {
    try {
      for (const { name, files } of adaptersOf(found)) this.#send(name, files);
    } catch (error) {
      this.#row("Upload").fail(error.message);
    }
  }

  /** Send one adapter. Where its name is taken, the reader says whether it replaces that one. */
  async #send(name, files, replaces = false) {
    const row = this.#row(name);
    const onprogress = (fraction) => row.progress(fraction);
    try {
      await this.api.upload(name, files, { replaces, onprogress, signal: row.signal });
      await this.catalogue.refresh();
      this.#addColumn(name);
      row.done(`${name} is ready`);
    } catch (error) {
      if (error.status === TAKEN && !replaces) {
        row.ask(`There is an adapter ${name} already.`, {
          "Replace it": () => this.#send(name, files, true),
          [`Add as ${this.#freeName(name)}`]: () => this.#send(this.#freeName(name), files),
        });
        return;
      }
      row.fail(error.message);
      if (error.status === 401) this.onfault(error);
    }
  }

  #freeName(name) {
    const taken = new Set(this.catalogue.adapters.map((adapter) => adapter.name));
    for (let number = 2; ; number += 1) if (!taken.has(`${name}-${number}`)) return `${name}-${number}`;
  }

  /** Show the adapter in a column of its own, once no answer runs any more. */
  #addColumn(name) {
    if (!this.session.isRunning) this.session.addColumn([{ name, scale: 1 }]);
    else this.session.addEventListener("change", () => this.#addColumn(name), { once: true });
  }

  #row(name) {
    const abort = new AbortController();
    const bar = element("progress", { max: 1, value: 0, "aria-label": `Upload of ${name}` });
    const words = element("span", { class: "upload-words" }, `Sending ${name}`);
    const close = iconButton("close", `Cancel the upload of ${name}`, () => {
      abort.abort();
      row.remove();
    });
    const row = element("li", { class: "upload" }, words, bar, close);
    this.list.append(row);
    const end = (text, className) => {
      bar.remove();
      words.textContent = text;
      row.classList.add(className);
      close.title = "Close";
      close.setAttribute("aria-label", "Close");
      announce(text);
    };
    return {
      signal: abort.signal,
      progress: (fraction) => {
        if (fraction < 1) bar.value = fraction;
        else bar.removeAttribute("value"); // all is sent; the server checks and converts it
        words.textContent = fraction < 1 ? `Sending ${name}: ${Math.round(fraction * 100)} %` : `Checking ${name}`;
      },
      done: (text) => {
        end(text, "done");
        setTimeout(() => row.remove(), 6000);
      },
      ask: (text, choices) => {
        end(text, "asks");
        for (const [label, act] of Object.entries(choices)) {
          const answer = () => {
            row.remove();
            act();
          };
          row.append(element("button", { type: "button", class: "small", onclick: answer }, label));
        }
      },
      fail: (text) => end(`${name}: ${text}`, "failed"),
    };
  }
}
