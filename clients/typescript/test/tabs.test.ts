// Several tabs of one browser: they share a storage and locks, and hear each other. In Node.js the tabs are sessions of
// one process, which behave alike: nothing of a session is shared but these three.
import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { ApiService, type ChatSession, type ClientOptions, openSession, type SessionOptions } from "../src/index.js";
import { Locks } from "./locks.js";
import { Proxy } from "./proxy.js";
import { ServerProcess, until } from "./server.js";
import { MemoryStorage } from "./storage.js";

interface Chat {
  list: string[];
}

let server: ServerProcess;
let proxy: Proxy;
let api: ApiService;
let id: string;
let storage: MemoryStorage;
const open: ChatSession<any>[] = [];

before(async () => {
  if (!globalThis.navigator?.locks) Object.defineProperty(globalThis, "navigator", { value: { locks: new Locks() } });
  server = await ServerProcess.start();
  api = new ApiService(server.url);
});
after(() => server.end());
beforeEach(async () => {
  id = `session_${Math.random()}`;
  storage = new MemoryStorage();
  proxy = await Proxy.before(server.url);
});
afterEach(async () => {
  for (const session of open.splice(0)) session.close();
  await proxy.end();
});

function tab(options: ClientOptions & SessionOptions<Chat> = {}): ChatSession<Chat> {
  const session = openSession<Chat>(id, { baseUrl: proxy.url, debounce: 1, initial: { list: [] }, storage, ...options });
  open.push(session);
  return session;
}

const say = (text: string) => (chat: Chat): Chat => ({ list: [...chat.list, text] });
const texts = (chat: Chat | null) => chat?.list.join(" ");
const there = async () => texts(JSON.parse((await api.getUserSession(id))!.chat_state));
const feeds = () => proxy.requests.filter(({ line }) => line.includes("/events")).length;

test("one tab talks to the server, and the others see the same", async () => {
  const tabs = [tab()];
  await tabs[0]!.ready;
  tabs.push(tab(), tab());
  await Promise.all(tabs.map(({ ready }) => ready));
  tabs[0]!.update(say("a"));
  await until(() => tabs.every((one) => texts(one.state) === "a" && one.status === "saved"));
  assert.equal(feeds(), 1);
  await api.updateUserSession(id, { chat_state: '{"list": ["a", "theirs"]}' });
  await until(() => tabs.every((one) => texts(one.state) === "a theirs"));
  assert.equal(feeds(), 1);
});

test("every tab can be typed in", async () => {
  const tabs = [tab(), tab(), tab()];
  await Promise.all(tabs.map(({ ready }) => ready));
  for (const [number, one] of tabs.entries()) {
    one.update(say(`${number}`));
    await one.flush();
    assert.equal(one.status, "saved");
    await until(() => tabs.every(({ state }) => state!.list.length === number + 1));
  }
  assert.equal(await there(), "0 1 2");
});

test("all tabs are typed in at the same time: nothing is lost or doubled", async () => {
  const tabs = [tab(), tab(), tab()];
  await Promise.all(tabs.map(({ ready }) => ready));
  for (let round = 0; round < 10; round++) {
    for (const [number, one] of tabs.entries()) {
      one.update(say(`${number}-${round}`));
      if ((round + number) % 4 === 0) await until(() => one.status === "saved");
    }
  }
  await Promise.all(tabs.map((one) => one.flush()));
  const list = (await there())!.split(" ");
  assert.equal(list.length, 30);
  assert.equal(new Set(list).size, 30);
  await until(() => tabs.every(({ state }) => texts(state) === list.join(" ")));
});

test("the tab that leads goes while there is no network: the next one has what it had not saved", async () => {
  const [one, two] = [tab(), tab()];
  await Promise.all([one.ready, two.ready]);
  one.update(say("a"));
  await one.flush();
  proxy.down = true;
  proxy.cut();
  one.update(say("b"));
  await until(() => texts(two.state) === "a b");
  await until(() => two.status === "offline");
  one.close();
  two.update(say("c"));
  proxy.down = false;
  await two.flush();
  assert.equal(await there(), "a b c");
});

test("a write whose answer is lost goes over to the next tab, and is carried out once", async () => {
  const [one, two] = [tab(), tab()];
  await Promise.all([one.ready, two.ready]);
  proxy.lose = 1;
  one.update(say("a"));
  await until(() => one.status === "offline");
  two.update(say("b")); // it wants to lead
  await two.flush();
  assert.equal(await there(), "a b");
  await until(() => texts(one.state) === "a b" && one.status === "saved");
});

test("what is typed in a tab that does not lead is in the storage at once, and outlives it and the leader", async () => {
  const [one, two] = [tab(), tab()];
  await Promise.all([one.ready, two.ready]);
  one.update(say("a"));
  await until(() => texts(two.state) === "a");
  two.update(say("b"));
  const left = storage.copy(); // in the same tick
  for (const session of open.splice(0)) session.close();
  storage = left;
  const next = tab();
  await next.flush();
  assert.equal(await there(), "a b");
  assert.equal(storage.length, 1);
});

test("a state that is deleted in one tab is gone in all", async () => {
  const [one, two] = [tab(), tab()];
  await Promise.all([one.ready, two.ready]);
  one.update(say("a"));
  await until(() => texts(two.state) === "a");
  await two.delete();
  assert.equal(await api.getUserSession(id), null);
  await until(() => [one, two].every((session) => texts(session.state) === "" && session.status === "saved"));
  one.update(say("new"));
  await one.flush();
  assert.equal(await there(), "new");
});

test("a refused state is an error in all tabs", async () => {
  const [one, two] = [tab(), tab()];
  await Promise.all([one.ready, two.ready]);
  one.update(say("x".repeat(1 << 20)));
  await assert.rejects(one.flush(), { code: "too_large" });
  await until(() => two.error?.code === "too_large");
  assert.equal(two.status, "error");
  two.save({ list: ["short"] });
  await two.flush();
  await until(() => one.status === "saved" && texts(one.state) === "short");
});

test("a tab that was closed leaves nothing but what is kept", async () => {
  const one = tab();
  one.update(say("a"));
  await one.flush();
  one.close();
  const two = tab();
  await two.ready;
  assert.equal(texts(two.state), "a");
  await until(() => two.status === "saved");
});
