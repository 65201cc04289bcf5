import { ChatStateError } from "./errors.js";

/** The error of calls that were given up. */
export function closed(): ChatStateError {
  return new ChatStateError(0, "closed", "closed");
}

/** The longest wait before another try. */
const LONGEST_MS = 30_000;

/** Who tries again and again, until it is closed. */
export class Patient {
  protected closed = false;
  #end = (): void => {};

  /** Try again now: the network may be back. */
  nudge(): void {
    this.#end();
  }

  /** Try nothing again. */
  close(): void {
    this.closed = true;
    this.#end();
  }

  /** Wait after so many failures before (0: this was the first), at least as long as the answer says; never all at once. */
  protected async wait(failures: number, answer?: { headers: Headers }): Promise<void> {
    const asked = Number(answer?.headers.get("Retry-After")) * 1000 || 0;
    const milliseconds = Math.max(asked, Math.min(LONGEST_MS, 250 * 2 ** failures)) * (1 + Math.random() / 2);
    if (this.closed) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#end = () => (clearTimeout(timer), resolve());
    });
  }
}

/** A key that no other write has. `randomUUID` is missing where the page is not secure (http on another machine). */
export function newKey(): string {
  return crypto.getRandomValues(new Uint32Array(4)).join("");
}
