// One WebSocket for all that is shown: the caller's own channel, and those of the tasks on the screen.
//
// It comes again by itself. The own channel then starts anew, and who follows it reads its state again (`synced`); the
// channel of a task goes on behind the last event that was seen, so that its log has no hole.

import { Problem, post } from "./api.js";
import { pause } from "./dom.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
const PING_MS = 25_000;
/** A browser does not tell of a line that is dead; a pong that does not come does. */
const PONG_MS = 10_000;

const own = new Set();
const channels = new Map();
const session = { socket: null, userId: null, ready: false, run: 0, asked: 0, state: () => {}, wake: () => {} };

/** The caller's id, once it is known. */
export const userId = () => session.userId;

/** Call `told` with "live" or "connecting" whenever that changes. */
export function onState(told) {
  session.state = told;
}

/** Connect, and stay connected, with the credentials that are in use now. */
export async function connect() {
  const run = ++session.run;
  session.socket?.close();
  for (let wait = FIRST_WAIT_MS; run === session.run; wait = Math.min(wait * 2, LONGEST_WAIT_MS)) {
    session.state("connecting");
    try {
      const { ticket } = await post("api/tickets");
      if (run === session.run && (await opened(ticket))) wait = FIRST_WAIT_MS;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 401) return;
    }
    // Clients that were cut off together do not come again together.
    await Promise.race([pause(wait * (0.5 + Math.random() / 2)), new Promise((wake) => (session.wake = wake))]);
  }
}

/** Follow the caller's own channel: `event(event)`, and `synced()` after each new connection. */
export function followOwn({ event, synced }, signal) {
  const listener = { event, synced };
  own.add(listener);
  signal.addEventListener("abort", () => own.delete(listener));
}

/** Follow a task from its first event on: `event(event)`, `synced(gap)` after each new connection, `refused(detail)`. */
export function followTask(taskId, { event, synced, refused }, signal) {
  const channel = `task:${taskId}`;
  channels.set(channel, { event, synced, refused, last: null, asked: null, ready: false });
  subscribe(channel);
  signal.addEventListener("abort", () => {
    channels.delete(channel);
    send({ type: "unsubscribe", channel });
  });
}

function subscribe(channel) {
  const followed = channels.get(channel);
  followed.ready = false;
  followed.asked = String(++session.asked);
  send({ type: "subscribe", channel, last_event_id: followed.last, correlation_id: followed.asked });
}

function send(frame) {
  if (session.ready && session.socket.readyState === WebSocket.OPEN) session.socket.send(JSON.stringify(frame));
}

/** Serve one connection until it ends; whether it ever stood. */
function opened(ticket) {
  const url = new URL(`ws?ticket=${encodeURIComponent(ticket)}`, document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = (session.socket = new WebSocket(url));
  session.ready = false;
  let stood = false;
  let pulse = 0;
  let giveUp = 0;
  const ask = () => {
    send({ type: "ping" });
    giveUp = setTimeout(() => socket.close(), PONG_MS);
  };
  return new Promise((resolve) => {
    const over = () => {
      clearInterval(pulse);
      clearTimeout(giveUp);
      resolve(stood);
    };
    socket.onmessage = ({ data }) => {
      if (socket !== session.socket) return;
      clearTimeout(giveUp);
      const frame = JSON.parse(data);
      if (frame.type === "connected") {
        stood = true;
        pulse = setInterval(ask, PING_MS);
      }
      take(frame);
    };
    socket.onclose = over;
  });
}

function take(frame) {
  if (frame.type === "connected") return begin(frame);
  const followed = channels.get(frame.channel);
  if (frame.type === "subscribed" && followed?.asked === frame.correlation_id) {
    followed.ready = true;
    followed.synced(frame.gap === true);
  } else if (frame.type === "subscription_error" && followed?.asked === frame.correlation_id) {
    followed.refused(frame.detail);
  } else if (frame.id !== undefined && frame.channel === `user:${session.userId}`) {
    own.forEach((listener) => listener.event(frame));
  } else if (frame.id !== undefined && followed?.ready) {
    // What comes before the answer belongs to a subscription of before.
    followed.last = frame.id;
    followed.event(frame);
  }
}

function begin(frame) {
  session.userId = frame.user_id;
  session.ready = true;
  session.state("live");
  channels.forEach((_, channel) => subscribe(channel));
  own.forEach((listener) => listener.synced());
}

addEventListener("online", () => session.wake());
document.addEventListener("visibilitychange", () => document.hidden || session.wake());
