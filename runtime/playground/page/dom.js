// Small helpers for building the page. Text always becomes text nodes: nothing here parses HTML.

/**
 * An element. Attributes whose names begin with "on" are listeners; false, null and undefined are left out.
 * @param {string} tag
 * @param {Object<string, *>} attributes
 * @param {...(Node|string|null|false)} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== false));
  return made;
}

/** An icon of icons.svg; it is decoration, so its button needs words of its own. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `/playground/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon and says `words` to screen readers and in its tooltip. */
export function iconButton(name, words, onclick, attributes = {}) {
  return element(
    "button",
    { type: "button", class: "icon", title: words, "aria-label": words, onclick, ...attributes },
    icon(name),
  );
}

/** The element with this id, which index.html holds. */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`index.html has no #${id}`);
  return found;
}

/** Say a sentence to screen readers. Equal sentences in a row are said again. */
export function announce(sentence) {
  const live = byId("live");
  live.textContent = live.textContent === sentence ? `${sentence}\u00a0` : sentence;
}

/** Fill a dialog with a title, a close button and content, and open it. */
export function openDialog(dialog, title, ...content) {
  const close = iconButton("close", "Close", () => dialog.close());
  const heading = element("h2", { id: `${dialog.id}-title` }, title);
  dialog.replaceChildren(element("div", { class: "dialog-head" }, heading, close), ...content);
  if (!dialog.open) dialog.showModal();
}

/** Copy text, and say so on the button for a moment. */
export async function copyText(text, button) {
  const before = button.title || button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied");
    button.classList.add("done");
    button.title = "Copied";
  } catch {
    announce("The browser did not allow copying");
    button.title = "The browser did not allow copying";
  }
  setTimeout(() => {
    button.classList.remove("done");
    button.title = before;
  }, 1500);
}
