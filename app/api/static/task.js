// One task: all that is known of it, what happens to it, and what can be done with it.

import { get, post } from "./api.js";
import { attribute, h, poll, soon, text } from "./dom.js";
import { age, between, clock, duration, moment, number, waitWords } from "./format.js";
import { followTask } from "./live.js";
import { EventLog } from "./log.js";
import { badge, block, carefulButton, facts, isFinished, json, notice, setBadge, setNotice, taskHref } from "./parts.js";
import { hrefOf } from "./tasks.js";
import { TaskTree } from "./tree.js";

const REFRESH_MS = 250;
/** A task that a plain arq worker ends has no event for its end. */
const LOOK_MS = 15_000;

/** The page of the task `route.id`. */
export function taskPage(route, signal) {
  const view = new TaskView(route.id, signal);
  return { title: "Task", node: view.node };
}

class TaskView {
  constructor(id, signal) {
    this.id = id;
    this.path = `api/tasks/${encodeURIComponent(id)}`;
    this.signal = signal;
    this.task = null;
    this.log = new EventLog();
    this.problem = notice();
    this.heading = h("span", {}, "Task");
    this.badge = badge("PENDING");
    this.bar = h("progress", { max: 100, hidden: true, "aria-label": "Progress" });
    this.label = h("p", { class: "progress-label", role: "status" });
    this.facts = h("div");
    this.outcome = h("div");
    this.steps = h("div");
    this.tree = new TaskTree(id, signal);
    this.shown = "";
    this.cancel = carefulButton("Cancel", "Cancel it and its children?", () => this.act("cancel"));
    this.retry = h("button", { type: "button", on: { click: () => this.act("retry") } }, "Run again");
    this.dead = h("a", { class: "button", href: `#/dead/${encodeURIComponent(id)}`, hidden: true }, "Traceback");
    for (const button of [this.cancel, this.retry]) button.hidden = true;
    this.node = this.arranged();
    const refresh = soon(() => this.read(), REFRESH_MS, signal);
    const follower = {
      event: (event) => this.take(event) || refresh(),
      synced: (gap) => {
        if (gap) this.log.tellGap();
        refresh();
      },
      refused: () => refresh(),
    };
    followTask(id, follower, signal);
    poll(async () => (this.task && isFinished(this.task)) || (await this.read()), LOOK_MS, signal);
  }

  arranged() {
    return h(
      "div",
      {},
      h("p", { class: "crumb" }, h("a", { href: "#/tasks" }, "Tasks")),
      h("h1", {}, this.heading, " ", this.badge),
      this.problem,
      h("div", { class: "actions" }, this.cancel, this.retry, this.dead),
      this.bar,
      this.label,
      this.log.stream.node,
      this.outcome,
      this.tree.node,
      this.steps,
      h("section", { "aria-labelledby": "facts" }, h("h2", { id: "facts" }, "Details"), this.facts),
      this.log.node,
    );
  }

  async read() {
    try {
      this.show(await get(this.path, this.signal));
      setNotice(this.problem, null);
    } catch (error) {
      if (!this.signal.aborted) setNotice(this.problem, `${error.message}.`);
    }
  }

  /** Take an event; whether the task need not be read for it. */
  take(event) {
    this.log.add(event);
    if (event.type === "task_progress" && this.task) {
      this.task.progress = { ...event.payload, updated_at: event.at };
      this.showProgress();
      return true;
    }
    return !event.type.startsWith("task_") && !event.type.startsWith("hitl_") && !event.type.startsWith("approval_");
  }

  show(task) {
    this.task = task;
    text(this.heading, task.task);
    document.title = `${task.task} · Nightshift`;
    setBadge(this.badge, task.status);
    this.cancel.hidden = isFinished(task);
    this.retry.hidden = !isFinished(task);
    this.dead.hidden = task.status !== "FAILURE";
    this.showProgress();
    const { progress, ...rest } = task;
    const state = JSON.stringify(rest);
    if (state === this.shown) return;
    this.shown = state;
    this.facts.replaceChildren(factsOf(task));
    this.outcome.replaceChildren(...outcomeOf(task));
    this.steps.replaceChildren(...stepsOf(task));
  }

  showProgress() {
    const { progress } = this.task;
    this.bar.hidden = !progress;
    text(this.label, progress ? `${number(progress.percent)} % · ${number(progress.current)} of ${number(progress.total)} · ${progress.label}` : "");
    if (progress) attribute(this.bar, "value", progress.percent);
  }

  async act(verb) {
    const button = verb === "cancel" ? this.cancel : this.retry;
    button.disabled = true;
    try {
      const task = await post(`${this.path}/${verb}`);
      if (verb === "retry") location.hash = taskHref(task.task_id);
      else this.show(task);
    } catch (error) {
      setNotice(this.problem, `${error.message}.`);
    }
    button.disabled = false;
  }
}

function waitsFor(wait) {
  const { approval_id: approval, until } = wait;
  const words = waitWords(wait);
  const what = approval ? h("a", { href: `#/approvals/${encodeURIComponent(approval)}` }, words) : words;
  return h("span", {}, what, ` until ${moment(until)}`);
}

/** What has completed, and will not run again. */
function stepsOf({ steps }) {
  if (!steps.length) return [];
  const lines = steps.map(({ name, completed_at: at, duration_s: seconds }) =>
    h("li", {}, h("time", { class: "clock", title: moment(at) }, clock(at)), h("code", {}, duration(seconds)), h("span", {}, name)),
  );
  return [h("section", { "aria-labelledby": "steps" }, h("h2", { id: "steps" }, "Steps"), h("ol", { class: "log", tabindex: 0 }, ...lines))];
}

function factsOf(task) {
  const link = (id) => id && h("a", { href: taskHref(id), class: "id" }, id);
  const time = (iso) => iso && h("span", { title: moment(iso) }, clock(iso), " (", age(iso), ")");
  const attempts = task.max_attempts === null ? String(task.attempt) : `${task.attempt} of at most ${task.max_attempts}`;
  return facts([
    ["Id", h("span", { class: "id" }, task.task_id)],
    ["Queue", h("a", { href: hrefOf({ queue: task.queue }) }, task.queue)],
    ["Attempt", attempts],
    ["Next attempt", time(task.next_attempt_at)],
    ["Waits for", task.waiting_for && waitsFor(task.waiting_for)],
    ["Owner", task.user_id],
    ["Project", task.project_id && h("a", { href: hrefOf({ project_id: task.project_id }) }, task.project_id)],
    ["Tags", task.tags.length ? h("span", { class: "tags" }, ...task.tags.map((tag) => h("a", { class: "tag", href: hrefOf({ tag }) }, tag))) : null],
    ["Priority", String(task.priority)],
    ["Posted", time(task.enqueued_at)],
    ["Started", time(task.started_at)],
    ["Finished", time(task.finished_at)],
    ["Took", task.started_at && task.finished_at && duration(between(task.started_at, task.finished_at))],
    ["Started by", link(task.parent_id)],
    ["First ancestor", link(task.root_id)],
    ["Repeats", link(task.retry_of)],
    ["Correlation id", task.correlation_id && h("span", { class: "id" }, task.correlation_id)],
  ]);
}

function outcomeOf(task) {
  const found = [];
  if (task.error) {
    const { type, message, retryable, ...rest } = task.error;
    const kind = retryable ? "running it again may help" : "running it again does not help";
    const title = task.status === "FAILURE" ? "Error" : "Error of the last attempt";
    found.push(
      h("section", { class: "error", "aria-label": title }, h("h2", {}, title), h("p", {}, h("strong", {}, type), ` (${kind})`), block(message, "Message")),
    );
    if (Object.keys(rest).length) found.push(json(rest, "More about the error"));
  }
  if (task.status === "SUCCESS") found.push(h("section", { "aria-label": "Result" }, h("h2", {}, "Result"), json(task.result ?? null, "Result")));
  return found;
}
