// What operators keep whatever its time is: those pins first that end first.

import { make, Parts, put, say } from "./dom.js";
import { bytes, count, moment, seconds } from "./units.js";

export function startPins(section, choose) {
  const rows = new Parts(section.querySelector("tbody"), (pin) => newRow(pin, choose));
  const link = document.querySelector(`nav a[href="#${section.id}"]`);
  const more = section.querySelector(".more");
  return ({ pins, at_ms: nowMs }) => {
    const shown = pins.shown.map((pin) => ({ ...pin, until_ms: nowMs + pin.remaining_ms }));
    rows.show(shown, (pin) => pin.id, (part, pin) => part.update(pin));
    section.hidden = link.hidden = pins.count === 0;
    more.hidden = pins.count === pins.shown.length;
    say(more, `and ${count(pins.count - pins.shown.length)} more, which end later`);
  };
}

function newRow(pin, choose) {
  const pick = make("button", { type: "button", class: "quiet small", title: pin.last_key }, `${pin.last_key.slice(0, 8)}…`);
  pick.addEventListener("click", () => choose(pin.namespace, pin.last_key));
  put(pick, "aria-label", `Search for the last block of pin ${pin.id}: ${pin.last_key}`);
  const model = make("td");
  const left = make("span", { class: "soft" });
  const blocks = make("td", { class: "number" });
  const size = make("td", { class: "number" });
  const nodes = make("td");
  // A pin keeps its end; worked out anew from what is left, it would waver by a second.
  const until = make("td", { class: "when" }, `${moment(pin.until_ms)} `, left);
  const element = make("tr", { "data-pin": pin.id }, make("td", {}, make("code", {}, pin.id)), make("td", {}, pin.tenant), model,
    make("td", {}, pick), until, blocks, size, nodes);
  function update(now) {
    say(model, now.model || "not opened since the start");
    say(left, `${seconds(now.remaining_ms)} left`);
    say(blocks, count(now.blocks));
    say(size, bytes(now.bytes));
    say(nodes, now.nodes.map((each) => (now.nodes.length > 1 ? `${each.node} (${count(each.blocks)})` : each.node)).join(", "));
  }
  return { element, update };
}
