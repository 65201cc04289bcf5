import { ChatStateError } from "./errors.js";

/** Where the server is, and what it is shown. */
export interface ClientOptions {
  /** The server's address. By default where `/client.js` came from, else the page's origin, else `http://localhost:3000`. */
  baseUrl?: string;
  /** The bearer token, or what gives it; it is asked once, and again after a 401. */
  token?: string | (() => string | Promise<string>);
}

/** An answer that has arrived as a whole. */
export interface Answer {
  status: number;
  headers: Headers;
  text: string;
}

/** What a request may have beside its method and path. */
export interface Extras {
  headers?: Record<string, string>;
  body?: string;
  keepalive?: boolean;
  signal?: AbortSignal;
}

/** The header of requests that bring JSON. */
export const JSON_BODY = { "Content-Type": "application/json" };

declare const CHATSTATE_SERVED: boolean | undefined; // true in /client.js; set by the build

function defaultUrl(): string {
  if (typeof CHATSTATE_SERVED !== "undefined") return new URL(".", import.meta.url).href;
  const origin = globalThis.location?.origin;
  return origin?.startsWith("http") ? origin : "http://localhost:3000";
}

/** Half a minute without an answer is none. */
const SECONDS_TO_ANSWER = 30;

/** Sends requests with the token, and asks for another token once when the server does not take it. */
export class Http {
  readonly baseUrl: string;
  readonly #source: ClientOptions["token"];
  #token: string | undefined;

  constructor(options: ClientOptions | string = {}) {
    const { baseUrl, token }: ClientOptions = typeof options === "string" ? { baseUrl: options } : options;
    this.baseUrl = (baseUrl ?? defaultUrl()).replace(/\/+$/, "");
    this.#source = token;
  }

  /** The answer, whatever its status, its body still to come. Rejects as `fetch` does. */
  async open(method: string, path: string, { headers, ...more }: Extras = {}): Promise<Response> {
    for (let again = false; ; again = true) {
      const token = await this.#bearer(again);
      const bearer: Record<string, string> = token ? { Authorization: `Bearer ${token}` } : {};
      const response = await fetch(this.baseUrl + path, { method, headers: { ...headers, ...bearer }, ...more });
      if (response.status !== 401 || again || typeof this.#source !== "function") return response;
      await response.body?.cancel();
    }
  }

  /** The answer, whatever its status. Rejects with the code `network` when there is none, or not all of it. */
  async send(method: string, path: string, extras: Extras = {}): Promise<Answer> {
    try {
      const signal = AbortSignal.timeout(SECONDS_TO_ANSWER * 1000);
      const response = await this.open(method, path, { signal, ...extras });
      return { status: response.status, headers: response.headers, text: await response.text() };
    } catch (cause) {
      if (cause instanceof ChatStateError) throw cause;
      throw new ChatStateError(0, "network", `no answer: ${this.baseUrl}`, { cause });
    }
  }

  async #bearer(again: boolean): Promise<string | undefined> {
    if (typeof this.#source !== "function") return this.#source;
    if (again) this.#token = undefined;
    return (this.#token ??= await this.#source());
  }
}

/** The error that an answer tells of. */
export function problem({ status, text }: Answer): ChatStateError {
  let told: { code?: string; detail?: string } = {};
  try {
    told = JSON.parse(text) ?? {};
  } catch {
    // something between us and the server has answered
  }
  return new ChatStateError(status, told.code ?? `http_${status}`, told.detail ?? `HTTP ${status}`);
}

/** The body of a success; throws the error that any other answer tells of. */
export function content<T>(answer: Answer): T {
  if (answer.status >= 300) throw problem(answer);
  return JSON.parse(answer.text) as T;
}

/** Where a session is. */
export function sessionPath(id: string): string {
  return `/chat-state-sessions/${encodeURIComponent(id)}`;
}
