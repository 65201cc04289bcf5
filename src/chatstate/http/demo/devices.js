/** Moving a chat to another device, and being let in: links, codes and session tokens. */
import { redeem } from "../client.js";
import { $, goodFor, timeOf } from "./view.js";

/** Whether the server lets everybody on this machine in; else each request wants a session token. */
export const isOpen = document.documentElement.dataset.access === "open";

const KEPT = "chatstate-demo:token"; // in the tab's storage: whoever opens another tab has to be let in there

let page; // what page.js gives us: shown(), show(id), back(), showPanel(name)
let invitation = ""; // what stood behind #link=
let link; // the hand-off that the dialog shows

// --- The token --------------------------------------------------------------------------------------------------------

function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

function keep(token) {
  sessionStorage.setItem(KEPT, JSON.stringify({ ...token, kept_at: new Date().toISOString() }));
}

export function forgetToken() {
  sessionStorage.removeItem(KEPT);
}

/** What the client is given as `token` for this session: it asks again when the server does not take the last one. */
export function bearer(id) {
  return id && kept().user_session_id === id ? () => kept().token ?? "" : undefined;
}

/** Ask the server something about this session; `path` is what stands behind its id in the address. */
export function request(id, path, { headers, ...options } = {}) {
  const token = bearer(id)?.();
  const url = new URL(`../chat-state-sessions/${encodeURIComponent(id)}/${path}`, import.meta.url);
  return fetch(url, { ...options, headers: { ...headers, ...(token && { Authorization: `Bearer ${token}` }) } });
}

/** Half of its time is over: ask for another one. The server gives it as long as the session may be renewed. */
async function renew() {
  const { token, kept_at: from, expires_at: until } = kept();
  if (!token || Date.now() < (Date.parse(from) + Date.parse(until)) / 2) return;
  const headers = { Authorization: `Bearer ${token}` };
  const response = await fetch(new URL("../tokens", import.meta.url), { method: "POST", headers }).catch(() => undefined);
  if (response?.ok) keep(await response.json());
}

/** The session that a token is for: the claim `sub` of its payload (RFC 7519, section 4.1.2). The server checks the rest. */
function claimsOf(token) {
  const payload = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
  const text = new TextDecoder().decode(Uint8Array.from(atob(payload), (character) => character.charCodeAt(0)));
  return JSON.parse(text);
}

// --- Arriving on this device ------------------------------------------------------------------------------------------

/** Ask whether to go on with the chat of a link; or, with a reason, how to be let in. False if there is nothing to ask. */
export function arrive(reason) {
  if (location.hash.startsWith("#link=")) {
    invitation = location.hash.slice("#link=".length);
    history.replaceState(null, "", location.pathname + location.search); // it is a secret: out of the address and the history
    return ask("arrival");
  }
  if (reason === undefined || !$("arrival").hidden) return false;
  $("access-reason").textContent = reason;
  $("leave-access").hidden = !page.shown() || reason !== "";
  return ask("access");
}

function ask(panel) {
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  page.showPanel(panel);
  $(`${panel}-title`).focus();
  return true;
}

/** Use a code up, and go on with its session. Only ever called by a press of a button. */
async function accept(code, problem) {
  problem.textContent = "";
  try {
    const given = await redeem(code);
    keep(given);
    page.show(given.user_session_id);
  } catch (error) {
    problem.textContent =
      error.code === "link_not_found"
        ? "This is not valid (any more): it was used, taken back, mistyped, or is older than ten minutes. Make another one there."
        : `That did not work: ${error.message}`;
  }
}

function openWithToken(token, problem) {
  problem.textContent = "";
  try {
    const { sub, exp } = claimsOf(token);
    keep({ user_session_id: sub, token, expires_at: new Date(exp * 1000).toISOString() });
    page.show(sub);
  } catch {
    problem.textContent = "This is no session token. It begins with “ey” and has two dots in it.";
  }
}

// --- Handing over to another device -----------------------------------------------------------------------------------

/** Open the dialog: with the link that was made for this session before, or with a new one. */
function handOff() {
  $("hand-off-dialog").showModal();
  if (link?.session !== page.shown().id) makeLink();
}

async function makeLink() {
  const { id, state } = page.shown();
  link = undefined;
  if (!state?.messages?.length) return showLink(undefined, "There is nothing to go on with yet: write something first, then come back.");
  showLink(undefined, "Making a link…");
  try {
    link = { session: id, ...(await page.shown().handOff({ qr: true })) };
    showLink(link, "");
    follow(link);
  } catch (error) {
    showLink(undefined, `No link could be made: ${error.message}`);
  }
  return undefined;
}

function showLink(made, text) {
  $("hand-off-open").hidden = !made;
  $("take-back").hidden = !made;
  $("another").hidden = true;
  $("hand-off-status").textContent = text;
  if (!made) return;
  $("qr").src = `data:image/svg+xml,${encodeURIComponent(made.qr_svg)}`;
  $("hand-off-code").textContent = made.code;
  $("hand-off-url").value = made.url;
  $("copy").textContent = "Copy link";
  $("hand-off-local").hidden = !/^(localhost|.*\.localhost|127\.0\.0\.1|\[::1\])$/.test(new URL(made.url).hostname);
}

/** Look every second what has become of the link, until it is redeemed, over, or another one is shown. */
function follow(shown) {
  const timer = setInterval(async () => {
    if (shown !== link) return clearInterval(timer);
    const left = Math.round((Date.parse(shown.expires_at) - Date.now()) / 1000);
    $("hand-off-left").textContent = goodFor(left);
    const redeemed = await shown.redeemed().catch(() => null);
    if (shown !== link || !(redeemed || left <= 0)) return undefined;
    clearInterval(timer);
    if (redeemed) return settled(`Continued on ${deviceOf(redeemed.device)} at ${timeOf(redeemed.redeemed_at)}.`, true);
    return settled("Nobody has used the link; it is not valid any more.", false);
  }, 1000);
}

/** Nothing more happens to the link by itself. */
function settled(text, canTakeBack) {
  $("hand-off-open").hidden = true;
  $("hand-off-status").textContent = text;
  $("take-back").hidden = !canTakeBack;
  $("another").hidden = false;
}

async function takeBack() {
  try {
    await link.cancel();
    link = undefined;
    settled("Taken back: nobody gets in with it any more.", false);
    $("another").focus();
  } catch (error) {
    $("hand-off-status").textContent = `It could not be taken back: ${error.message}`;
  }
}

async function copy() {
  $("hand-off-url").select();
  try {
    await navigator.clipboard.writeText($("hand-off-url").value);
    $("copy").textContent = "Copied";
  } catch {
    $("copy").textContent = "Press Ctrl+C"; // browsers allow it only to pages with TLS
  }
}

/** A name for people, from what a browser calls itself. */
function deviceOf(userAgent) {
  const systems = { Android: "Android", iPhone: "iPhone", iPad: "iPad", Windows: "Windows", "Mac OS": "Mac", CrOS: "Chromebook", Linux: "Linux" };
  const browsers = { "Edg/": "Edge", "OPR/": "Opera", "Firefox/": "Firefox", "Chrome/": "Chrome", "Safari/": "Safari" };
  const found = (names) => Object.entries(names).find(([mark]) => userAgent.includes(mark))?.[1];
  const [system, browser] = [found(systems), found(browsers)];
  return browser && system ? `${browser} on ${system}` : (system ?? browser ?? "another device");
}

// --- Starting ---------------------------------------------------------------------------------------------------------

export function startDevices(given) {
  page = given;
  $("new-chat").hidden = !isOpen; // a token is for one session
  setInterval(renew, 60_000);
  addEventListener("hashchange", () => arrive());
  $("hand-off").addEventListener("click", handOff);
  $("another").addEventListener("click", makeLink);
  $("take-back").addEventListener("click", takeBack);
  $("copy").addEventListener("click", copy);
  $("have-code").addEventListener("click", () => arrive(""));
  $("leave-access").addEventListener("click", page.back);
  $("accept").addEventListener("click", () => accept(invitation, $("arrival-error")));
  $("decline").addEventListener("click", decline);
  onSubmit("code-form", () => accept($("code").value, $("code-error")));
  onSubmit("token-form", () => openWithToken($("token").value.trim(), $("token-error")));
}

function decline() {
  invitation = "";
  location.reload();
}

function onSubmit(form, action) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}
