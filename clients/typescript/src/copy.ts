import { ChatStateError } from "./errors.js";
import { equal } from "./json.js";
import type { Found } from "./server.js";

/** Decides what becomes of two changes of the same state. */
export type Merge<S> = (base: S | null, mine: S, theirs: S) => S;

/** A write whose answer has not come. `edits` is how many changes of this page are in it. */
export interface Sent {
  text: string;
  key: string;
  edits: number;
}

/** What lies in the storage: everything that a later visit needs to go on. */
export interface Kept {
  etag?: string | null;
  base: unknown;
  latest?: unknown; // only if it is unsaved
  sent?: unknown;
  key?: string;
  changes: number;
}

/** The working copy of a state: what is there, and what was made of it here. */
export class Copy<S> {
  /** The tag of what is there. null: there is no session; undefined: nobody knows. */
  etag: string | null | undefined;
  /** The text that belongs to the tag; without a session, that of `initial`. */
  base: string;
  /** What the person sees. */
  latest: S | null = null;
  /** The same as text, as it was when it was saved: whoever holds `latest` may change it. */
  text: string;
  /** Whether it is unsaved. */
  dirty = false;
  sent: Sent | undefined;
  /** How often it was kept: of two records the one with more is newer. */
  changes = 0;

  constructor(
    readonly initial: string,
    readonly merge: Merge<S>,
  ) {
    this.base = this.text = initial;
  }

  /** Go on where an earlier visit, or another tab, has ended. */
  restore(kept: Kept): void {
    this.etag = kept.etag;
    this.base = JSON.stringify(kept.base);
    this.dirty = "latest" in kept;
    this.sent = "sent" in kept ? { text: JSON.stringify(kept.sent), key: kept.key!, edits: 0 } : undefined;
    this.changes = kept.changes;
    this.show((this.dirty ? kept.latest : kept.base) as S);
  }

  /** What is unsaved is for another tab to save, from now on. */
  hand(): void {
    this.base = this.text;
    this.etag = this.sent = undefined;
    this.dirty = false;
  }

  /** What `restore` takes, as text. */
  toString(): string {
    const { etag, sent } = this;
    const known = etag === undefined ? "" : `"etag":${JSON.stringify(etag)},`;
    const latest = this.dirty ? `,"latest":${this.text}` : "";
    const writing = sent ? `,"sent":${sent.text},"key":"${sent.key}"` : "";
    return `{${known}"base":${this.base}${latest}${writing},"changes":${++this.changes}}`;
  }

  /** This is what the person sees now. */
  show(state: S | null, text = JSON.stringify(state)): void {
    this.latest = state;
    this.text = text;
  }

  /** What is there has changed: take it, and what is unsaved on top of it. */
  rebase({ etag, text }: Found | { etag: undefined; text: string }): void {
    const theirs = parsed<S>(text ?? this.initial);
    if (!this.dirty) {
      if (this.latest === null || !equal(this.latest, theirs)) this.show(theirs);
    } else if (text !== null) {
      const next = this.#merged(JSON.parse(this.base), this.latest as S, theirs as S);
      this.dirty = !equal(next, theirs);
      this.show(next);
    } // else it was deleted while something was typed here: that makes a new session
    this.etag = etag;
    this.base = text ?? this.initial;
  }

  /** Take what a tab that did not lead has left unsaved. */
  adopt({ base, latest }: Kept): void {
    this.show(this.latest === null ? (latest as S) : this.#merged(base as S, latest as S, this.latest));
    this.dirty = true;
  }

  #merged(base: S | null, mine: S, theirs: S): S {
    try {
      return this.merge(base, mine, theirs);
    } catch (cause) {
      throw new ChatStateError(0, "merge_failed", `merge: ${cause}`, { cause });
    }
  }
}

function parsed<S>(text: string): S | null {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ChatStateError(0, "state_not_json", "not JSON, so it is left alone", { cause });
  }
}

/** Whether a tag is not of the version that is known, or of one before it: events may be late. */
export function isNewer(etag: string | null, known: string | null | undefined): boolean {
  const [[session, version], [knownSession, knownVersion]] = [etag, known].map((tag) => tag?.split(/-(?=\d+"$)/) ?? []) as [
    [string, string],
    [string, string],
  ];
  return version && session === knownSession ? parseInt(version) > parseInt(knownVersion) : etag !== known;
}
