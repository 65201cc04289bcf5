import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { StrictMode, type ReactElement, type ReactNode } from "react";
import { act, create, type ReactTestRenderer } from "react-test-renderer";
import { ApiService, type ChatSession } from "../src/index.js";
import { useChatState } from "../src/react.js";
import { ServerProcess, until } from "./server.js";

interface Chat {
  messages: string[];
}

let server: ServerProcess;

before(async () => {
  (globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;
  (globalThis as { window?: unknown }).window = new EventTarget();
  server = await ServerProcess.start();
});
after(() => server.end());

let set: (next: Chat | ((now: Chat) => Chat)) => void;
let session: ChatSession<Chat>;

function View({ id }: { id: string }): ReactNode {
  const initial = { messages: [] };
  const [state, setState, opened] = useChatState<Chat>(id, { baseUrl: server.url, initial, debounce: 5 });
  [set, session] = [setState, opened];
  return `${id} ${opened.status} ${state?.messages.join() ?? "…"}`;
}

const shown = (view: ReactTestRenderer) => JSON.stringify(view.toJSON());
const settled = (condition: () => boolean) => act(() => until(condition));

async function rendered(element: ReactElement): Promise<ReactTestRenderer> {
  let view!: ReactTestRenderer;
  await act(async () => void (view = create(element)));
  return view;
}

test("a component shows the state, and what it sets is saved", async () => {
  const view = await rendered(<StrictMode><View id="one" /></StrictMode>);
  await settled(() => shown(view) === '"one saved "');
  await act(async () => set((now) => ({ messages: [...now.messages, "Hello"] })));
  assert.match(shown(view), /Hello/);
  await settled(() => shown(view) === '"one saved Hello"');
  const saved = await new ApiService(server.url).getUserSession("one");
  assert.deepEqual(JSON.parse(saved!.chat_state), { messages: ["Hello"] });
  await act(async () => view.unmount());
  await assert.rejects(until(() => session.flush().then(() => false)), { code: "closed" });
});

test("components with the same id share one session, another id is another one", async () => {
  const view = await rendered(<><View id="two" /><View id="two" /></>);
  await act(async () => set({ messages: ["both"] }));
  await settled(() => shown(view) === '["two saved both","two saved both"]');
  await act(async () => view.update(<><View id="three" /></>));
  await settled(() => shown(view) === '"three saved "');
  await act(async () => view.update(<><View id="two" /></>));
  await settled(() => shown(view) === '"two saved both"');
  await act(async () => view.unmount());
});
