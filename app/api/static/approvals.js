// Approvals: what tasks ask people. A list of the open ones, and a page where one decides.

import { call, get, post, withQuery } from "./api.js";
import { attribute, h, keyed, poll, soon, text } from "./dom.js";
import { age, moment, setAge } from "./format.js";
import { followOwn } from "./live.js";
import { badge, carefulButton, facts, json, labelled, notice, row, setBadge, setNotice, table, taskHref } from "./parts.js";

const EVERY_MS = 5_000;
const REFRESH_MS = 1_000;
const COLUMNS = ["Question", "Task", "Owner", "Status", "Asked", "Expires"];
const TOLD = new Set(["hitl_pending", "approval_decided"]);
const partsOf = new WeakMap();

/** The list: those that are pending, or all (`?all=1`). */
export function approvalsPage(route, signal) {
  const { all, cursor } = route.query;
  const status = all ? null : "pending";
  const list = table(all ? "Approvals, newest first" : "Open approvals, newest first", COLUMNS);
  list.className = "cards";
  const problem = notice();
  const none = h("p", { class: "empty", hidden: true }, all ? "Nobody was asked anything." : "Nobody is asked anything now.");
  const older = h("a", { class: "button", hidden: true }, "Older");
  const others = h("a", { class: "button", href: all ? "#/approvals" : "#/approvals?all=1" }, all ? "Open ones" : "Decided ones too");
  const read = async () => {
    try {
      const page = await get(withQuery("api/approvals", { status, cursor }), signal);
      keyed(list.tBodies[0], page.items, (item) => item.approval_id, newRow, update);
      list.hidden = page.items.length === 0;
      none.hidden = page.items.length > 0;
      older.hidden = page.next_cursor === null;
      attribute(older, "href", withQuery("#/approvals", { all, cursor: page.next_cursor }));
      setNotice(problem, null);
    } catch (error) {
      if (!signal.aborted) setNotice(problem, `The list is not up to date: ${error.message}.`);
    }
  };
  const refresh = soon(read, REFRESH_MS, signal);
  followOwn({ synced: refresh, event: (event) => TOLD.has(event.type) && refresh() }, signal);
  // Who may decide by a scope is not told by an event.
  poll(read, EVERY_MS, signal);
  return { title: "Approvals", node: h("div", {}, h("h1", {}, "Approvals"), problem, list, none, h("p", { class: "pages" }, others, older)) };
}

function newRow(item) {
  const parts = { state: badge(item.status), asked: age(item.created_at), expires: age(item.expires_at) };
  const link = h("a", { class: "clip", href: `#/approvals/${encodeURIComponent(item.approval_id)}` }, item.subject);
  const task = h("a", { href: taskHref(item.task_id) }, item.task);
  const line = row(COLUMNS, [link, task, item.user_id, parts.state, parts.asked, parts.expires]);
  partsOf.set(line, parts);
  return line;
}

function update(line, item) {
  const parts = partsOf.get(line);
  setBadge(parts.state, item.status);
  setAge(parts.asked, item.created_at);
  setAge(parts.expires, item.expires_at);
}

/** The approval `route.id`. */
export function approvalPage(route, signal) {
  const path = `api/approvals/${encodeURIComponent(route.id)}`;
  const problem = notice();
  const body = h("div");
  const heading = h("h1", {}, "Approval");
  let shown = null;
  const show = (approval) => {
    text(heading, approval.subject);
    // What somebody is writing stays while nothing has changed.
    if (shown === approval.status) return;
    shown = approval.status;
    body.replaceChildren(...partsOfOne(approval, path, problem, read));
  };
  const read = async () => {
    try {
      show(await get(path, signal));
    } catch (error) {
      if (!signal.aborted) setNotice(problem, `${error.message}.`);
    }
  };
  const refresh = soon(read, REFRESH_MS, signal);
  followOwn({ synced: refresh, event: (event) => event.payload?.approval_id === route.id && refresh() }, signal);
  poll(read, EVERY_MS, signal);
  const crumb = h("p", { class: "crumb" }, h("a", { href: "#/approvals" }, "Approvals"));
  return { title: "Approval", node: h("div", {}, crumb, heading, problem, body) };
}

function partsOfOne(approval, path, problem, read) {
  const isOpen = approval.status === "PENDING";
  const deciders = [...approval.deciders, ...(approval.scope ? [`whoever has the scope ${approval.scope}`] : [])];
  return [
    isOpen ? answer(approval, path, problem, read) : "",
    section("What to know", json(approval.payload, "What to know")),
    approval.edits === null ? "" : section("Edits", json(approval.edits, "Edits")),
    section(
      "Details",
      facts([
        ["Status", badge(approval.status)],
        ["Notes", approval.notes],
        ["Decided by", approval.decided_by],
        [isOpen ? "Expires" : "Ended", moment(isOpen ? approval.expires_at : approval.decided_at)],
        ["Asked", moment(approval.created_at)],
        ["May decide", deciders.length ? deciders.join(", ") : approval.user_id],
        ["Task", h("a", { href: taskHref(approval.task_id) }, approval.task)],
        ["Owner", approval.user_id],
        ["Project", approval.project_id],
        ["Id", h("span", { class: "id" }, approval.approval_id)],
      ]),
    ),
  ];
}

const section = (title, ...content) => h("section", { "aria-label": title }, h("h2", {}, title), ...content);

/** Approve or reject, with notes and edits; or take the question back. */
function answer(approval, path, problem, read) {
  const notes = h("textarea", { rows: 2, maxlength: 4000, name: "notes" });
  const edits = h("textarea", { rows: 6, spellcheck: "false", name: "edits", "aria-label": "Edits as a JSON object" });
  const actions = h("div", { class: "actions" });
  const act = async (work) => {
    for (const button of actions.children) button.disabled = true;
    try {
      await work();
      setNotice(problem, null);
    } catch (error) {
      const reason = error instanceof SyntaxError ? `The edits are no JSON: ${error.message}` : error.message;
      setNotice(problem, `${reason}.`);
    }
    for (const button of actions.children) button.disabled = false;
    await read();
  };
  const decide = (approved) => act(async () => {
    const wanted = edits.value.trim();
    if (wanted) JSON.parse(wanted);
    // As it was written: numbers keep their digits.
    await post(path, { body: `{"approved":${approved},"notes":${JSON.stringify(notes.value || null)},"edits":${wanted || null}}` });
  });
  const withdraw = () => act(() => call("DELETE", path));
  const may = approval.may_decide;
  actions.append(
    h("button", { type: "button", class: "primary", hidden: !may, on: { click: () => decide(true) } }, "Approve"),
    h("button", { type: "button", hidden: !may, on: { click: () => decide(false) } }, "Reject"),
  );
  if (approval.may_withdraw) actions.append(carefulButton("Withdraw", "Take the question back?", withdraw));
  const schema = approval.edits_schema === null ? "" : json(approval.edits_schema, "JSON schema of the edits");
  const details = h("details", {}, h("summary", {}, "With edits"), edits, schema);
  const fields = h("div", { hidden: !may }, labelled("Notes", notes), details);
  return section("Answer", may ? "" : h("p", {}, "Others decide on this."), fields, actions);
}
