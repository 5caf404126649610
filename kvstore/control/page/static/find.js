// The search: where the blocks of a prefix are.

import { make } from "./dom.js";
import { plural, seconds } from "./units.js";

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
  const fields = Object.fromEntries(new FormData(form));
  const what = fields.what.trim();
  const words = what.replace(/[[\],]/g, " ").split(/\s+/).filter(Boolean);
  // Keys have 32 digits, tokens are numbers below 2**32: nothing is both.
  const isTokens = words.length > 0 && words.every((word) => /^\d{1,10}$/.test(word));
  const asked = isTokens
    ? { namespace: fields.namespace.trim(), tokens: words.map(Number), block_tokens: Number(fields.block_tokens) }
    : { namespace: fields.namespace.trim(), keys: words };
  const response = await fetch("/api/search", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked),
  }).catch(() => {
    throw new Error("The control plane cannot be reached.");
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.text);
  return answer;
}

function shown({ blocks }) {
  const readable = (block) => block.places.some((place) => place.alive);
  const prefix = blocks.findIndex((block) => !readable(block));
  const matched = prefix < 0 ? blocks.length : prefix;
  const summary = make("p", { class: "summary" }, make("strong", {}, `${matched} of ${plural(blocks.length, "block")}`),
    matched === blocks.length ? " can be loaded." : ` can be loaded; block ${matched} is where the prefix ends.`);
  const strip = make("div", { class: "strip", role: "img", "aria-label": summary.textContent },
    ...blocks.slice(0, SHOWN_MAX).map((block, at) => make("i", {
      "data-tint": readable(block) ? best(block).tier.toLowerCase() : null, "data-end": at === matched, title: `block ${at}: ${told(block)}`,
    })));
  const rows = blocks.slice(0, SHOWN_MAX).map((block, at) => make("tr", { "data-missing": !readable(block) },
    make("td", { class: "number" }, String(at)), make("td", {}, make("code", {}, block.key)), make("td", {}, told(block))));
  const table = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Blocks of the prefix" },
    make("table", {}, make("thead", {}, make("tr", {}, ...["Block", "Key", "Where"].map((title) => make("th", { scope: "col" }, title)))),
      make("tbody", {}, ...rows)));
  const rest = blocks.length - rows.length;
  return [summary, strip, table, ...(rest > 0 ? [make("p", { class: "empty" }, `and ${plural(rest, "block")} more`)] : [])];
}

const ORDER = ["HBM", "DRAM", "NVME"];
const best = (block) => block.places.filter((place) => place.alive).sort((a, b) => ORDER.indexOf(a.tier) - ORDER.indexOf(b.tier))[0];

function told(block) {
  if (!block.places.length) return "nowhere";
  return block.places.map((place) => {
    const shard = place.shard === "0/1" ? "" : ` shard ${place.shard}`;
    const where = `${place.node || "a node that is gone"} ${place.tier}${shard}`;
    return place.alive ? `${where}, ${seconds(place.remaining_ms)} left` : `${where}, down`;
  }).join("; ");
}
