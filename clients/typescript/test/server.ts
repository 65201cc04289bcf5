// Real chatstate servers for the tests: `python -m chatstate serve` on a free port and a database of its own.
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const PYTHON = process.env["CHATSTATE_TEST_PYTHON"] ?? resolve("../../.venv/bin/python"); // npm test runs in our folder
const SECONDS_TO_START = 30;

/** A port that nobody listens on. */
export async function freePort(): Promise<number> {
  const listener = createServer();
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
  const { port } = listener.address() as { port: number };
  await new Promise((resolve) => listener.close(resolve));
  return port;
}

/** Wait until this is true; fails after 20 seconds. */
export async function until(condition: () => unknown, what = condition.toString()): Promise<void> {
  const end = Date.now() + 20_000;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`still not so: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export class ServerProcess {
  readonly url: string;
  readonly #folder = mkdtempSync(join(tmpdir(), "chatstate-"));
  readonly #arguments: string[];
  #process: ChildProcess | undefined;
  #output = "";

  private constructor(port: number, more: string[]) {
    this.url = `http://127.0.0.1:${port}`;
    this.#arguments = ["serve", "--port", String(port), ...more];
  }

  /** A server that answers, with these further flags. */
  static async start(...more: string[]): Promise<ServerProcess> {
    const server = new ServerProcess(await freePort(), more);
    await server.start();
    return server;
  }

  /** A server that runs this bot, a Python function `bot`. */
  static async withBot(source: string): Promise<ServerProcess> {
    const server = new ServerProcess(await freePort(), ["--bot", "bot:bot"]);
    writeFileSync(join(server.#folder, "bot.py"), source);
    await server.start();
    return server;
  }

  /** A server that wants credentials, and its API key. */
  static async keyed(...more: string[]): Promise<{ server: ServerProcess; key: string }> {
    const server = new ServerProcess(await freePort(), more);
    const key = server.command("keys", "create", "--name", "test").match(/cs_\S+/)![0];
    await server.start();
    return { server, key };
  }

  /** What a command prints that works on the same database. */
  command(...words: string[]): string {
    return execFileSync(PYTHON, ["-m", "chatstate", ...words], { cwd: this.#folder, env: this.#environment, encoding: "utf8" });
  }

  get #environment(): Record<string, string> {
    return { PATH: process.env["PATH"] ?? "", LC_ALL: "C.UTF-8", CHATSTATE_STORE: `sqlite:///${this.#folder}/chatstate.db` };
  }

  async start(): Promise<void> {
    const started = spawn(PYTHON, ["-m", "chatstate", ...this.#arguments], { cwd: this.#folder, env: this.#environment });
    started.stdout.on("data", (data) => (this.#output += data));
    started.stderr.on("data", (data) => (this.#output += data));
    this.#process = started;
    const end = Date.now() + SECONDS_TO_START * 1000;
    while (!(await fetch(`${this.url}/healthz`).then((answer) => answer.ok, () => false))) {
      if (started.exitCode !== null || Date.now() > end) throw new Error(`chatstate did not start: ${this.#output}`);
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }

  /** SIGKILL, as a crash. `start` starts it again on the same port and database. */
  async kill(): Promise<void> {
    const ended = new Promise((resolve) => this.#process!.once("exit", resolve));
    this.#process!.kill("SIGKILL");
    await ended;
  }

  async end(): Promise<void> {
    await this.kill();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
