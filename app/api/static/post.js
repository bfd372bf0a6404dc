// The form that posts a task. The service alone says what is valid; its answers are shown at the fields they are about.

import { get, post } from "./api.js";
import { attribute, h, text } from "./dom.js";
import { duration } from "./format.js";
import { Field, fieldsOf, objectText } from "./fields.js";
import { json, labelled, notice, select, setNotice, taskHref } from "./parts.js";

const COMMON = [
  { name: "project_id", schema: { type: "string", maxLength: 128 }, label: "Project" },
  { name: "tags", schema: { type: "string", maxLength: 128 }, label: "Tags", hint: "separated by commas" },
  { name: "delay_s", schema: { type: "number", minimum: 0 }, label: "Delay", hint: "seconds to wait before it runs" },
  { name: "priority", schema: { type: "integer", minimum: 0 }, label: "Priority", hint: "a higher one overtakes in the same queue", default: 0 },
];

/** The page; `route.query.task` chooses the task. */
export function postPage(route, signal) {
  const problem = notice();
  const place = h("div");
  const fill = async () => {
    try {
      const { items } = await get("api/task-types", signal);
      place.replaceChildren(new PostForm(items, route.query.task, problem).node);
    } catch (error) {
      if (!signal.aborted) setNotice(problem, `${error.message}.`);
    }
  };
  fill();
  return { title: "Post a task", node: h("div", {}, h("h1", {}, "Post a task"), place, problem) };
}

class PostForm {
  constructor(types, wanted, problem) {
    this.types = new Map(types.map((type) => [type.task, type]));
    this.problem = problem;
    this.problem.remove();
    this.choice = select({ name: "task" }, types.map(({ task }) => task), this.types.has(wanted) ? wanted : types[0]?.task);
    this.choice.addEventListener("change", () => this.choose());
    this.about = h("p", { class: "muted" });
    this.params = h("div", { class: "fields" });
    this.schema = h("div");
    this.common = COMMON.map((options) => new Field(options));
    this.button = h("button", { class: "primary" }, "Post");
    this.node = h(
      "form",
      { class: "post", novalidate: true, on: { submit: (event) => this.submit(event), input: () => this.renew() } },
      h("div", { class: "field" }, labelled("Task", this.choice)),
      this.about,
      h("fieldset", {}, h("legend", {}, "Parameters"), this.params, this.schema),
      h("details", {}, h("summary", {}, "Project, tags, delay, priority"), h("div", { class: "fields" }, ...this.common.map(({ node }) => node))),
      problem,
      h("p", { class: "actions" }, this.button),
    );
    this.renew();
    this.choose();
  }

  /** Another content is another request; the same one, sent again after a broken connection, is not a second task. */
  renew() {
    this.key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  choose() {
    const type = this.types.get(this.choice.value);
    this.fields = fieldsOf(type.params_schema);
    this.params.replaceChildren(...this.fields.map(({ node }) => node));
    const { max_attempts, hard_limit_s } = type.policy;
    text(this.about, `${type.summary} Queue ${type.queue}, at most ${max_attempts} attempts of ${duration(hard_limit_s)} each.`);
    this.schema.replaceChildren(
      h("details", {}, h("summary", {}, "Schema of the parameters"), json(type.params_schema, "Schema of the parameters")),
      h("details", {}, h("summary", {}, "Schema of the result"), json(type.result_schema, "Schema of the result")),
    );
    history.replaceState(null, "", `#/new?task=${encodeURIComponent(type.task)}`);
    setNotice(this.problem, null);
  }

  async submit(event) {
    event.preventDefault();
    for (const field of [...this.fields, ...this.common]) field.refuse(null);
    setNotice(this.problem, null);
    const body = this.body();
    if (body === null) return this.focusFirst();
    this.button.disabled = true;
    try {
      const task = await post("api/tasks", { body, headers: { "Idempotency-Key": this.key } });
      location.hash = taskHref(task.task_id);
    } catch (error) {
      this.refuse(error);
    }
    this.button.disabled = false;
  }

  /** The request as JSON text; null when a field holds no JSON. */
  body() {
    const broken = this.fields.filter((field) => {
      try {
        field.jsonText();
        return false;
      } catch (error) {
        field.refuse(`Expected JSON, text in quotes: ${error.message}`);
        return true;
      }
    });
    if (broken.length) return null;
    const members = this.common.map((field) => [field.name, field.name === "tags" ? tagsText(field) : field.jsonText()]);
    const given = [["task", JSON.stringify(this.choice.value)], ["params", objectText(this.fields)], ...members];
    return `{${given.filter(([, value]) => value !== undefined).map(([name, value]) => `"${name}":${value}`).join(",")}}`;
  }

  refuse(error) {
    const left = (error.document?.errors ?? [error.document ?? { detail: error.message }]).filter((found) => {
      const field = this.fieldAt(found.pointer);
      // At the field there is no need to name its place once more.
      field?.refuse(found.detail.replace(`${found.pointer.slice(1)}: `, ""));
      return !field;
    });
    setNotice(this.problem, left.map(({ detail }) => detail).join("; "));
    this.focusFirst();
  }

  /** The field that a JSON pointer leads to or into. */
  fieldAt(pointer) {
    const [, first, second] = (pointer ?? "").split("/").map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
    if (first !== "params") return this.common.find(({ name }) => name === first);
    return this.fields.find(({ name }) => name === second || name === null);
  }

  focusFirst() {
    const wrong = this.node.querySelector("[aria-invalid]");
    if (wrong?.closest("details")) attribute(wrong.closest("details"), "open", true);
    wrong?.focus();
  }
}

function tagsText(field) {
  const tags = field.control.value.split(",").map((tag) => tag.trim()).filter(Boolean);
  return tags.length ? JSON.stringify(tags) : undefined;
}
