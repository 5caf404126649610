// The figures that an operator looks at first.

import { make, Parts, put, say } from "./dom.js";
import { bytes, count, percent, perSecond, plural, rate } from "./units.js";

const RECENT_MS = 60_000;
const NAMED_MAX = 4;

export function startTiles(element) {
  const parts = new Parts(element, ({ name }) => {
    const value = make("strong");
    const note = make("span", { class: "note" });
    return { element: make("div", { class: "tile", "data-tile": name }, make("span", { class: "name" }, name), value, note), value, note };
  });
  return (state, history) => {
    parts.show(tiles(state, history.since(state.at_ms - RECENT_MS)), (tile) => tile.name, (part, tile) => {
      say(part.value, tile.value);
      say(part.note, tile.note);
      put(part.element, "data-mood", tile.mood);
    });
  };
}

const sum = (list, of) => list.reduce((total, each) => total + of(each), 0);
const all = (table) => sum(Object.values(table), (each) => each);

// The others are on the map.
function named(nodes) {
  if (nodes.length <= NAMED_MAX) return nodes.map((node) => node.id).join(", ");
  return `${named(nodes.slice(0, NAMED_MAX - 1))} and ${count(nodes.length - NAMED_MAX + 1)} more`;
}

function tiles(state, points) {
  const up = state.nodes.filter((node) => node.state === "up").length;
  const spanS = Math.max(1, sum(points, (point) => point.span_ms) / 1000);
  const asked = sum(points, (point) => point.asked);
  const matched = sum(points, (point) => point.matched);
  const ever = state.matches;
  const tiers = state.nodes.flatMap((node) => node.tiers);
  const live = sum(tiers, (tier) => tier.live_bytes);
  const capacity = sum(tiers, (tier) => tier.capacity_bytes);
  const inwards = sum(state.nodes.flatMap((node) => node.lanes.filter((lane) => lane.lane.endsWith("-in"))), (lane) => lane.bytes_per_s);
  const gone = sum(points, (point) => all(point.gone));
  const { refused, ...faults } = points.reduce((total, point) => {
    for (const [kind, number] of Object.entries(point.faults)) total[kind] = (total[kind] ?? 0) + number;
    return total;
  }, { refused: 0 });
  const wrong = all(faults);
  return [
    { name: "Nodes up", value: `${up} / ${state.nodes.length}`, mood: up < state.nodes.length ? "bad" : null,
      note: up < state.nodes.length ? named(state.nodes.filter((node) => node.state !== "up")) : "all answer" },
    { name: "Hit ratio", value: asked ? percent(matched / asked) : ever.asked ? percent(ever.matched / ever.asked) : "–",
      note: asked ? `of ${count(asked)} blocks, last minute` : ever.asked ? "since the start" : "no match yet" },
    { name: "Arriving now", value: rate(inwards), note: "over all NICs" },
    { name: "Held", value: bytes(live), note: capacity ? `${percent(live / capacity)} of ${bytes(capacity)}` : "no tier" },
    { name: "Blocks indexed", value: count(state.index.blocks), note: `${plural(state.index.locations, "copy", "copies")}` },
    { name: "Blocks gone", value: count(gone), note: gone ? `last minute, ${perSecond(gone / spanS)}` : "last minute" },
    { name: "Errors", value: count(wrong), mood: wrong ? "bad" : null,
      note: refused ? `last minute; ${count(refused)} puts refused` : "last minute" },
  ];
}
