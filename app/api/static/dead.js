// Dead letters: what failed for good, and why; replay and discard it.

import { get, post, remove, withQuery } from "./api.js";
import { attribute, h, keyed, soon, text } from "./dom.js";
import { age, moment, pretty, setAge } from "./format.js";
import { followOwn } from "./live.js";
import { block, carefulButton, facts, json, notice, row, setNotice, table, taskHref } from "./parts.js";

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
  const actions = h("div", { class: "actions", hidden: true });
  const done = h("p", { role: "status" });
  const read = async () => {
    try {
      const page = await get(withQuery("api/dead-letters", { queue, task, cursor }), signal);
      keyed(letters.tBodies[0], page.items, (letter) => letter.task_id, newRow, update);
      letters.hidden = page.items.length === 0;
      empty.hidden = page.items.length > 0;
      actions.hidden = page.items.length === 0;
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
  const many = async (action, tell) => {
    for (const button of actions.children) button.disabled = true;
    try {
      text(done, tell(await inPieces(action, { queue, task })));
    } catch (error) {
      setNotice(problem, `Not all of it was done: ${error.message}.`);
    }
    for (const button of actions.children) button.disabled = false;
    refresh();
  };
  actions.append(
    carefulButton("Replay all", "Replay all of these?", () => many("replay", toldReplay)),
    carefulButton("Discard all", "Discard all of these for good?", () => many("discard", toldDiscard)),
  );
  const narrowed = [queue && `queue ${queue}`, task && `task ${task}`].filter(Boolean).join(", ");
  const title = narrowed ? `Dead letters of ${narrowed}` : "Dead letters";
  return { title, node: h("div", {}, h("h1", {}, title), problem, actions, done, letters, empty, h("p", { class: "pages" }, all, older)) };
}

/** All that match, older pages included, as pieces of the work; what cannot be replayed stays and is passed over. */
async function inPieces(action, { queue = null, task = null }) {
  const pieces = [];
  let cursor = "";
  while (cursor !== null) {
    const body = JSON.stringify({ queue, task, all: true, cursor });
    pieces.push(await post(`api/dead-letters/${action}`, { body }));
    cursor = pieces.at(-1).next_cursor;
  }
  return pieces;
}

function toldReplay(pieces) {
  const replayed = pieces.reduce((sum, piece) => sum + piece.replayed.length, 0);
  const failed = pieces.flatMap((piece) => piece.failed);
  const rest = failed.length ? ` ${failed.length} stay; the first: ${failed[0].detail}.` : "";
  return `${replayed} replayed.${rest}`;
}

const toldDiscard = (pieces) => `${pieces.reduce((sum, piece) => sum + piece.discarded, 0)} discarded.`;

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
        ["Steps done", letter.steps.length ? letter.steps.map((step) => step.name).join(", ") : null],
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

/** Replay the letter, with its parameters or with others, or discard it. */
function again(letter, problem) {
  const path = `api/dead-letters/${encodeURIComponent(letter.task_id)}`;
  const editor = h("textarea", { rows: 8, spellcheck: "false", "aria-label": "Parameters as JSON" });
  editor.value = pretty(letter.params ?? {});
  const run = async (button, work) => {
    button.disabled = true;
    try {
      location.hash = await work();
    } catch (error) {
      setNotice(problem, error instanceof SyntaxError ? `The parameters are no JSON: ${error.message}.` : `${error.message}.`);
    }
    button.disabled = false;
  };
  const replay = async (body) => taskHref((await post(`${path}/replay`, { body })).task_id);
  const edited = () => {
    JSON.parse(editor.value);
    return replay(`{"params":${editor.value}}`);
  };
  const discarded = async () => {
    await remove(path);
    return "#/dead";
  };
  const same = h("button", { type: "button", on: { click: () => run(same, () => replay()) } }, "Replay");
  const other = h("button", { type: "button", on: { click: () => run(other, async () => edited()) } }, "Replay with these");
  const discard = carefulButton("Discard", "Discard it for good?", () => run(discard, discarded));
  const details = h("details", {}, h("summary", {}, "With other parameters"), editor, other);
  return h("div", { class: "actions" }, same, discard, details);
}
