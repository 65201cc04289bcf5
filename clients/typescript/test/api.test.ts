import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { ApiService, ChatStateError } from "../src/index.js";
import { freePort, ServerProcess } from "./server.js";

let server: ServerProcess;
let api: ApiService;

before(async () => {
  server = await ServerProcess.start();
  api = new ApiService(server.url);
});
after(() => server.end());

test("the four calls do what those of the replaced service did", async () => {
  const chat_state = '{"messages": [], "currentStep": "language"}';
  const saved = await api.saveUserSession({ user_session_id: "s 1/ü", chat_state, last_activity: "2025-10-02T10:00:00Z" });
  assert.equal(saved.user_session_id, "s 1/ü");
  assert.equal(saved.version, 1);
  assert.deepEqual(await api.getUserSession("s 1/ü"), { chat_state, last_activity: "2025-10-02T10:00:00Z" });
  const updated = await api.updateUserSession("s 1/ü", { chat_state: "{}" });
  assert.equal(updated.chat_state, "{}");
  assert.equal(typeof (await api.deleteUserSession("s 1/ü")).message, "string");
  assert.equal(await api.getUserSession("s 1/ü"), null);
});

test("what is not there can neither be updated nor deleted", async () => {
  const missing = (error: ChatStateError) => error.status === 404 && error.code === "session_not_found";
  await assert.rejects(api.updateUserSession("nobody", { chat_state: "{}" }), missing);
  await assert.rejects(api.deleteUserSession("nobody"), missing);
});

test("null means that there is no session, and nothing else does", async () => {
  await assert.rejects(new ApiService(`${server.url}/elsewhere`).getUserSession("x"), { status: 404, code: "not_found" });
  await assert.rejects(new ApiService(`http://127.0.0.1:${await freePort()}`).getUserSession("x"), { status: 0, code: "network" });
  await assert.rejects(api.getUserSession("x".repeat(256)), { status: 400, code: "invalid_request" });
});

test("an error says what the server says", async () => {
  const error = await api.saveUserSession({ user_session_id: "x", chat_state: "[object Object]" }).catch((error) => error);
  assert.ok(error instanceof ChatStateError);
  assert.equal(error.code, "invalid_request");
  assert.match(error.message, /JSON\.stringify/);
});

test("the address may end with a slash, and stand in an object", async () => {
  assert.equal(await new ApiService(`${server.url}/`).getUserSession("nobody"), null);
  assert.equal(await new ApiService({ baseUrl: server.url }).getUserSession("nobody"), null);
});
