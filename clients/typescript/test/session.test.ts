import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { ApiService, type ChatSession, ChatStateError, openSession, type SessionOptions, type ClientOptions } from "../src/index.js";
import { Proxy } from "./proxy.js";
import { ServerProcess, until } from "./server.js";
import { MemoryStorage } from "./storage.js";

interface Message {
  id: string;
  text: string;
}
interface Chat {
  messages: Message[];
  step?: string;
}

let server: ServerProcess;
let api: ApiService;
let proxy: Proxy;
let id: string;
const open: ChatSession<any>[] = [];

before(async () => {
  server = await ServerProcess.start();
  api = new ApiService(server.url);
});
after(() => server.end());
beforeEach(async () => {
  id = `session_${Math.random()}`;
  proxy = await Proxy.before(server.url);
});
afterEach(async () => {
  for (const session of open.splice(0)) session.close();
  await proxy.end();
});

/** A session through the proxy, that is closed after the test. */
function opened<S = Chat>(options: ClientOptions & SessionOptions<S> = {}): ChatSession<S> {
  const session = openSession<S>(id, { baseUrl: proxy.url, debounce: 5, initial: { messages: [] } as S, ...options });
  open.push(session);
  return session;
}

const say = (text: string) => (chat: Chat): Chat => ({ ...chat, messages: [...chat.messages, { id: text, text }] });
const texts = (chat: Chat | null) => chat?.messages.map(({ text }) => text).join(" ");
const there = async () => JSON.parse((await api.getUserSession(id))!.chat_state);
const put = (state: unknown) =>
  api.saveUserSession({ user_session_id: id, chat_state: typeof state === "string" ? state : JSON.stringify(state) });
const writes = () => proxy.requests.filter(({ line }) => /^(POST|PATCH|PUT)/.test(line));

test("there is no session: the state is `initial`, and nothing is written until something is saved", async () => {
  const chat = opened();
  assert.equal(chat.state, null);
  assert.equal(chat.status, "loading");
  await chat.ready;
  assert.deepEqual(chat.state, { messages: [] });
  assert.equal(chat.status, "saved");
  assert.equal(await api.getUserSession(id), null);
});

test("what is saved is on the server after flush, and in the next session", async () => {
  const chat = opened();
  await chat.ready;
  chat.update(say("Hello"));
  assert.equal(chat.status, "saving");
  await chat.flush();
  assert.equal(chat.status, "saved");
  assert.deepEqual(await there(), { messages: [{ id: "Hello", text: "Hello" }] });
  const next = opened();
  await next.ready;
  assert.equal(texts(next.state), "Hello");
});

test("changes that follow each other go out as one write", async () => {
  const chat = opened({ debounce: 50 });
  await chat.ready;
  for (const text of "abcdefgh") chat.update(say(text));
  await until(() => chat.status === "saved");
  assert.equal(writes().length, 1);
  assert.equal(texts(await there()), "a b c d e f g h");
});

test("whoever never stops typing is saved all the same", async () => {
  const chat = opened({ debounce: 20 });
  await chat.ready;
  let typed = 0;
  const typing = setInterval(() => chat.update(say(`${typed++}`)), 10);
  await until(() => writes().length > 1);
  clearInterval(typing);
  await chat.flush();
  assert.equal((await there()).messages.length, typed);
});

test("every write is conditional and has a key of its own; appends are patches", async () => {
  const chat = opened();
  chat.save({ messages: Array.from({ length: 50 }, (_, index) => ({ id: `${index}`, text: "some words" })) });
  await chat.flush();
  chat.update(say("Hello"));
  await chat.flush();
  chat.save({ messages: [] });
  await chat.flush();
  const [create, append, replace] = writes();
  assert.equal(create!.headers["if-none-match"], "*");
  assert.match(append!.line, /^PATCH/);
  assert.equal(append!.body, '[{"op":"add","path":"/messages/-","value":{"id":"Hello","text":"Hello"}}]');
  assert.match(replace!.line, /^POST/);
  for (const { headers } of [append!, replace!]) assert.match(headers["if-match"]!, /^".+"$/);
  assert.equal(new Set(writes().map(({ headers }) => headers["idempotency-key"])).size, 3);
  assert.deepEqual(await there(), { messages: [] });
});

test("what somebody else has saved meanwhile is merged, and nothing is lost", async () => {
  const [one, two] = [opened(), opened()];
  await Promise.all([one.ready, two.ready]);
  one.update(say("one"));
  two.update(say("two"));
  await Promise.all([one.flush(), two.flush()]);
  one.update(say("three"));
  two.update(say("four"));
  await Promise.all([one.flush(), two.flush()]);
  assert.deepEqual((await there()).messages.map(({ text }: Message) => text).sort(), ["four", "one", "three", "two"]);
});

test("the caller's merge decides", async () => {
  await put({ step: "a" });
  const merge = (...all: unknown[]) => ({ merged: all });
  const chat = opened<any>({ merge, debounce: 60_000 });
  await chat.ready;
  chat.save({ step: "c" }); // before the other one, or that is heard of first, and there is nothing to merge
  await put({ step: "b" });
  await chat.flush();
  assert.deepEqual(await there(), { merged: [{ step: "a" }, { step: "c" }, { step: "b" }] });
});

test("a merge that throws is reported, and nothing is overwritten", async () => {
  await put({ step: "a" });
  const chat = opened<any>({
    merge: () => {
      throw new Error("no idea");
    },
    debounce: 60_000,
  });
  await chat.ready;
  chat.save({ step: "c" });
  await put({ step: "b" });
  await assert.rejects(chat.flush(), { code: "merge_failed", message: /no idea/ });
  assert.equal(chat.status, "error");
  assert.deepEqual(chat.state, { step: "c" });
  assert.deepEqual(await there(), { step: "b" });
});

test("what was typed before the first load is merged with what is loaded", async () => {
  await put({ messages: [{ id: "before", text: "before" }] });
  const chat = opened();
  chat.update(say("early"));
  assert.equal(texts(chat.state), "early");
  await chat.flush();
  assert.equal(texts(await there()), "before early");
  assert.equal(texts(chat.state), "before early");
});

test("a failed load is never an empty state, and what could not be read is never overwritten", async () => {
  await put("compressed, perhaps");
  const chat = opened();
  await assert.rejects(chat.ready, { code: "state_not_json" });
  assert.equal(chat.state, null);
  assert.equal(chat.status, "error");
  chat.update(say("Hello"));
  await assert.rejects(chat.flush(), { code: "state_not_json" });
  assert.equal(chat.status, "error");
  assert.equal((await api.getUserSession(id))!.chat_state, "compressed, perhaps");
  assert.equal(writes().length, 0);
  assert.equal(texts(chat.state), "Hello");
});

test("a state that was changed in place is saved, too", async () => {
  const chat = opened();
  await chat.ready;
  const before = chat.getSnapshot();
  chat.state!.messages.push({ id: "1", text: "in place" });
  chat.save(chat.state!);
  assert.notEqual(chat.getSnapshot(), before);
  await chat.flush();
  assert.equal(texts(await there()), "in place");
});

test("listeners hear of every change and of nothing else, and the snapshot stays the same object meanwhile", async () => {
  const chat = opened();
  const heard: string[] = [];
  const stop = chat.subscribe(() => heard.push(`${chat.status} ${texts(chat.state)}`));
  await chat.ready;
  await until(() => heard.length === 1);
  const snapshot = chat.getSnapshot();
  chat.update(say("a"));
  assert.notEqual(chat.getSnapshot(), snapshot);
  assert.equal(chat.getSnapshot(), chat.getSnapshot());
  await chat.flush();
  await until(() => chat.status === "saved");
  assert.deepEqual(heard, ["saved ", "saving a", "saved a"]);
  stop();
  chat.update(say("b"));
  await chat.flush();
  assert.equal(heard.length, 3);
});

test("no network: offline, then everything goes out", async () => {
  const chat = opened();
  await chat.ready;
  proxy.down = true;
  proxy.cut();
  chat.update(say("a"));
  await until(() => chat.status === "offline");
  assert.equal(chat.error?.code, "network");
  chat.update(say("b"));
  assert.equal(texts(chat.state), "a b");
  proxy.down = false;
  await chat.flush();
  assert.equal(chat.status, "saved");
  assert.equal(chat.error, null);
  assert.equal(texts(await there()), "a b");
});

test("no network at the start: nothing is an empty state, and it loads when the network is there", async () => {
  await put({ messages: [{ id: "1", text: "kept" }] });
  proxy.down = true;
  const chat = opened();
  await until(() => chat.status === "offline");
  assert.equal(chat.state, null);
  proxy.down = false;
  await chat.ready;
  assert.equal(texts(chat.state), "kept");
});

test("lost answers: the same request is sent again, and is carried out once", async () => {
  await put({ list: [] });
  const chat = opened<any>();
  await chat.ready;
  for (const change of [{ padding: "x".repeat(500) }, { list: [1] }]) {
    proxy.lose = 2;
    chat.save({ ...chat.state, ...change }); // a whole state, then a patch
    await chat.flush();
    assert.equal(proxy.lose, 0);
  }
  assert.deepEqual((await there()).list, [1]);
  for (const method of ["POST", "PATCH"]) {
    const sent = proxy.of(method);
    assert.equal(sent.length, 3);
    for (const { headers, body } of sent) {
      assert.equal(headers["idempotency-key"], sent[0]!.headers["idempotency-key"]);
      assert.equal(body, sent[0]!.body);
    }
  }
});

test("an answer is lost, others write, and more is typed meanwhile: still nothing is doubled", async () => {
  await put({ list: ["start"] });
  const chat = opened<any>();
  await chat.ready;
  proxy.lose = 1;
  chat.save({ list: ["start", "mine"] });
  await until(() => chat.status === "offline");
  chat.save({ list: ["start", "mine", "more"] });
  await put({ list: [...(await there()).list, "theirs"] });
  await chat.flush();
  assert.deepEqual((await there()).list, ["start", "mine", "theirs", "more"]);
});

test("the server restarts while somebody is typing: nothing is lost", async () => {
  const own = await ServerProcess.start();
  const chat = opened({ baseUrl: own.url });
  await chat.ready;
  let typed = 0;
  const typing = setInterval(() => chat.update(say(`${typed++}`)), 3);
  await until(() => typed > 30);
  await own.kill();
  await until(() => chat.status === "offline" && typed > 60);
  await own.start();
  await until(() => typed > 90);
  clearInterval(typing);
  await chat.flush();
  const loaded = JSON.parse((await new ApiService(own.url).getUserSession(id))!.chat_state) as Chat;
  assert.equal(texts(loaded), Array.from({ length: typed }, (_, index) => index).join(" "));
  chat.close();
  await own.end();
});

test("too large: the state stays, the error says why, and it is not tried again by itself", async () => {
  const chat = opened();
  await chat.ready;
  chat.update(say("x".repeat(1 << 20)));
  await assert.rejects(chat.flush(), (error: ChatStateError) => error.status === 413 && error.code === "too_large");
  assert.equal(chat.status, "error");
  assert.equal(chat.error?.code, "too_large");
  const tried = writes().length;
  chat.update((state) => ({ messages: state.messages.slice(1) }));
  chat.update(say("short"));
  await chat.flush();
  assert.equal(chat.status, "saved");
  assert.equal(writes().length, tried + 1);
  assert.equal(texts(await there()), "short");
});

test("deleted elsewhere while something is unsaved: what was typed makes a new session", async () => {
  const chat = opened({ debounce: 60_000 });
  chat.update(say("a"));
  await chat.flush();
  chat.update(say("b"));
  await api.deleteUserSession(id);
  await chat.flush();
  assert.equal(texts(await there()), "a b");
  assert.equal(writes().at(-1)!.headers["if-none-match"], "*");
});

test("delete: gone here and there, and what is saved afterwards is a new session", async () => {
  const storage = new MemoryStorage();
  const chat = opened({ storage });
  chat.update(say("a"));
  await chat.flush();
  const gone = chat.delete();
  assert.deepEqual(chat.state, { messages: [] });
  await gone;
  assert.equal(await api.getUserSession(id), null);
  assert.equal(storage.length, 0);
  await chat.delete();
  chat.update(say("new"));
  await chat.flush();
  assert.equal(texts(await there()), "new");
});

test("the state need not be patchable for the server", async () => {
  await put('{"messages": [], "emoji": "\\ud800"}');
  const chat = opened<any>();
  await chat.ready;
  chat.update((state) => ({ ...state, more: 1, filling: "x".repeat(20), messages: [{ id: 1 }] }));
  chat.update((state) => ({ ...state, padding: 2 }));
  await chat.flush();
  assert.equal((await there()).padding, 2);
  chat.update((state) => ({ ...state, padding: 3 }));
  await chat.flush();
  assert.equal((await there()).padding, 3);
  assert.ok(proxy.of("PATCH").length > 0);
});

// --- What is kept -----------------------------------------------------------------------------------------------------

test("what is unsaved when the page dies goes out at the next visit, merged with what others have saved", async () => {
  const storage = new MemoryStorage();
  const chat = opened({ storage });
  chat.update(say("a"));
  await chat.flush();
  proxy.down = true;
  proxy.cut();
  chat.update(say("offline"));
  const left = storage.copy(); // in the same tick
  chat.close();
  await put({ messages: [...(await there()).messages, { id: "theirs", text: "theirs" }] });
  const next = opened({ storage: left });
  await next.ready; // still no network
  assert.equal(texts(next.state), "a offline");
  await until(() => next.status === "offline");
  proxy.down = false;
  await next.flush();
  assert.equal(texts(await there()), "a theirs offline");
});

test("the page dies between a write and its answer: the next visit knows that it was carried out", async () => {
  await put({ list: ["start"] });
  const storage = new MemoryStorage();
  const chat = opened<any>({ storage });
  await chat.ready;
  proxy.lose = 1000;
  chat.save({ list: ["start", "mine"] });
  await until(() => chat.status === "offline");
  chat.save({ list: ["start", "mine", "more"] });
  const left = storage.copy();
  chat.close();
  assert.deepEqual((await there()).list, ["start", "mine"]);
  await put({ list: ["start", "mine", "theirs"] });
  proxy.lose = 0;
  const next = opened<any>({ storage: left });
  assert.deepEqual(next.state.list, ["start", "mine", "more"]);
  await next.flush();
  assert.deepEqual((await there()).list, ["start", "mine", "theirs", "more"]);
});

test("what others have made of it appears at the next visit", async () => {
  const storage = new MemoryStorage();
  const chat = opened({ storage });
  chat.update(say("a"));
  await chat.flush();
  chat.close();
  await put({ messages: [{ id: "b", text: "b" }] });
  const next = opened({ storage });
  assert.equal(texts(next.state), "a");
  await until(() => texts(next.state) === "b");
  assert.equal(next.status, "saved");
});

test("a full storage is reported, saving goes on, and it is tried again with the next change", async () => {
  const storage = new MemoryStorage();
  const chat = opened({ storage });
  chat.update(say("a"));
  await chat.flush();
  storage.quota = 10;
  chat.update(say("b"));
  assert.equal(chat.error?.code, "quota_exceeded");
  assert.equal(storage.length, 0, "an older state would be taken for the newest");
  await chat.flush();
  assert.equal(chat.status, "saved");
  assert.equal(chat.error?.code, "quota_exceeded");
  assert.equal(texts(await there()), "a b");
  storage.quota = Infinity;
  chat.update(say("c"));
  assert.equal(chat.error, null);
  await chat.flush();
  assert.equal(storage.length, 1);
});

test("a closed session takes nothing more, and who waits is told", async () => {
  proxy.down = true;
  const chat = opened();
  chat.update(say("a"));
  const waiting = chat.flush();
  chat.close();
  await assert.rejects(waiting, { code: "closed" });
  await assert.rejects(chat.flush(), { code: "closed" });
  assert.throws(() => chat.update(say("b")), { code: "closed" });
});

test("only JSON is a state", async () => {
  assert.throws(() => opened<any>().save(undefined), TypeError);
});
