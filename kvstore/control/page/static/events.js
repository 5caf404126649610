// What happened in the cluster, newest first.

import { make, Parts, put, say } from "./dom.js";
import { clock } from "./units.js";

const SHOWN_MAX = 200;
const TROUBLE = new Set(["node_lost", "node_forgotten", "device_out", "block_corrupt", "load_failed", "events_lost"]);

export function startEvents(section) {
  const rows = new Parts(section.querySelector("tbody"), newRow);
  const empty = section.querySelector(".empty");
  const scroll = section.querySelector(".scroll");
  const choices = [...section.querySelectorAll("input")];
  let events = [];

  function show() {
    const trouble = choices.find((choice) => choice.checked).value === "trouble";
    const shown = trouble ? events.filter((event) => TROUBLE.has(event.kind)) : events;
    rows.show(shown, (event) => event.number, () => {});
    scroll.hidden = shown.length === 0;
    empty.hidden = shown.length > 0;
    say(empty, trouble ? "No trouble that is remembered" : "Nothing has happened yet");
  }

  for (const choice of choices) choice.addEventListener("change", show);
  return ({ reset, events: fresh }) => {
    if (reset) events = [];
    events = [...fresh.reverse(), ...events].slice(0, SHOWN_MAX);
    show();
  };
}

function newRow(event) {
  const kind = make("td", {}, event.kind.replaceAll("_", " "));
  const element = make("tr", { "data-event": event.kind, "data-missing": TROUBLE.has(event.kind) },
    make("td", { class: "when" }, clock(event.at_ms)), kind, make("td", {}, event.node || "control plane"), make("td", {}, event.text));
  put(element, "title", new Date(event.at_ms).toISOString());
  return { element };
}
