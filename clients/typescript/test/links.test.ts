import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { openSession, redeem } from "../src/index.js";
import { ServerProcess, until } from "./server.js";

interface Chat {
  messages: string[];
}

let server: ServerProcess;
let key: string;

before(async () => {
  ({ server, key } = await ServerProcess.keyed());
});
after(() => server.end());

test("a chat goes on on another device, and can be taken back from there", async () => {
  const { url: baseUrl } = server;
  const initial: Chat = { messages: [] };
  const laptop = openSession<Chat>("one", { baseUrl, token: key, initial, debounce: 60_000 });
  laptop.save({ messages: ["typed a moment ago"] });
  const link = await laptop.handOff({ page: `${baseUrl}/chat`, qr: true });
  assert.match(link.code, /^\w{4}-\w{4}$/);
  assert.match(link.qr_svg!, /^<svg/);
  assert.equal(await link.redeemed(), null);

  const { user_session_id, token } = await redeem(link.url, { baseUrl });
  assert.equal(user_session_id, "one");
  const phone = openSession<Chat>(user_session_id, { baseUrl, token, debounce: 1 });
  await phone.ready;
  assert.deepEqual(phone.state, { messages: ["typed a moment ago"] });
  assert.equal(typeof (await link.redeemed())!.device, "string");
  phone.update(({ messages }) => ({ messages: [...messages, "from the phone"] }));
  await until(() => laptop.state!.messages.length === 2);

  await link.cancel();
  phone.update(({ messages }) => ({ messages: [...messages, "too late"] }));
  await assert.rejects(phone.flush(), { status: 401 });
  laptop.close();
  phone.close();
});

test("a code can be typed, works once, and says nothing about why it does not", async () => {
  const { url: baseUrl } = server;
  const laptop = openSession<Chat>("two", { baseUrl, token: key });
  laptop.save({ messages: [] });
  const { code } = await laptop.handOff({ page: `${baseUrl}/chat` });
  assert.equal((await redeem(` ${code.toLowerCase()} `, { baseUrl })).user_session_id, "two");
  for (const wrong of [code, "BCDF-GHJK", "x/../y"]) {
    await assert.rejects(redeem(wrong, { baseUrl }), { status: 404, code: "link_not_found" });
  }
  laptop.close();
});

test("a session that does not exist cannot be handed on", async () => {
  const nobody = openSession<Chat>("nobody", { baseUrl: server.url, token: key });
  await assert.rejects(nobody.handOff({ page: `${server.url}/chat` }), { status: 404, code: "session_not_found" });
  nobody.close();
});
