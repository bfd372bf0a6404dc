// Elements. Whatever comes from the service is inserted as text, and never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element. `on` in `props` holds listeners; null and false leave an attribute out, true sets it empty. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** An element of SVG. */
export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name === "on") {
      for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
    } else {
      attribute(node, name, value);
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Set an attribute; null and false remove it, true sets it empty. */
export function attribute(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value === true ? "" : String(value));
}

/** Set an element's text, if it is another one: what a reader has selected stays selected. */
export function text(node, value) {
  const wanted = String(value ?? "");
  if (node.textContent !== wanted) node.textContent = wanted;
}

const nodesOf = new WeakMap();

/** Make the children of `parent` those of `items`. Nodes of known keys are kept, so that focus stays where it is. */
export function keyed(parent, items, keyOf, create, update) {
  const old = nodesOf.get(parent) ?? new Map();
  const now = new Map(items.map((item) => [keyOf(item), old.get(keyOf(item)) ?? create(item)]));
  for (const [key, node] of old) if (!now.has(key)) node.remove();
  let place = parent.firstChild;
  for (const item of items) {
    const node = now.get(keyOf(item));
    update(node, item);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  nodesOf.set(parent, now);
}

/** Call `work` now, and again `everyMs` after it is done, while the page can be seen and until `signal` aborts. */
export function poll(work, everyMs, signal) {
  let timer = 0;
  let running = false;
  const run = async () => {
    clearTimeout(timer);
    if (running || signal.aborted || document.hidden) return;
    running = true;
    try {
      await work();
    } finally {
      running = false;
      timer = setTimeout(run, everyMs);
    }
  };
  const stop = () => clearTimeout(timer);
  document.addEventListener("visibilitychange", run, { signal });
  signal.addEventListener("abort", stop);
  return run();
}

/** A function that calls `work` soon, and at most once in `everyMs`, however often it is called itself. */
export function soon(work, everyMs, signal) {
  let wanted = false;
  let running = false;
  const run = async () => {
    if (running || !wanted || signal.aborted || document.hidden) return;
    running = true;
    // What comes within a moment is one change for a reader.
    await pause(SOON_MS);
    wanted = false;
    try {
      if (!signal.aborted) await work();
    } finally {
      await pause(everyMs - SOON_MS);
      running = false;
      run();
    }
  };
  document.addEventListener("visibilitychange", run, { signal });
  return () => {
    wanted = true;
    run();
  };
}

const SOON_MS = 100;

/** Resolves after `ms`. */
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
