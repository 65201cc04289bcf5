import { type Http, sessionPath } from "./http.js";
import { Patient } from "./pause.js";

/** An event of the feed (server-sent events, WHATWG HTML, section 9.2.6). */
export interface FeedEvent {
  event: string;
  /** Absent if it says nothing of the state, as when a bot writes a reply. */
  id?: string;
  data: string;
}

/** The server sends a heartbeat every 15 s; three of them missing is a connection that is dead. */
const SILENCE_MS = 45_000;

/** Follows a session's feed for as long as it is not closed, through lost connections and restarts of the server. */
export class Feed extends Patient {
  readonly #http: Http;
  readonly #id: string;
  readonly #seen: () => string | null | undefined;
  readonly #take: (event: FeedEvent) => void;
  #connection = new AbortController();

  /** `seen` gives the tag of the newest state that is known here; `take` gets each event. */
  constructor(http: Http, id: string, seen: () => string | null | undefined, take: (event: FeedEvent) => void) {
    super();
    this.#http = http;
    this.#id = id;
    this.#seen = seen;
    this.#take = take;
    void this.#follow();
  }

  override close(): void {
    super.close();
    this.#connection.abort();
  }

  async #follow(): Promise<void> {
    for (let failures = 0; !this.closed; failures++) {
      let response: Response | undefined;
      try {
        response = await this.#connect();
        if (response.ok) await this.#read(response.body!, () => (failures = 0));
        else await response.body?.cancel();
      } catch {
        // the connection broke, or was silent for too long
      }
      if (!response?.ok) this.#take({ id: "" } as FeedEvent); // a load will tell why: the token was taken back, or nobody is there
      await this.wait(failures, response);
    }
  }

  #connect(): Promise<Response> {
    this.#connection = new AbortController();
    const etag = this.#seen();
    const headers = { Accept: "text/event-stream", ...(etag && { "Last-Event-ID": etag }) };
    return this.#http.open("GET", `${sessionPath(this.#id)}/events`, { headers, signal: this.#connection.signal });
  }

  async #read(body: ReadableStream<Uint8Array>, alive: () => void): Promise<void> {
    const parse = parser(this.#take);
    const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
    const connection = this.#connection;
    for (;;) {
      const silence = setTimeout(() => connection.abort(), SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (done || this.closed) return;
      alive();
      parse(value);
    }
  }
}

/** Takes the text of a stream in pieces, and gives its events. */
export function parser(take: (event: FeedEvent) => void): (piece: string) => void {
  let rest = "";
  let fields: Record<string, string> = {};
  return (piece) => {
    const lines = (rest + piece).split(/\r?\n/);
    rest = lines.pop()!;
    for (const line of lines) {
      const [, name = "", value = ""] = /^([^:]*):? ?(.*)/.exec(line)!;
      if (line) {
        fields[name] = value; // there is one line of data
      } else {
        if (fields["event"]) take(fields as unknown as FeedEvent);
        fields = {};
      }
    }
  };
}
