// Queues and workers, as of now.

import { get, post } from "./api.js";
import { attribute, h, keyed, poll, text } from "./dom.js";
import { NONE, age, bytes, duration, number, setAge } from "./format.js";
import { notice, row, setNotice, table } from "./parts.js";
import { hrefOf } from "./tasks.js";

const EVERY_MS = 2_000;
const QUEUES = ["Queue", "Ready", "Oldest ready", "Running", "Delayed", "Waiting", "Dead", "Per minute", "Workers", "State"];
const WORKERS = ["Worker", "Runs", "Loop lag", "CPU", "Memory", "Up since", "Heartbeat", "Lanes"];

/** The page. */
export function queuesPage(route, signal) {
  const problem = notice();
  const queues = table("Queues", QUEUES);
  const workers = table("Workers", WORKERS);
  queues.className = "cards numbers queues";
  workers.className = "cards numbers";
  const none = h("p", { class: "empty", hidden: true }, "No worker lives: nothing runs until one is started.");
  const section = h("section", { "aria-labelledby": "workers", hidden: true }, h("h2", { id: "workers" }, "Workers"), workers, none);
  const operator = { isAdmin: null };

  const read = async () => {
    try {
      const [stats, alive] = await Promise.all([get("api/queues", signal), readWorkers(operator, signal)]);
      showQueues(queues, stats.items, operator, problem);
      section.hidden = !operator.isAdmin;
      workers.hidden = alive.length === 0;
      none.hidden = alive.length > 0;
      keyed(workers.tBodies[0], alive, (worker) => worker.worker_id, newWorker, updateWorker);
      if (problem.dataset.of !== "button") setNotice(problem, null);
    } catch (error) {
      if (!signal.aborted) setNotice(problem, `These figures are not up to date: ${error.message}.`);
    }
  };
  poll(read, EVERY_MS, signal);
  return { title: "Queues", node: h("div", {}, h("h1", {}, "Queues"), problem, queues, section) };
}

/** The workers, where the caller may see them: only admins may, and nobody is asked twice. */
export async function readWorkers(operator, signal) {
  if (operator.isAdmin === false) return [];
  try {
    const { items } = await get("api/workers", signal);
    operator.isAdmin = true;
    return items;
  } catch (error) {
    if (error.status !== 403) throw error;
    operator.isAdmin = false;
    return [];
  }
}

const partsOf = new WeakMap();

function showQueues(node, items, operator, problem) {
  const show = (queue) => updateQueue(rows.get(queue.name), queue, operator);
  const rows = new Map();
  const create = (queue) => newQueue(queue.name, show, problem);
  const update = (line, queue) => {
    rows.set(queue.name, line);
    updateQueue(line, queue, operator);
  };
  keyed(node.tBodies[0], items, (queue) => queue.name, create, update);
}

function newQueue(name, show, problem) {
  const parts = Object.fromEntries(["ready", "oldest", "running", "delayed", "waiting", "rate", "workers", "state"].map((key) => [key, h("span")]));
  parts.dead = h("a", { href: `#/dead?queue=${encodeURIComponent(name)}` });
  parts.button = h("button", { type: "button", hidden: true });
  parts.button.addEventListener("click", () => change(name, parts, problem));
  const state = h("span", { class: "status" }, parts.state, parts.button);
  const link = h("a", { href: hrefOf({ queue: name }) }, name);
  const line = row(QUEUES, [link, parts.ready, parts.oldest, parts.running, parts.delayed, parts.waiting, parts.dead, parts.rate, parts.workers, state]);
  parts.show = show;
  partsOf.set(line, parts);
  return line;
}

async function change(name, parts, problem) {
  const verb = parts.paused ? "resume" : "pause";
  parts.button.disabled = true;
  try {
    parts.show(await post(`api/queues/${encodeURIComponent(name)}/${verb}`));
    delete problem.dataset.of;
    setNotice(problem, null);
  } catch (error) {
    problem.dataset.of = "button";
    setNotice(problem, `The queue ${name} is as it was: ${error.message}.`);
  }
  parts.button.disabled = false;
}

function updateQueue(line, queue, operator) {
  const parts = partsOf.get(line);
  for (const name of ["ready", "delayed", "waiting", "dead"]) count(parts[name], queue[name]);
  const slots = queue.concurrency === null ? "" : ` of ${number(queue.concurrency * queue.workers)}`;
  text(parts.running, `${number(queue.running)}${slots}`);
  text(parts.oldest, queue.oldest_ready_age_s === null ? NONE : duration(queue.oldest_ready_age_s));
  count(parts.rate, queue.finished_per_minute);
  count(parts.workers, queue.workers);
  parts.paused = queue.paused;
  const starves = queue.workers === 0 && queue.ready > 0;
  text(parts.state, queue.paused ? "paused" : starves ? "no worker" : "open");
  parts.state.className = queue.paused || starves ? "badge waiting" : "muted";
  parts.button.hidden = !operator.isAdmin;
  text(parts.button, queue.paused ? "Resume" : "Pause");
  attribute(parts.button, "aria-label", `${queue.paused ? "Resume" : "Pause"} ${queue.name}`);
}

function count(node, value) {
  text(node, number(value));
  node.classList.toggle("zero", value === 0);
}

function newWorker() {
  const parts = Object.fromEntries(["name", "version", "runs", "lag", "cpu", "memory", "lanes"].map((key) => [key, h("span")]));
  parts.version.className = "muted";
  parts.lanes.className = "lanes";
  parts.up = age(null);
  parts.beat = age(null);
  const name = h("span", { class: "status" }, parts.name, parts.version);
  const line = row(WORKERS, [name, parts.runs, parts.lag, parts.cpu, parts.memory, parts.up, parts.beat, parts.lanes]);
  partsOf.set(line, parts);
  return line;
}

function updateWorker(line, worker) {
  const parts = partsOf.get(line);
  text(parts.name, `${worker.host}, process ${worker.pid}`);
  text(parts.version, worker.version);
  text(parts.runs, `${number(worker.running)} of ${number(worker.capacity)}`);
  text(parts.lag, `${number(worker.loop_lag_ms)} ms`);
  text(parts.cpu, `${number(worker.cpu_percent)} %`);
  text(parts.memory, bytes(worker.rss_bytes));
  setAge(parts.up, worker.started_at);
  setAge(parts.beat, worker.heartbeat_at);
  const lanes = Object.entries(worker.lanes).map(([name, lane]) => `${name} ${lane.running}/${lane.concurrency}`);
  text(parts.lanes, lanes.join("  "));
}
