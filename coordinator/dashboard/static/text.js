// Numbers and elements in words. Everything that comes from a run is put in as text, never as markup.
export const $ = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const known = (x) => x !== null && x !== undefined;
export const digits = (x, n = 3) => (known(x) ? Number(x.toPrecision(n)).toLocaleString("en-GB", { maximumFractionDigits: 6 }) : "–");
export const whole = (x) => (known(x) ? Math.round(x).toLocaleString("en-GB") : "–");

function scaled(x, units, base) {
  if (!known(x)) return "–";
  let i = 0;
  while (x >= base && i < units.length - 1) { x /= base; i += 1; }
  return `${digits(x)} ${units[i]}`;
}
export const bytes = (x) => scaled(x, ["B", "kB", "MB", "GB", "TB"], 1000);
export const rate = (x) => (known(x) ? scaled(8 * x, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"], 1000) : "–");
export const seconds = (x) => (!known(x) ? "–" : x < 1 ? `${digits(1000 * x)} ms` : `${digits(x)} s`);
export const moment = (at_s) => new Date(1000 * at_s).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
export const pill = (phase) => el("span", { class: `pill ${phase}` }, phase);
export const clock = (at_s) => new Date(1000 * at_s).toLocaleTimeString("en-GB");
// How long something took: the two largest units.
export function span(s) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const i = s < 1 ? 3 : units.findIndex(([, size]) => s >= size);
  const [name, size] = units[i], next = units[i + 1];
  const rest = next ? Math.floor((s % size) / next[1]) : 0;
  return `${Math.floor(s / size)} ${name}${rest ? ` ${rest} ${next[0]}` : ""}`;
}
export const share = (x) => (known(x) ? `${Math.round(100 * x)} %` : "–");
export const hue = (i) => `var(--hue${((i % 8) + 8) % 8})`;

// What a path of the coordinator answers. Throws with its reason if it refuses.
export async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer.json();
}

// A table whose rows are arrays of texts; columns of numbers stand to the right.
export function table(head, rows, numbers = []) {
  const cell = (tag, text, i) => el(tag, { class: numbers.includes(i) ? "n" : null, scope: tag === "th" ? "col" : null }, String(text));
  return el("table", {}, el("thead", {}, el("tr", {}, ...head.map((t, i) => cell("th", t, i)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((t, i) => cell("td", t, i))))));
}
