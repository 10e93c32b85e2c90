// Light, dark, or as the system has it.

import { announce, byId } from "./dom.js";

const KEY = "gemlane-theme";
const ORDER = ["system", "light", "dark"];
const WORDS = { system: "as the system", light: "light", dark: "dark" };

/** Apply the kept theme, and let the button go through the three. */
export function startTheme() {
  let theme = ORDER.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "system";
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    const words = `Theme: ${WORDS[theme]}`;
    byId("theme-label").textContent = words;
    byId("theme").title = words;
  };
  byId("theme").addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    localStorage.setItem(KEY, theme);
    apply();
    announce(`Theme: ${WORDS[theme]}`);
  });
  apply();
}
