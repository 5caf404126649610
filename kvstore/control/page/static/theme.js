// Light or dark: as the system has it, until the reader chooses; then as he chose, on his next visit too.

import { put, say } from "./dom.js";

const KEY = "kvstore-theme";
const ORDER = ["system", "light", "dark"];
const SIGNS = { system: "◐", light: "○", dark: "●" };

export function startTheme(button) {
  let chosen = ORDER.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "system";

  function show() {
    put(document.documentElement, "data-theme", chosen === "system" ? null : chosen);
    say(button, `${SIGNS[chosen]} ${chosen}`);
    put(button, "aria-label", `Theme: ${chosen}. Change it`);
  }

  button.addEventListener("click", () => {
    chosen = ORDER[(ORDER.indexOf(chosen) + 1) % ORDER.length];
    localStorage.setItem(KEY, chosen);
    show();
  });
  show();
}
