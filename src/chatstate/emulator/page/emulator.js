/** The emulator, as the page sees it: what holds at the moment, and how it is told to do something. */
import { $ } from "./view.js";

let state;

/** What holds at the moment: persons, settings, the network; undefined while there is no connection. */
export const current = () => state;

/** Something else holds now. */
export function keep(news) {
  state = news;
}

/** Have the emulator do something; whether it has. What keeps it from that is said at the phone. */
export async function act(action, parameters = {}) {
  try {
    const response = await fetch("actions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ action, ...parameters }),
    });
    $("hint").textContent = response.ok ? "" : (await response.json()).detail;
    return response.ok;
  } catch {
    $("hint").textContent = "The emulator does not answer. Start it again: chatstate whatsapp emulate";
    return false;
  }
}
