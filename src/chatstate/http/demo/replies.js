/** Replies that are being written. The server tells of them as it gets them, and keeps nothing of it. */
import { request } from "./devices.js";

const SILENCE_MS = 45_000; // the server sends something every 15 s
const LONGEST_MS = 30_000;
const LINGER_MS = 1000; // the message is there a moment after the end of its writing was told

/**
 * Follows a session's change feed for its events `reply`: { id, text, continues }. `texts` is what is written so far, by the
 * replies' ids; it is shown by the function that is given. A browser has few connections to one server, and windows share
 * them: so only a window that can be seen listens.
 */
export class Replies {
  texts = new Map();

  #id;
  #show;
  #said = new Set(); // the ids of all that is in the state; what is told of these comes late
  #connection = new AbortController();
  #listener; // undefined: nobody listens
  #wake = () => {};
  #ending;
  #leave = new AbortController();

  constructor(id, show) {
    this.#id = id;
    this.#show = show;
    const { signal } = this.#leave;
    for (const event of ["visibilitychange", "online", "pageshow"]) addEventListener(event, () => this.#look(), { signal });
    this.#look();
  }

  /** End it. */
  close() {
    this.#leave.abort();
    this.#stop();
  }

  /** These messages are in the state: they are not written any more. */
  settle(ids) {
    this.#said = ids;
    const before = this.texts.size;
    for (const id of ids) this.texts.delete(id);
    if (this.texts.size < before) this.#show(this.texts);
  }

  #look() {
    if (document.visibilityState === "hidden") this.#stop();
    else if (this.#listener) this.#wake();
    else this.#listen();
  }

  #stop() {
    this.#listener = undefined;
    this.#connection.abort();
    this.#wake();
    this.#clear();
  }

  async #listen() {
    const listener = (this.#listener = {});
    for (let failures = 0; ; failures++) {
      this.#connection = new AbortController();
      const response = await this.#open().catch(() => undefined);
      if (response?.ok) await this.#read(response.body, () => (failures = 0)).catch(() => {});
      else response?.body?.cancel();
      if (listener !== this.#listener) return;
      this.#clear(); // when it is connected again, the server begins with what there is
      if (response && isFinal(response.status)) return; // the page is about to ask how to be let in
      await this.#wait(failures);
      if (listener !== this.#listener) return;
    }
  }

  #open() {
    return request(this.#id, "events", { headers: { Accept: "text/event-stream" }, signal: this.#connection.signal });
  }

  async #read(body, alive) {
    const connection = this.#connection;
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
      const silence = setTimeout(() => connection.abort(), SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (done || connection.signal.aborted) return;
      alive();
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) if (event.startsWith("event: reply\n")) this.#take(JSON.parse(event.split("\ndata: ")[1]));
    }
  }

  #take({ id, text, continues }) {
    clearTimeout(this.#ending);
    if (!id) {
      this.#ending = setTimeout(() => this.#clear(), LINGER_MS);
      return;
    }
    if (this.#said.has(id) || (continues && !this.texts.has(id))) return;
    if (!continues) this.#forget(id);
    this.texts.set(id, (this.texts.get(id) ?? "") + text);
    this.#show(this.texts);
  }

  /** A reply begins anew, as in a turn that is run again: it and those after it are not what was written. */
  #forget(id) {
    const ids = [...this.texts.keys()];
    const index = ids.indexOf(id);
    for (const later of index < 0 ? [] : ids.slice(index)) this.texts.delete(later);
  }

  #clear() {
    clearTimeout(this.#ending);
    if (!this.texts.size) return;
    this.texts.clear();
    this.#show(this.texts);
  }

  #wait(failures) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.min(LONGEST_MS, 250 * 2 ** failures) * (1 + Math.random() / 2));
      this.#wake = () => (clearTimeout(timer), resolve());
    });
  }
}

/** Whether asking again would be answered the same. */
function isFinal(status) {
  return status >= 400 && status < 500 && status !== 429;
}
