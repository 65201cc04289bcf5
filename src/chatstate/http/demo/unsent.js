/** What was said and is not in the state yet. It is kept in this browser, and sent in its order until the server has it. */
import { newId } from "./bot.js";
import { request } from "./devices.js";

const PLACE = "chatstate-demo:unsent:"; // before the session's id
const MOST = 50; // of one session
const REMEMBERED_MS = 86_400_000; // what the server has and no bot can answer is shown for a day
const SECONDS_TO_ANSWER = 30;
const LONGEST_MS = 30_000;

/**
 * The unsent messages of a session: `entries`, each { id, text, at, accepted?, refused? }. The server knows a message by its
 * id: so it may be sent again after an answer that was lost, by another window, or after the page was opened anew, and is
 * there once.
 *
 * accepted  when the server has taken it: it will be answered, and is in the state then
 * refused   why the server does not take it; it is not sent again by itself
 *
 * failing   whether the server does not answer
 * unkept    whether the browser could not keep the newest: what is unsent goes with the page
 * full      whether something was not taken because too many wait
 */
export class Unsent {
  entries = [];
  failing = false;
  unkept = false;
  full = false;

  #id;
  #place;
  #changed; // is called after each change
  #lockedOut; // is called when this device is not let in
  #working = false;
  #stopped = false;
  #hope = false; // something has happened since the last try
  #sending = false; // a request is under way
  #wake = () => {};

  constructor(id, changed, lockedOut) {
    this.#id = id;
    this.#place = PLACE + id;
    this.#changed = changed;
    this.#lockedOut = lockedOut;
    this.entries = this.#kept();
    addEventListener("storage", ({ key }) => key === this.#place && this.#heard());
    for (const event of ["online", "pageshow", "visibilitychange"]) addEventListener(event, () => this.nudge());
    addEventListener("pagehide", () => this.#leave());
  }

  /** Those that the server does not have yet. */
  get waiting() {
    return this.entries.filter(({ accepted, refused }) => !accepted && !refused);
  }

  /** Say this; false when too many wait already. */
  add(text) {
    if (this.entries.length >= MOST) {
      this.full = true;
      this.#changed();
      return false;
    }
    this.#change((entries) => [...entries, { id: newId(), text, at: new Date().toISOString() }]);
    this.nudge();
    return true;
  }

  /** Send this one, which was refused, once more. */
  again(id) {
    this.#change((entries) => entries.map((entry) => (entry.id === id ? { ...entry, refused: undefined } : entry)));
    this.nudge();
  }

  /** Those with these ids are in the state, or given up. */
  remove(ids) {
    if (this.entries.some(({ id }) => ids.has(id))) this.#change((entries) => entries.filter(({ id }) => !ids.has(id)));
  }

  /** Try it now: there is something new, or hope. */
  nudge() {
    this.#stopped = false;
    this.#hope = true;
    this.#wake();
    if (!this.#working) this.#work();
  }

  // --- Sending --------------------------------------------------------------------------------------------------------

  async #work() {
    this.#working = true;
    try {
      for (let failures = 0; this.waiting.length && !this.#stopped; ) {
        const answer = await alone(this.#place, () => this.#sendNext(!failures));
        failures = this.failing ? failures + 1 : 0;
        if (this.failing && !this.#hope) await this.#wait(failures, answer);
      }
    } finally {
      this.#working = false;
    }
  }

  async #sendNext(isFirstTry) {
    this.#hope = false;
    this.#reload();
    const [next] = this.waiting;
    const answer = next && (await this.#send(next, isFirstTry));
    if (answer?.status === 401) {
      this.#stopped = true;
      this.#lockedOut();
      return answer;
    }
    this.#tell(next !== undefined && (!answer || isPassing(answer.status)));
    if (answer && !this.failing) {
      this.#mark(next.id, answer.ok ? { accepted: new Date().toISOString() } : { refused: await reasonIn(answer) });
    }
    return answer;
  }

  /**
   * The page goes, perhaps while it waits for its turn to send: there is no time for that any more, and what arrives twice is
   * there once. Only the first one, and none beside one that is under way: they could overtake each other.
   */
  #leave() {
    const [next] = this.waiting;
    if (next && !this.#sending && !this.#stopped) this.#send(next, true);
  }

  /** The answer; undefined when there is none. */
  async #send({ id, text }, isFirst) {
    this.#sending = true;
    try {
      return await request(this.#id, "messages", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ id, text }),
        keepalive: isFirst, // also when the page is gone; browsers allow only few of these at once
        signal: AbortSignal.timeout(SECONDS_TO_ANSWER * 1000),
      });
    } catch {
      return undefined;
    } finally {
      this.#sending = false;
    }
  }

  #tell(failing) {
    if (failing === this.failing) return;
    this.failing = failing;
    this.#changed();
  }

  #mark(id, what) {
    this.#change((entries) => entries.map((entry) => (entry.id === id ? { ...entry, ...what } : entry)));
  }

  #wait(failures, answer) {
    const asked = Number(answer?.headers.get("Retry-After")) * 1000 || 0;
    const milliseconds = Math.max(asked, Math.min(LONGEST_MS, 125 * 2 ** failures)) * (1 + Math.random() / 2);
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => (clearTimeout(timer), resolve());
    });
  }

  // --- Keeping --------------------------------------------------------------------------------------------------------

  /** Another window has said something, or has sent it. */
  #heard() {
    this.#reload();
    this.#changed();
    this.nudge();
  }

  #reload() {
    if (!this.unkept) this.entries = this.#kept();
  }

  #change(change) {
    const kept = this.#kept();
    this.entries = change(this.unkept ? united(kept, this.entries) : kept);
    try {
      if (this.entries.length) localStorage.setItem(this.#place, JSON.stringify(this.entries));
      else localStorage.removeItem(this.#place);
      this.unkept = false;
    } catch {
      this.unkept = true; // the storage is full, or forbidden
    }
    this.full = false;
    this.#changed();
  }

  #kept() {
    try {
      const entries = JSON.parse(localStorage.getItem(this.#place)) ?? [];
      const recent = new Date(Date.now() - REMEMBERED_MS).toISOString();
      return entries.filter(({ id, text, accepted }) => id && typeof text === "string" && !(accepted < recent));
    } catch {
      return [];
    }
  }
}

/** The sessions of which something unsent may be kept here. */
export function keptSessions() {
  try {
    return Object.keys(localStorage).flatMap((key) => (key.startsWith(PLACE) ? [key.slice(PLACE.length)] : []));
  } catch {
    return []; // it is forbidden
  }
}

/** Do this in one window at a time, where browsers can arrange that: on pages with TLS, and on localhost. */
function alone(name, work) {
  if (!navigator.locks) return work();
  let begun = false;
  const locked = navigator.locks.request(name, () => ((begun = true), work()));
  return locked.catch((error) => (begun ? Promise.reject(error) : work())); // where storage is forbidden, locks are, too
}

/** Whether the same request may do better later. */
function isPassing(status) {
  return status >= 500 || status === 429 || status === 408;
}

async function reasonIn(answer) {
  const { errors, detail } = await answer.json().catch(() => ({}));
  return errors?.length ? `${errors[0].member} ${errors[0].detail}` : (detail ?? `HTTP ${answer.status}`);
}

/** Those that are kept, as this page knows them, and those that it could not keep. */
function united(kept, known) {
  const knownBy = new Map(known.map((entry) => [entry.id, entry]));
  const ids = new Set(kept.map(({ id }) => id));
  return [...kept.map((entry) => ({ ...entry, ...knownBy.get(entry.id) })), ...known.filter(({ id }) => !ids.has(id))];
}
