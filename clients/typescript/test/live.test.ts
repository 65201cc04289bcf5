import assert from "node:assert/strict";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { type FeedEvent, parser } from "../src/events.js";
import { ApiService, type ChatSession, type ClientOptions, openSession, type SessionOptions } from "../src/index.js";
import { Proxy } from "./proxy.js";
import { ServerProcess, until } from "./server.js";

interface Chat {
  messages: { id: string }[];
}

let server: ServerProcess;
let proxy: Proxy;
let api: ApiService;
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

function opened<S = Chat>(options: ClientOptions & SessionOptions<S> = {}): ChatSession<S> {
  const session = openSession<S>(id, { baseUrl: server.url, debounce: 1, initial: { messages: [] } as S, ...options });
  open.push(session);
  return session;
}

const say = (text: string) => (chat: Chat): Chat => ({ messages: [...chat.messages, { id: text }] });
const ids = (chat: Chat | null) => chat?.messages.map((message) => message.id).join(" ");
const put = (state: unknown) => api.saveUserSession({ user_session_id: id, chat_state: JSON.stringify(state) });
const there = async () => JSON.parse((await api.getUserSession(id))!.chat_state);
/** The feed is there: what is saved elsewhere comes in. */
async function live(...sessions: ChatSession<Chat>[]): Promise<void> {
  await put({ messages: [{ id: "live" }] });
  await until(() => sessions.every((session) => ids(session.state) === "live"));
}

test("what one saves, the others see", async () => {
  const [one, two, three] = [opened(), opened(), opened({ baseUrl: proxy.url })];
  await live(one, two, three);
  one.update(say("a"));
  await until(() => [two, three].every(({ state }) => ids(state) === "live a"));
  two.update(say("b"));
  await until(() => [one, three].every(({ state }) => ids(state) === "live a b"));
  assert.equal(three.status, "saved");
  assert.ok(proxy.requests.every(({ line }) => line.startsWith("GET")));
});

test("what comes in is merged with what is unsaved", async () => {
  const slow = opened({ debounce: 60_000 });
  await live(slow);
  slow.update(say("mine"));
  await put({ messages: [{ id: "live" }, { id: "theirs" }] });
  await until(() => ids(slow.state) === "live theirs mine");
  assert.equal(ids(await there()), "live theirs");
  await slow.flush();
  assert.equal(ids(await there()), "live theirs mine");
});

test("deleted elsewhere: `initial` for who has nothing unsaved; who has, makes a new session", async () => {
  const [reader, writer] = [opened(), opened({ debounce: 60_000 })];
  await live(reader, writer);
  writer.update(say("unsaved"));
  await api.deleteUserSession(id);
  await until(() => ids(reader.state) === "");
  assert.equal(reader.status, "saved");
  assert.equal(ids(writer.state), "live unsaved");
  await writer.flush();
  await until(() => ids(reader.state) === "live unsaved");
});

test("lists without ids: whatever comes in between, everything is there once", async () => {
  const sessions = [1, 2, 3].map(() => opened<{ list: string[] }>({ initial: { list: [] } }));
  await Promise.all(sessions.map(({ ready }) => ready));
  for (let round = 0; round < 20; round++) {
    for (const [who, session] of sessions.entries()) {
      session.update(({ list }) => ({ list: [...list, `${who} ${round}`] }));
      if ((round + who) % 3) await until(() => session.status === "saved");
    }
  }
  await Promise.all(sessions.map((session) => session.flush()));
  const { list } = await there();
  assert.equal(list.length, 60);
  assert.equal(new Set(list).size, 60);
  await until(() => sessions.every(({ state }) => JSON.stringify(state!.list) === JSON.stringify(list)));
});

test("the same when answers are lost all the time", async () => {
  const sessions = [opened<{ list: string[] }>({ initial: { list: [] }, baseUrl: proxy.url }), opened<{ list: string[] }>({ initial: { list: [] } })];
  await Promise.all(sessions.map(({ ready }) => ready));
  for (let round = 0; round < 5; round++) {
    proxy.lose = 1;
    for (const [who, session] of sessions.entries()) {
      session.update(({ list }) => ({ list: [...list, `${who} ${round}`] }));
    }
    await until(() => proxy.lose === 0);
  }
  await Promise.all(sessions.map((session) => session.flush()));
  const { list } = await there();
  assert.equal(list.length, 10);
  assert.equal(new Set(list).size, 10);
});

test("after a lost connection and a restart it follows again, and misses nothing", async () => {
  const own = await ServerProcess.start();
  const [one, two] = [opened({ baseUrl: own.url }), opened({ baseUrl: own.url })];
  one.update(say("a"));
  await until(() => ids(two.state) === "a");
  await own.kill();
  one.update(say("b"));
  await own.start();
  await until(() => ids(two.state) === "a b");
  two.update(say("c"));
  await until(() => ids(one.state) === "a b c");
  for (const session of open.splice(0)) session.close();
  await own.end();
});

const BOT = `
import asyncio

async def bot(turn):
    async def pieces():
        reader, writer = await asyncio.open_connection("127.0.0.1", int(turn.message.text))
        async for line in reader:
            yield line.decode()
        writer.close()

    await turn.reply(pieces())
`;

test("a reply that a bot is writing is no reason to load anything", async () => {
  const own = await ServerProcess.withBot(BOT);
  const between = await Proxy.before(own.url);
  const dictation = createServer();
  await new Promise<void>((resolve) => dictation.listen(0, "127.0.0.1", resolve));
  const listens = new Promise<Socket>((resolve) => dictation.once("connection", resolve));
  const chat = opened({ baseUrl: between.url });
  await new ApiService(own.url).saveUserSession({ user_session_id: id, chat_state: '{"messages":[{"id":"live"}]}' });
  await until(() => ids(chat.state) === "live");
  const told = await fetch(`${own.url}/chat-state-sessions/${id}/events`);
  const events = told.body!.pipeThrough(new TextDecoderStream()).getReader();
  const message = { id: "question", text: String((dictation.address() as AddressInfo).port) };
  const said = await fetch(`${own.url}/chat-state-sessions/${id}/messages`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(message) });
  assert.equal(said.status, 202);
  const bot = await listens;
  for (const piece of ["once", "upon", "a", "time"]) {
    bot.write(`${piece}\n`);
    for (let seen = ""; !seen.includes(piece); ) seen += (await events.read()).value;
  }
  bot.end();
  await until(() => chat.state?.messages.length === 3);
  const loads = between.requests.filter(({ line }) => !line.includes("/events"));
  assert.deepEqual(loads.map(({ line }) => line.split(" ")[0]), ["GET"]);
  await events.cancel();
  chat.close();
  dictation.close();
  await between.end();
  await own.end();
});

test("a state that is not JSON is reported, and the next one that is, is shown", async () => {
  const chat = opened();
  await live(chat);
  await api.updateUserSession(id, { chat_state: "compressed" });
  await until(() => chat.status === "error");
  assert.equal(chat.error?.code, "state_not_json");
  assert.equal(ids(chat.state), "live");
  await put({ messages: [{ id: "again" }] });
  await until(() => chat.status === "saved");
  assert.equal(ids(chat.state), "again");
});

test("the stream may come in any pieces", () => {
  const stream = ': hello\r\nretry: 2000\n\nevent: state\nid: "x-1"\ndata:{"a":1}\n\n:\n\nevent: absent\ndata: {}\nid:\n\n';
  for (let size = 1; size <= stream.length; size++) {
    const events: FeedEvent[] = [];
    const parse = parser((event) => events.push(event));
    for (let at = 0; at < stream.length; at += size) parse(stream.slice(at, at + size));
    assert.deepEqual(events, [
      { event: "state", id: '"x-1"', data: '{"a":1}' },
      { event: "absent", id: "", data: "{}" },
    ]);
  }
});
