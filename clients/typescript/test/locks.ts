// Web Locks for tests where Node.js has none (before version 24): exclusive locks, first come, first served.
interface Waiting {
  grant: () => void;
}

export class Locks {
  readonly #queues = new Map<string, Waiting[]>();

  async request(name: string, { signal }: { signal?: AbortSignal }, callback: () => unknown): Promise<void> {
    const queue = this.#queues.get(name) ?? [];
    this.#queues.set(name, queue);
    await new Promise<void>((resolve, reject) => {
      const waiting = { grant: resolve };
      queue.push(waiting);
      const abort = () => {
        if (queue.indexOf(waiting) > 0) queue.splice(queue.indexOf(waiting), 1);
        reject(signal!.reason);
      };
      signal?.addEventListener("abort", abort);
      waiting.grant = () => {
        signal?.removeEventListener("abort", abort);
        resolve();
      };
      if (queue.length === 1) waiting.grant();
    });
    try {
      await callback();
    } finally {
      queue.shift();
      queue[0]?.grant();
    }
  }

  async query(): Promise<{ held: { name: string }[] }> {
    return { held: [...this.#queues].filter(([, queue]) => queue.length).map(([name]) => ({ name })) };
  }
}
