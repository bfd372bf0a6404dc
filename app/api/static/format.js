// Numbers, times and values as people read them.

import { h, text } from "./dom.js";

const PLACES = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

/** A number, with at most one decimal place. */
export const number = (value) => (value === null || value === undefined ? NONE : PLACES.format(value));

/** What stands where there is nothing. */
export const NONE = "–";

/** Seconds as a length of time. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return NONE;
  if (seconds < 0.0995) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${PLACES.format(seconds)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  if (seconds < 5970) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${PLACES.format(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** Bytes in the unit that fits. */
export function bytes(count) {
  if (count < 1e3) return `${count} B`;
  if (count < 1e6) return `${PLACES.format(count / 1e3)} kB`;
  if (count < 1e9) return `${PLACES.format(count / 1e6)} MB`;
  return `${PLACES.format(count / 1e9)} GB`;
}

/** A moment, in full. */
export const moment = (iso) => (iso ? MOMENT.format(new Date(iso)) : NONE);

/** The time of day; with the day where that is not today. */
export function clock(iso) {
  const when = new Date(iso);
  return (when.toDateString() === new Date().toDateString() ? CLOCK : MOMENT).format(when);
}

/** Seconds between two moments; without the second until now. */
export const between = (from, to) => (new Date(to ?? Date.now()) - new Date(from)) / 1000;

/** What a task waits for, in words, as the API says it. */
export function waitWords({ kind, step, count, name }) {
  const words = { tasks: () => `${number(count)} ${count === 1 ? "task" : "tasks"}`, time: () => "time", event: () => `the event ${name}`, approval: () => "an approval" };
  return words[kind]?.() ?? step;
}

/** A value as indented JSON. */
export const pretty = (value) => JSON.stringify(value, null, 2);

/** A `<time>` that says how long ago, or in how long, a moment is, and goes on saying so. */
export function age(iso) {
  const node = h("time", { class: "age" });
  setAge(node, iso);
  return node;
}

/** Let a `<time>` of `age` mean another moment. */
export function setAge(node, iso) {
  if (node.dateTime === (iso ?? "") && node.textContent !== "") return;
  node.dateTime = iso ?? "";
  node.title = moment(iso);
  tell(node);
}

function tell(node) {
  if (!node.dateTime) return text(node, NONE);
  const seconds = between(node.dateTime);
  // Clocks of two machines differ a little; nothing is told to have been posted in the future for that.
  if (seconds < -2) return text(node, `in ${duration(-seconds)}`);
  return text(node, seconds < 1 ? "now" : `${duration(Math.floor(seconds))} ago`);
}

setInterval(() => {
  if (!document.hidden) document.querySelectorAll("time.age").forEach(tell);
}, 1000);
