/** The controls, and the list of the requests that have gone over the wire. */
import { act, current } from "./emulator.js";
import { owner } from "./phone.js";
import { $, element, timeOf } from "./view.js";

const MOST_ENTRIES = 300;
const THROUGHPUT = 80;

// --- Controls ---------------------------------------------------------------------------------------------------------

/** Show what holds. A control that somebody is at keeps what they have set. */
export function showControls({ identities, reads, limits, failing, network }) {
  const form = $("settings");
  form.elements.identities.value = identities;
  form.elements.reads.checked = reads;
  form.elements.pair.checked = limits.pair;
  form.elements.window.value = limits.window;
  $("throughput").checked = limits.throughput > 0;
  $("twice").checked = network.duplicates > 1;
  $("hold").setAttribute("aria-pressed", String(network.holding));
  $("hold").disabled = network.holding;
  $("release-form").hidden = !network.holding;
  say("held", network.holding ? `${network.held} held back` : "");
  say("failing", failing.times ? `The next ${failing.times} will be refused with ${failing.code}.` : "");
  $("fail").textContent = failing.times ? "Accept sends again" : "Refuse the next sends";
  say("webhook", network.url);
  showPerson();
}

function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function showPerson() {
  const person = current()?.persons.find(({ key }) => key === owner());
  if (!person) return;
  say("person-legend", person.name);
  $("blocked").checked = person.blocked;
}

export function startControls() {
  const form = $("settings");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", ({ target }) => {
    const { name, type, value, checked } = target;
    if (name) act("set", { [name]: type === "checkbox" ? checked : value });
  });
  $("twice").addEventListener("change", ({ target }) => act("set", { duplicates: target.checked ? 2 : 1 }));
  $("throughput").addEventListener("change", ({ target }) => act("set", { throughput: target.checked ? THROUGHPUT : 0 }));
  $("blocked").addEventListener("change", ({ target }) => act("block", { person: owner(), blocked: target.checked }));
  $("hold").addEventListener("click", () => act("hold"));
  $("release").addEventListener("click", async () => {
    if (await act("release", { order: $("order").value, batch: $("batch").checked })) $("hold").focus();
  });
  $("fail").addEventListener("click", () => {
    const times = current()?.failing.times ? 0 : Number($("times").value) || 1;
    act("fail", { code: Number($("code").value), times });
  });
  for (const button of document.querySelectorAll("[data-change]")) {
    button.addEventListener("click", () => act("change", { person: owner(), what: button.dataset.change }));
  }
  $("add").addEventListener("click", addPerson);
  $("new-name").addEventListener("keydown", (event) => event.key === "Enter" && addPerson());
  document.addEventListener("person", showPerson);
}

async function addPerson() {
  const name = $("new-name").value.trim();
  if (name && (await act("add", { name }))) $("new-name").value = "";
}

// --- Requests ---------------------------------------------------------------------------------------------------------

const entries = new Map(); // by number: the line

export function showEntry(entry) {
  let line = entries.get(entry.number);
  if (!line) {
    line = newLine(entry);
    entries.set(entry.number, line);
    $("entries").prepend(line);
    $("no-entries").hidden = true;
    if (entries.size > MOST_ENTRIES) drop(entries.keys().next().value);
  }
  const good = entry.status === 200;
  const state = good ? "good" : entry.tries === 0 ? "" : "bad";
  const status = line.querySelector(".status");
  status.className = `status ${state}`;
  status.textContent = entry.status ?? (entry.tries ? "no answer" : "waits");
  line.querySelector(".tries").textContent = entry.tries > 1 ? `${entry.tries} tries` : "";
  line.querySelector(".problem").textContent = entry.problem;
}

/** All requests are about to be told anew. */
export function forgetEntries() {
  entries.clear();
  $("entries").replaceChildren();
}

function drop(number) {
  entries.get(number).remove();
  entries.delete(number);
}

function newLine({ number, way, what, at }) {
  const label = element("span", { className: "what" }, element("b", { textContent: way === "webhook" ? "webhook " : "send " }), what);
  label.prepend(element("span", { className: `way ${way}`, textContent: way === "webhook" ? "→" : "←", ariaHidden: "true" }));
  const facts = [element("span", { className: "status" }), element("span", { className: "tries small" }), element("time", { className: "small", textContent: timeOf(at) })];
  const raw = element("pre", { tabIndex: 0, ariaLabel: "Body" });
  const details = element("details", {}, element("summary", {}, label, ...facts), raw);
  details.addEventListener("toggle", () => details.open && load(number, raw));
  return element("li", {}, details, element("p", { className: "problem small" }));
}

/** Show the body, with line breaks where it is JSON. */
async function load(number, raw) {
  if (raw.textContent) return;
  try {
    const response = await fetch(`entries/${number}`);
    const body = response.ok ? await response.text() : "It is not remembered any more.";
    raw.textContent = indented(body) || "(no body)";
  } catch {
    raw.textContent = "The emulator does not answer.";
  }
}

function indented(body) {
  try {
    return JSON.stringify(JSON.parse(body), null, 2);
  } catch {
    return body;
  }
}
