// The map: a card per node, with its tiers and the lanes of its NICs and disks. Storage nodes stand above the others.

import { make, Parts, put, say } from "./dom.js";
import { newMeter } from "./meter.js";
import { bytes, count, percent, plural, rate, seconds, TIER_NAMES } from "./units.js";

const STANDING = { up: "up", mute: "no answer", down: "down" };
const DENSE_FROM = 13;
const NICS = [
  ["storage", "SNIC"],
  ["shared", "file system"],
  ["compute", "CNIC"],
];

export function startCluster(map) {
  const rows = new Parts(map, ({ name, title }) => {
    const list = make("div", { class: "row" });
    const element = make("section", { class: `tier-of-nodes ${name}`, "aria-label": title }, make("h3", {}, title), list);
    return { element, nodes: new Parts(list, newNode) };
  });
  const empty = make("p", { class: "empty" });
  map.after(empty);

  return (state) => {
    const storage = state.nodes.filter((node) => node.storage);
    const engines = state.nodes.filter((node) => !node.storage);
    const shown = [
      { name: "stores", title: plural(storage.length, "storage node"), nodes: storage },
      { name: "engines", title: plural(engines.length, storage.length ? "engine node" : "node"), nodes: engines },
    ].filter((row) => row.nodes.length);
    rows.show(shown, (row) => row.name, (part, row) => {
      say(part.element.firstChild, row.title);
      part.nodes.show(row.nodes, (node) => node.id, (card, node) => card.update(node));
    });
    put(map, "data-dense", state.nodes.length >= DENSE_FROM);
    empty.hidden = shown.length > 0;
    say(empty, "No node has registered yet. Start one with: kvstore node --control ADDRESS");
  };
}

function newNode(node) {
  const name = make("h4", { id: `node-${node.id}` }, node.id);
  const roles = make("span", { class: "roles" });
  const standing = make("span", { class: "standing" });
  const error = make("p", { class: "error" });
  const above = make("div", { class: "nics above" });
  const tiers = make("div", { class: "tiers" });
  const below = make("div", { class: "nics below" });
  const foot = make("p", { class: "foot" });
  const body = make("div", { class: "body" }, above, tiers, below);
  const element = make("article", { class: "node", "aria-labelledby": `node-${node.id}` },
    make("header", {}, name, roles, standing), error, body, foot);
  const tierParts = new Parts(tiers, newTier);
  const upper = new Parts(above, newLane);
  const lower = new Parts(below, newLane);
  // Storage nodes hand out by their compute NIC, which is on the storage network: below, towards those who read.
  const isAbove = (lane) => lane.lane.startsWith("storage-") || lane.lane.startsWith("shared");

  function update(now) {
    put(element, "data-state", now.state);
    put(element, "data-node", now.id);
    say(roles, now.roles.join(" · "));
    say(standing, now.state === "down" ? `down, silent for ${seconds(now.silent_ms)}` : STANDING[now.state]);
    put(name, "title", `${now.address} on ${now.host}`);
    error.hidden = now.state === "up" || !now.error;
    say(error, now.error);
    put(error, "title", now.error);
    body.hidden = now.tiers.length === 0;
    tierParts.show(now.tiers, (tier) => tier.tier, (part, tier) => part.update(tier, now.devices));
    upper.show(now.lanes.filter(isAbove), (lane) => lane.lane, (part, lane) => part.update(lane));
    lower.show(now.lanes.filter((lane) => !isAbove(lane)), (lane) => lane.lane, (part, lane) => part.update(lane));
    const faults = Object.entries(now.faults).map(([kind, number]) => `${kind} ${count(number)}`);
    const pins = now.tiers.reduce((sum, tier) => sum + tier.pins, 0);
    const queued = now.lanes.reduce((sum, lane) => sum + lane.queued_bytes, 0);
    const leases = now.tiers.reduce((sum, tier) => sum + tier.leases, 0);
    const facts = [plural(now.locations, "copy", "copies"), queued && `${bytes(queued)} queued`, pins && plural(pins, "pin"), leases && plural(leases, "lease")];
    say(foot, facts.filter(Boolean).join(" · "));
    if (faults.length) foot.append(make("b", { title: "since the node started" }, ` · ${faults.join(", ")}`));
  }
  return { element, update };
}

function newTier({ tier }) {
  const { meter, show } = newMeter(TIER_NAMES[tier]);
  const live = make("span");
  const limit = make("span", { class: "limit" });
  const element = make("div", { class: "gauge", "data-tint": tier.toLowerCase() },
    make("span", { class: "name" }, TIER_NAMES[tier]), meter, make("span", { class: "figure" }, live, limit));
  function update(now, devices) {
    const part = now.capacity_bytes ? now.live_bytes / now.capacity_bytes : 0;
    const text = `${bytes(now.live_bytes)} of ${bytes(now.capacity_bytes)}`;
    show(part, text, now.capacity_bytes ? now.slab_bytes / now.capacity_bytes : 0);
    const out = tier === "NVME" ? devices.filter((device) => !device.in_service).length : 0;
    say(live, bytes(now.live_bytes));
    say(limit, out ? ` · ${out} of ${plural(devices.length, "device")} out` : ` of ${bytes(now.capacity_bytes)}`);
    put(element, "data-bad", out > 0);
    put(element, "title", `${percent(part)} live, ${count(now.live_slots)} slots live, ` +
      `${count(now.reserved_slots)} reserved, ${count(now.free_slots)} free`);
  }
  return { element, update };
}

function laneName(lane) {
  const [network, way] = lane.split("-");
  const nic = NICS.find(([name]) => name === network);
  return nic ? [way ? `${nic[1]} ${way}` : nic[1], way ?? "in"] : [lane, "disk"];
}

function newLane({ lane }) {
  const [name, way] = laneName(lane);
  const { meter, show } = newMeter(name);
  const figure = make("span", { class: "now" });
  const limit = make("span", { class: "limit" });
  const element = make("div", { class: "gauge lane", "data-tint": way, "data-lane": lane },
    make("span", { class: "name" }, name), meter, make("span", { class: "figure" }, figure, limit));
  let most = 1;
  function update(now) {
    most = Math.max(most, now.bytes_per_s);
    const of = now.limit_bytes_per_s || most;
    const busy = now.bytes_per_s > 0 || now.queued_bytes > 0;
    show(now.bytes_per_s / of, `${rate(now.bytes_per_s)}, ${bytes(now.queued_bytes)} queued`);
    say(figure, busy ? rate(now.bytes_per_s) : "–");
    say(limit, now.limit_is === "configured" ? ` of ${rate(of)}` : "");
    put(element, "data-busy", busy);
    const known = now.limit_is ? `can carry ${rate(now.limit_bytes_per_s)} (${now.limit_is}); ` : "";
    put(element, "title", `${known}${bytes(now.moved_bytes)} since the start; ${bytes(now.queued_bytes)} queued; ${rate(now.last_1min_bytes / 60)} over ` +
      `1 min, ${rate(now.last_10min_bytes / 600)} over 10 min, ${rate(now.last_60min_bytes / 3600)} over 60 min`);
  }
  return { element, update };
}
