// The stream of states. The browser connects again by itself; we say how it stands, and when silence has become suspect.

const SILENT_MS = 12_000;

export function follow(url, { onState, onPoints, onHappened, onStanding }) {
  let source = null;
  let heardMs = Date.now();

  // A browser has six connections to a server, over all its tabs: those that nobody sees keep none of them.
  function connect() {
    source?.close();
    if (document.hidden) return;
    heard();
    source = new EventSource(url);
    source.addEventListener("open", heard);
    source.addEventListener("state", (event) => {
      heard();
      onStanding("live");
      onState(JSON.parse(event.data));
    });
    source.addEventListener("points", (event) => onPoints(JSON.parse(event.data)));
    source.addEventListener("happened", (event) => onHappened(JSON.parse(event.data)));
    source.addEventListener("error", () => {
      onStanding("lost");
      // A refusal closes the stream for good; a lost connection is taken up again by the browser.
      if (source.readyState !== EventSource.CLOSED) return;
      askWhy();
      setTimeout(connect, 3000);
    });
  }

  // A stream does not tell the answer that refused it.
  async function askWhy() {
    const answer = await fetch(url).catch(() => null);
    if (answer?.status === 401) location.assign("/login?over");
    else if (answer?.ok) answer.body.cancel();
    else if (answer) onStanding("lost", (await answer.json().catch(() => null))?.text);
  }

  function heard() {
    heardMs = Date.now();
  }

  setInterval(() => {
    if (document.hidden || Date.now() - heardMs < SILENT_MS) return;
    onStanding("lost");
    connect();
  }, 1000);
  document.addEventListener("visibilitychange", connect);
  connect();
}
