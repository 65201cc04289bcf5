import { ChatStateError } from "./errors.js";
import { Feed, type FeedEvent } from "./events.js";
import { type ClientOptions, Http } from "./http.js";
import { Copy, isNewer, type Kept, type Merge, type Sent } from "./copy.js";
import { equal } from "./json.js";
import { type HandOff, type HandOffOptions, handOff } from "./links.js";
import { threeWayMerge } from "./merge.js";
import { closed, newKey } from "./pause.js";
import { type Found, Server } from "./server.js";
import { Drawer, type KeepsItems, pageStorage } from "./storage.js";
import { canTalk, hold, leftBehind, type View, type Wish } from "./tabs.js";

/** What a session may be told. */
export interface SessionOptions<S> {
  /** What the state is as long as there is no session. It is not saved by itself. */
  initial?: S;
  /**
   * Decides when somebody else has saved meanwhile: makes one state of `mine` and `theirs`, which both come from `base`
   * (null: there was nothing before). By default `threeWayMerge`. It must not change its arguments.
   */
  merge?: Merge<S>;
  /** How many milliseconds after a change it is saved; further changes until then go with it. 300 by default. */
  debounce?: number;
  /** Where the unsaved is kept; by default the page's `localStorage`, and nowhere outside of pages. null: nowhere. */
  storage?: KeepsItems | null;
}

/**
 * - `loading`: the server has not answered yet, and nothing was kept here
 * - `saved`: everything is on the server
 * - `saving`: some of it is not yet
 * - `offline`: the server does not answer; it is tried again, and what is unsaved is kept
 * - `error`: the server refuses; `error` says why. The next `save` tries again
 */
export type Status = "loading" | "saved" | "saving" | "offline" | "error";

interface Waiter {
  edits: number;
  resolve: () => void;
  reject: (error: ChatStateError) => void;
}

/** How often the debounce may be put off by further changes, in times of itself. */
const LONGEST_DEBOUNCE = 10;

/**
 * A session's state, as a store that can be watched: what is saved goes to the server, and what others save comes in.
 *
 * Everything happens in one loop, one step after the other: a write whose outcome is unknown is repeated before anything
 * else, what has come in is merged, and then what is unsaved is written on the condition that nothing has changed.
 */
export class ChatSession<S> {
  readonly id: string;
  /** Settled with the first load, or at once if something was kept here. Rejects if the server refuses the load. */
  readonly ready: Promise<void>;

  readonly #http: Http;
  readonly #debounce: number;
  readonly #storage: () => KeepsItems | null;
  readonly #place: string; // in the storage, and where tabs meet
  readonly #changes = new EventTarget();
  readonly #leave = new AbortController(); // takes our listeners away

  #copy: Copy<S>;
  #drawer: Drawer; // a tab that does not lead has one of its own, for what is unsaved in it
  #server: Server | undefined; // undefined while another tab leads
  #feed: Feed | undefined;
  #seen: Found | undefined; // the newest that has come in
  #stale = true; // what is there has to be loaded
  #doomed: { resolve: () => void; reject: (error: unknown) => void }[] = [];

  #edits = 0; // how often it was saved here
  #arrived = 0; // and how many of these have arrived
  #waiters: Waiter[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #unsavedSince = 0;
  #due = false; // the debounce is over
  #started = false;
  #running = false;
  #loop: Promise<void> | undefined;
  #moving = false; // another tab is about to lead
  #closed = false;

  #channel: BroadcastChannel | undefined; // to other tabs
  #following = false; // another tab leads
  #own = ""; // where this tab keeps what is unsaved while it follows
  #view: View & { error: ChatStateError | null } = { kept: undefined, status: "loading", error: null }; // what the leader has shown
  #record: string | undefined; // what was kept last
  #release = (): void => {}; // let another tab lead
  #vanish = (): void => {}; // let the others know that this tab is not there any more

  #offline: ChatStateError | null = null;
  #refused: ChatStateError | null = null;
  #unkept: ChatStateError | null = null;
  #told: unknown[] = [];
  #isReady!: () => void;
  #notReady!: (error: ChatStateError) => void;

  /** Use `openSession`. A session that is made by itself does nothing until `start`. */
  constructor(id: string, options: ClientOptions & SessionOptions<S> = {}) {
    this.id = id;
    this.#http = new Http(options);
    this.#copy = new Copy(JSON.stringify(options.initial ?? null), options.merge ?? threeWayMerge);
    this.#debounce = options.debounce ?? 300;
    const { storage } = options;
    this.#storage = storage === undefined ? pageStorage : () => storage;
    this.#place = `chatstate:${this.#http.baseUrl}:${encodeURIComponent(id)}`;
    this.#drawer = this.#drawerAt(this.#place);
    this.ready = new Promise((resolve, reject) => ([this.#isReady, this.#notReady] = [resolve, reject]));
    this.ready.catch(() => {}); // nobody has to wait for it
  }

  /** What the person sees: the newest state, with all that is unsaved. null before the first load. Never change it. */
  get state(): S | null {
    return this.#copy.latest;
  }

  /** How things stand. */
  get status(): Status {
    const { dirty, sent, etag } = this.#copy;
    if (this.#refused) return "error";
    if (this.#offline) return "offline";
    if (dirty || sent || this.#doomed.length) return "saving";
    if (this.#following) return this.#view.status;
    return etag === undefined ? "loading" : "saved";
  }

  /**
   * Why the status is `error`; else that the browser keeps no copy (`quota_exceeded`), so what is unsaved goes with the page;
   * else why it is `offline`; else null.
   */
  get error(): ChatStateError | null {
    return this.#refused ?? this.#unkept ?? (this.#following ? this.#view.error : this.#offline);
  }

  /** Begin to talk to the server. `openSession` does it. */
  start(): void {
    if (this.#started) return;
    this.#started = true;
    this.#listen();
    if (canTalk() && (globalThis.document || this.#storage())) this.#meet();
    else this.#lead(this.#drawer.get<Kept>());
    this.#tell();
  }

  /** This is the state now. It is kept here at once, and goes to the server when the debounce is over. */
  save(next: S): void {
    this.#check();
    const text = JSON.stringify(next);
    if (text === undefined) throw new TypeError("no JSON value");
    // The same object was changed in place: only another one tells frameworks that something has changed.
    this.#copy.show(next === this.state ? JSON.parse(text) : next, text);
    this.#copy.dirty = true;
    this.#edits++;
    this.#refused = null;
    this.#keep();
    this.#isReady();
    this.#postpone();
    this.#tell();
    this.#want();
  }

  /** `save(change(state))`. Before the first load, of `initial`; what is loaded is merged with it. */
  update(change: (now: S) => S): void {
    this.save(change(this.state ?? JSON.parse(this.#copy.initial)));
  }

  /** Send what is unsaved now. Resolves when all that was saved until now is on the server; rejects if it is refused. */
  flush(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#check();
      this.#waiters.push({ edits: this.#edits, resolve, reject });
      this.#refused = null;
      this.#hurry();
      this.#want();
    });
  }

  /** Delete the session, here and on the server. It is not kept for later: wait for it. */
  delete(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#check();
      this.#doomed.push({ resolve, reject });
      this.#copy.dirty = false;
      this.#refused = null;
      this.#copy.show(JSON.parse(this.#copy.initial));
      this.#drawer.put();
      this.#hurry();
      this.#want();
    });
  }

  /** Be told of changes of the state, the status and the error; gives what ends that. */
  subscribe(listener: () => void): () => void {
    const heard = () => listener();
    this.#changes.addEventListener("change", heard);
    return () => this.#changes.removeEventListener("change", heard);
  }

  /** The state; the same object as long as it has not changed. */
  getSnapshot(): S | null {
    return this.state;
  }

  /** Make a link that opens this session on another device, once what is unsaved is on the server. */
  async handOff(options: HandOffOptions = {}): Promise<HandOff> {
    await this.flush();
    return handOff(this.#http, this.id, options);
  }

  /** Stop. What is unsaved stays in the storage, and goes out at the next visit; to send it first, wait for `flush`. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#feed?.close();
    this.#server?.close();
    this.#settle(closed());
    for (const { reject } of this.#doomed) reject(closed());
    this.#channel?.close();
    this.#leave.abort();
    this.#vanish();
    this.#release();
  }

  /** A closed session takes nothing. */
  #check(): void {
    if (this.#closed) throw closed();
  }

  // --- The loop -------------------------------------------------------------------------------------------------------

  #run(): void {
    if (!this.#running) this.#loop = this.#work();
  }

  async #work(): Promise<void> {
    this.#running = true;
    try {
      // Whether there is more to do is asked and the loop left in one go: nobody can come in between and be overlooked.
      for (let task = this.#next(); task; task = this.#next()) {
        await task;
        this.#met();
        this.#tell();
      }
    } catch (error) {
      this.#fail(error as ChatStateError);
    }
    this.#running = false;
    this.#tell();
  }

  /** Begin with what is to be done next; undefined when there is nothing. */
  #next(): Promise<void> | undefined {
    const copy = this.#copy;
    const server = this.#server;
    if (this.#closed || this.#moving || !server) return undefined;
    if (copy.sent) return this.#write(server, copy.sent);
    if (this.#doomed.length) return this.#remove(server);
    if (this.#stale && !this.#refused) return this.#load(server);
    if (this.#seen) {
      const seen = this.#seen;
      this.#seen = undefined;
      if (isNewer(seen.etag, copy.etag)) this.#rebase(seen);
      return Promise.resolve();
    }
    if (!copy.dirty || !this.#due || this.#refused) {
      this.#due &&= copy.dirty;
      return undefined;
    }
    this.#due = false;
    copy.sent = { text: copy.text, key: newKey(), edits: this.#edits };
    this.#keep(); // before it goes out: whoever opens the page next must know of it
    return this.#write(server, copy.sent);
  }

  async #load(server: Server): Promise<void> {
    const found = await server.load(this.#copy.etag);
    if (found) this.#rebase(found);
    this.#stale = false; // not if it could not be read
  }

  async #write(server: Server, sent: Sent): Promise<void> {
    const copy = this.#copy;
    const base = { etag: copy.etag ?? null, text: copy.base };
    const written = await server.write(base, sent.text, sent.key).catch((error: ChatStateError) => {
      if (error.code !== "closed") copy.sent = undefined; // refused, so it was not carried out
      throw error;
    });
    copy.sent = undefined;
    if ("conflict" in written) {
      this.#due = true;
      if (written.conflict) this.#rebase(written.conflict);
      else this.#stale = true;
      return;
    }
    copy.base = sent.text;
    copy.dirty &&= copy.text !== sent.text; // it may be doomed
    this.#arrived = sent.edits;
    if ("etag" in written) copy.etag = written.etag;
    else this.#stale = true;
    this.#keep();
  }

  async #remove(server: Server): Promise<void> {
    const failure = await server.remove().catch((error: ChatStateError) => error);
    if (failure?.code === "closed") throw failure; // another tab leads now, and then this one again
    const copy = this.#copy;
    this.#seen = undefined;
    if (failure) {
      this.#stale = true; // it is still there
    } else {
      copy.etag = null;
      copy.base = copy.initial;
      if (!copy.dirty) copy.show(JSON.parse(copy.initial));
    }
    this.#record = `${copy}`; // for the other tabs; there is nothing to keep
    if (copy.dirty) this.#keep();
    for (const { resolve, reject } of this.#doomed) failure ? reject(failure) : resolve();
    this.#doomed = [];
  }

  /** The server has answered as it should. */
  #met(): void {
    if (this.#moving || this.#closed || this.#copy.etag === undefined) return;
    this.#isReady();
    this.#feed ??= new Feed(this.#http, this.id, () => this.#copy.etag, (event) => this.#take(event));
  }

  #take({ event, id, data }: FeedEvent): void {
    if (event === "state") this.#seen = { etag: id!, text: JSON.parse(data).chat_state };
    // Gone. That has no version, and may be older than what we know. What has no id says nothing of the state.
    else if (id === "" && (this.#copy.etag !== null || this.#running)) this.#stale = true;
    this.#run();
  }

  #rebase(found: Found): void {
    this.#copy.rebase(found);
    if (this.#refused?.status === 0) this.#refused = null; // it was about what was there before
    this.#keep();
  }

  // --- What is kept ---------------------------------------------------------------------------------------------------

  #drawerAt(place: string): Drawer {
    return new Drawer(this.#storage, place, (trouble) => (this.#unkept = trouble));
  }

  /** Of a tab that does not lead only what is unsaved is kept, until the tab leads. */
  #keep(): void {
    this.#record = `${this.#copy}`;
    this.#drawer.put(this.#following && !this.#copy.dirty ? undefined : this.#record);
  }


  // --- What happens around it -----------------------------------------------------------------------------------------

  /** What is unsaved goes out before the page does, or may be frozen; and what waits is tried when there is hope. */
  #listen(): void {
    const act = () => (this.#hurry(), this.#server?.nudge(), this.#feed?.nudge());
    for (const event of ["online", "pagehide", "visibilitychange"]) {
      globalThis.window?.addEventListener(event, act, { signal: this.#leave.signal });
    }
  }

  #postpone(): void {
    if (this.#timer === undefined) this.#unsavedSince = Date.now();
    else if (Date.now() > this.#unsavedSince + LONGEST_DEBOUNCE * this.#debounce) return; // it goes off by itself
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#hurry(), this.#debounce);
  }

  #hurry(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#due = true;
    this.#run();
  }

  #fail(error: ChatStateError): void {
    if (error.code === "closed") return;
    this.#refused = error;
    this.#notReady(error);
    this.#settle(error);
  }

  #settle(error?: ChatStateError): void {
    const { etag, dirty, sent } = this.#copy;
    const known = this.#following ? this.#view.status === "saved" : etag !== undefined;
    if (known && !dirty && !sent && !(this.#stale && this.#server)) this.#arrived = this.#edits;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) {
      if (known && waiter.edits <= this.#arrived) waiter.resolve();
      else if (error) waiter.reject(error);
      else this.#waiters.push(waiter);
    }
  }

  #tell(): void {
    if (this.#closed) return;
    this.#settle();
    const now = [this.state, this.status, this.error];
    if (now.every((value, index) => value === this.#told[index])) return;
    this.#told = now;
    this.#show();
    this.#changes.dispatchEvent(new Event("change")); // what a listener throws is reported, and does not stop us
  }

  // --- Tabs: one leads and talks to the server, the others follow. Where something is changed, that tab wants to lead. --

  #meet(): void {
    this.#own = `${this.#place}:${newKey()}`;
    this.#channel = new BroadcastChannel(this.#place);
    this.#channel.onmessage = ({ data }: { data: View | Wish }) => {
      if ("wish" in data) this.#grant(data);
      else this.#see(data).catch((error) => this.#fail(error));
    };
    const kept = this.#drawer.get<Kept>();
    if (kept) {
      this.#copy.restore(kept);
      this.#copy.hand();
      this.#isReady();
    }
    hold(this.#own, this.#leave.signal, (vanish) => (this.#vanish = vanish));
    this.#follow();
  }

  /** Wait until it is this tab's turn, and see what the tab that leads shows meanwhile. */
  #follow(): void {
    this.#following = true;
    this.#drawer = this.#drawerAt(this.#own);
    hold(this.#place, this.#leave.signal, (release) => {
      this.#release = release;
      this.#succeed().catch((error) => this.#fail(error));
    });
    this.#channel!.postMessage({ wish: "see" });
  }

  /** This tab leads now, where the one before has ended, and with what this and vanished tabs have not saved yet. */
  async #succeed(): Promise<void> {
    const left = await leftBehind(this.#storage()!, this.#place).catch((): string[] => []);
    const drawers = left.map((key) => this.#drawerAt(key));
    if (this.#closed) return;
    const unsaved = drawers.map((drawer) => drawer.get<Kept>()!);
    const { latest, dirty, initial, merge } = this.#copy;
    if (dirty) unsaved.push(JSON.parse(`${this.#copy}`));
    const own = this.#drawer;
    this.#drawer = this.#drawerAt(this.#place);
    const kept = this.#drawer.get<Kept>();
    const seen = this.#view.kept && (JSON.parse(this.#view.kept) as Kept); // the storage may be late, or full
    this.#following = false;
    this.#copy = new Copy(initial, merge);
    this.#lead(seen && !(kept && kept.changes > seen.changes) ? seen : kept, unsaved, latest);
    for (const drawer of [own, ...drawers]) drawer.put();
  }

  /** Talk to the server, from what was kept and is unsaved. `shown` is what the person has seen until now. */
  #lead(kept?: Kept, unsaved: Kept[] = [], shown: S | null = null): void {
    const copy = this.#copy;
    this.#server = new Server(this.#http, this.id, (trouble) => ((this.#offline = trouble), this.#tell()));
    this.#seen = undefined;
    if (kept && !this.#doomed.length) copy.restore(kept);
    for (const one of unsaved) copy.adopt(one);
    if (equal(shown, copy.latest)) copy.latest = shown;
    this.#stale = !copy.dirty || copy.etag === undefined;
    this.#due = copy.dirty;
    if (copy.dirty) this.#edits++;
    for (const waiter of this.#waiters) waiter.edits = this.#edits;
    if (copy.latest !== null) {
      this.#keep();
      this.#isReady();
    }
    this.#show(); // others that want to lead have to say so again
    this.#run();
  }

  /** Something was changed here: let this tab lead. */
  #want(): void {
    if (this.#following) this.#channel!.postMessage({ wish: "lead" });
  }

  /** Another tab has a wish, and this one leads. */
  #grant({ wish }: Wish): void {
    if (this.#following || !this.#server) return;
    if (wish === "see") this.#show();
    else void this.#yield();
  }

  /** Let another tab lead. What is unsaved here is its own from then on, also a write whose answer has not come. */
  async #yield(): Promise<void> {
    if (this.#moving) return;
    this.#moving = true;
    this.#server!.close();
    this.#feed?.close();
    await this.#loop;
    if (this.#closed) return;
    const { status } = this;
    if (this.state !== null) this.#keep();
    this.#show();
    this.#server = this.#feed = undefined;
    this.#offline = this.#refused = null;
    this.#view = { kept: this.#record, status: status === "saved" ? status : "saving", error: null };
    this.#copy.hand();
    this.#moving = false;
    this.#release();
    this.#follow();
    if (this.#doomed.length) this.#want();
    this.#tell();
  }

  /** The tab that leads shows what it has. */
  async #see(view: View): Promise<void> {
    if (!this.#following) return;
    const { kept, status, error } = view;
    this.#view = { kept, status, error: error && new ChatStateError(error.status, error.code, error.message) };
    if (kept && !this.#doomed.length) {
      const { latest, base } = JSON.parse(kept) as Kept;
      this.#copy.rebase({ etag: undefined, text: JSON.stringify(latest ?? base) });
      this.#keep();
      this.#isReady();
    }
    if (this.#copy.dirty || this.#doomed.length) this.#want();
    this.#tell();
  }

  /** Show what this tab has, if it leads. */
  #show(): void {
    if (this.#following || !this.#channel) return;
    const { status, error } = this;
    const kept = this.state === null ? undefined : this.#record;
    this.#channel.postMessage({ kept, status, error: error && { ...error, message: error.message } });
  }
}

/**
 * Open a session: `state` is what is kept here, or what the server has as soon as it answers.
 *
 * A page needs no `close`. A program in Node.js ends when its sessions are closed.
 */
export function openSession<S>(id: string, options: ClientOptions & SessionOptions<S> = {}): ChatSession<S> {
  const session = new ChatSession<S>(id, options);
  session.start();
  return session;
}
