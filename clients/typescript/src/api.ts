import { type ClientOptions, content, Http, JSON_BODY, problem, sessionPath } from "./http.js";

/** A session as the server keeps it. Times are RFC 3339 in UTC. */
export interface SessionRecord {
  session_id: string;
  user_session_id: string;
  chat_state: string;
  last_activity: string;
  created_at: string;
  updated_at: string;
  version: number;
  expires_at?: string;
}

/** What a load gives. */
export interface LoadedSession {
  chat_state: string;
  last_activity: string;
}

/** What a save sends. `chat_state` is the text of the state; `last_activity` is by default the server's time. */
export interface SaveSession {
  user_session_id: string;
  chat_state: string;
  last_activity?: string;
}

/** What an update sends: an absent state stays as it is. */
export type UpdateSession = Partial<Omit<SaveSession, "user_session_id">>;

/**
 * The four calls of the replaced service, with the same arguments and answers.
 *
 * They send no preconditions: the last write wins, as it always did. `openSession` is what loses nothing. All of them
 * reject with a `ChatStateError`, with the status 0 and the code `network` when no answer came.
 */
export class ApiService {
  readonly #http: Http;

  constructor(options?: ClientOptions | string) {
    this.#http = new Http(options);
  }

  /** Create or replace a session. */
  async saveUserSession(body: SaveSession): Promise<SessionRecord> {
    return this.#call("POST", "/chat-state-sessions", body);
  }

  /** The session, or `null` if there is none with this id. Whatever else keeps it from being loaded is an error. */
  async getUserSession(id: string): Promise<LoadedSession | null> {
    const answer = await this.#http.send("GET", sessionPath(id));
    // Another 404 comes from a wrong address: taken for "no session", it would make the bot start anew.
    if (answer.status === 404 && problem(answer).code === "session_not_found") return null;
    return content(answer);
  }

  /** Change a session that is there; else 404. */
  async updateUserSession(id: string, body: UpdateSession): Promise<SessionRecord> {
    return this.#call("PUT", sessionPath(id), body);
  }

  /** Delete a session that is there; else 404. */
  async deleteUserSession(id: string): Promise<{ message: string }> {
    return this.#call("DELETE", sessionPath(id));
  }

  async #call<T>(method: string, path: string, body?: unknown): Promise<T> {
    return content(await this.#http.send(method, path, { headers: JSON_BODY, body: JSON.stringify(body) }));
  }
}
