// Puts the page together: one stream feeds all parts.

import { startCharts } from "./charts.js";
import { startCluster } from "./cluster.js";
import { put, say } from "./dom.js";
import { startEvents } from "./events.js";
import { startFind } from "./find.js";
import { History } from "./history.js";
import { follow } from "./live.js";
import { PathRates, startLoads } from "./loads.js";
import { startPins } from "./pins.js";
import { startQuotas } from "./quotas.js";
import { startSpaces } from "./spaces.js";
import { startTheme } from "./theme.js";
import { startTiles } from "./tiles.js";
import { clock } from "./units.js";
import { startWires } from "./wires.js";

const part = (id) => document.getElementById(id);
const history = new History();
const showTiles = startTiles(part("tiles"));
const showCluster = startCluster(part("map"));
const showWires = startWires(part("map"));
const showLoads = startLoads(part("loads"));
const pathRates = new PathRates();
const showSpaces = startSpaces(part("spaces"), search);
const showQuotas = startQuotas(part("quotas"));
const showPins = startPins(part("pins"), search);
const showCharts = startCharts(part("plots"), part("spans"));
let lastMs = null;

const showEvents = startEvents(part("events"));

startTheme(part("theme"));
startFind(part("search"), part("found"));

function search(namespace, what = part("search-what").value) {
  part("search-namespace").value = namespace;
  part("search-what").value = what;
  part("search-what").focus();
}

function notice(text) {
  const element = part("notice");
  element.hidden = !text;
  say(element, text);
}

follow("/api/events", {
  onPoints: (points) => history.take(points),
  onHappened: (happened) => showEvents(happened),
  onState(state) {
    notice(state.error ?? "");
    if (!state.nodes) return;
    lastMs = state.at_ms;
    showTiles(state, history);
    pathRates.take(state);
    showCluster(state);
    showWires(state);
    showLoads(state);
    showCharts(state, history);
    showSpaces(state);
    showQuotas(state);
    showPins(state);
    put(part("main"), "aria-busy", false);
    say(part("foot"), `as of ${clock(state.at_ms)}`);
  },
  onStanding(standing, why) {
    put(part("live"), "data-state", standing);
    put(document.body, "data-stale", standing === "lost");
    say(part("live").lastElementChild, standing === "live" ? "live" : "connection lost, trying again");
    if (standing !== "lost") return;
    if (why) notice(`The control plane refuses: ${why}`);
    else if (lastMs !== null) notice(`The control plane does not answer. What is shown is of ${clock(lastMs)}.`);
  },
});
