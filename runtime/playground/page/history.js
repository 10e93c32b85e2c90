// The dialog of kept conversations: open, remove, export, import.

import { exportOf, importOf } from "./archive.js";
import { titleOf } from "./blends.js";
import { announce, byId, element, iconButton, openDialog } from "./dom.js";

/** `onopen(conversation)` shows one. */
export class HistoryDialog {
  constructor(archive, session, onopen) {
    this.archive = archive;
    this.session = session;
    this.onopen = onopen;
    this.dialog = byId("history");
    byId("open-history").addEventListener("click", () => this.open());
  }

  async open() {
    let kept;
    try {
      kept = await this.archive.all();
    } catch {
      openDialog(
        this.dialog,
        "History",
        element(
          "div",
          { class: "dialog-body" },
          element("p", {}, "This browser keeps no history here; a private window, perhaps."),
        ),
      );
      return;
    }
    const list = element("ul", { class: "kept" }, ...kept.map((one) => this.#row(one)));
    const empty =
      kept.length === 0 &&
      element("p", { class: "hint" }, "Nothing yet. Conversations stay in this browser, on this machine.");
    const status = element("p", { class: "hint", role: "status" });
    const file = element("input", {
      type: "file",
      accept: "application/json,.json",
      class: "visually-hidden",
      id: "import-file",
      tabindex: -1,
      "aria-hidden": "true",
    });
    file.addEventListener("change", () => this.#import(file.files[0], status));
    openDialog(
      this.dialog,
      "History",
      element("div", { class: "dialog-body" }, empty, list, status, file),
      element(
        "div",
        { class: "dialog-actions" },
        element("button", { type: "button", id: "import", onclick: () => file.click() }, "Import JSON"),
        element(
          "button",
          {
            type: "button",
            id: "export-all",
            disabled: kept.length === 0,
            onclick: () => save(kept, "gemlane-conversations.json"),
          },
          "Export all",
        ),
      ),
    );
  }

  #row(conversation) {
    const title = conversation.title || "Untitled";
    const isOpen = conversation.id === this.session.conversation.id;
    const about = `${new Date(conversation.updatedAt).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })} · ${conversation.columns.map(({ members }) => titleOf(members)).join(", ")}`;
    const open = element(
      "button",
      {
        type: "button",
        class: "kept-open",
        "aria-current": isOpen ? "true" : null,
        disabled: this.session.isRunning,
        onclick: () => {
          this.dialog.close();
          this.onopen(conversation);
        },
      },
      element("span", { class: "kept-title" }, title),
      element("span", { class: "kept-about" }, about),
    );
    return element(
      "li",
      {},
      open,
      element(
        "button",
        {
          type: "button",
          class: "small",
          "aria-label": `Export ${title}`,
          onclick: () => save([conversation], "gemlane-conversation.json"),
        },
        "Export",
      ),
      iconButton("close", `Remove ${title}`, () => this.#remove(conversation), {
        disabled: isOpen && this.session.isRunning,
      }),
    );
  }

  async #remove(conversation) {
    await this.archive.remove(conversation.id);
    if (conversation.id === this.session.conversation.id) this.session.renew();
    announce("Removed");
    await this.open();
  }

  async #import(file, status) {
    if (!file) return;
    try {
      const conversations = await importOf(file);
      for (const conversation of conversations) await this.archive.put(conversation);
      await this.open();
      announce(`Imported ${conversations.length} ${conversations.length === 1 ? "conversation" : "conversations"}`);
    } catch (error) {
      status.textContent = error.message;
      status.classList.add("fault");
    }
  }
}

function save(conversations, name) {
  const link = element("a", {
    href: URL.createObjectURL(new Blob([exportOf(conversations)], { type: "application/json" })),
    download: name,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
