import { ChatStateError } from "./errors.js";
import { type Answer, type Extras, type Http, problem, sessionPath } from "./http.js";
import { diff } from "./patch.js";
import { closed, newKey, Patient } from "./pause.js";

/** A state as text, with its tag: null when there is no session, and then the text is what it would begin with. */
export interface Version {
  etag: string | null;
  text: string;
}

/** What is there: both are null when there is no session. */
export interface Found {
  etag: string | null;
  text: string | null;
}

/**
 * What became of a conditional write: its new tag; or `conflict`, with what is there if that is known (else load);
 * or `before`: this very write was carried out earlier, and it is not known under which tag.
 */
export type Written = { etag: string } | { conflict: Found | null } | { before: true };

/** Browsers send at most 64 KiB on behalf of a page that is gone (https://fetch.spec.whatwg.org, keepalive). */
const KEEPALIVE_BYTES = 60_000;

/** The most operations that the server takes in one patch. */
const MAX_OPERATIONS = 1000;

/**
 * A session on the server. Calls are repeated until the server has given a definite answer;
 * once it is closed, they reject with the code `closed` instead.
 */
export class Server extends Patient {
  readonly #http: Http;
  readonly #id: string;
  readonly #report: (trouble: ChatStateError | null) => void;

  /** `report` is told why there is no answer yet, and null as soon as there is one. */
  constructor(http: Http, id: string, report: (trouble: ChatStateError | null) => void) {
    super();
    this.#http = http;
    this.#id = id;
    this.#report = report;
  }

  /** What is there; undefined when it is still this version. */
  async load(etag: string | null | undefined): Promise<Found | undefined> {
    const answer = await this.#call("GET", sessionPath(this.#id), etag ? { headers: { "If-None-Match": etag } } : {});
    if (answer.status === 304) return undefined;
    const error = problem(answer);
    if (error.code === "session_not_found") return { etag: null, text: null };
    if (answer.status !== 200) throw error;
    return { etag: tag(answer), text: JSON.parse(answer.text).chat_state };
  }

  /** Write `text` if `base` is still what is there. The same key stands for the same write. */
  async write(base: Version, text: string, key: string): Promise<Written> {
    const patch = base.etag && patchOf(base.text, text);
    let answer = patch && (await this.#write("PATCH", base, patch, key));
    // A patch that does not fit was not carried out; the whole state is another request, with another key.
    if (!answer || answer.status === 409) {
      answer = await this.#write("POST", base, JSON.stringify({ user_session_id: this.#id, chat_state: text }), `${key}s`);
    }
    if (answer.status < 300) return { etag: tag(answer) };
    if (answer.status === 422) return { before: true }; // only what was carried out is remembered
    if (answer.status !== 412) throw problem(answer);
    if (!answer.headers.get("ETag")) return { conflict: { etag: null, text: null } };
    const { current } = JSON.parse(answer.text);
    return { conflict: current ? { etag: tag(answer), text: current.chat_state } : null };
  }

  /** Delete it, whatever is there. */
  async remove(): Promise<void> {
    const headers = { "If-Match": "*", "Idempotency-Key": newKey() };
    const answer = await this.#call("DELETE", sessionPath(this.#id), { headers });
    if (answer.status >= 300 && answer.status !== 412) throw problem(answer); // 412: there is none
  }

  #write(method: "PATCH" | "POST", { etag }: Version, body: string, key: string): Promise<Answer> {
    const patches = method === "PATCH";
    const headers: Record<string, string> = {
      "Content-Type": patches ? "application/json-patch+json" : "application/json",
      "Idempotency-Key": key,
      [etag ? "If-Match" : "If-None-Match"]: etag ?? "*",
      Prefer: `return=${patches ? "minimal" : "representation"}`, // the state in a 412; a patch is answered briefly
    };
    return this.#call(method, patches ? sessionPath(this.#id) : "/chat-state-sessions", { headers, body });
  }

  async #call(method: string, path: string, extras: Extras): Promise<Answer> {
    const small = new Blob([extras.body ?? ""]).size < KEEPALIVE_BYTES;
    for (let failures = 0; !this.closed; failures++) {
      let answer: Answer | undefined;
      try {
        // Not the second time: the page may have more of them under way than the browser allows.
        answer = await this.#http.send(method, path, { ...extras, keepalive: small && !failures });
        if (answer.status < 500 && answer.status !== 429 && answer.status !== 408) {
          this.#report(null);
          return answer;
        }
        this.#report(problem(answer));
      } catch (error) {
        this.#report(error as ChatStateError);
      }
      await this.wait(failures, answer);
    }
    throw closed();
  }
}

/** The body of a patch, if the server takes it and it is less than the state. */
function patchOf(base: string, text: string): string | undefined {
  const operations = diff(JSON.parse(base), JSON.parse(text));
  const body = JSON.stringify(operations);
  return operations.length <= MAX_OPERATIONS && body.length < text.length ? body : undefined;
}

/** The answer's strong tag. A proxy that compresses makes weak ones of it, which never match (RFC 9110, section 8.8.3.2). */
function tag(answer: Answer): string {
  const etag = answer.headers.get("ETag")?.replace(/^W\//, "");
  if (!etag) throw new ChatStateError(answer.status, "no_etag", "an answer without ETag");
  return etag;
}
