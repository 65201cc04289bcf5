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
  const before = [...list.children];
  const shown = messages.slice(-MOST_MESSAGES).map(item);
  const grown = before.every((child, index) => child === shown[index]);
  if (grown && before.length === shown.length) return;
  if (grown) list.append(...shown.slice(before.length));
  else list.replaceChildren(...shown);
  // The time stands below the last message of each minute.
  for (const [index, node] of shown.entries()) node.lastElementChild.hidden = timeIn(node) === timeIn(shown[index + 1]);
  const kept = new Set(shown);
  for (const [id, { node }] of items) if (!kept.has(node)) items.delete(id);
  $("log").scrollTop = $("log").scrollHeight;
}

const timeIn = (node) => node?.lastElementChild.textContent;

function item(message) {
  const known = items.get(message.id);
  if (known?.text === message.text) return known.node;
  const who = message.role === "user" ? "You" : "Bot";
  const node = element(
    "li",
    { className: message.role === "user" ? "user" : "bot" },
    element("span", { className: "unseen", textContent: `${who}: ` }),
    element("p", { textContent: shortened(message.text), lang: typeof message.lang === "string" ? message.lang : "" }),
    element("time", { textContent: timeOf(message.at) }),
  );
  items.set(message.id, { text: message.text, node });
  return node;
}

/** The time of day; nothing if it is no time. */
export function timeOf(text) {
  const time = new Date(typeof text === "string" ? text : NaN);
  return Number.isNaN(time.getTime()) ? "" : time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

/** Offer these answers as buttons. Whoever works with the keyboard goes on where the buttons were. */
export function showChoices(choices, lang, pick) {
  const list = $("choices");
  if (list.dataset.shown === JSON.stringify(choices)) return;
  const hadFocus = list.contains(document.activeElement);
  list.dataset.shown = JSON.stringify(choices);
  list.lang = lang;
  list.replaceChildren(
    ...choices.map((choice) =>
      element("li", {}, element("button", { type: "button", textContent: choice, onclick: () => pick(choice) })),
    ),
  );
  list.hidden = choices.length === 0;
  if (hadFocus) (list.querySelector("button") ?? $("text")).focus();
  $("log").scrollTop = $("log").scrollHeight;
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
