import { useCallback, useEffect, useMemo, useState, useSyncExternalStore } from "react";
import type { ClientOptions } from "./http.js";
import { ChatSession, type SessionOptions } from "./session.js";

/** The sessions that components of this page use now, or are about to, with how many use each. */
const shared = new Map<string, { session: ChatSession<unknown>; users: number }>();

/** Those that were closed here. */
const gone = new WeakSet<ChatSession<any>>();

/**
 * A session's state, as `useState` has it: `[state, setState, session]`.
 *
 * Components with the same id and server share one session; it is closed when the last one goes. `state` is null until
 * it is loaded, and on a server that renders. `setState` takes the next state, or what makes it of the one before.
 * Only the options of the first component count.
 */
export function useChatState<S>(
  id: string,
  options: ClientOptions & SessionOptions<S> = {},
): [state: S | null, setState: (next: S | ((now: S) => S)) => void, session: ChatSession<S>] {
  const place = `${options.baseUrl ?? ""} ${id}`;
  const [round, setRound] = useState(0);
  const session = useMemo(() => find(place, id, options), [place, round]);
  useEffect(() => {
    if (!gone.has(session)) return use(place, session as ChatSession<unknown>);
    setRound((before) => before + 1); // the component was hidden for a while, and nobody else had use for it
    return undefined;
  }, [place, session]);
  const subscribe = useCallback((listener: () => void) => session.subscribe(listener), [session]);
  const state = useSyncExternalStore(
    subscribe,
    () => session.getSnapshot(),
    () => null,
  );
  // Of the status and the error, too, components want to hear.
  useSyncExternalStore(
    subscribe,
    () => session.status,
    () => "loading",
  );
  useSyncExternalStore(
    subscribe,
    () => session.error,
    () => null,
  );
  const setState = useCallback(
    (next: S | ((now: S) => S)) =>
      typeof next === "function" ? session.update(next as (now: S) => S) : session.save(next),
    [session],
  );
  return [state, setState, session];
}

/** The session that is shared; a new one does nothing until it is used: a rendering may be thrown away. */
function find<S>(place: string, id: string, options: ClientOptions & SessionOptions<S>): ChatSession<S> {
  const known = shared.get(place);
  const session = (known?.session ?? new ChatSession<S>(id, options)) as ChatSession<S>;
  if (!known && globalThis.window) shared.set(place, { session: session as ChatSession<unknown>, users: 0 });
  return session;
}

/** Use it until what this gives is called. */
function use(place: string, session: ChatSession<unknown>): () => void {
  const entry = shared.get(place) ?? { session, users: 0 };
  shared.set(place, entry);
  entry.users++;
  entry.session.start();
  return () => {
    entry.users--;
    setTimeout(() => {
      if (entry.users || shared.get(place) !== entry) return; // in development React goes and comes back at once
      shared.delete(place);
      gone.add(entry.session);
      entry.session.close();
    });
  };
}
