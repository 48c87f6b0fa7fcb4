// Follows the run: a snapshot with every change by server-sent events, curves and pictures asked for when due.
import { $, ask, el, table, digits, whole, bytes, seconds, clock, moment } from "./text.js";
import { drawMap, drawLinks } from "./map.js";
import { drawGrid, drawWorkers } from "./grid.js";
import { Chart } from "./charts.js";
import { drawTimeline } from "./timeline.js";

const CURVES_EVERY_MS = 1000, RETRY_MS = 10_000;
const other = new URLSearchParams(location.search).get("run");  // null: the run that is served, live
const of = other === null ? "" : `?run=${encodeURIComponent(other)}`;
const charts = {
  loss: new Chart($("loss"), "Loss by step", [{ label: "training", colour: "--hue0" }, { label: "held out", colour: "--hue1", points: true }]),
  speed: new Chart($("speed"), "Tokens a second by step", [{ label: "tokens/s", colour: "--hue2" }]),
  seconds: new Chart($("seconds"), "Seconds of a step", [{ label: "measured", colour: "--hue0" }, { label: "predicted", colour: "--hue1", dash: [6, 4] }]),
};
const when = other === null ? clock : moment;
let run = null, drawn = {}, links = [], curvesAt = 0, curvedStep = -1, pictured = "";

const numbers = () => [
  ["Step", `${whole(run.step)}`, `of ${whole(run.steps)}`],
  ["Loss", digits(run.loss, 4), ""],
  ["Held-out loss", digits(run.eval_loss, 4), ""],
  ["Tokens a second", whole(run.tokens_per_s), ""],
  ["Step", seconds(run.step_s), run.predicted_step_s ? `predicted ${seconds(run.predicted_step_s)}` : ""],
  ["Gradient norm", digits(run.grad_norm), ""],
  ["Sent a step", bytes(run.sent_bytes), run.raw_bytes > run.sent_bytes ? `of ${bytes(run.raw_bytes)}` : ""],
  ["Workers", whole(run.workers.filter((w) => w.state !== "gone").length), run.workers.some((w) => w.state === "gone") ? `${run.workers.filter((w) => w.state === "gone").length} gone` : ""],
];

// Draws a part only when what it shows has changed, and leaves the keyboard where it was.
function once(name, value, draw) {
  const key = JSON.stringify(value);
  if (drawn[name] === key) return;
  drawn[name] = key;
  const focused = document.activeElement?.id;
  draw();
  if (focused && document.activeElement?.id !== focused) $(focused)?.focus({ preventScroll: true });
}

function show() {
  document.title = `${run.run || "Isthmus"} · ${run.phase}`;
  $("run").textContent = run.run || "Isthmus";
  $("phase").textContent = run.phase;
  $("phase").className = `pill ${run.phase}`;
  $("reason").textContent = run.reason;
  $("progress").firstElementChild.style.width = `${(100 * run.step) / Math.max(1, run.steps)}%`;
  $("progress").setAttribute("aria-valuemax", run.steps);
  $("progress").setAttribute("aria-valuenow", run.step);
  $("numbers").replaceChildren(...numbers().map(([name, value, more]) => el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, more || "\u00a0")))));
  once("map", [run.workers.map((w) => [w.name, w.region, w.state]), run.traffic, $("map").clientWidth], () => drawMap($("map"), run));
  once("links", [links, run.traffic], () => drawLinks($("links"), run, links));
  once("grid", [run.plan?.version, run.workers], () => drawGrid($("grid"), $("shape"), run));
  once("workers", run.workers, () => drawWorkers($("workers"), run));
  once("reasons", run.plan?.reasons, () => $("reasons").replaceChildren(...(run.plan?.reasons || ["No plan yet."]).map((r) => el("li", {}, r))));
  $("outlook").textContent = run.outlook ? `Last look for a faster plan, ${run.outlook}` : "";
  once("plans", run.plans, () => $("plans").replaceChildren(run.plans.length ? table(["plan", "at", "after step", "stages x replicas", "predicted step", "because"],
    [...run.plans].reverse().map((p) => [p.version, when(p.at_s), p.step, `${p.stages} x ${p.replicas}`, seconds(p.predicted_step_s), p.why || "–"]), [0, 2, 4])
    : el("p", { class: "soft" }, "No plan yet.")));
  once("events", run.events, () => $("events").replaceChildren(...[...run.events].reverse().map((e) =>
    el("li", { class: e.bad ? "bad" : null }, el("time", { datetime: new Date(1000 * e.at_s).toISOString() }, when(e.at_s)), el("span", {}, e.text)))));
}

async function curves() {
  const { series, evals } = await ask(`api/steps${of}`);
  const held = new Map(evals);
  const steps = [...new Set([...series.step, ...held.keys()])].sort((a, b) => a - b);
  const at = new Map(series.step.map((s, i) => [s, i]));
  const column = (name) => steps.map((s) => (at.has(s) ? series[name][at.get(s)] : null));
  charts.loss.show([steps, column("loss"), steps.map((s) => held.get(s) ?? null)]);
  charts.speed.show([steps, column("tokens_per_s")]);
  charts.seconds.show([steps, column("step_s"), column("predicted_step_s")]);
}

async function pictures() {
  drawTimeline($("timeline"), $("time"), await ask(`api/timeline${of}`));
  links = await ask(`api/links${of}`);
  show();
}

async function tend() {
  const now = performance.now();
  if (!run || document.hidden) return;
  if (run.step !== curvedStep && now - curvesAt > CURVES_EVERY_MS) { curvesAt = now; curvedStep = run.step; await curves(); }
  const due = `${run.run} ${run.plan?.version} ${run.recorded_step} ${run.code}`;
  if (pictured !== due) { pictured = due; await pictures(); }
}

// What is the matter when the stream of snapshots ends: the coordinator is away, or the page's token has ended.
async function whyNot() {
  try {
    const answer = await fetch("api/run");
    return answer.ok ? ["connecting", ""] : ["refused", (await answer.json()).error];
  } catch {
    return ["no answer from the coordinator", ""];
  }
}

// Another run, as its state directory has it; if it has not ended, it may go on.
async function lookAt() {
  try {
    run = await ask(`api/run${of}`);
    show();
    await tend();
  } catch (error) {
    $("phase").textContent = "not to be opened";
    $("phase").className = "pill lost";
    $("reason").textContent = error.message;
  }
  if (!run || run.code === null) setTimeout(lookAt, RETRY_MS);
}

function follow() {
  const source = new EventSource("api/events");
  source.onmessage = (message) => { run = JSON.parse(message.data); show(); tend().catch(console.error); };
  source.onerror = async () => {
    const [phase, reason] = await whyNot();
    $("phase").textContent = phase;
    $("phase").className = "pill lost";
    $("reason").textContent = reason;
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, RETRY_MS);  // refused: the browser gives up
  };
}

setInterval(() => tend().catch(console.error), 1000);
addEventListener("resize", () => { if (run) { drawn = {}; show(); pictures().catch(console.error); } });
if (other === null) {
  await curves().catch(console.error);
  follow();
} else {
  $("live").removeAttribute("aria-current");
  $("json").href += of;
  $("metrics").remove();
  document.body.classList.add("past");
  await lookAt();
  ask("api/run").then((own) => { if (!own.run) $("live").remove(); }).catch(console.error);
}
