// What the tests ask of the page's elements; each function is run in the page.
({
  /** Have every part of the page seen, with something in it. */
  showEverything() {
    for (const hidden of document.querySelectorAll("[hidden]")) hidden.hidden = false;
    for (const dialog of document.querySelectorAll("dialog")) dialog.setAttribute("open", "");
    const filled = ".problem, #hand-off-status, #access-reason, #raw-text, #hand-off-left, #announcement, [id^=whatsapp-]:empty:not(img)";
    for (const element of document.querySelectorAll(filled)) element.textContent = "some text";
    document.getElementById("hand-off-code").textContent = "BCDF-GHJK";
  },

  /** The controls, pictures and regions without an accessible name, in short (https://www.w3.org/TR/accname-1.2/). */
  withoutName() {
    const all = [...document.querySelectorAll("button, input, a, dialog, nav, section, aside, img, [role=log], #choices")];
    const textOf = (elements) => [...elements].map((element) => element?.textContent ?? "").join("");
    return all
      .filter((element) => {
        const ids = (element.getAttribute("aria-labelledby") ?? "").split(" ");
        const named = textOf(ids.map((id) => document.getElementById(id))) + textOf(element.labels ?? []);
        const own = element.matches("button, a") ? element.textContent : "";
        return !(element.getAttribute("aria-label") || element.alt || named || own).trim();
      })
      .map((element) => element.outerHTML.slice(0, 100));
  },

  /** The ids that more than one element has. */
  ambiguousIds() {
    const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
    return ids.filter((id, index) => ids.indexOf(id) !== index);
  },

  /** The controls that can be seen and are hard to hit with a finger. */
  tooSmall(pixels) {
    const controls = [...document.querySelectorAll("button:not(.link), .button, input")];
    const sizes = controls.map((control) => [control, control.getBoundingClientRect()]);
    return sizes
      .filter(([, { width, height }]) => width && Math.min(width, height) < pixels)
      .map(([control]) => control.outerHTML.slice(0, 100));
  },

  /** Each text with the contrast to its ground, as computed by WCAG 2.2 (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio). */
  contrasts() {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const luminance = (color) => {
      const [red, green, blue] = rgba(color).map((part) => linear(part / 255));
      return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ground = (element) => {
      const color = getComputedStyle(element).backgroundColor;
      return rgba(color)[3] === 255 ? color : ground(element.parentElement);
    };
    const found = [];
    for (const element of document.body.querySelectorAll("*")) {
      const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
      if (!texts.length && !element.matches("input")) continue;
      for (const pseudo of element.matches("input") ? ["", "::placeholder"] : [""]) {
        const color = getComputedStyle(element, pseudo || undefined).color;
        const [dark, light] = [luminance(color), luminance(ground(element))].sort((a, b) => a - b);
        found.push([element.outerHTML.slice(0, 100) + pseudo, (light + 0.05) / (dark + 0.05)]);
      }
    }
    return found;
  },

  /** The messages that are wider than their bubbles. */
  overflowing() {
    const texts = [...document.querySelectorAll("#messages p")];
    return texts.filter((text) => text.scrollWidth > text.clientWidth).map((text) => text.textContent);
  },
})
