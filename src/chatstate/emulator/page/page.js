/**
 * The emulator's page: it follows what happens by server-sent events, and has the emulator do things by POST /actions.
 * The phone is in phone.js, the controls and the list of requests are in controls.js.
 */
import { forgetEntries, showControls, showEntry, startControls } from "./controls.js";
import { act, current, keep } from "./emulator.js";
import { forgetChats, openLink, pickPerson, showBubble, showPersons, showTyping, startPhone } from "./phone.js";
import { $ } from "./view.js";

const SIGNS = {
  unknown: "The webhook has not been asked yet.",
  ready: "The webhook answers.",
  absent: "The webhook is not there.",
  refused: "The webhook does not accept what it is sent.",
};

function showSign(sign, text) {
  const shown = $("sign");
  shown.dataset.sign = sign;
  shown.querySelector("use").setAttribute("href", `#icon-${sign}`);
  const label = shown.querySelector("span");
  if (label.textContent !== text) label.textContent = text;
  $("retry").hidden = sign === "ready" || !current();
}

function show(state) {
  const first = !current();
  keep(state);
  const { webhook, outstanding } = state.network;
  const waiting = outstanding > 1 || webhook.state !== "ready" ? outstanding : 0;
  const more = waiting ? ` ${waiting} ${waiting === 1 ? "request waits" : "requests wait"} to be delivered.` : "";
  showSign(webhook.state, webhook.state === "ready" ? SIGNS.ready + more : `${SIGNS[webhook.state]} ${webhook.text}${more}`);
  showPersons(state.persons);
  showControls(state);
  if (first) begin(state.persons);
}

/** What the page's address asks for: a person, and a text that is written but not sent. */
function begin(persons) {
  const wanted = new URLSearchParams(location.search);
  const person = persons.find((one) => [one.key, one.name, one.wa_id].includes(wanted.get("person")));
  pickPerson(person?.key ?? persons[0].key);
  if (wanted.has("text")) openLink(wanted.get("text"));
}

function follow() {
  const source = new EventSource("events");
  const on = (name, handle) => source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  on("begin", () => (forgetChats(), forgetEntries()));
  on("state", show);
  on("bubble", ({ person, bubble }) => showBubble(person, bubble));
  on("typing", ({ person, typing }) => showTyping(person, typing));
  on("entry", showEntry);
  source.addEventListener("error", () => {
    keep(undefined);
    showSign("absent", "The emulator has ended. Start it again: chatstate whatsapp emulate");
  });
}

for (const button of document.querySelectorAll("#views button")) {
  button.addEventListener("click", () => {
    document.body.dataset.view = button.dataset.view;
    for (const other of document.querySelectorAll("#views button")) other.setAttribute("aria-pressed", String(other === button));
  });
}

$("retry").addEventListener("click", () => act("retry"));
startPhone();
startControls();
follow();
