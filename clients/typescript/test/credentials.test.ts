import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { ApiService, openSession } from "../src/index.js";
import { ServerProcess, until } from "./server.js";

let server: ServerProcess;
let key: string;

before(async () => {
  ({ server, key } = await ServerProcess.keyed());
});
after(() => server.end());

const minted = async (user_session_id: string): Promise<string> => {
  const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };
  const answer = await fetch(`${server.url}/tokens`, { method: "POST", headers, body: JSON.stringify({ user_session_id }) });
  return ((await answer.json()) as { token: string }).token;
};

test("the token goes with every call", async () => {
  const api = new ApiService({ baseUrl: server.url, token: await minted("one") });
  await api.saveUserSession({ user_session_id: "one", chat_state: "{}" });
  assert.equal((await api.getUserSession("one"))?.chat_state, "{}");
  assert.equal(await api.getUserSession("two"), null); // what is not theirs is not there
  await assert.rejects(new ApiService(server.url).getUserSession("one"), { status: 401, code: "unauthorized" });
});

test("the token function is asked once, and once more after a 401", async () => {
  const given: string[] = [];
  const tokens = ["cs_old", await minted("three"), "not asked for"];
  const token = () => {
    given.push(tokens[given.length]!);
    return given.at(-1)!;
  };
  const chat = openSession<object>("three", { baseUrl: server.url, token, debounce: 0 });
  await chat.ready;
  chat.save({ hello: 1 });
  await chat.flush();
  assert.equal(given.length, 2);
  chat.close();
});

test("a token that is refused again is an error, and the next save tries with another one", async () => {
  let token = "cs_wrong";
  let asked = 0;
  const chat = openSession<object>("four", { baseUrl: server.url, token: async () => (asked++, token), debounce: 0 });
  await assert.rejects(chat.ready, { status: 401 });
  assert.equal(chat.state, null);
  assert.equal(chat.status, "error");
  assert.equal(asked, 2);
  token = await minted("four");
  chat.save({ hello: 1 });
  await chat.flush();
  assert.equal(chat.status, "saved");
  chat.close();
});

test("a session that is not the token's is an error, not an empty chat that is saved into nothing", async () => {
  const chat = openSession<object>("five", { baseUrl: server.url, token: await minted("other"), debounce: 0 });
  chat.save({ hello: 1 });
  await assert.rejects(chat.flush(), { status: 404, code: "session_not_found" });
  assert.equal(chat.status, "error");
  chat.close();
});

test("over the rate limit it waits as long as the server says", async () => {
  const own = await ServerProcess.keyed("--rate-per-session", "1");
  const chat = openSession<{ n: number }>("six", { baseUrl: own.server.url, token: own.key, debounce: 0 });
  await chat.ready;
  const statuses = new Set<string>();
  chat.subscribe(() => statuses.add(chat.error?.code ?? chat.status));
  for (let n = 0; n < 8; n++) {
    chat.save({ n });
    await until(() => chat.status !== "saving");
  }
  await chat.flush();
  assert.ok(statuses.has("too_many_requests"), [...statuses].join());
  chat.close();
  await own.server.end();
});
