import type { ChatStateError } from "./errors.js";
import type { Status } from "./session.js";
import type { KeepsItems } from "./storage.js";

/** The tab that leads shows what it has: the text of its record (none before its first load), and how things stand. */
export interface View {
  kept: string | undefined;
  status: Status;
  error: Pick<ChatStateError, "status" | "code" | "message"> | null;
}

/** A tab wants to see that, or to lead itself, because something was changed in it. */
export interface Wish {
  wish: "see" | "lead";
}

/** Whether tabs can agree on who leads: not where a page is not secure (http on another machine), nor in old browsers. */
export function canTalk(): boolean {
  return !!globalThis.navigator?.locks;
}

/** Get the lock of this name when its turn comes, unless `signal` comes first, and hold it until it is released. */
export function hold(name: string, signal: AbortSignal, got: (release: () => void) => void): void {
  navigator.locks
    .request(name, { signal }, () => new Promise<void>(got))
    .catch(() => signal.aborted || got(() => {})); // this page may use no locks
}

/** The items of tabs that are not there any more; each tab holds the lock of its item's name. */
export async function leftBehind(storage: KeepsItems, place: string): Promise<string[]> {
  const { held } = await navigator.locks.query();
  const keys = Array.from({ length: storage.length }, (_, index) => storage.key(index)!);
  return keys.filter((key) => key.startsWith(`${place}:`) && !held!.some(({ name }) => name === key));
}
