// A form's fields from a JSON schema. Each gives its value as JSON text, so that no digit of a number is lost.

import { attribute, h, text } from "./dom.js";
import { number } from "./format.js";
import { select } from "./parts.js";

const LONG_TEXT = 200;
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;

let made = 0;

/** The fields for the properties of a schema; one for all of it where it names none. */
export function fieldsOf(schema) {
  const properties = Object.entries(schema.properties ?? {});
  if (properties.length === 0) return [new Field({ name: null, label: "Parameters", schema: {}, fallback: "{}" })];
  const required = new Set(schema.required ?? []);
  return properties.map(([name, property]) => new Field({ name, label: name, required: required.has(name), ...plain(property, schema) }));
}

/** The JSON text of an object made of fields: `{}` without those that were left empty. Throws `SyntaxError`. */
export function objectText(fields) {
  if (fields.length === 1 && fields[0].name === null) return fields[0].jsonText() ?? "{}";
  const members = fields.map((field) => [field.name, field.jsonText()]).filter(([, value]) => value !== undefined);
  return `{${members.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`;
}

/** The schema behind a reference or a choice between one schema and null. */
function plain(property, root) {
  const schema = resolved(property, root);
  const branches = (schema.anyOf ?? schema.oneOf ?? []).map((branch) => resolved(branch, root));
  const others = branches.filter(({ type }) => type !== "null");
  const inner = others.length === 1 && branches.length === 2 ? others[0] : schema;
  const hint = property.description ?? schema.description ?? inner.description;
  return { schema: inner, hint, default: property.default };
}

function resolved(schema, root) {
  const name = schema.$ref?.match(/^#\/\$defs\/(.+)$/)?.[1];
  return (name && root.$defs?.[name]) || schema;
}

export class Field {
  constructor({ name, label, schema, required = false, hint, default: preset, fallback = "" }) {
    this.name = name;
    this.required = required;
    this.kind = kindOf(schema);
    this.id = `field-${++made}`;
    this.control = this.made(schema, preset);
    if (this.control.tagName !== "SELECT") this.control.value = fallback;
    this.error = h("p", { class: "field-error", id: `${this.id}-error`, hidden: true });
    const told = [hint, limits(schema, this.kind), preset === undefined || preset === null ? null : `default ${JSON.stringify(preset)}`];
    const about = h("p", { class: "hint", id: `${this.id}-hint` }, told.filter(Boolean).join(" · "));
    attribute(this.control, "id", this.id);
    attribute(this.control, "name", name ?? "params");
    attribute(this.control, "aria-describedby", `${this.id}-hint ${this.id}-error`);
    attribute(this.control, "aria-required", required ? "true" : null);
    const mark = required ? h("small", { class: "muted" }, " required") : "";
    this.node = h("div", { class: "field" }, h("label", { for: this.id }, label, mark), about, this.control, this.error);
  }

  made(schema, preset) {
    if (this.kind === "choice") {
      const values = (schema.enum ?? [schema.const]).map((value) => [JSON.stringify(value), String(value)]);
      return chosen(values, this.required, preset);
    }
    if (this.kind === "boolean") return chosen([["true", "true"], ["false", "false"]], this.required, preset);
    if (this.kind === "json") return h("textarea", { rows: 4, spellcheck: "false", class: "code" });
    if (this.kind === "string" && !(schema.maxLength <= LONG_TEXT)) return h("textarea", { rows: 3 });
    const mode = this.kind === "string" ? null : this.kind === "integer" ? "numeric" : "decimal";
    return h("input", { inputmode: mode, autocomplete: "off" });
  }

  /** Its value as JSON text; undefined: it was left empty. Throws `SyntaxError` for what is no JSON. */
  jsonText() {
    const { value } = this.control;
    if (this.kind === "string") return value === "" && !this.required ? undefined : JSON.stringify(value);
    const trimmed = value.trim();
    if (trimmed === "") return undefined;
    if (this.kind === "number" || this.kind === "integer") {
      // What is no number is sent as it is: the service says what is wrong with it.
      return NUMBER.test(trimmed) ? trimmed : JSON.stringify(trimmed);
    }
    JSON.parse(trimmed);
    return trimmed;
  }

  /** Show what is wrong with it; null: nothing. */
  refuse(detail) {
    text(this.error, detail ?? "");
    this.error.hidden = !detail;
    attribute(this.control, "aria-invalid", detail ? "true" : null);
  }
}

function chosen(values, required, preset) {
  if (required) return select({}, values, values[0][0]);
  return select({}, [["", preset === undefined ? "not set" : "default"], ...values]);
}

function kindOf(schema) {
  if (schema.enum || schema.const !== undefined) return "choice";
  return ["string", "number", "integer", "boolean"].includes(schema.type) ? schema.type : "json";
}

function limits(schema, kind) {
  const said = [kind === "json" ? "JSON" : kind === "choice" ? null : schema.format ?? kind];
  if (schema.minimum !== undefined) said.push(`at least ${number(schema.minimum)}`);
  if (schema.exclusiveMinimum !== undefined) said.push(`more than ${number(schema.exclusiveMinimum)}`);
  if (schema.maximum !== undefined) said.push(`at most ${number(schema.maximum)}`);
  if (schema.exclusiveMaximum !== undefined) said.push(`less than ${number(schema.exclusiveMaximum)}`);
  if (schema.maxLength !== undefined) said.push(`at most ${number(schema.maxLength)} characters`);
  if (schema.pattern !== undefined) said.push(`pattern ${schema.pattern}`);
  return said.filter(Boolean).join(", ");
}
