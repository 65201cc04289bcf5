// A TCP proxy that can lose answers: the request reaches the server, and the client never hears of it.
import { connect, createServer, type Server, type Socket } from "node:net";

export class Proxy {
  /** How many answers to writes shall be lost from now on. */
  lose = 0;
  /** Whether new connections are refused, as where there is no network. */
  down = false;
  /** The requests that went through: the first line and the headers in lower case. */
  readonly requests: { line: string; headers: Record<string, string>; body: string }[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #listener: Server;

  private constructor(readonly target: URL) {
    this.#listener = createServer((client) => this.#carry(client));
  }

  static async before(url: string): Promise<Proxy> {
    const proxy = new Proxy(new URL(url));
    await new Promise<void>((resolve) => proxy.#listener.listen(0, "127.0.0.1", resolve));
    return proxy;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#listener.address() as { port: number }).port}`;
  }

  /** The requests of this method. */
  of(method: string): { line: string; headers: Record<string, string>; body: string }[] {
    return this.requests.filter(({ line }) => line.startsWith(`${method} `));
  }

  /** Cut every connection. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async end(): Promise<void> {
    this.cut();
    await new Promise((resolve) => this.#listener.close(resolve));
  }

  #carry(client: Socket): void {
    if (this.down) return void client.destroy();
    const server = connect(Number(this.target.port), this.target.hostname);
    for (const socket of [client, server]) {
      this.#sockets.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => (this.#sockets.delete(socket), client.destroy(), server.destroy()));
    }
    let writes = false;
    client.on("data", (data) => {
      writes = !data.toString().startsWith("GET");
      this.#note(data.toString());
      server.write(data);
    });
    server.on("data", (data) => {
      if (writes && this.lose > 0 && /^HTTP\/1.1 \d/.test(data.toString())) {
        this.lose--;
        client.destroy();
      } else {
        client.write(data);
      }
    });
  }

  #note(text: string): void {
    const [head = "", ...body] = text.split("\r\n\r\n");
    const [line = "", ...fields] = head.split("\r\n");
    if (!/^[A-Z]+ \//.test(line)) {
      const last = this.requests.at(-1);
      if (last) last.body += text;
      return;
    }
    const headers = Object.fromEntries(
      fields.map((field) => [field.slice(0, field.indexOf(":")).toLowerCase(), field.slice(field.indexOf(":") + 2)]),
    );
    this.requests.push({ line, headers, body: body.join("\r\n\r\n") });
  }
}
