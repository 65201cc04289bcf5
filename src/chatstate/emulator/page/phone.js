/** The phone: whose it is, the chat, and what its owner does. All that comes from messages goes into the page as text. */
import { act, current } from "./emulator.js";
import { $, element, icon, timeOf } from "./view.js";

const SECONDS_OF_TYPING = 25; // as on a phone
const EMOJIS = ["👍", "❤️", "😂", "😮", "🙏"];
const PLAYABLE = { image: "image", sticker: "sticker", audio: "voice" };

let person = "";
const chats = new Map(); // by person: a map from message ids to what is known of each
const nodes = new Map(); // by message id; what stays the same is not made again, so screen readers hear only what is new
const typing = new Map(); // by person: when it began

// --- Whose phone ------------------------------------------------------------------------------------------------------

/** The key of the person whose phone is shown. */
export const owner = () => person;

export function showPersons(persons) {
  const list = $("persons");
  if (list.dataset.shown !== JSON.stringify(persons.map(({ key, name }) => [key, name]))) {
    list.dataset.shown = JSON.stringify(persons.map(({ key, name }) => [key, name]));
    list.replaceChildren(
      ...persons.map(({ key, name }) => element("button", { type: "button", textContent: name, onclick: () => pickPerson(key) })),
    );
  }
  for (const [index, { key }] of persons.entries()) list.children[index].setAttribute("aria-pressed", String(key === person));
  const shown = persons.find(({ key }) => key === person);
  if (!shown) return;
  $("owner").textContent = `${shown.name}’s phone`;
  const number = `+${shown.wa_id}`;
  $("identity").textContent = {
    before: number,
    both: `${number} · ${shown.user_id}`,
    username: `${shown.username} · ${shown.user_id}`,
  }[current().identities];
}

export function pickPerson(key) {
  if (!current()) return; // the emulator does not answer
  person = key;
  const address = new URL(location.href);
  address.search = `?person=${encodeURIComponent(key)}`;
  history.replaceState(null, "", address);
  showPersons(current().persons);
  document.dispatchEvent(new CustomEvent("person"));
  $("messages").replaceChildren(...[...chatOf(key).values()].map(nodeOf));
  showTypingHere();
  scroll();
}

/** All chats are about to be told anew. */
export function forgetChats() {
  for (const known of [chats, nodes, typing]) known.clear();
  $("messages").replaceChildren();
}

function chatOf(key) {
  if (!chats.has(key)) chats.set(key, new Map());
  return chats.get(key);
}

// --- Messages ---------------------------------------------------------------------------------------------------------

const TICKS = {
  waiting: ["…", "not delivered yet"],
  received: ["✓✓", "delivered to the webhook"],
  read: ["✓✓", "read"],
  sent: ["✓", "sent"],
  delivered: ["✓✓", "delivered"],
  failed: ["!", "failed"],
};

export function showBubble(key, bubble) {
  const chat = chatOf(key);
  const isNew = !chat.has(bubble.id);
  chat.set(bubble.id, bubble);
  const before = nodes.get(bubble.id);
  nodes.delete(bubble.id);
  if (key !== person) return;
  const node = nodeOf(bubble);
  if (isNew) $("messages").append(node);
  else if (before?.isConnected) replace(before, node);
  $("empty").hidden = true;
  if (isNew) scroll();
}

/** Put the new one in the old one's place; whoever was in it with the keyboard still is. */
function replace(before, node) {
  const inside = [...before.querySelectorAll("button, summary")].indexOf(document.activeElement);
  const menu = node.querySelector("details");
  if (menu && before.querySelector("details")?.open) menu.open = true;
  before.replaceWith(node);
  if (inside >= 0) (node.querySelectorAll("button, summary")[inside] ?? $("text")).focus();
}

function scroll() {
  $("empty").hidden = chatOf(person).size > 0;
  $("log").scrollTop = $("log").scrollHeight;
}

function nodeOf(bubble) {
  if (!nodes.has(bubble.id)) nodes.set(bubble.id, made(bubble));
  return nodes.get(bubble.id);
}

function made(bubble) {
  if (bubble.by === "phone") return element("li", { className: "phone" }, element("p", { textContent: bubble.text }));
  const mine = bubble.by === "person";
  const box = element("div", { className: "bubble" }, element("span", { className: "unseen", textContent: mine ? "You: " : "Bot: " }));
  if (bubble.reply_to) box.append(...quoted(bubble.reply_to));
  if (bubble.header) box.append(element("p", { className: "head", textContent: bubble.header }));
  if (bubble.file) box.append(fileOf(bubble, mine));
  if (bubble.text) box.append(element("p", { textContent: bubble.text }));
  if (bubble.note) box.append(element("p", { className: "small", textContent: bubble.note }));
  if (bubble.footer) box.append(element("p", { className: "small", textContent: bubble.footer }));
  box.append(foot(bubble), ...choicesOf(bubble));
  const reactions = Object.values(bubble.reactions);
  if (reactions.length) box.append(element("span", { className: "reactions", textContent: reactions.join(" "), title: "Reaction" }));
  const node = element("li", { className: mine ? "mine" : "bot" }, box, menuOf(bubble, mine));
  node.dataset.id = bubble.id;
  return node;
}

function quoted(id) {
  const original = chatOf(person).get(id);
  return original ? [element("blockquote", { textContent: original.text || original.type })] : [];
}

/** What came with a message. Of the bot's only the address is shown: the page loads nothing from elsewhere. */
function fileOf(bubble, mine) {
  if (mine && (bubble.type === "image" || bubble.type === "sticker")) {
    return element("img", { src: `samples/${PLAYABLE[bubble.type]}`, alt: bubble.type === "image" ? "Sample picture" : "Sample sticker", className: bubble.type });
  }
  if (mine && bubble.type === "audio") return element("audio", { src: "samples/voice", controls: true, preload: "none", title: "Voice" });
  return element("p", { className: "file" }, icon("file"), element("span", { textContent: `${bubble.type}: ${bubble.file}` }));
}

function foot(bubble) {
  const line = element("p", { className: "foot" }, element("time", { textContent: timeOf(bubble.at) }));
  const [sign, meaning] = TICKS[bubble.ticks] ?? [];
  if (sign) {
    line.append(" ", element("span", { className: `ticks ${bubble.ticks}`, textContent: sign, title: meaning, ariaHidden: "true" }));
    line.append(element("span", { className: "unseen", textContent: `, ${meaning}` }));
  }
  return line;
}

function choicesOf({ id, choices, button, chosen }) {
  if (!choices.length) return [];
  if (button) {
    const open = element("button", { type: "button", onclick: () => openList(id) }, icon("list"), button);
    return [element("div", { className: "choices" }, open)];
  }
  const tapped = choices.map(([choice, title]) => {
    const made = element("button", { type: "button", textContent: title, onclick: () => act("choose", { person, message: id, choice }) });
    made.setAttribute("aria-pressed", String(choice === chosen));
    return made;
  });
  return [element("div", { className: "choices" }, ...tapped)];
}

function openList(id) {
  const { button, choices } = chatOf(person).get(id);
  $("list-title").textContent = button;
  $("rows").replaceChildren(
    ...choices.map(([choice, title, description]) => {
      const pick = () => {
        $("list").close();
        act("choose", { person, message: id, choice });
      };
      const row = element("button", { type: "button", onclick: pick }, element("span", { textContent: title }));
      if (description) row.append(element("span", { className: "small", textContent: description }));
      return element("li", {}, row);
    }),
  );
  $("list").showModal();
}

/** What can be done with a message: reactions to the bot's, changes to one's own. */
function menuOf(bubble, mine) {
  const item = (text, label, act_) => element("li", {}, element("button", { type: "button", textContent: text, ariaLabel: label, onclick: act_ }));
  const close = () => menu.removeAttribute("open");
  const items = mine
    ? [
        ...(bubble.type === "text" && !bubble.note ? [item("Edit", "Edit this message", () => (close(), edit(bubble)))] : []),
        item("Delete", "Delete this message for everyone", () => (close(), act("revoke", { person, message: bubble.id }))),
      ]
    : EMOJIS.map((emoji) => item(emoji, `React with ${emoji}`, () => (close(), react(bubble, emoji))));
  const menu = element("details", { className: "menu", name: "message" }, element("summary", { textContent: "⋯", ariaLabel: "What to do with this message" }), element("ul", {}, ...items));
  menu.hidden = mine && bubble.note === "deleted";
  return menu;
}

function react(bubble, emoji) {
  act("react", { person, message: bubble.id, emoji: bubble.reactions[person] === emoji ? "" : emoji });
}

let editing = "";

function edit(bubble) {
  editing = bubble.id;
  $("text").value = bubble.text;
  $("hint").textContent = "You are changing a message that you have sent. Esc leaves it as it is.";
  $("text").focus();
}

// --- Typing -----------------------------------------------------------------------------------------------------------

export function showTyping(key, isTyping) {
  if (isTyping) typing.set(key, Date.now());
  else typing.delete(key);
  setTimeout(showTypingHere, SECONDS_OF_TYPING * 1000);
  showTypingHere();
}

function showTypingHere() {
  const since = typing.get(person);
  $("typing").hidden = since === undefined || Date.now() - since >= SECONDS_OF_TYPING * 1000;
  if (!$("typing").hidden) $("log").scrollTop = $("log").scrollHeight;
}

// --- Writing ----------------------------------------------------------------------------------------------------------

const LINK = /^(?:https?:\/\/)?(?:wa\.me|api\.whatsapp\.com)\/\S*$/i;

/** A text, or a link that opens a chat with a text in it: it is written into the box, and not sent. */
export function openLink(text) {
  if (!LINK.test(text.trim()) || !current()) {
    $("text").value = text;
    $("text").focus();
    return;
  }
  const link = new URL(text.trim().replace(/^(?!https?:)/i, "https://"));
  const number = link.searchParams.get("phone") ?? link.pathname.split("/")[1];
  const known = number.replace(/\D/g, "") === current().number;
  $("text").value = known ? (link.searchParams.get("text") ?? "") : "";
  $("hint").textContent = known
    ? "The link has written this message for you. Nothing is sent before you press Send."
    : `This link opens a chat with +${number}, and the emulated number is +${current().number}.`;
  $("text").focus();
}

async function send() {
  const text = $("text").value.trim();
  const message = editing;
  if (!text) return;
  $("text").value = editing = ""; // at once: whoever presses Enter twice means it once
  const done = message ? await act("edit", { person, message, text }) : await act("write", { person, text });
  if (done || $("text").value) return;
  $("text").value = text;
  editing = message;
}

function leaveEditing() {
  if (editing) $("text").value = $("hint").textContent = "";
  editing = "";
}

export function startPhone() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("text").addEventListener("input", ({ target }) => LINK.test(target.value.trim()) && target.value.includes("?") && openLink(target.value));
  $("text").addEventListener("keydown", ({ key }) => key === "Escape" && leaveEditing());
  const menu = $("attach");
  menu.addEventListener("click", ({ target }) => {
    const { attach, post } = target.dataset;
    if (!attach && !post) return;
    menu.removeAttribute("open");
    menu.querySelector("summary").focus();
    if (post) act("post", { person, content: post });
    else act("attach", { person, kind: attach, caption: $("text").value.trim() }).then((done) => done && ($("text").value = ""));
  });
  document.addEventListener("click", ({ target }) => {
    for (const open of document.querySelectorAll("details.menu[open]")) if (!open.contains(target)) open.removeAttribute("open");
  });
  document.addEventListener("keydown", ({ key }) => {
    const open = document.querySelector("details.menu[open]");
    if (key !== "Escape" || !open) return;
    open.removeAttribute("open");
    open.querySelector("summary").focus();
  });
}
