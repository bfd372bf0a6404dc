// Schedules: what starts by the clock, when next, and what became of it. Admins trigger, pause and resume.

import { get, post } from "./api.js";
import { attribute, h, keyed, poll, text } from "./dom.js";
import { NONE, age, setAge } from "./format.js";
import { notice, row, setBadge, setNotice, table, taskHref } from "./parts.js";
import { readWorkers } from "./queues.js";
import { hrefOf } from "./tasks.js";

const EVERY_MS = 5_000;
const COLUMNS = ["Schedule", "Task", "When", "Next", "Last", "Outcome", "State"];
const partsOf = new WeakMap();

/** The page. */
export function schedulesPage(route, signal) {
  const problem = notice();
  const list = table("Schedules", COLUMNS);
  list.className = "cards";
  const none = h("p", { class: "empty", hidden: true }, "Nothing starts by the clock.");
  const operator = { isAdmin: null };

  const read = async () => {
    try {
      const [{ items }] = await Promise.all([get("api/schedules", signal), readWorkers(operator, signal)]);
      list.hidden = items.length === 0;
      none.hidden = items.length > 0;
      const create = ({ name }) => newSchedule(name, problem, read);
      const update = (line, schedule) => updateSchedule(line, schedule, operator);
      keyed(list.tBodies[0], items, ({ name }) => name, create, update);
      if (problem.dataset.of !== "button") setNotice(problem, null);
    } catch (error) {
      if (!signal.aborted) setNotice(problem, `This list is not up to date: ${error.message}.`);
    }
  };
  poll(read, EVERY_MS, signal);
  return { title: "Schedules", node: h("div", {}, h("h1", {}, "Schedules"), problem, list, none) };
}

function newSchedule(name, problem, read) {
  const parts = Object.fromEntries(["task", "when", "state"].map((key) => [key, h("span")]));
  parts.next = age(null);
  parts.last = age(null);
  parts.outcome = h("a");
  parts.trigger = h("button", { type: "button", hidden: true, "aria-label": `Trigger ${name}` }, "Trigger");
  parts.pause = h("button", { type: "button", hidden: true });
  parts.trigger.addEventListener("click", () => act(name, "trigger", parts.trigger, problem, read));
  parts.pause.addEventListener("click", () => act(name, parts.paused ? "resume" : "pause", parts.pause, problem, read));
  const state = h("span", { class: "status" }, parts.state, parts.trigger, parts.pause);
  const link = h("a", { href: hrefOf({ tag: `schedule:${name}` }) }, name);
  const line = row(COLUMNS, [link, parts.task, parts.when, parts.next, parts.last, parts.outcome, state]);
  partsOf.set(line, parts);
  return line;
}

async function act(name, verb, button, problem, read) {
  button.disabled = true;
  try {
    await post(`api/schedules/${encodeURIComponent(name)}/${verb}`);
    delete problem.dataset.of;
    await read();
  } catch (error) {
    problem.dataset.of = "button";
    setNotice(problem, `The schedule ${name} is as it was: ${error.message}.`);
  }
  button.disabled = false;
}

function updateSchedule(line, schedule, operator) {
  const parts = partsOf.get(line);
  text(parts.task, schedule.task);
  text(parts.when, `${schedule.cron} (${schedule.timezone})`);
  setAge(parts.next, schedule.next_firing_at);
  setAge(parts.last, schedule.last_firing_at);
  showOutcome(parts.outcome, schedule);
  parts.paused = schedule.paused;
  text(parts.state, schedule.paused ? "paused" : "runs");
  parts.state.className = schedule.paused ? "badge waiting" : "muted";
  parts.trigger.hidden = parts.pause.hidden = !operator.isAdmin;
  text(parts.pause, schedule.paused ? "Resume" : "Pause");
  attribute(parts.pause, "aria-label", `${schedule.paused ? "Resume" : "Pause"} ${schedule.name}`);
}

/** The status of the last task; where the last tick did not simply start one, what became of the tick. */
function showOutcome(node, { last_outcome, last_task_id, last_task_status }) {
  const plain = last_outcome === null || last_outcome === "fired";
  attribute(node, "href", last_task_status === null ? null : taskHref(last_task_id));
  if (plain && last_task_status !== null) return setBadge(node, last_task_status);
  node.className = "";
  return text(node, plain ? NONE : last_outcome.replace("_", " "));
}
