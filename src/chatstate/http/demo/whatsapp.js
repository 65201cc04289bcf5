/** Going on with a chat on WhatsApp: a code that a person sends from there; and who goes on there, and how that is ended. */
import { request } from "./devices.js";
import { $, element, goodFor, timeOf, useIcon } from "./view.js";

let page; // what page.js gives us: shown()
let link; // the code that the dialog shows
let people = []; // who goes on with the session that is shown: { id, linked_at }
let seen = ""; // of which session that was asked, and how much was said in it then

export function startWhatsApp(given) {
  if (document.documentElement.dataset.whatsapp !== "yes") return;
  page = given;
  $("whatsapp").hidden = false;
  $("whatsapp").addEventListener("click", openDialog);
  $("whatsapp-another").addEventListener("click", makeCode);
  $("whatsapp-take-back").addEventListener("click", takeBack);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refreshPeople());
}

/** Ask the server something about the session that is shown; gives the body of a success, and throws else. */
async function call(method, path) {
  const response = await request(page.shown().id, path, { method });
  const body = await response.json();
  if (!response.ok) throw new Error(body.detail ?? `HTTP ${response.status}`);
  return body;
}

// --- Who goes on there ------------------------------------------------------------------------------------------------

/** The chat has changed, or it is another one. Nobody tells us when somebody goes on with it, or ends that: so we ask then. */
export function noticeChat() {
  if (!page) return;
  const { id, state } = page.shown();
  const now = `${state?.messages?.length ?? 0} ${id}`;
  if (now === seen) return;
  if (!seen.endsWith(` ${id}`)) {
    showPeople([]);
    show(undefined, "");
  }
  seen = now;
  refreshPeople();
}

async function refreshPeople() {
  const { id, state } = page.shown() ?? {};
  if (!state?.messages?.length) return; // there is no session yet
  try {
    const { channels } = await call("GET", "channels");
    if (id === page.shown().id) showPeople(channels.filter(({ channel }) => channel === "whatsapp"));
  } catch {
    // the sign says that the server does not answer
  }
}

function showPeople(found) {
  people = found;
  const how = found.length ? "Linked with" : "Continue on";
  $("whatsapp-how").textContent = how;
  $("whatsapp").title = `${how} WhatsApp`;
  $("whatsapp").classList.toggle("linked", found.length > 0);
  useIcon($("whatsapp").firstElementChild, found.length ? "saved" : "whatsapp");
  const list = $("whatsapp-people");
  const shown = JSON.stringify(found);
  if (list.dataset.shown !== shown) list.replaceChildren(...found.map(row));
  list.dataset.shown = shown;
  list.hidden = !found.length;
}

function row({ id, linked_at: at }) {
  const day = new Date(at).toLocaleDateString();
  const since = element("span", { textContent: `Since ${day === new Date().toLocaleDateString() ? "" : `${day}, `}${timeOf(at)}` });
  return element("li", { className: "row" }, since, element("button", { type: "button", textContent: "Unlink", onclick: () => unlink(id) }));
}

async function unlink(id) {
  try {
    await call("DELETE", `channels/${encodeURIComponent(id)}`);
    showPeople(people.filter((person) => person.id !== id));
    show(undefined, "Unlinked: this chat does not go on there any more.");
    $("whatsapp-another").focus();
  } catch (error) {
    $("whatsapp-status").textContent = `It could not be unlinked: ${error.message}`;
  }
}

// --- The code ---------------------------------------------------------------------------------------------------------

/** Open the dialog: with who goes on there, with the code that was made for this session before, or with a new one. */
async function openDialog() {
  $("whatsapp-dialog").showModal();
  const { id } = page.shown();
  if (link?.session === id) return undefined;
  show(undefined, "");
  await refreshPeople();
  if (id !== page.shown().id || link?.session === id) return undefined;
  return people.length ? show(undefined, "Linked with WhatsApp.") : makeCode();
}

async function makeCode() {
  const { id, state } = page.shown();
  if (!state?.messages?.length) return show(undefined, "There is nothing to go on with yet: write something first, then come back.");
  show(undefined, "Making a code…");
  try {
    const made = await call("POST", "channels/whatsapp/links");
    const before = people.map(nameOf);
    show({ ...made, session: id, before }, "");
    follow(link);
  } catch (error) {
    show(undefined, `No code could be made: ${error.message}`);
  }
  return undefined;
}

/** Somebody who goes on since then: whoever links again does so anew. */
function nameOf({ id, linked_at: at }) {
  return `${id} ${at}`;
}

/** Show this code, or none, and a text. */
function show(made, text) {
  const hadFocus = $("whatsapp-open").contains(document.activeElement) || document.activeElement === $("whatsapp-take-back");
  link = made;
  $("whatsapp-open").hidden = !made;
  $("whatsapp-take-back").hidden = !made;
  $("whatsapp-another").hidden = Boolean(made);
  $("whatsapp-status").textContent = text;
  if (!made && hadFocus) $("whatsapp-title").focus();
  if (!made) return;
  $("whatsapp-url").href = made.url;
  $("whatsapp-qr").src = `data:image/svg+xml,${encodeURIComponent(made.qr_svg)}`;
  $("whatsapp-code").textContent = made.code;
  $("whatsapp-number").textContent = made.number;
}

/** Look every second what has become of the code, until somebody goes on with it, it is over, or another one is shown. */
function follow(shown) {
  const timer = setInterval(async () => {
    if (shown !== link) return clearInterval(timer);
    const left = Math.round((Date.parse(shown.expires_at) - Date.now()) / 1000);
    $("whatsapp-left").textContent = goodFor(left);
    const { status } = await call("GET", `links/${shown.id}`).catch(() => ({}));
    if (status === "redeemed") await refreshPeople();
    if (shown !== link) return undefined;
    if (people.some((person) => !shown.before.includes(nameOf(person)))) show(undefined, "Linked with WhatsApp.");
    else if (status === "void" || left <= 0) show(undefined, "This code is not valid any more.");
    else if (status === "redeemed") $("whatsapp-status").textContent = `WhatsApp asks you now. Answer there with ${shown.number}.`;
    return undefined;
  }, 1000);
}

async function takeBack() {
  try {
    await call("DELETE", `links/${link.id}`);
    show(undefined, "Taken back: nobody can go on with it any more.");
    $("whatsapp-another").focus();
  } catch (error) {
    $("whatsapp-status").textContent = `It could not be taken back: ${error.message}`;
  }
}
