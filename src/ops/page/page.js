"use strict";

// Asks for the page again and takes over what has changed. Every node that is still there stays the same one and keeps focus and
// selection, and a screen reader hears of a part that says so itself (role=status).
const PAUSE_MS = 2000;
// A tab that nobody sees has its title renewed.
const PAUSE_HIDDEN_MS = 10000;
const BACK_SHOWN_MS = 60000;
const away = document.getElementById("away");
let backSince = 0;

function ids(page) {
  return Array.from(page.querySelectorAll("[data-live]"), (part) => part.id).join();
}

// Makes `old` what `fresh` is. Children with an id are known by it, others by their place.
function renew(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.id !== fresh.id) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const wanted = new Set(Array.from(fresh.children, (child) => child.id));
  for (const child of [...old.children]) {
    if (child.id && !wanted.has(child.id)) child.remove();
  }
  let place = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    // A new one with an id pushes the others on.
    const isNew = child.id && !Array.from(old.children).some((other) => other.id === child.id);
    if (place && !isNew) {
      const next = place.nextSibling;
      renew(place, child);
      place = next;
    } else {
      old.insertBefore(child, place);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function now() {
  return `${new Date().toISOString().slice(11, 19)} UTC`;
}

// Once: a reader of the screen hears each.
function tell(text, isAway) {
  away.textContent = text;
  away.classList.toggle("back", !isAway);
  away.hidden = false;
  document.body.classList.toggle("stale", isAway);
}

function unanswered() {
  if (document.body.classList.contains("stale")) return;
  document.title = `${document.title.split(": ")[0]}: no answer`;
  tell(`The relay has not answered since ${now()}; this is what it said last.`, true);
}

function answered(isAnother) {
  if (document.body.classList.contains("stale")) {
    tell(`The relay has answered again since ${now()}${isAnother ? "; it was started anew." : "."}`, false);
    backSince = Date.now();
  } else if (!away.hidden && Date.now() - backSince > BACK_SHOWN_MS) {
    away.hidden = true;
  }
}

async function look() {
  let fresh;
  try {
    const answer = await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.status);
    fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (!fresh.getElementById("lanes")) throw new Error("another program");
  } catch {
    unanswered();
    return;
  }
  // Its script and style are others.
  if (fresh.documentElement.dataset.version !== document.documentElement.dataset.version) location.reload();
  const started = document.getElementById("started").textContent;
  if (ids(fresh) !== ids(document)) {
    document.getElementById("lanes").replaceChildren(...fresh.getElementById("lanes").childNodes);
  }
  for (const part of document.querySelectorAll("[data-live]")) {
    const renewed = fresh.getElementById(part.id);
    if (renewed) renew(part, renewed);
  }
  document.title = fresh.title;
  answered(document.getElementById("started").textContent !== started);
}

async function follow() {
  let last = Date.now();
  for (;;) {
    await new Promise((then) => setTimeout(then, PAUSE_MS));
    if (document.hidden && Date.now() - last < PAUSE_HIDDEN_MS) continue;
    last = Date.now();
    await look();
  }
}
document.addEventListener("visibilitychange", () => document.hidden || look());
follow();
