// The search: where the blocks of a prefix are, and why they are nowhere.

import { make } from "./dom.js";
import { plural, seconds, TIER_NAMES } from "./units.js";

const SHOWN_MAX = 512;

export function startFind(form, found) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    found.replaceChildren(make("p", { class: "empty" }, "Searching…"));
    try {
      found.replaceChildren(...shown(await ask(form)));
    } catch (error) {
      found.replaceChildren(make("p", { class: "notice bad" }, error.message));
    } finally {
      button.disabled = false;
    }
  });
}

async function ask(form) {
  const namespace = form.elements.namespace.value.trim();
  const words = form.elements.what.value.replace(/[[\],]/g, " ").split(/\s+/).filter(Boolean);
  // Keys have 32 digits, tokens are numbers below 2**32: nothing is both.
  const isTokens = words.length > 0 && words.every((word) => /^\d{1,10}$/.test(word));
  const asked = { namespace, ...(isTokens ? { tokens: words.map(Number) } : { keys: words }) };
  const response = await fetch("/api/search", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked),
  }).catch(() => {
    throw new Error("The control plane cannot be reached.");
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.text);
  return answer;
}

function shown({ namespace, matched, blocks, unreached }) {
  const where = namespace ? ` in ${namespace.model} of ${namespace.tenant}` : "";
  const ends = blocks[matched];
  const summary = make("p", { class: "summary" }, make("strong", {}, `${matched} of ${plural(blocks.length, "block")}`),
    ends ? ` can be loaded${where}. Block ${matched} ends the prefix: ${said(ends)}.` : ` can be loaded${where}.`);
  const strip = make("div", { class: "strip", role: "img", "aria-label": summary.textContent },
    ...blocks.slice(0, SHOWN_MAX).map((block, at) => make("i", {
      "data-tint": at < matched ? best(block)?.toLowerCase() : null, "data-end": at === matched, "data-behind": block.verdict === "behind_gap",
      title: `block ${at}: ${said(block)}`,
    })));
  const rows = blocks.slice(0, SHOWN_MAX).map((block, at) => make("tr", { "data-missing": at >= matched },
    make("td", { class: "number" }, String(at)), make("td", {}, make("code", {}, block.key)),
    make("td", {}, make("b", {}, verdict(block)), block.text ? ` ${block.text}` : ""), make("td", {}, places(block))));
  const titles = ["Block", "Key", "Verdict", "Where, by the index"];
  const table = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Blocks of the prefix" },
    make("table", {}, make("thead", {}, make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title)))),
      make("tbody", {}, ...rows)));
  const rest = blocks.length - rows.length;
  return [
    summary, strip, table,
    ...(rest > 0 ? [make("p", { class: "empty" }, `and ${plural(rest, "block")} more`)] : []),
    ...unreached.map(({ node }) => make("p", { class: "empty" }, `${node} did not answer: what it knows is not in this`)),
  ];
}

const TIERS = ["HBM", "DRAM", "NVME"];
const best = (block) => TIERS.find((tier) => block.places.some((place) => place.alive && place.tier === tier));
const verdict = (block) => block.verdict.replaceAll("_", " ");
const said = (block) => (block.text ? `${verdict(block)}, ${block.text}` : verdict(block));

function places(block) {
  return block.places.map((place) => {
    const shard = place.shard === "0/1" ? "" : ` shard ${place.shard}`;
    const where = `${place.node || "a node that is gone"} ${TIER_NAMES[place.tier]}${shard}`;
    return place.alive ? `${where}, ${seconds(place.remaining_ms)} left` : `${where}, down`;
  }).join("; ") || "–";
}
