"use strict";
// What both pages need. Everything shown came from other hosts: it is set as text, never as markup.
const TIMEOUT_MS = 5000;
const at = (id) => document.getElementById(id);
const list = (value) => Array.isArray(value) ? value : [];
const pairs = (value) => value && typeof value === "object" ? Object.entries(value) : [];
const text = (value) => value === null || value === undefined || value === "" ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);
const size = (bytes) => bytes >= 1e9 ? (bytes / 1e9).toFixed(1) + " GB" : bytes >= 1e6 ? (bytes / 1e6).toFixed(1) + " MB" : (bytes / 1e3).toFixed(1) + " kB";
let last = null, lastGood = 0;

function el(tag, classes, ...children) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  for (const child of children) if (child !== null) node.append(child instanceof Node ? child : text(child));
  return node;
}
const rowHead = (...children) => Object.assign(el("th", "", ...children), { scope: "row" });
function tile(label, value, kind) { return el("div", "tile", el("span", "", label), el("b", kind || "", value)); }

function table(head, rows, empty) {
  if (!rows.length) return el("div", "empty", empty);
  const line = el("tr", "", ...head.map((cell) => Object.assign(el("th", "", cell || " "), { scope: "col" })));
  return el("table", "", el("thead", "", line), el("tbody", "", ...rows));
}

// Read a document; say so when nobody answers, and how old what is shown has become.
async function poll(url, who, show) {
  try {
    const answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!answer.ok) throw new Error("HTTP status " + answer.status);
    last = await answer.json();
    lastGood = Date.now();
    at("banner").hidden = true;
    show(answer);
  } catch (error) {
    at("banner").textContent = who + " does not answer (" + error.message + ")." + (lastGood ? " What is shown is " + Math.round((Date.now() - lastGood) / 1000) + " s old." : "");
    at("banner").hidden = false;
  }
}
