// The events of one task as they come: what they say, and the text that they stream.

import { attribute, h, text } from "./dom.js";
import { clock, moment, number, pretty, waitWords } from "./format.js";

/** Entries that stay on the screen; the log says how many went before. */
const ENTRIES = 500;
const LONG_CHARS = 400;
const MOMENT = /^\d{4}-\d\d-\d\dT[\d:.]+Z$/;
/** A reader who is this near the end follows it. */
const NEAR_PX = 40;

/** `add(event)` shows an event. */
export class EventLog {
  constructor() {
    this.list = h("ol", { class: "log", tabindex: 0, role: "log", "aria-live": "off", "aria-label": "Events" });
    this.dropped = h("p", { class: "muted", hidden: true });
    this.gone = 0;
    this.chunks = null;
    this.waiting = [];
    this.stream = new TextStream();
    this.node = h("section", { "aria-labelledby": "events" }, h("h2", { id: "events" }, "Events"), this.dropped, this.list);
  }

  add(event) {
    // A fast task makes more events than a screen has frames.
    if (this.waiting.push(event) === 1) nextFrame(() => this.flush());
  }

  flush() {
    const { scrollHeight, scrollTop, clientHeight } = this.list;
    const follows = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    for (const event of this.waiting.splice(0)) {
      this.stream.take(event);
      this.entry(event);
    }
    this.stream.flush();
    this.trim();
    if (follows) this.list.scrollTop = this.list.scrollHeight;
  }

  entry(event) {
    if (event.type === "text_chunk" && this.chunks) {
      this.chunks.count += 1;
      return text(this.chunks.node, `${number(this.chunks.count)} pieces of text`);
    }
    const what = h("span", {});
    this.chunks = event.type === "text_chunk" ? { node: what, count: 1 } : null;
    what.append(this.chunks ? "1 piece of text" : said(event));
    const when = h("time", { class: "clock", title: moment(event.at) }, clock(event.at));
    this.list.append(h("li", {}, when, h("code", {}, event.type), what));
  }

  trim() {
    while (this.list.childElementCount > ENTRIES) {
      this.list.firstElementChild.remove();
      this.gone += 1;
    }
    this.dropped.hidden = this.gone === 0;
    text(this.dropped, `${number(this.gone)} earlier entries are not shown here; the API has them.`);
  }

  /** Say that the service itself does not have the earlier events any more. */
  tellGap() {
    this.list.append(h("li", { class: "muted" }, "Events before this are not kept any more."));
  }
}

function said({ type, payload }) {
  const line = (WORDS[type] ?? fields)(payload);
  if (line.length <= LONG_CHARS) return line;
  return h("details", {}, h("summary", {}, `${line.slice(0, 120)}…`), h("pre", {}, pretty(payload)));
}

const waiting = ({ waiting_for: wait }) => `for ${waitWords(wait)} · until ${clock(wait.until)}`;
const progress = ({ percent, label }) => [`${number(percent)} %`, label].filter(Boolean).join(" · ");

const WORDS = { task_progress: progress, task_waiting: waiting };

function fields(payload) {
  const known = Object.entries(payload ?? {}).filter(([, value]) => value !== null);
  return known.map(([name, value]) => `${name.replaceAll("_", " ")} ${word(value)}`).join(" · ");
}

function word(value) {
  if (typeof value === "string") return MOMENT.test(value) ? clock(value) : value;
  const isError = typeof value?.type === "string" && typeof value?.message === "string";
  return isError ? `${value.type}: ${value.message}` : JSON.stringify(value);
}

/** The text that `text_chunk` events bring; `stream_start` begins it anew. */
class TextStream {
  constructor() {
    this.pieces = [];
    this.output = h("pre", { class: "stream", tabindex: 0, role: "region", "aria-label": "Text" });
    this.node = h("section", { hidden: true, "aria-labelledby": "text" }, h("h2", { id: "text" }, "Text"), this.output);
  }

  take(event) {
    if (event.type === "stream_start") {
      this.pieces = [];
      text(this.output, "");
    }
    if (event.type === "text_chunk") this.pieces.push(String(event.payload?.text ?? ""));
    if (event.type === "stream_start" || event.type === "stream_end") {
      attribute(this.output, "aria-busy", event.type === "stream_start" ? "true" : null);
    }
  }

  flush() {
    if (this.pieces.length === 0) return;
    this.node.hidden = false;
    const { scrollHeight, scrollTop, clientHeight } = this.output;
    const follows = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    this.output.append(this.pieces.splice(0).join(""));
    if (follows) this.output.scrollTop = this.output.scrollHeight;
  }
}

// A page that cannot be seen has no frames, and its log must not grow in memory until it can.
const nextFrame = (work) => (document.hidden ? setTimeout(work, 250) : requestAnimationFrame(work));
