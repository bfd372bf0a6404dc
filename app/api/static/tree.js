// What a task has started, and what those have started: a tree that is kept fresh while something in it runs.

import { get } from "./api.js";
import { attribute, h, keyed, poll, text } from "./dom.js";
import { number } from "./format.js";
import { badge, isFinished, notice, setBadge, setNotice, taskHref } from "./parts.js";

const LOOK_MS = 2_000;

/** The section of a task's page that shows its descendants; hidden while it has none. */
export class TaskTree {
  constructor(id, signal) {
    this.path = `api/tasks/${encodeURIComponent(id)}/tree`;
    this.signal = signal;
    this.over = false;
    this.problem = notice();
    this.list = h("ul", { class: "tree" });
    this.node = h("section", { "aria-labelledby": "tree", hidden: true }, h("h2", { id: "tree" }, "Started by it"), this.problem, this.list);
    poll(async () => this.over || (await this.read()), LOOK_MS, signal);
  }

  async read() {
    try {
      const { root } = await get(this.path, this.signal);
      this.node.hidden = !root.children.length && !root.children_not_shown;
      showChildren(this.list, root);
      this.over = isOver(root);
      setNotice(this.problem, null);
    } catch (error) {
      if (!this.signal.aborted) setNotice(this.problem, `${error.message}.`);
    }
  }
}

const isOver = (branch) => isFinished(branch) && branch.children.every(isOver);

function showChildren(list, branch) {
  const { children, children_not_shown: hidden } = branch;
  const rest = hidden ? [{ task_id: "", hidden }] : [];
  keyed(list, [...children, ...rest], (child) => child.task_id, created, updated);
}

function created(branch) {
  if (branch.hidden) return h("li", { class: "rest" });
  const children = h("ul");
  const line = h("a", { href: taskHref(branch.task_id) }, [branch.label, branch.task].filter(Boolean).join(" · "));
  return h("li", {}, line, " ", badge(branch.status), " ", h("span", { class: "about" }), children);
}

function updated(node, branch) {
  if (branch.hidden) return text(node, `and ${number(branch.hidden)} more`);
  setBadge(node.querySelector(":scope > .badge"), branch.status);
  text(node.querySelector(":scope > .about"), about(branch));
  const children = node.querySelector(":scope > ul");
  attribute(children, "hidden", !branch.children.length && !branch.children_not_shown);
  return showChildren(children, branch);
}

function about({ error, progress, status, waiting_for: waiting }) {
  if (error && status !== "SUCCESS") return `${error.type}: ${error.message}`;
  const done = progress && status !== "SUCCESS" ? `${number(progress.percent)} %` : "";
  return [done, waiting ? `waits for ${waiting.step}` : ""].filter(Boolean).join(", ");
}
