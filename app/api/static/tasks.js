// The list of tasks, newest first, with what stands in the queues above it.

import { expected, get, withQuery } from "./api.js";
import { attribute, h, keyed, poll, soon, svg, text } from "./dom.js";
import { NONE, age, between, duration, number, setAge, waitWords } from "./format.js";
import { followOwn, userId } from "./live.js";
import { STATUSES, badge, choose, isFinished, labelled, notice, offer, row, select, setBadge, setNotice, table, taskHref } from "./parts.js";

const REFRESH_MS = 1_000;
const QUEUES_MS = 2_000;
/** Two minutes of samples. */
const SAMPLES = 60;
const COLUMNS = ["Task", "Status", "Queue", "Owner", "Attempt", "Posted", "Took"];
const FILTERS = ["status", "queue", "task", "project_id", "tag"];

const samples = [];

/** The page. `route.query` holds filters and the cursor. */
export function tasksPage(route, signal) {
  const page = new TasksPage(route.query, signal);
  return { title: "Tasks", node: page.node, moved: ({ query }) => page.move(query) };
}

class TasksPage {
  constructor(query, signal) {
    this.query = query;
    this.signal = signal;
    this.counts = "";
    this.list = new TaskRows();
    this.summary = new Summary();
    this.filters = new Filters();
    this.problem = notice();
    this.older = h("a", { class: "button", hidden: true }, "Older");
    this.newest = h("a", { class: "button" }, "Newest");
    const pages = h("p", { class: "pages" }, this.newest, this.older);
    const heading = h("h1", {}, "Tasks");
    this.node = h("div", {}, heading, this.summary.node, this.filters.node, this.problem, this.list.node, this.list.empty, pages);
    this.refresh = soon(() => this.read(), REFRESH_MS, signal);
    const follower = { synced: this.refresh, event: (event) => this.list.take(event) || this.refresh() };
    followOwn(follower, signal);
    this.move(query);
    poll(() => this.readQueues(), QUEUES_MS, signal);
    this.filters.readTypes(signal);
  }

  /** Show what another address names. */
  move(query) {
    this.query = query;
    this.filters.show(query);
    this.newest.hidden = !query.cursor;
    this.newest.href = hrefOf({ ...query, cursor: "" });
    this.read();
  }

  async read() {
    const { query } = this;
    try {
      const page = await get(withQuery("api/tasks", { ...wanted(query), limit: "50" }), this.signal);
      if (query !== this.query) return;
      this.list.show(page.items);
      this.older.hidden = page.next_cursor === null;
      this.older.href = hrefOf({ ...query, cursor: page.next_cursor ?? "" });
      setNotice(this.problem, null);
    } catch (error) {
      if (!this.signal.aborted && query === this.query) setNotice(this.problem, `The list is not up to date: ${error.message}.`);
    }
  }

  async readQueues() {
    try {
      const { items } = await get("api/queues", this.signal);
      this.summary.show(items);
      this.filters.showQueues(items);
      // Events tell of the caller's own tasks. An admin sees those of others too, and these are read when they move.
      const counts = JSON.stringify(items.map(({ oldest_ready_age_s, ...rest }) => rest));
      if (this.list.holdsOthers() && (counts !== this.counts || this.list.isMoving())) this.refresh();
      this.counts = counts;
    } catch (error) {
      expected(error, this.signal);
      this.summary.fade(); // the header says that the service is away
    }
  }
}

/** The path of the list with these filters. */
export const hrefOf = (query) => withQuery("#/tasks", query);

const wanted = (query) => Object.fromEntries([...FILTERS, "cursor"].map((name) => [name, query[name]]));

class Filters {
  constructor() {
    const statuses = STATUSES.map((status) => [status, status.toLowerCase()]);
    this.status = select({ name: "status" }, [["", "any"], ...statuses]);
    this.queue = select({ name: "queue" }, [["", "any"]]);
    this.task = select({ name: "task" }, [["", "any"]]);
    this.project_id = h("input", { name: "project_id", maxlength: 128, autocomplete: "off" });
    this.tag = h("input", { name: "tag", maxlength: 128, autocomplete: "off" });
    const apply = (event) => {
      event.preventDefault();
      location.hash = hrefOf(Object.fromEntries(new FormData(this.node)));
    };
    this.node = h(
      "form",
      { class: "filters", role: "search", "aria-label": "Filter tasks", on: { submit: apply, change: apply } },
      labelled("Status", this.status),
      labelled("Queue", this.queue),
      labelled("Task", this.task),
      labelled("Project", this.project_id),
      labelled("Tag", this.tag),
      h("button", {}, "Filter"),
    );
  }

  show(query) {
    for (const name of FILTERS) {
      const value = query[name] ?? "";
      if (this[name].tagName === "SELECT") choose(this[name], value);
      else this[name].value = value;
    }
  }

  showQueues(queues) {
    offer(this.queue, [["", "any"], ...queues.map(({ name }) => name)]);
  }

  async readTypes(signal) {
    try {
      const { items } = await get("api/task-types", signal);
      offer(this.task, [["", "any"], ...items.map(({ task }) => task)]);
    } catch (error) {
      expected(error, signal); // the list itself says that the service is away
    }
  }
}

class TaskRows {
  constructor() {
    this.node = table("Tasks, newest first", COLUMNS);
    this.node.className = "cards tasks";
    this.empty = h("p", { class: "empty", hidden: true }, "There are no such tasks.");
    this.tasks = new Map();
    this.parts = new Map();
    this.partsOf = new WeakMap();
  }

  show(items) {
    this.tasks = new Map(items.map((task) => [task.task_id, task]));
    this.parts.clear();
    this.empty.hidden = items.length > 0;
    this.node.hidden = items.length === 0;
    keyed(this.node.tBodies[0], items, (task) => task.task_id, () => this.newRow(), (node, task) => this.update(node, task));
  }

  /** Whether this event needs no reading of the list: it tells of progress, or is not about a task's state. */
  take(event) {
    if (event.type === "task_progress") {
      const task = this.tasks.get(event.task_id);
      if (task) {
        task.progress = event.payload;
        setProgress(this.parts.get(event.task_id), task);
      }
      return true;
    }
    return !event.type.startsWith("task_");
  }

  holdsOthers() {
    return [...this.tasks.values()].some((task) => task.user_id !== userId()) || this.tasks.size === 0;
  }

  isMoving() {
    return [...this.tasks.values()].some((task) => task.user_id !== userId() && !isFinished(task));
  }

  newRow() {
    const parts = {
      link: h("a"),
      tags: h("span", { class: "tags" }),
      badge: badge("PENDING"),
      detail: h("span", { class: "muted" }),
      due: age(null),
      bar: h("progress", { max: 100, hidden: true }),
      queue: h("span"),
      owner: h("span"),
      attempt: h("span"),
      posted: age(null),
      took: h("span"),
    };
    const status = h("span", { class: "status" }, parts.badge, parts.due, parts.bar, parts.detail);
    const name = h("span", {}, parts.link, parts.tags);
    const node = row(COLUMNS, [name, status, parts.queue, parts.owner, parts.attempt, parts.posted, parts.took]);
    this.partsOf.set(node, parts);
    return node;
  }

  update(node, task) {
    const parts = this.partsOf.get(node);
    this.parts.set(task.task_id, parts);
    text(parts.link, task.task);
    attribute(parts.link, "href", taskHref(task.task_id));
    attribute(parts.link, "title", task.task_id);
    const labels = [...(task.project_id ? [["project_id", task.project_id]] : []), ...task.tags.map((tag) => ["tag", tag])];
    keyed(parts.tags, labels, ([kind, label]) => `${kind}:${label}`, label, () => {});
    text(parts.queue, task.queue);
    text(parts.owner, task.user_id);
    text(parts.attempt, task.max_attempts === null ? task.attempt : `${task.attempt} of ${task.max_attempts}`);
    setAge(parts.posted, task.enqueued_at);
    text(parts.took, task.started_at ? duration(between(task.started_at, task.finished_at)) : NONE);
    setBadge(parts.badge, task.status);
    parts.due.hidden = isFinished(task) || !task.next_attempt_at;
    setAge(parts.due, task.next_attempt_at);
    setProgress(parts, task);
  }
}

function label([kind, value]) {
  const what = kind === "tag" ? "Tag" : "Project";
  return h("a", { class: "tag", href: hrefOf({ [kind]: value }), "aria-label": `${what} ${value}`, title: what }, value);
}

function setProgress(parts, task) {
  const shown = task.progress && !isFinished(task);
  parts.bar.hidden = !shown;
  if (shown) parts.bar.value = task.progress.percent;
  attribute(parts.bar, "aria-label", shown ? `Progress of ${task.task}` : null);
  const wait = task.waiting_for && `for ${waitWords(task.waiting_for)}`;
  text(parts.detail, wait ?? (shown ? task.progress.label : (task.error?.message ?? "")));
}

class Summary {
  constructor() {
    this.values = {};
    this.line = svg("polyline", { points: "" });
    const chart = svg("svg", { viewBox: `0 0 ${SAMPLES - 1} 20`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.line);
    this.node = h(
      "dl",
      { class: "summary", "aria-label": "All queues together" },
      this.figure("ready", "Ready", "#/queues"),
      this.figure("running", "Running", "#/queues"),
      this.figure("delayed", "Delayed", "#/queues"),
      this.figure("waiting", "Waiting", "#/queues"),
      this.figure("dead", "Dead letters", "#/dead"),
      this.figure("oldest", "Oldest ready", "#/queues"),
      this.figure("rate", "Finished per minute", "#/queues", chart),
    );
  }

  figure(name, title, href, ...more) {
    this.values[name] = h("a", { href }, NONE);
    return h("div", { class: name }, h("dt", {}, title), h("dd", {}, this.values[name], ...more));
  }

  show(queues) {
    const sum = (name) => queues.reduce((total, queue) => total + queue[name], 0);
    this.node.classList.remove("faded");
    for (const name of ["ready", "delayed", "waiting", "dead"]) text(this.values[name], number(sum(name)));
    const slots = queues.reduce((total, queue) => total + (queue.concurrency ?? 0) * queue.workers, 0);
    text(this.values.running, `${number(sum("running"))} of ${number(slots)}`);
    const oldest = Math.max(...queues.map((queue) => queue.oldest_ready_age_s ?? -1));
    text(this.values.oldest, oldest < 0 ? NONE : duration(oldest));
    const rate = sum("finished_per_minute");
    text(this.values.rate, number(rate));
    samples.push(rate);
    if (samples.length > SAMPLES) samples.shift();
    attribute(this.line, "points", points());
  }

  fade() {
    this.node.classList.add("faded");
  }
}

function points() {
  const top = Math.max(1, ...samples);
  const start = SAMPLES - samples.length;
  return samples.map((value, index) => `${start + index},${19 - (18 * value) / top}`).join(" ");
}
