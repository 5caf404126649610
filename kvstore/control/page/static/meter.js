// A bar of how much is used of how much there is.

import { make, put } from "./dom.js";

export function newMeter(label) {
  const fill = make("i");
  const under = make("i", { class: "under" });
  const meter = make("div", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 },
    under, fill);
  return {
    meter,
    show(part, text, taken = 0) {
      const shown = Math.min(100, Math.max(0, 100 * part));
      fill.style.width = `${shown.toFixed(1)}%`;
      under.style.width = `${Math.min(100, 100 * taken).toFixed(1)}%`;
      put(meter, "aria-valuenow", Math.round(shown));
      put(meter, "aria-valuetext", text);
    },
  };
}
