// The frame around the pages: which one is shown, how the service is, and who asks.

import { get, hasKey, onRefused, useKey } from "./api.js";
import { approvalPage, approvalsPage } from "./approvals.js";
import { attribute, h, poll, text } from "./dom.js";
import { deadLetterPage, deadPage } from "./dead.js";
import { connect, onState } from "./live.js";
import { postPage } from "./post.js";
import { queuesPage } from "./queues.js";
import { schedulesPage } from "./schedules.js";
import { taskPage } from "./task.js";
import { tasksPage } from "./tasks.js";

const HEALTH_MS = 10_000;
/** What can stand in a header: a key that cannot is none. */
const KEY = /^[\x21-\x7e]+$/;
const PAGES = { tasks: [tasksPage, taskPage], queues: [queuesPage], schedules: [schedulesPage], approvals: [approvalsPage, approvalPage], dead: [deadPage, deadLetterPage], new: [postPage] };

const main = document.getElementById("main");
const forget = document.getElementById("forget");
let leave = new AbortController();
let shown = null;
let isFirst = true;
let asking = false;

/** The page that the address names: `#/tasks`, `#/tasks/<id>`, with filters behind a question mark. */
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, id] = path.split("/");
  const pages = PAGES[name] ?? PAGES.tasks;
  const isOne = Boolean(id) && pages.length > 1;
  return { name: PAGES[name] ? name : "tasks", page: pages[isOne ? 1 : 0], id: isOne ? decoded(id) : null, query: Object.fromEntries(new URLSearchParams(query)) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // an address that somebody has cut; there is nothing under it
  }
}

function show() {
  if (asking) return;
  const wanted = route();
  // A page may take another address itself: whoever changes its filter stays in the filter.
  if (shown?.page === wanted.page && shown.moved) return shown.moved(wanted);
  leave.abort();
  leave = new AbortController();
  const { title, node, moved } = wanted.page(wanted, leave.signal);
  shown = { page: wanted.page, moved };
  document.title = `${title} · Nightshift`;
  for (const link of document.querySelectorAll("nav a")) {
    attribute(link, "aria-current", link.hash.startsWith(`#/${wanted.name}`) ? "page" : null);
  }
  put(node);
}

/** Show a page, and let keyboards and screen readers begin there. */
function put(node) {
  main.replaceChildren(node);
  forget.hidden = !hasKey();
  // A page that has just been opened begins at its top by itself.
  const stays = isFirst;
  isFirst = false;
  if (stays) return;
  scrollTo(0, 0);
  main.focus({ preventScroll: true });
}

/** Ask for a key, once: what was on the screen comes back with it. */
function ask(problem) {
  if (asking) return;
  asking = true;
  shown = null;
  leave.abort();
  const refused = hasKey();
  useKey(null);
  const error = h("p", { class: "field-error", id: "key-error", role: "alert" }, refused ? `That was not accepted: ${problem.message}.` : "");
  const field = h("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", "aria-describedby": "key-hint key-error" });
  const submit = (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (!KEY.test(key)) return text(error, "Expected a key or a token: letters, digits and signs, without spaces.");
    asking = false;
    useKey(key);
    return start();
  };
  const hint = h("p", { class: "hint", id: "key-hint" }, "An API key (nightshift keys create) or a JWT. It stays in this tab, until the tab is closed.");
  const form = h("form", { class: "post", on: { submit } }, h("label", { for: "key" }, "Key or token"), hint, field, error, h("p", {}, h("button", { class: "primary" }, "Sign in")));
  document.title = "Sign in · Nightshift";
  setState("live", "signed out", "");
  put(h("div", {}, h("h1", {}, "Sign in"), form));
  field.focus();
}

function start() {
  show();
  connect();
}

async function readHealth() {
  try {
    await get("readyz");
    setState("health", "ready", "good");
  } catch (error) {
    const missing = error.document?.missing;
    if (missing) setState("health", `missing: ${missing.join(", ")}`, "bad");
    else setState("health", error.status ? "not ready" : "unreachable", "bad");
  }
}

function setState(id, words, kind) {
  const node = document.getElementById(id);
  text(node, words);
  node.className = `state ${kind}`;
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
forget.addEventListener("click", () => {
  useKey(null);
  location.reload();
});
onRefused(ask);
onState((state) => {
  if (!asking) setState("live", state === "live" ? "live" : "reconnecting", state === "live" ? "good" : "bad");
});
addEventListener("hashchange", show);
poll(readHealth, HEALTH_MS, new AbortController().signal);
start();
