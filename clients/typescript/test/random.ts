// Random values from a seed, which a failure names: CHATSTATE_TEST_SEED=7 npm test
import { isObject } from "../src/json.js";
import type { Operation } from "../src/patch.js";

export interface Chat {
  messages: { id: number; text: string }[];
  [member: string]: unknown;
}

export class Random {
  #state: number;
  #ids = 0;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** A whole number from 0 to below this one (mulberry32). */
  below(limit: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % limit;
  }

  pick<T>(from: T[]): T {
    return from[this.below(from.length)]!;
  }

  json(depth: number): unknown {
    const kinds: (() => unknown)[] = [() => null, () => true, () => this.below(3), () => this.pick(["", "x", "é~/"])];
    if (depth) {
      kinds.push(
        () => Array.from({ length: this.below(4) }, () => this.json(depth - 1)),
        () => Object.fromEntries(Array.from({ length: this.below(4) }, () => [this.pick(["a", "b", "a/b", "~", "__proto__"]), this.json(depth - 1)])),
      );
    }
    return this.pick(kinds)();
  }

  chat(): Chat {
    const messages = Array.from({ length: this.below(5) }, () => this.message());
    return { messages, step: this.json(1), more: this.json(2) };
  }

  message(): { id: number; text: string } {
    return { id: this.#ids++, text: this.pick(["a", "b", "c"]) };
  }

  /** What somebody could make of it in a few steps. */
  edited(chat: Chat): Chat {
    const edited: Chat = structuredClone(chat);
    for (let steps = this.below(4); steps > 0; steps--) {
      this.pick([
        () => edited.messages.push(this.message()),
        () => edited.messages.splice(this.below(5), 1),
        () => edited.messages.forEach((message) => (message.text += this.pick(["", "!"]))),
        () => (edited["step"] = this.json(1)),
        () => (edited[this.pick(["more", "new"])] = this.json(2)),
        () => delete edited["more"],
      ])();
    }
    return edited;
  }
}

/** Try this with so many seeds; a failure names the one. */
export function randomly(times: number, attempt: (random: Random) => void): void {
  const given = process.env["CHATSTATE_TEST_SEED"];
  for (const seed of given ? [Number(given)] : Array.from({ length: times }, (_, index) => index)) {
    try {
      attempt(new Random(seed));
    } catch (error) {
      throw new Error(`with CHATSTATE_TEST_SEED=${seed}`, { cause: error });
    }
  }
}

/** What RFC 6902 says that these operations make of the value. */
export function applied(value: unknown, operations: Operation[]): unknown {
  const root: { root: unknown } = { root: structuredClone(value) };
  for (const { op, path, value: added } of operations) {
    const names = `root${path}`.split("/").map((name) => name.replaceAll("~1", "/").replaceAll("~0", "~"));
    const last = names.pop()!;
    const holder = names.reduce<any>((found, name) => found[name], root);
    if (Array.isArray(holder)) {
      const index = last === "-" ? holder.length : Number(last);
      if (!(index <= holder.length)) throw new Error(`no place ${path}`);
      holder.splice(index, op === "add" ? 0 : 1, ...(op === "remove" ? [] : [structuredClone(added)]));
    } else if (isObject(holder)) {
      if (op === "remove") delete holder[last];
      else Object.defineProperty(holder, last, { value: structuredClone(added), enumerable: true, writable: true, configurable: true });
    }
  }
  return root.root;
}
