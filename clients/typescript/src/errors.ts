/**
 * What went wrong: an answer of the server that is no success, no answer at all, or a state that could not be kept here.
 *
 * `code` is stable, and is that of the server's problem document where there is one (docs/reference/errors.md).
 * The client has codes of its own: `network` (no answer), `quota_exceeded` and `storage_unavailable` (the browser did not
 * keep the state; it is in memory only), `state_not_json`, `merge_failed`, `no_etag`, `closed`, and `http_<status>` for an
 * answer without a problem document.
 */
export class ChatStateError extends Error {
  override readonly name = "ChatStateError";

  constructor(
    /** The HTTP status; 0 when it is not about an answer. */
    readonly status: number,
    /** What programs look at. */
    readonly code: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}
