"use strict";

// Asks for the page again and takes over the parts that have changed. What is not replaced keeps focus and selection, and a
// screen reader hears of a part that says so itself (role=status).
const PAUSE_MS = 2000;
const away = document.getElementById("away");

function ids(page) {
  return Array.from(page.querySelectorAll("[data-live]"), (part) => part.id).join();
}

async function look() {
  try {
    const answer = await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (ids(fresh) !== ids(document)) {
      document.getElementById("lanes").replaceChildren(...fresh.getElementById("lanes").childNodes);
    }
    for (const part of document.querySelectorAll("[data-live]")) {
      const now = fresh.getElementById(part.id);
      if (now.innerHTML !== part.innerHTML) part.replaceChildren(...now.childNodes);
    }
    document.title = fresh.title;
    away.hidden = true;
  } catch {
    if (away.hidden) {
      away.textContent = `The relay has not answered since ${new Date().toLocaleTimeString()}; this is what it said last.`;
      away.hidden = false;
    }
  }
}

async function follow() {
  for (;;) {
    await new Promise((then) => setTimeout(then, PAUSE_MS));
    if (!document.hidden) await look();
  }
}
follow();
