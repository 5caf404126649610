// Namespaces and their tenants: what each holds, how often it is found, and what went.

import { make, Parts, put, say } from "./dom.js";
import { bytes, count, percent } from "./units.js";

const SHOWN_MAX = 64;
const TIERS = ["HBM", "DRAM", "NVME"];

// Without an id a space is what the nodes do not tell apart: a tenant's smaller namespaces, or what was asked for beside.
const key = (space) => space.id || `others ${space.tenant}`;
const held = (space) => Object.values(space.tiers).reduce((sum, tier) => sum + tier.bytes, 0);

export function startSpaces(section, choose) {
  const rows = new Parts(section.querySelector("tbody"), (space) => newRow(space, choose));
  const link = document.querySelector(`nav a[href="#${section.id}"]`);
  const more = section.querySelector(".more");
  const options = new Parts(document.getElementById("namespaces"), () => ({ element: make("option") }));
  return (state) => {
    const spaces = [...state.namespaces].sort((a, b) => a.tenant.localeCompare(b.tenant) || held(b) - held(a));
    const shown = spaces.slice(0, SHOWN_MAX);
    rows.show(shown, key, (part, space) => part.update(space));
    options.show(shown.filter((space) => space.id), key, (part, space) => {
      put(part.element, "value", space.id);
      say(part.element, `${space.tenant} ${space.model}`);
    });
    section.hidden = link.hidden = spaces.length === 0;
    more.hidden = spaces.length <= SHOWN_MAX;
    say(more, `and ${count(spaces.length - SHOWN_MAX)} more`);
  };
}

function newRow(space, choose) {
  const pick = make("button", { type: "button", class: "quiet small", title: space.id }, `${space.id.slice(0, 8)}…`);
  pick.hidden = !space.id;
  pick.addEventListener("click", () => choose(space.id));
  const tenant = make("td", {});
  const model = make("td", {});
  const cells = Array.from({ length: 6 }, () => make("td", { class: "number" }));
  const element = make("tr", { "data-space": key(space) }, tenant, model, make("td", {}, pick), ...cells);
  function update(now) {
    say(tenant, now.tenant);
    say(model, now.id ? now.model || "not opened since the start" : "others");
    put(pick, "aria-label", `Search in ${now.tenant} ${now.model} ${now.id}`);
    const blocks = Object.values(now.tiers).reduce((sum, tier) => sum + tier.blocks, 0);
    const sizes = TIERS.map((tier) => (now.tiers[tier]?.blocks ? bytes(now.tiers[tier].bytes) : "–"));
    const gone = Object.values(now.gone).reduce((sum, number) => sum + number, 0);
    const texts = [now.asked ? percent(now.matched / now.asked) : "–", count(blocks), ...sizes, count(gone)];
    cells.forEach((cell, at) => say(cell, texts[at]));
    put(cells[5], "title", Object.entries(now.gone).map(([reason, number]) => `${reason} ${count(number)}`).join(", "));
  }
  return { element, update };
}
