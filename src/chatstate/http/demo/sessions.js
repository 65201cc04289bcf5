/** The list of the sessions on this server. It is asked for with a plain GET; only an open server gives it to a page. */
import { $, element } from "./view.js";

const SECONDS = 2;
const MOST = 30;

let open = () => {};
let current = "";
let asked = false; // a request is under way
let again = false; // and another one is wanted after it
const rows = new Map();

/** Follow the list, as long as somebody can see it; `show` opens a session. */
export function startSessions(show) {
  open = show;
  setInterval(refreshSessions, SECONDS * 1000);
  document.addEventListener("visibilitychange", refreshSessions);
  $("toggle-sessions").addEventListener("click", () => toggle($("toggle-sessions").getAttribute("aria-expanded") !== "true"));
  document.documentElement.classList.add("has-sessions");
  refreshSessions();
}

function toggle(shown) {
  $("toggle-sessions").setAttribute("aria-expanded", String(shown));
  document.documentElement.classList.toggle("shows-sessions", shown);
}

/** Ask for the list now. */
export async function refreshSessions() {
  if (!document.documentElement.classList.contains("has-sessions") || document.visibilityState === "hidden") return;
  again = asked;
  if (asked) return;
  asked = true;
  try {
    const response = await fetch(new URL(`../chat-state-sessions?limit=${MOST}`, import.meta.url));
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    showRows((await response.json()).sessions);
    $("sessions-note").textContent = "Newest first. The list follows by itself.";
  } catch {
    $("sessions-note").textContent = "The server does not answer. This is how it was before.";
  }
  asked = false;
  if (again) refreshSessions();
}

/** Mark the session that is shown. */
export function markCurrent(id) {
  current = id;
  for (const [other, row] of rows) mark(other, row);
  toggle(false);
}

function mark(id, row) {
  if (id === current) row.firstElementChild.setAttribute("aria-current", "true");
  else row.firstElementChild.removeAttribute("aria-current");
}

function showRows(sessions) {
  const list = $("session-rows");
  const shown = sessions.map(row);
  // What has not moved is left alone, so that the focus stays where it is.
  if (shown.some((node, index) => list.children[index] !== node) || list.children.length !== shown.length) {
    const focused = document.activeElement;
    list.replaceChildren(...shown);
    if (shown.some((node) => node.contains(focused))) focused.focus();
  }
  for (const [id, node] of rows) if (!node.isConnected) rows.delete(id);
}

function row({ user_session_id: id, updated_at: at, version }) {
  const node = rows.get(id) ?? element("li", {}, newButton(id));
  rows.set(id, node);
  mark(id, node);
  const told = node.querySelector(".told");
  const text = `${ago(at)} · ${version} ${version === 1 ? "save" : "saves"}`;
  if (told.textContent !== text) told.textContent = text;
  return node;
}

function newButton(id) {
  const name = element("span", { className: "name", textContent: id });
  return element("button", { type: "button", onclick: () => open(id) }, name, element("span", { className: "told" }));
}

/** How long ago that was. */
function ago(time) {
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time)) / 1000));
  if (seconds < 10) return "just now";
  if (seconds < 60) return `${Math.floor(seconds / 10) * 10} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 86_400 ? `${Math.floor(seconds / 3600)} h ago` : new Date(time).toLocaleDateString();
}
