/** What is seen of a chat. Everything that comes from a state goes into the page as text (`textContent`), never as HTML. */

const MOST_MESSAGES = 300; // older ones are there, but not shown
const MOST_CHARACTERS = 20_000;

export const $ = (id) => document.getElementById(id);

/** A new element with these properties, and what is in it. */
export function element(name, properties = {}, ...content) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...content);
  return made;
}

/** One of the icons of page.html. */
export function useIcon(svg, name) {
  svg.firstElementChild.setAttribute("href", `#icon-${name}`);
}

/** The beginning of a text that is too long to be shown. */
export function shortened(text, most = MOST_CHARACTERS) {
  return text.length > most ? `${text.slice(0, most)}… (${text.length.toLocaleString("en")} characters in all)` : text;
}

// --- Messages ---------------------------------------------------------------------------------------------------------

const items = new Map(); // by the message's id: what stays the same is not made again, so screen readers hear only what is new

/** Show these messages, the newest at the bottom and in view. */
export function showMessages(messages) {
  const list = $("messages");
  const wasAtEnd = isAtEnd();
  const before = [...list.children];
  const shown = messages.slice(-MOST_MESSAGES).map(item);
  const kept = new Set(shown);
  for (const node of before) if (!kept.has(node)) node.remove();
  // What is there stays in the page: what is taken out and put in again loses the focus, and is read once more.
  for (const [index, node] of shown.entries()) if (list.children[index] !== node) list.insertBefore(node, list.children[index] ?? null);
  // The time stands below the last message of each minute, if nothing of more weight does.
  for (const [index, node] of shown.entries()) {
    node.lastElementChild.hidden = timeIn(node) === timeIn(shown[index + 1]) || node.querySelector(".status").textContent !== "";
  }
  for (const [id, { node }] of items) if (!kept.has(node)) items.delete(id);
  if (wasAtEnd || shown.at(-1) !== before.at(-1)) scrollToEnd();
}

/** Whether the end is in view: else somebody reads further up, and stays there. */
function isAtEnd() {
  const { scrollHeight, scrollTop, clientHeight } = $("log");
  return scrollHeight - scrollTop - clientHeight < 100;
}

function scrollToEnd() {
  $("log").scrollTop = $("log").scrollHeight;
}

const timeIn = (node) => node?.lastElementChild.textContent;

/**
 * The element of a message. Beside its text it may have a file (`attached: { label, url? }`), and how its sending stands
 * (`status: { text, tone?, actions? }`), which changes while the element stays.
 */
function item(message) {
  const { text } = message;
  const attached = JSON.stringify(message.attached);
  const known = items.get(message.id);
  const node = known?.text === text && known.attached === attached ? known.node : newItem(message);
  items.set(message.id, { text, attached, node });
  showStatus(node.querySelector(".status"), message.status ?? { text: "" });
  node.lastElementChild.textContent = timeOf(message.at);
  return node;
}

function newItem({ role, text, lang, attached, isRead }) {
  const who = role === "user" ? "You" : "Bot";
  const said = element("p", { textContent: shortened(text), lang: typeof lang === "string" ? lang : "" });
  return element(
    "li",
    { className: `${role === "user" ? "user" : "bot"}${isRead ? " read" : ""}` },
    element("span", { className: "unseen", textContent: `${who}: ` }),
    ...(text || !attached ? [said] : []),
    ...(attached ? [file(attached)] : []),
    element("span", { className: "status" }),
    element("time"),
  );
}

/** A file is never loaded into the page: the person may open it. */
function file({ label, url }) {
  const text = url ? element("a", { href: url, target: "_blank", rel: "noopener noreferrer", textContent: label }) : label;
  return element("p", { className: "attached" }, icon("file"), text);
}

function icon(name) {
  const svg = document.querySelector("#sign .icon").cloneNode(true);
  useIcon(svg, name);
  return svg;
}

function showStatus(node, { text, tone = "", actions = [] }) {
  const shown = JSON.stringify([text, actions.map(([label]) => label)]);
  if (node.dataset.shown === shown) return;
  node.dataset.shown = shown;
  node.dataset.tone = tone;
  const buttons = actions.map(([label, act]) => element("button", { type: "button", className: "link", textContent: label, onclick: act }));
  node.replaceChildren(text, ...buttons);
}

/** The time of day; nothing if it is no time. */
export function timeOf(text) {
  const time = new Date(typeof text === "string" ? text : NaN);
  return Number.isNaN(time.getTime()) ? "" : time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

/** For how long a link is good: this many seconds. */
export function goodFor(seconds) {
  return `Good for ${Math.max(0, Math.floor(seconds / 60))}:${String(Math.max(0, seconds % 60)).padStart(2, "0")} min.`;
}

/**
 * Offer these answers as buttons: texts, or `{ title, description? }`. Whoever works with the keyboard goes on where the
 * buttons were, or with what is given as `next`.
 */
export function showChoices(choices, lang, pick, next = $("text")) {
  const list = $("choices");
  if (list.dataset.shown === JSON.stringify(choices)) return;
  const hadFocus = list.contains(document.activeElement);
  list.dataset.shown = JSON.stringify(choices);
  list.lang = lang;
  list.replaceChildren(
    ...choices.map((choice) => {
      const { title, description } = typeof choice === "string" ? { title: choice } : choice;
      const more = description ? [element("small", { textContent: ` ${description}` })] : [];
      return element("li", {}, element("button", { type: "button", onclick: () => pick(title) }, element("span", {}, title, ...more)));
    }),
  );
  list.hidden = choices.length === 0;
  if (hadFocus) (list.querySelector("button") ?? next).focus();
  scrollToEnd();
}

// --- What is being written ---------------------------------------------------------------------------------------------

const WRITING = "The bot is writing.";

/**
 * Show these replies as far as they are written: their texts by their ids. One without a text is a sign that somebody writes.
 * Screen readers are told that, and get the reply when it is a message: a text that grows would be read again and again.
 */
export function showWriting(texts) {
  const wasAtEnd = isAtEnd();
  const list = $("writing");
  while (list.children.length > texts.size) list.lastElementChild.remove();
  while (list.children.length < texts.size) list.append(element("li", { className: "bot" }, element("p")));
  for (const [index, text] of [...texts.values()].entries()) {
    const bubble = list.children[index].firstElementChild;
    bubble.className = text ? "" : "dots";
    bubble.textContent = shortened(text);
  }
  if (wasAtEnd) scrollToEnd();
  if (texts.size && !$("announcement").textContent) $("announcement").textContent = WRITING;
  if (!texts.size && $("announcement").textContent === WRITING) $("announcement").textContent = "";
}

// --- The sign of the connection's state -------------------------------------------------------------------------------

const SIGNS = {
  loading: "Loading…",
  saved: "Saved",
  saving: "Saving…",
  offline: "Offline – kept on this device, sent later",
};

let announced = "saved";

/** Show how things stand, as text, icon and colour. Screen readers hear of trouble and of its end, not of every save. */
export function showSign(status, error) {
  const [state, text] = signOf(status, error);
  const sign = $("sign");
  if (sign.dataset.sign === state && sign.lastElementChild.textContent === text) return;
  sign.dataset.sign = state;
  sign.lastElementChild.textContent = text;
  useIcon(sign.firstElementChild, state);
  const trouble = state === "offline" || state === "error";
  if (text !== announced && (trouble || (status === "saved" && announced !== "saved"))) {
    $("announcement").textContent = trouble ? text : "Saved. The server answers again.";
    announced = trouble ? text : "saved";
  }
}

function signOf(status, error) {
  const unkept = error?.code === "quota_exceeded" || error?.code === "storage_unavailable";
  if (unkept && status === "saved") return ["error", "Saved, but this browser’s storage is full: offline, nothing can be kept here"];
  if (unkept) return ["error", "Not kept on this device (its storage is full). Leave this page open until it is saved"];
  if (status === "error") return ["error", `Not saved: ${error?.message ?? "the server refuses it"}`];
  return [status, SIGNS[status]];
}
