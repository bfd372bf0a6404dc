// Pieces that several pages show.

import { h, text } from "./dom.js";
import { NONE, bytes, pretty } from "./format.js";

/** Longer values are shown when they are asked for: a browser is slow with megabytes in one block. */
const SHOWN_CHARS = 100_000;
const FINISHED = new Set(["SUCCESS", "FAILURE", "CANCELLED"]);

export const STATUSES = ["PENDING", "STARTED", "RETRY", "WAITING", "SUCCESS", "FAILURE", "CANCELLED"];
export const isFinished = (task) => FINISHED.has(task.status);
export const taskHref = (id) => `#/tasks/${encodeURIComponent(id)}`;

/** A word for a task's status, with its colour. */
export function badge(status) {
  const node = h("span");
  setBadge(node, status);
  return node;
}

export function setBadge(node, status) {
  node.className = `badge ${status.toLowerCase()}`;
  text(node, status.toLowerCase());
}

/** A message; an error is read out at once. */
export function notice() {
  return h("p", { class: "notice", role: "alert", hidden: true });
}

export function setNotice(node, message) {
  text(node, message ?? "");
  node.hidden = !message;
}

/** A block of text, as it is. */
export function block(value, label) {
  const shown = value.length > SHOWN_CHARS ? value.slice(0, SHOWN_CHARS) : value;
  const pre = h("pre", { tabindex: 0, role: "region", "aria-label": label }, shown);
  if (shown === value) return pre;
  const all = () => {
    text(pre, value);
    more.remove();
  };
  const more = h("button", { type: "button", on: { click: all } }, `Show all of it (${bytes(value.length)})`);
  return h("div", {}, pre, more);
}

/** A block of JSON. */
export const json = (value, label) => block(pretty(value), label);

/** Terms and what they mean; pairs whose value is null are left out. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
  return h("dl", { class: "facts" }, ...shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** A table in a box that scrolls sideways; `labels` name the columns. Its body is `table.tBodies[0]`. */
export function table(caption, labels) {
  const head = h("tr", {}, ...labels.map((label) => h("th", { scope: "col" }, label)));
  return h("table", {}, h("caption", {}, caption), h("thead", {}, head), h("tbody"));
}

/** A row whose cells know the names of their columns, which a narrow screen shows beside them. */
export function row(labels, cells) {
  return h("tr", {}, ...labels.map((label, index) => h("td", { "data-label": label }, cells[index])));
}

/** A button that asks once more before it does something that cannot be undone. */
export function carefulButton(label, question, work) {
  const reset = () => {
    button.classList.remove("sure");
    text(button, label);
  };
  const click = async () => {
    if (!button.classList.contains("sure")) {
      button.classList.add("sure");
      return text(button, question);
    }
    reset();
    return work();
  };
  const escape = ({ key }) => key === "Escape" && reset();
  const button = h("button", { type: "button", on: { click, blur: reset, keydown: escape } }, label);
  return button;
}

/** A select; options are values or `[value, label]`. */
export function select(props, options, value = "") {
  const node = h("select", props);
  offer(node, options);
  choose(node, value);
  return node;
}

/** Let a select offer these options; what is chosen stays chosen. Offering the same again leaves it as it is open. */
export function offer(node, options) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  const same = pairs.length === node.length && pairs.every(([value], index) => node.options[index].value === value);
  if (same) return;
  const { value } = node;
  node.replaceChildren(...pairs.map(([known, label]) => h("option", { value: known }, label)));
  if (value) choose(node, value);
}

/** Choose a value, also one that is not (or not yet) among those that are offered. */
export function choose(node, value) {
  node.value = value;
  if (node.selectedIndex < 0) {
    node.append(h("option", { value }, value));
    node.value = value;
  }
}

/** A label, a control and a hint that belong together. */
export function labelled(label, control) {
  return h("label", {}, h("span", {}, label), control);
}

export const orNone = (value) => value ?? NONE;
