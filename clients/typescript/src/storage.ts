import { ChatStateError } from "./errors.js";

/** Where the unsaved is kept: `localStorage`, or anything else that has these of its members. */
export type KeepsItems = Pick<Storage, "getItem" | "setItem" | "removeItem" | "key" | "length">;

/** One item of a storage. What cannot be kept is reported, never thrown. */
export class Drawer {
  readonly #key: string;
  readonly #storage: () => KeepsItems | null;
  readonly #report: (trouble: ChatStateError | null) => void;

  constructor(storage: () => KeepsItems | null, key: string, report: (trouble: ChatStateError | null) => void) {
    this.#key = key;
    this.#storage = storage;
    this.#report = report;
  }

  /** What was put there; undefined when there is nothing, or nothing that can be read. */
  get<T>(): T | undefined {
    try {
      return JSON.parse(this.#storage()!.getItem(this.#key)!) ?? undefined;
    } catch {
      return undefined;
    }
  }

  /** Keep this text, or nothing. */
  put(text?: string): void {
    try {
      if (text) this.#storage()?.setItem(this.#key, text);
      else this.#storage()?.removeItem(this.#key);
      this.#report(null);
    } catch (cause) {
      if (text) this.put(); // an older one would be taken for the newest at the next visit
      const { name, message } = cause as Error;
      const code = name === "QuotaExceededError" ? "quota_exceeded" : "storage_unavailable";
      this.#report(new ChatStateError(0, code, `not kept here: ${message}`, { cause }));
    }
  }
}

/** The page's `localStorage`, or nothing outside of a page. Throws where the browser blocks it. */
export function pageStorage(): KeepsItems | null {
  return globalThis.document ? localStorage : null;
}
