/** The client of chatstate, the session server for chatbots; see docs/reference/typescript.md. */
export { ApiService, type LoadedSession, type SaveSession, type SessionRecord, type UpdateSession } from "./api.js";
export { ChatStateError } from "./errors.js";
export type { ClientOptions } from "./http.js";
export { type HandOff, type HandOffOptions, type Redeemed, redeem } from "./links.js";
export { threeWayMerge } from "./merge.js";
export { ChatSession, openSession, type SessionOptions, type Status } from "./session.js";
