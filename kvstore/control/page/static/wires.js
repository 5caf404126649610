// The two networks between the nodes' cards, and on them the paths of loads that are under way.
//
//     storage nodes   ──┬──            each path is drawn in the direction in which its bytes go, as wide as it is fast:
//     storage network ━━┿━━━━┯━━━      direct: down to the storage network, and into the reader's storage NIC
//     engine nodes     reader helper   relay: into the helper's storage NIC, out of its compute NIC, and into the
//     compute network ━━┷━━━━┷━━━             reader's compute NIC

import { draw, put } from "./dom.js";
import { rate } from "./units.js";

const RADIUS = 8;
const STEP = 6;

export function startWires(map) {
  const svg = draw("svg", { class: "wires", role: "img" });
  map.append(svg);
  let shown = null;
  const again = () => shown && render(svg, map, shown);
  new ResizeObserver(again).observe(map);
  return (state) => {
    shown = state;
    again();
  };
}

function render(svg, map, state) {
  const area = map.getBoundingClientRect();
  const cards = new Map();
  for (const card of map.querySelectorAll(".node")) {
    const box = card.getBoundingClientRect();
    cards.set(card.dataset.node, {
      left: box.left - area.left, width: box.width, top: box.top - area.top, bottom: box.bottom - area.top,
    });
  }
  const known = state.nodes.filter((node) => cards.has(node.id));
  const stores = known.filter((node) => node.storage).map((node) => cards.get(node.id));
  const engines = known.filter((node) => !node.storage);
  const boxes = engines.map((node) => cards.get(node.id));
  put(svg, "viewBox", `0 0 ${area.width} ${area.height}`);
  put(svg, "width", area.width);
  put(svg, "height", area.height);
  if (!boxes.length) return void svg.replaceChildren();

  const above = Math.min(...boxes.map((box) => box.top)) - 26;
  const below = Math.max(...boxes.map((box) => box.bottom)) + 22;
  const fed = engines.filter((node) => node.lanes.some((lane) => lane.lane === "storage-in" || lane.lane === "shared")).map((node) => cards.get(node.id));
  const marks = [];
  if (fed.length && (stores.length || state.nodes.some((node) => node.lanes.some((lane) => lane.lane === "shared")))) {
    const stubs = [...stores.map((box) => [middle(box), box.bottom]), ...fed.map((box) => [port(box, "snic"), box.top])];
    marks.push(...network(stubs, above));
  }
  if (boxes.length > 1) marks.push(...network(boxes.map((box) => [port(box, "cnic"), box.bottom]), below));
  const flows = moving(state);
  const places = { cards, above, below, stores };
  flows.forEach((flow, at) => marks.push(...flowing(flow, lineOf(flow, places, (at - (flows.length - 1) / 2) * STEP))));
  svg.replaceChildren(...marks);
  put(svg, "aria-label", flows.length
    ? flows.map((flow) => `${flow.route} from ${flow.node} to ${flow.reader}, ${rate(flow.bytes_per_s)}`).join("; ")
    : "The nodes’ networks; no load is under way");
}

const middle = (box) => box.left + box.width / 2;
const port = (box, nic) => box.left + box.width * (nic === "snic" ? 0.3 : 0.7);

function network(stubs, y) {
  const xs = stubs.map(([x]) => x);
  return [
    draw("path", { class: "wire", d: `M${Math.min(...xs)},${y}H${Math.max(...xs)}` }),
    ...stubs.map(([x, edge]) => draw("path", { class: "wire", d: `M${x},${edge}V${y}` })),
  ];
}

// The paths that are under way, those of all loads between the same two nodes as one.
function moving(state) {
  const flows = new Map();
  for (const load of state.loads) {
    for (const path of load.ended ? [] : load.paths) {
      if (path.route === "local" || path.node === load.node || !path.bytes_per_s) continue;
      const key = `${path.route} ${path.node} ${load.node}`;
      const flow = flows.get(key) ?? { route: path.route, node: path.node, reader: load.node, bytes_per_s: 0 };
      flow.bytes_per_s += path.bytes_per_s;
      flows.set(key, flow);
    }
  }
  return [...flows.values()];
}

function lineOf({ route, node, reader }, { cards, above, below, stores }, aside) {
  const to = cards.get(reader);
  const by = cards.get(node);
  if (!to || !by) return [];
  const snic = (box) => port(box, "snic") + aside;
  const cnic = (box) => port(box, "cnic") + aside;
  if (route === "direct") return [[middle(by) + aside, by.bottom], [middle(by) + aside, above + aside], [snic(to), above + aside], [snic(to), to.top]];
  if (route === "peer") return [[cnic(by), by.bottom], [cnic(by), below + aside], [cnic(to), below + aside], [cnic(to), to.bottom]];
  const from = stores[0];
  const first = from ? [[middle(from) + aside, from.bottom], [middle(from) + aside, above + aside]] : [[0, above + aside]];
  return [
    [...first, [snic(by), above + aside], [snic(by), by.top]],
    [[cnic(by), by.bottom], [cnic(by), below + aside], [cnic(to), below + aside], [cnic(to), to.bottom]],
  ];
}

function flowing(flow, line) {
  const lines = typeof line[0]?.[0] === "number" ? [line] : line;
  const width = Math.min(6, 2.5 + Math.log10(1 + flow.bytes_per_s / 1e8) * 2);
  return lines.flatMap((points) => {
    const d = rounded(points);
    const [x, y] = points.at(-1);
    const isUp = y < points.at(-2)[1];
    return [
      draw("path", { class: "flow", "data-tint": flow.route, d, "stroke-width": width }),
      draw("path", { class: "pulse", d, "stroke-width": Math.max(1, width / 2.5) }),
      draw("path", { class: "arrow", "data-tint": flow.route, d: `M${x},${y}l-5,${isUp ? 8 : -8}h10z` }),
    ];
  }).concat(lines.length ? [label(flow, lines[0])] : []);
}

// In the gap before the card that the path leads into.
function label(flow, points) {
  const [x, y] = points.at(-1);
  const isIn = y > points.at(-2)[1];
  return draw("text", { class: "flow-rate", "data-tint": flow.route, x: x + 8, y: isIn ? y - 5 : y + 17 }, rate(flow.bytes_per_s));
}

function rounded(points) {
  const parts = [`M${points[0]}`];
  for (let at = 1; at < points.length - 1; at += 1) {
    const [before, corner, after] = [points[at - 1], points[at], points[at + 1]];
    parts.push(`L${towards(corner, before)}Q${corner} ${towards(corner, after)}`);
  }
  parts.push(`L${points.at(-1)}`);
  return parts.join("");
}

function towards([x, y], [toX, toY]) {
  const length = Math.hypot(toX - x, toY - y) || 1;
  const part = Math.min(RADIUS, length / 2) / length;
  return [(x + (toX - x) * part).toFixed(1), (y + (toY - y) * part).toFixed(1)];
}
