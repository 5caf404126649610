// What tenants hold of their quotas: in each tier, on the node where they are nearest to it.

import { make, Parts, say } from "./dom.js";
import { newMeter } from "./meter.js";
import { bytes, count, percent, plural, TIER_NAMES } from "./units.js";

export function startQuotas(section) {
  const tenants = new Parts(section.querySelector("ul"), newTenant);
  const link = document.querySelector(`nav a[href="#${section.id}"]`);
  const more = section.querySelector(".more");
  return ({ quotas }) => {
    tenants.show(quotas.shown, (quota) => quota.tenant, (part, quota) => part.update(quota));
    section.hidden = link.hidden = quotas.count === 0;
    more.hidden = quotas.count === quotas.shown.length;
    say(more, `and ${count(quotas.count - quotas.shown.length)} more, further from their quotas`);
  };
}

function newTenant({ tenant }) {
  const tiers = make("div", { class: "tiers" });
  const parts = new Parts(tiers, (tier) => newTier(tier, tenant));
  const element = make("li", { class: "quota", "data-tenant": tenant }, make("h3", {}, tenant), tiers);
  return { element, update: (now) => parts.show(now.tiers, ({ tier }) => tier, (part, tier) => part.update(tier)) };
}

function placed({ part, held_bytes: held, quota_bytes: quota, node, nodes }) {
  if (held === 0) return quota === 0 ? "nothing may be stored" : "nothing is held";
  return `${percent(part)} on ${node}${nodes > 1 ? `, fullest of ${plural(nodes, "node")}` : ""}`;
}

function newTier({ tier }, tenant) {
  const { meter, show } = newMeter(`${TIER_NAMES[tier]} quota of ${tenant}`);
  const held = make("span");
  const limit = make("span", { class: "limit" });
  const where = make("span", { class: "where" });
  const element = make("div", { class: "gauge", "data-tint": tier.toLowerCase() },
    make("span", { class: "name" }, TIER_NAMES[tier]), meter, make("span", { class: "figure" }, held, limit), where);
  function update(now) {
    say(held, bytes(now.held_bytes));
    say(limit, ` of ${bytes(now.quota_bytes)}`);
    say(where, placed(now));
    show(now.part, `${held.textContent}${limit.textContent}, ${where.textContent}`);
  }
  return { element, update };
}
