// Loads: those under way with each of their paths as it fills, then those that ended lately.

import { make, Parts, put, say } from "./dom.js";
import { bytes, count, percent, plural, rate, seconds, TIER_NAMES } from "./units.js";

const RUNNING_MAX = 24;
const ENDED_MAX = 12;
const ROUTES = {
  local: () => "local, this host’s memory",
  peer: (path, reader) => `${path.node} → ${reader}`,
  direct: (path, reader) => `${path.node} → ${reader}’s SNIC`,
  relay: (path, reader) => `${path.node}’s SNIC → ${reader}’s CNIC`,
};

const keyOf = (load) => `${load.node} ${load.number}`;
const pathKey = (path) => `${path.route} ${path.node} ${path.tier}`;

// Bytes per second of every path, from one state to the next.
export class PathRates {
  constructor() {
    this.before = new Map();
    this.atMs = 0;
  }

  take(state) {
    const now = new Map();
    const spanS = Math.max(0.001, (state.at_ms - this.atMs) / 1000);
    for (const load of state.loads) {
      for (const path of load.paths) {
        const key = `${keyOf(load)} ${pathKey(path)}`;
        now.set(key, path.bytes);
        const known = this.before.get(key);
        path.bytes_per_s = load.ended || known === undefined ? 0 : Math.max(0, path.bytes - known) / spanS;
      }
      load.bytes_per_s = load.paths.reduce((sum, path) => sum + path.bytes_per_s, 0);
    }
    this.before = now;
    this.atMs = state.at_ms;
  }
}

export function startLoads(section) {
  const list = section.querySelector(".running");
  const table = section.querySelector("tbody");
  const running = new Parts(list, newLoad);
  const ended = new Parts(table, newRow);
  const empty = section.querySelector(".empty");
  const more = section.querySelector(".more");
  const past = section.querySelector(".past");

  return (state) => {
    const under = state.loads.filter((load) => !load.ended).sort((a, b) => b.age_ms - a.age_ms);
    const over = state.loads.filter((load) => load.ended).sort((a, b) => a.age_ms - a.took_ms - (b.age_ms - b.took_ms));
    running.show(under.slice(0, RUNNING_MAX), keyOf, (part, load) => part.update(load));
    ended.show(over.slice(0, ENDED_MAX), keyOf, (part, load) => part.update(load));
    empty.hidden = under.length > 0;
    say(empty, over.length ? "None under way" : "Nothing was loaded yet");
    more.hidden = under.length <= RUNNING_MAX;
    say(more, `and ${count(under.length - RUNNING_MAX)} more`);
    past.hidden = over.length === 0;
  };
}

function newBar() {
  const parts = [];
  const element = make("div", { class: "meter parts", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 });
  return {
    element,
    show(paths, total, label) {
      const sums = {};
      for (const path of paths) sums[path.route] = (sums[path.route] ?? 0) + path.bytes;
      const routes = Object.keys(ROUTES).filter((route) => sums[route]);
      while (parts.length < routes.length) parts.push(element.appendChild(make("i")));
      parts.forEach((part, at) => {
        put(part, "data-tint", routes[at]);
        part.style.width = routes[at] ? `${((100 * sums[routes[at]]) / Math.max(1, total)).toFixed(2)}%` : 0;
      });
      const all = paths.reduce((sum, path) => sum + path.bytes, 0);
      put(element, "aria-valuenow", Math.round((100 * all) / Math.max(1, total)));
      put(element, "aria-label", label);
    },
  };
}

function newLoad(load) {
  const title = make("h3", {}, `Load ${load.number} on ${load.node}`);
  const of = make("span", { class: "of" });
  const figure = make("span", { class: "figure" });
  const bar = newBar();
  const paths = make("ul", { class: "paths" });
  const parts = new Parts(paths, newPath);
  const element = make("li", { class: "load", "data-load": keyOf(load) }, make("header", {}, title, of, figure), bar.element, paths);
  function update(now) {
    say(of, [now.tenant !== "default" && now.tenant, plural(now.blocks, "block")].filter(Boolean).join(", "));
    say(figure, `${bytes(now.arrived_bytes)} of ${bytes(now.bytes)} · ${rate(now.bytes_per_s)} · ${seconds(now.age_ms)}`);
    bar.show(now.paths, now.bytes, `Load ${now.number} on ${now.node}`);
    parts.show(now.paths, pathKey, (part, path) => part.update(path, now));
  }
  return { element, update };
}

function newPath(path) {
  const where = make("span", { class: "where" });
  const fill = make("i");
  const track = make("div", { class: "meter track", "data-tint": path.route }, fill);
  const figure = make("span", { class: "figure" });
  const name = make("span", { class: "route", "data-tint": path.route }, path.route);
  const element = make("li", { "data-route": path.route }, name, where, track, figure);
  function update(now, load) {
    say(where, `${ROUTES[now.route]?.(now, load.node) ?? now.node}${now.route === "relay" ? "" : `, ${TIER_NAMES[now.tier]}`}`);
    fill.style.width = `${((100 * now.bytes) / Math.max(1, load.bytes)).toFixed(2)}%`;
    put(track, "data-moving", now.bytes_per_s > 0);
    say(figure, `${bytes(now.bytes)} · ${percent(now.bytes / Math.max(1, load.bytes))} · ${rate(now.bytes_per_s)}`);
  }
  return { element, update };
}

function newRow(load) {
  const bar = newBar();
  const cells = Array.from({ length: 5 }, () => make("td", { class: "number" }));
  const element = make("tr", {}, make("th", { scope: "row" }, `${load.node} ${load.number}`), ...cells, make("td", { class: "wide" }, bar.element));
  function update(now) {
    const texts = [
      now.blocks < now.asked ? `${count(now.blocks)} of ${count(now.asked)}` : count(now.blocks), bytes(now.arrived_bytes),
      seconds(now.took_ms), now.first_ms ? seconds(now.first_ms) : "–", now.took_ms ? rate((now.arrived_bytes * 1000) / now.took_ms) : "–",
    ];
    cells.forEach((cell, at) => say(cell, texts[at]));
    const shares = now.paths.map((path) => `${path.route} ${path.node} ${percent(path.bytes / Math.max(1, now.arrived_bytes))}`).join(", ");
    bar.show(now.paths, now.arrived_bytes, `${now.node} ${now.number}: ${shares}`);
    put(bar.element, "title", shares);
  }
  return { element, update };
}
