/**
 * The chat page. This file is the part that every front-end has: open a session, show its state, change it, and show how
 * the saving goes. What the bot says is in bot.js, how it looks in view.js. Where the server runs a bot, server-bot.js takes
 * the place of both ends: what is said goes through it, and so does what is shown.
 */
import { ApiService, openSession } from "../client.js";
import { choicesOf, isChat, languageOf, messagesOf, NEW_CHAT, newId, say, stepOf } from "./bot.js";
import { arrive, bearer, forgetToken, isOpen, startDevices } from "./devices.js";
import * as serverBot from "./server-bot.js";
import { markCurrent, refreshSessions, startSessions } from "./sessions.js";
import { $, shortened, showChoices, showMessages, showSign } from "./view.js";
import { noticeChat, startWhatsApp } from "./whatsapp.js";

const { hasServerBot } = serverBot;

const LAST = "chatstate-demo:last"; // where the browser remembers which chat was open

let chat; // the session that is shown
const opened = new Map(); // all that are open, by id: what is unsaved in one that is not shown is still sent

// --- Opening a session ------------------------------------------------------------------------------------------------

/** Show this session. Its id stands in the address, so refreshing the page leads back here. */
function show(id) {
  const session = opened.get(id) ?? openSession(id, { initial: hasServerBot ? serverBot.EMPTY : NEW_CHAT, token: bearer(id) });
  if (!opened.has(id)) {
    opened.set(id, session);
    session.subscribe(() => session === chat && render());
  }
  if (chat && chat !== session) leave(chat);
  chat = session;
  if (hasServerBot) serverBot.follow(id);
  history.replaceState(null, "", `?session=${encodeURIComponent(id)}`);
  remember(id);
  showPanel("chat");
  markCurrent(id);
  $("text").value = "";
  render();
}

/** Close a session that is not shown any more, as soon as everything is on the server. */
function leave(session) {
  session
    .flush()
    .catch(() => {}) // it is refused; what is unsaved stays in this browser
    .then(() => session !== chat && close(session));
}

function close(session) {
  session.close();
  if (opened.get(session.id) === session) opened.delete(session.id);
}

function newChat() {
  show(`demo-${newId()}`);
  $("text").focus();
}

/** Begin anew with this session, with another token: the old one was not let in. */
function reopen(id) {
  if (opened.has(id)) close(opened.get(id));
  chat = undefined;
  show(id);
}

function remember(id) {
  try {
    localStorage.setItem(LAST, id);
  } catch {
    // the storage is full or forbidden; the id stands in the address, too
  }
}

function remembered() {
  try {
    return localStorage.getItem(LAST);
  } catch {
    return null;
  }
}

// --- Showing it -------------------------------------------------------------------------------------------------------

function render() {
  const { state, status, error } = chat;
  if (status === "saved") refreshSessions();
  if (status === "error" && error.status === 401) return lockOut();
  if ($("chat").hidden && $("raw").hidden) return undefined; // another panel is open
  const isLoaded = status === "saved" || state !== null;
  const isShown = hasServerBot ? serverBot.isChat(state) : isChat(state);
  if (error?.code === "state_not_json" || (isLoaded && !isShown)) return showRaw();
  showPanel("chat");
  if (hasServerBot) return renderServed();
  showSign(status, error);
  showState(status === "offline" ? (state ?? NEW_CHAT) : state);
  return undefined;
}

/** The same, where the server runs the bot. */
function renderServed() {
  const { status, error } = serverBot.standing(chat);
  showSign(status, error);
  serverBot.showState(chat.state ?? (status === "offline" ? serverBot.EMPTY : null));
  noticeChat();
}

function showState(state) {
  showMessages(state ? messagesOf(state) : []); // null: it is being loaded
  showChoices(state ? choicesOf(state) : [], languageOf(state ?? NEW_CHAT), send);
  $("text").inputMode = state && stepOf(state) === "age" ? "numeric" : "text";
}

/** Show a session of another program, as text. */
async function showRaw() {
  const { id } = chat;
  showPanel("raw");
  try {
    const loaded = await new ApiService({ token: bearer(id) }).getUserSession(id);
    if (id === chat.id) $("raw-text").textContent = shortened(loaded?.chat_state ?? "");
  } catch {
    // the sign says that the server does not answer
  }
}

/** This device may not have this chat any more. */
function lockOut() {
  if (!$("access").hidden) return;
  forgetToken();
  arrive("This device is not let into this chat (any more): it was taken back, or its time is over.");
}

/** Show one part of the page, and no other. */
function showPanel(name) {
  for (const panel of ["chat", "raw", "arrival", "access"]) $(panel).hidden = panel !== name;
  for (const button of ["hand-off", "whatsapp"]) $(button).disabled = name !== "chat";
  $("sign").hidden = name !== "chat";
}

// --- Changing it ------------------------------------------------------------------------------------------------------

/** All that a chat needs to lose nothing: the change, as a function of the state that is there. The client does the rest. */
function send(text) {
  if (hasServerBot) return serverBot.say(text);
  chat.update((now) => say(now, text));
  return true;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text && send(text)) $("text").value = "";
});

// --- Starting ---------------------------------------------------------------------------------------------------------

$("new-chat").addEventListener("click", newChat);
if (hasServerBot) {
  serverBot.startServerBot({ render, lockOut });
  startWhatsApp({ shown: () => chat });
}
startDevices({ shown: () => chat, show: reopen, back: () => chat && show(chat.id), showPanel });
if (isOpen) startSessions(show);

const id = new URLSearchParams(location.search).get("session") ?? remembered();
const invited = arrive();
if (!invited) {
  if (isOpen || bearer(id)) show(id ?? `demo-${newId()}`);
  else arrive("This server has API keys, so this page needs to be let in.");
}
