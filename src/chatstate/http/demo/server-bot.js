/**
 * A chat with the bot that runs on the server (`chatstate serve --bot …`). The page does not write the state then: it posts
 * what somebody says, and shows the state, which the bot writes; and what the bot is just writing.
 */
import { isOpen } from "./devices.js";
import { Replies } from "./replies.js";
import { keptSessions, Unsent } from "./unsent.js";
import { $, showChoices, showMessages, showWriting } from "./view.js";

export const hasServerBot = document.documentElement.dataset.bot === "server";

/** What a chat is before anybody has said anything. */
export const EMPTY = { messages: [] };

let page; // what page.js gives us: render(), lockOut()
let unsent; // of the session that is shown
let replies; // the same
let wasOffline = false;
let leadsFocus = false; // a suggestion was chosen, so the focus goes to what comes next
const all = new Map(); // by session: what is not sent yet goes out while another one is shown, too

/** What was said before the page was closed goes out now, of all sessions; a token is for one, and that will be shown. */
export function startServerBot(given) {
  page = given;
  if (isOpen) for (const id of keptSessions()) unsentOf(id).nudge();
}

function unsentOf(id) {
  const ifShown = (act) => () => all.get(id) === unsent && act();
  if (!all.has(id)) all.set(id, new Unsent(id, ifShown(page.render), ifShown(page.lockOut)));
  return all.get(id);
}

/** Another session is shown, or the same one with another token. */
export function follow(id) {
  unsent = unsentOf(id);
  unsent.nudge();
  replies?.close();
  replies = new Replies(id, showWriting);
}

/** Say something; false when so much is unsent that no more is taken. */
export function say(text) {
  return unsent.add(text);
}

/** How things stand, as the sign shows it: of the session, which is only watched, and of what is to be sent. */
export function standing({ status, error }) {
  if (wasOffline && status !== "offline") unsent.nudge();
  wasOffline = status === "offline";
  if (unsent.full) return { status: "error", error: { message: `${unsent.entries.length} messages wait here, and there is no room for more` } };
  if (unsent.waiting.length && unsent.unkept) return { status: "saving", error: { code: "quota_exceeded" } };
  if (status !== "saved" || !unsent.waiting.length) return { status, error };
  return { status: unsent.failing ? "offline" : "saving", error: null };
}

// --- Showing it -------------------------------------------------------------------------------------------------------

/** Whether a bot can work with this state, and this page can show it. */
export function isChat(state) {
  return isObject(state) && (state.messages === undefined || (Array.isArray(state.messages) && state.messages.every(isMessage)));
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isMessage(value) {
  return isObject(value) && ["id", "role", "text"].every((name) => typeof value[name] === "string");
}

/** Show the state; null: it is being loaded. */
export function showState(state) {
  const messages = state?.messages ?? [];
  const ids = new Set(messages.map(({ id }) => id));
  unsent.remove(ids);
  showMessages([...messages.map(shown), ...unsent.entries.map(shownUnsent)]);
  replies.settle(ids);
  $("nothing-said").hidden = !state || messages.length + unsent.entries.length > 0;
  offer(state && choicesOf(messages));
}

/** Offer answers; none, as long as something that was said is not answered. */
function offer(choices) {
  const isWaiting = unsent.entries.some(({ refused }) => !refused);
  leadsFocus ||= isWaiting && $("choices").contains(document.activeElement);
  showChoices(isWaiting ? [] : (choices ?? []), "", say, $("log"));
  if (isWaiting || !leadsFocus) return;
  leadsFocus = false;
  if (document.activeElement === $("log")) ($("choices").querySelector("button") ?? $("text")).focus();
}

function choicesOf(messages) {
  if (!messages.length) return [{ title: "Hello" }];
  const choices = messages.findLast(({ role }) => role === "bot")?.choices;
  return Array.isArray(choices) ? choices.filter(isChoice).map(({ title, description }) => ({ title, description: textOf(description) })) : [];
}

function isChoice(value) {
  return isObject(value) && typeof value.title === "string" && value.title !== "";
}

function textOf(value) {
  return typeof value === "string" ? value : "";
}

/** A message of the state. Its text may have been read already, while it was written. */
function shown({ id, role, text, at, media, attachment }) {
  return { id, role, text, at, attached: sentFile(media) ?? receivedFile(attachment), isRead: replies.texts.get(id) === text };
}

function shownUnsent({ id, text, at, accepted, refused }) {
  const actions = [
    ["Try again", () => unsent.again(id)],
    ["Delete", () => unsent.remove(new Set([id]))],
  ];
  if (refused) return { id, role: "user", text, at, status: { text: `Not sent: ${refused} `, tone: "bad", actions } };
  return { id, role: "user", text, at, status: { text: accepted ? "Sent" : "Sending…" } };
}

// --- Files ------------------------------------------------------------------------------------------------------------

const KINDS = {
  image: "Picture",
  video: "Video",
  audio: "Recording",
  document: "Document",
  sticker: "Sticker",
  location: "Place",
  contacts: "Contact",
  order: "Order",
};

function kindOf({ kind = "image" }) {
  return Object.hasOwn(KINDS, kind) ? KINDS[kind] : "File";
}

/** A file that the bot has sent. The page loads nothing from elsewhere: it only leads there, and only by https. */
function sentFile(media) {
  if (!isObject(media)) return undefined;
  const name = textOf(media.filename) || kindOf(media);
  const url = URL.canParse(media.url) ? new URL(media.url) : undefined;
  if (url?.protocol !== "https:") return { label: name };
  return { label: `${name} on ${url.host}`, url: url.href };
}

/** A file that came by another channel, and is still there: only what it is. */
function receivedFile(attachment) {
  if (!isObject(attachment)) return undefined;
  const { name, address, latitude, longitude } = isObject(attachment.details) ? attachment.details : {};
  const place = [name, address].filter(textOf).join(", ") || [latitude, longitude].filter(Number.isFinite).join(", ");
  const more = textOf(attachment.filename) || place || textOf(attachment.media_type);
  return { label: more ? `${kindOf(attachment)}: ${more}` : kindOf(attachment) };
}
