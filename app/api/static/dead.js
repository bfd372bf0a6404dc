// Dead letters: what failed for good, and why.

import { get, post, withQuery } from "./api.js";
import { attribute, h, keyed, soon, text } from "./dom.js";
import { age, moment, pretty, setAge } from "./format.js";
import { followOwn } from "./live.js";
import { block, facts, json, notice, row, setNotice, table, taskHref } from "./parts.js";

const REFRESH_MS = 1_000;
const COLUMNS = ["Task", "Error", "Queue", "Owner", "Attempts", "Failed"];

/** The list, narrowed to `route.query`. */
export function deadPage(route, signal) {
  const { queue, task, cursor } = route.query;
  const letters = table("Dead letters, newest first", COLUMNS);
  letters.className = "cards";
  const problem = notice();
  const empty = h("p", { class: "empty", hidden: true }, "Nothing has failed for good.");
  const older = h("a", { class: "button", hidden: true }, "Older");
  const all = h("a", { class: "button", href: "#/dead", hidden: !(queue || task || cursor) }, "All, from the newest");
  const read = async () => {
    try {
      const page = await get(withQuery("api/dead-letters", { queue, task, cursor }), signal);
      keyed(letters.tBodies[0], page.items, (letter) => letter.task_id, newRow, update);
      letters.hidden = page.items.length === 0;
      empty.hidden = page.items.length > 0;
      older.hidden = page.next_cursor === null;
      attribute(older, "href", withQuery("#/dead", { queue, task, cursor: page.next_cursor }));
      setNotice(problem, null);
    } catch (error) {
      if (!signal.aborted) setNotice(problem, `The list is not up to date: ${error.message}.`);
    }
  };
  const refresh = soon(read, REFRESH_MS, signal);
  followOwn({ synced: refresh, event: (event) => event.type === "task_failed" && refresh() }, signal);
  read();
  const narrowed = [queue && `queue ${queue}`, task && `task ${task}`].filter(Boolean).join(", ");
  const title = narrowed ? `Dead letters of ${narrowed}` : "Dead letters";
  return { title, node: h("div", {}, h("h1", {}, title), problem, letters, empty, h("p", { class: "pages" }, all, older)) };
}

const partsOf = new WeakMap();

function newRow(letter) {
  const link = h("a", { href: `#/dead/${encodeURIComponent(letter.task_id)}`, title: letter.task_id }, letter.task);
  const parts = { error: h("span", { class: "clip" }), failed: age(null), attempts: h("span") };
  const line = row(COLUMNS, [link, parts.error, letter.queue, letter.user_id, parts.attempts, parts.failed]);
  partsOf.set(line, parts);
  return line;
}

function update(line, letter) {
  const parts = partsOf.get(line);
  text(parts.error, `${letter.error.type}: ${letter.error.message}`);
  text(parts.attempts, letter.attempts);
  setAge(parts.failed, letter.failed_at);
}

/** The dead letter of the task `route.id`. */
export function deadLetterPage(route, signal) {
  const problem = notice();
  const body = h("div");
  const heading = h("h1", {}, "Dead letter");
  const read = async () => {
    try {
      const letter = await get(`api/dead-letters/${encodeURIComponent(route.id)}`, signal);
      text(heading, letter.task);
      body.replaceChildren(...letterParts(letter, problem));
    } catch (error) {
      if (!signal.aborted) setNotice(problem, `${error.message}.`);
    }
  };
  read();
  const crumb = h("p", { class: "crumb" }, h("a", { href: "#/dead" }, "Dead letters"));
  return { title: "Dead letter", node: h("div", {}, crumb, heading, problem, body) };
}

function letterParts(letter, problem) {
  return [
    again(letter, problem),
    section("Error", h("p", {}, h("strong", {}, letter.error.type)), block(letter.error.message, "Message")),
    section("Traceback of the last attempt", block(letter.traceback || "There is none.", "Traceback")),
    letter.history.length ? section("Attempts before it", h("ol", { class: "log" }, ...letter.history.map(past))) : "",
    section("Parameters", letter.params === null ? h("p", {}, "They could not be read.") : json(letter.params, "Parameters")),
    section(
      "Details",
      facts([
        ["Id", h("a", { class: "id", href: taskHref(letter.task_id) }, letter.task_id)],
        ["Queue", letter.queue],
        ["Owner", letter.user_id],
        ["Project", letter.project_id],
        ["Tags", letter.tags.length ? letter.tags.join(", ") : null],
        ["Attempts", String(letter.attempts)],
        ["Posted", moment(letter.enqueued_at)],
        ["Failed", moment(letter.failed_at)],
        ["Correlation id", letter.correlation_id && h("span", { class: "id" }, letter.correlation_id)],
      ]),
    ),
  ];
}

const section = (title, ...content) => h("section", { "aria-label": title }, h("h2", {}, title), ...content);

function past({ attempt, at, error }) {
  return h("li", {}, h("time", { class: "clock", title: moment(at) }, `attempt ${attempt}`), h("code", {}, error.type), h("span", {}, error.message));
}

/** Run the task again, with its parameters or with others. */
function again(letter, problem) {
  const editor = h("textarea", { rows: 8, spellcheck: "false", "aria-label": "Parameters as JSON" });
  editor.value = pretty(letter.params ?? {});
  const run = async (event, body) => {
    const button = event.currentTarget;
    button.disabled = true;
    try {
      if (body !== undefined) JSON.parse(editor.value);
      const task = await post(`api/tasks/${encodeURIComponent(letter.task_id)}/retry`, { body });
      location.hash = taskHref(task.task_id);
    } catch (error) {
      setNotice(problem, error instanceof SyntaxError ? `The parameters are no JSON: ${error.message}.` : `${error.message}.`);
    }
    button.disabled = false;
  };
  const same = h("button", { type: "button", on: { click: (event) => run(event) } }, "Run again");
  const other = h("button", { type: "button", on: { click: (event) => run(event, `{"params":${editor.value}}`) } }, "Run with these");
  const details = h("details", {}, h("summary", {}, "With other parameters"), editor, other);
  return h("div", { class: "actions" }, same, details);
}
