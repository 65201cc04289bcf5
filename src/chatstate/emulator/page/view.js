/** What the other parts make elements with. */

export const $ = (id) => document.getElementById(id);

/** A new element with these properties, and what is in it. */
export function element(name, properties = {}, ...content) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...content);
  return made;
}

/** One of the icons of page.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** The time of day. */
export function timeOf(text) {
  return new Date(text).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}
