// Small charts over time. The pointer or the arrow keys choose a moment, and the legend says its figures.

import { draw, make, put, say } from "./dom.js";
import { clock, percent, perSecond, rate } from "./units.js";

const HEIGHT = 132;
const LEFT = 64, RIGHT = 8, TOP = 8, BOTTOM = 20;
const GAP_MS = 8000;

const perS = (of) => (point) => (of(point) * 1000) / Math.max(1, point.span_ms);
const among = (table, names) => names.map(([name, label, tint]) => ({ label, tint, of: perS((point) => point[table][name]) }));

export const CHARTS = [
  {
    title: "Hit ratio", show: percent, most: () => 1, none: "No match yet",
    series: [{ label: "blocks found of those asked for", tint: "hit", of: (point) => (point.asked ? point.matched / point.asked : null) }],
  },
  {
    title: "TTFT share of loads", show: percent, most: () => 1, none: "No load has ended yet",
    series: [{ label: "time to the first bytes, of the whole load’s", tint: "hit", of: (point) => (point.took_ms ? point.first_ms / point.took_ms : null) }],
  },
  {
    title: "Loaded, by route", show: rate, stacked: true, none: "Nothing was loaded yet",
    series: among("bytes", [["local", "local", "local"], ["peer", "peer", "peer"], ["direct", "direct, own SNIC", "direct"],
      ["relay", "relay, a helper’s SNIC", "relay"]]),
  },
  {
    title: "Blocks stored", show: perSecond, none: "None was stored yet",
    series: among("kept", [["stored", "stored", "stored"], ["spilled", "spilled to NVMe", "spilled"], ["copied", "copied to other nodes", "copied"]]),
  },
  {
    title: "Blocks gone", show: perSecond, stacked: true, none: "None went",
    series: among("gone", [["evicted", "evicted", "evicted"], ["expired", "expired", "expired"], ["corrupt", "corrupt", "corrupt"],
      ["device_lost", "device lost", "device"], ["purged", "purged", "purged"], ["shed", "shed copies", "shed"]]),
  },
  {
    title: "Errors", show: perSecond, stacked: true, none: "None",
    series: among("faults", [["corrupt", "corrupt", "corrupt"], ["device", "device", "device"], ["push", "push failed", "push"],
      ["lease", "lease or pin ended", "lease"], ["refused", "put refused", "refused"]]),
  },
];

export class Chart {
  constructor(spec) {
    this.spec = spec;
    this.points = [];
    this.at = null; // the moment that the reader has chosen
    this.svg = draw("svg", { height: HEIGHT, tabindex: 0, role: "img" });
    this.when = make("span", { class: "when" });
    this.entries = spec.series.map(({ label, tint }) => {
      const value = make("output");
      return { element: make("li", { "data-tint": tint }, make("span", {}, label), value), value };
    });
    this.empty = make("p", { class: "empty" }, spec.none);
    this.element = make("figure", { class: "plot" },
      make("figcaption", {}, make("h3", {}, spec.title), this.when),
      make("div", { class: "canvas" }, this.svg, this.empty),
      make("ul", { class: "legend values" }, ...this.entries.map((entry) => entry.element)));
    this.svg.addEventListener("pointermove", (event) => this.choose(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.choose(null));
    this.svg.addEventListener("blur", () => this.choose(null));
    this.svg.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.render()).observe(this.element);
  }

  show(points, fromMs, toMs) {
    Object.assign(this, { points, fromMs, toMs });
    this.render();
  }

  choose(x) {
    if (x === null || !this.points.length) this.at = null;
    else {
      const ms = this.fromMs + ((x - LEFT) / Math.max(1, this.width - LEFT - RIGHT)) * (this.toMs - this.fromMs);
      this.at = this.points.reduce((best, point) => (Math.abs(point.at_ms - ms) < Math.abs(best.at_ms - ms) ? point : best)).at_ms;
    }
    this.render();
  }

  step(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") this.choose(null);
    if (by === undefined || !this.points.length) return;
    event.preventDefault();
    const last = this.points.length - 1;
    const now = this.at === null ? last : this.points.findIndex((point) => point.at_ms === this.at);
    this.at = this.points[Math.min(last, Math.max(0, now + by))].at_ms;
    this.render();
  }

  x(ms) {
    return LEFT + ((ms - this.fromMs) / (this.toMs - this.fromMs)) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    return TOP + (1 - value / this.most) * (HEIGHT - TOP - BOTTOM);
  }

  render() {
    if (this.fromMs === undefined) return;
    const { spec, points } = this;
    this.width = Math.max(200, this.svg.parentElement.clientWidth);
    const rows = points.map((point) => stack(spec.series.map(({ of }) => of(point)), spec.stacked));
    const highest = Math.max(0, ...rows.flat().map((part) => part?.[1] ?? 0));
    this.most = spec.most?.() ?? nice(highest);
    put(this.svg, "viewBox", `0 0 ${this.width} ${HEIGHT}`);
    put(this.svg, "width", this.width);
    this.empty.hidden = spec.most ? rows.some(([part]) => part) : highest > 0;
    const marks = spec.series.map(({ tint }, at) => this.area(tint, rows.map((row) => row[at]), spec.stacked));
    this.svg.replaceChildren(...this.grid(), ...marks.flat(), ...this.cursor());
    this.tell(points.find((point) => point.at_ms === this.at) ?? points.at(-1));
  }

  // A line, over a filled area where series are stacked; broken where nothing is known.
  area(tint, parts, filled) {
    const runs = [];
    parts.forEach((part, at) => {
      const point = this.points[at];
      if (!part) return;
      const apart = at === 0 || !parts[at - 1] || point.at_ms - this.points[at - 1].at_ms > GAP_MS;
      if (apart) runs.push([]);
      runs.at(-1).push([this.x(point.at_ms).toFixed(1), this.y(part[0]).toFixed(1), this.y(part[1]).toFixed(1), part[1] > part[0]]);
    });
    return runs.flatMap((run) => {
      const top = run.map(([x, , y]) => `${x},${y}`).join("L");
      const bottom = run.map(([x, y]) => `${x},${y}`).reverse().join("L");
      if (filled) return run.some(([, , , some]) => some) ? [draw("path", { class: "area", "data-tint": tint, d: `M${top}L${bottom}Z` })] : [];
      if (run.length === 1) return [draw("circle", { class: "dot", "data-tint": tint, cx: run[0][0], cy: run[0][2], r: 2 })];
      return [draw("path", { class: "line", "data-tint": tint, d: `M${top}` })];
    });
  }

  grid() {
    const lines = [0, 0.5, 1].flatMap((part) => {
      const y = Math.round(this.y(part * this.most)) + 0.5;
      return [
        draw("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }),
        draw("text", { class: "tick", x: LEFT - 6, y: y + 3, "text-anchor": "end" }, this.spec.show(part * this.most)),
      ];
    });
    const minutes = (this.toMs - this.fromMs) / 60_000;
    const times = [0, 0.5, 1].map((part) => draw("text", {
      class: "tick", x: this.x(this.fromMs + part * (this.toMs - this.fromMs)), y: HEIGHT - 5,
      "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle",
    }, part === 1 ? "now" : `−${minutes * (1 - part)} min`));
    return [...lines, ...times];
  }

  cursor() {
    if (this.at === null) return [];
    const x = this.x(this.at);
    return [draw("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM })];
  }

  tell(point) {
    say(this.when, point && this.at !== null ? clock(point.at_ms) : "now");
    const said = this.spec.series.map(({ of, label }, at) => {
      const value = point ? of(point) : null;
      say(this.entries[at].value, value === null ? "–" : this.spec.show(value));
      return `${label} ${value === null ? "unknown" : this.spec.show(value)}`;
    });
    put(this.svg, "aria-label", `${this.spec.title}, ${point ? clock(point.at_ms) : "no data"}: ${said.join(", ")}. Arrow keys choose a moment.`);
  }
}

function stack(values, stacked) {
  let below = 0;
  return values.map((value) => {
    if (value === null) return null;
    const part = stacked ? [below, below + value] : [0, value];
    below = part[1];
    return part;
  });
}

function nice(value) {
  if (value <= 0) return 1;
  const step = 10 ** Math.floor(Math.log10(value));
  return step * [1, 2, 4, 5, 10].find((factor) => factor * step >= value * 0.999);
}

export function startCharts(plots, spans) {
  const charts = CHARTS.map((spec) => new Chart(spec));
  plots.append(...charts.map((chart) => chart.element));
  let shown = null;

  function show(state, history) {
    shown = [state, history];
    const spanMs = 60_000 * Number(spans.querySelector("input:checked").value);
    const points = history.since(state.at_ms - spanMs);
    for (const chart of charts) chart.show(points, state.at_ms - spanMs, state.at_ms);
  }
  spans.addEventListener("change", () => shown && show(...shown));
  return show;
}
