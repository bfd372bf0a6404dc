// Calls of the service. The key, where one is needed, is kept for this tab only, and sent as a header only.

const KEY = "nightshift.key";
const TIMEOUT_MS = 30_000;

/** An answer that is a problem document, or no answer at all (status 0). */
export class Problem extends Error {
  constructor(status, document) {
    super(document.detail ?? `status ${status}`);
    this.status = status;
    this.document = document;
  }
}

const session = { refused: () => {} };

/** Whether a key was entered. */
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** Use this key from now on; null forgets it. */
export function useKey(key) {
  if (key === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, key);
}

/** Call `refused` with the problem whenever the service wants a key, or another one. */
export function onRefused(refused) {
  session.refused = refused;
}

/** The decoded answer of a call. Throws `Problem`, or an AbortError when `signal` aborts. */
export async function call(method, path, { body, headers = {}, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  const sent = { ...headers };
  if (key !== null) sent.Authorization = `Bearer ${key}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const limit = AbortSignal.timeout(TIMEOUT_MS);
  const options = { method, body, headers: sent, cache: "no-store", credentials: "omit" };
  let status, content;
  try {
    const answer = await fetch(path, { ...options, signal: signal ? AbortSignal.any([signal, limit]) : limit });
    status = answer.status;
    content = decoded(await answer.text());
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, { detail: "the service cannot be reached" });
  }
  if (status < 400) return content;
  const problem = new Problem(status, content ?? {});
  // A late answer to an older key says nothing of the one that is used now.
  if (status === 401 && key === sessionStorage.getItem(KEY)) session.refused(problem);
  throw problem;
}

export const get = (path, signal) => call("GET", path, { signal });
export const post = (path, options) => call("POST", path, options);
export const remove = (path) => call("DELETE", path);

/** Throw an error that is neither a problem nor the end of a page: it is a bug, and the console shall have it. */
export function expected(error, signal) {
  if (!(error instanceof Problem) && !signal.aborted) throw error;
}

/** A path with a query of those parameters that have a value. */
export function withQuery(path, parameters) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value));
  return query.size ? `${path}?${query}` : path;
}

function decoded(source) {
  if (source === "") return null;
  // Whole numbers beyond 2^53 are shown digit for digit, where the browser can.
  const exact = JSON.rawJSON && /\d{16}/.test(source);
  try {
    return JSON.parse(source, exact ? keepDigits : undefined);
  } catch {
    return { detail: "an answer that is no JSON: expected the service, got something before it" };
  }
}

function keepDigits(name, value, context) {
  const isLong = Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source;
  return isLong ? JSON.rawJSON(context.source) : value;
}
