import { type ClientOptions, content, Http, JSON_BODY, sessionPath } from "./http.js";

/** What the other device gets for a code. Times are RFC 3339. */
export interface Redeemed {
  user_session_id: string;
  token: string;
  expires_at: string;
}

/** A link that moves a session to another device. */
export interface HandOff {
  /** For people who type it. */
  code: string;
  /** For a QR code, or to be sent. */
  url: string;
  expires_at: string;
  /** The URL as a picture, if it was asked for. */
  qr_svg?: string;
  /** Take it back. If it was redeemed, the other device is shut out. */
  cancel(): Promise<void>;
  /** When and by which device it was redeemed; null while it was not. */
  redeemed(): Promise<{ redeemed_at: string; device: string } | null>;
}

/** What a hand-off link may be given. */
export interface HandOffOptions {
  /** The page that the link opens. By default the server's own chat page. */
  page?: string;
  /** Draw a QR code, too. */
  qr?: boolean;
  /** How long it is open: 1 to 600 seconds. */
  ttl_seconds?: number;
}

/** Make a link for this session. */
export async function handOff(http: Http, id: string, options: HandOffOptions): Promise<HandOff> {
  const body = JSON.stringify(options);
  const answer = await http.send("POST", `${sessionPath(id)}/links`, { headers: JSON_BODY, body });
  const link = content<Omit<HandOff, "cancel" | "redeemed">>(answer);
  const path = `${sessionPath(id)}/links/${answer.headers.get("Location")?.split("/").pop()}`;
  return {
    ...link,
    async cancel() {
      content(await http.send("DELETE", path));
    },
    async redeemed() {
      const { redeemed_at, device = "" } = content<Record<string, string>>(await http.send("GET", path));
      return redeemed_at ? { redeemed_at, device } : null;
    },
  };
}

/** Take over the session of a code, or of a link that has one behind `#link=`. 404 `link_not_found` if it is not valid. */
export async function redeem(codeOrUrl: string, options: ClientOptions = {}): Promise<Redeemed> {
  const code = codeOrUrl.split("#link=").pop()!.trim();
  const http = new Http({ ...options, token: undefined }); // the code is the credential
  return content(await http.send("POST", `/links/${encodeURIComponent(code)}`));
}
