// Asks for the page again when something happened, and every ten seconds: the tables are made by
// the gateway. Without this script the page is what it was when it was loaded.
"use strict";

let asking = false;

async function refresh() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    const answer = await fetch("/ui", { cache: "no-store" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of ["header", "main"]) {
      const now = document.querySelector(part);
      const next = page.querySelector(part);
      if (now && next) now.replaceWith(next);
    }
    document.title = page.title;
  } catch {
    document.title = "(no answer) Zeugma";
  } finally {
    asking = false;
  }
}

const events = new EventSource("/api/v1/events");
for (const kind of ["shares-moved", "endpoint-ejected", "endpoint-readmitted", "endpoint-healthy",
  "endpoint-unhealthy", "configuration-applied", "draining"]) {
  events.addEventListener(kind, refresh);
}
setInterval(refresh, 10_000);
