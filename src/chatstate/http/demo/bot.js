/**
 * The bot: a script of four questions, and a few answers. It knows nothing of pages and servers.
 *
 * Its state is plain JSON, as the server keeps it:
 *   { messages: [{ id, role: "bot" | "user", text, at, lang? }], currentStep, answers: { language?, gender?, age?, question? } }
 *
 * Every message has an id of its own. That is what lets two devices write at the same time: the client unites lists whose
 * elements have an `id`, and nothing that somebody has typed is lost.
 */

const STEPS = ["language", "gender", "age", "question"];

const LANGUAGES = { en: "English", de: "Deutsch", es: "Español" };

const TEXTS = {
  en: {
    gender: "Thank you. How would you describe your gender?",
    genders: ["Female", "Male", "Non-binary", "Prefer not to say"],
    age: "And how old are you?",
    ages: ["Prefer not to say"],
    ageAgain: "I did not understand that. Please type a number from 1 to 120, such as 34.",
    question: "That is all I need. What would you like to ask?",
    reply: (question) =>
      `“${question}” is a good question, but I am only a demo, and no model is behind me. Your question is safe, though: ` +
      "reload this page, open it in a second window, or pull the plug of the server. It will still be here. " +
      "What would you like to know about that?",
    topics: {
      "What happens offline?":
        "What you type is kept in this browser and sent as soon as the server answers again. " +
        "If somebody else has written meanwhile, both are kept.",
      "How do I continue on my phone?":
        "Press “Continue on your phone” at the top: scan the picture, or type the code. Both devices then follow each other.",
      "What is saved?":
        "This conversation with its answers, as one JSON document under one id. Open /docs on this server to see how to read it.",
    },
    other: "I have noted that. I am only a demo, so these are the questions that I can answer:",
  },
  de: {
    gender: "Danke. Wie beschreiben Sie Ihr Geschlecht?",
    genders: ["Weiblich", "Männlich", "Nicht binär", "Keine Angabe"],
    age: "Und wie alt sind Sie?",
    ages: ["Keine Angabe"],
    ageAgain: "Das habe ich nicht verstanden. Bitte geben Sie eine Zahl von 1 bis 120 ein, zum Beispiel 34.",
    question: "Mehr brauche ich nicht. Was möchten Sie fragen?",
    reply: (question) =>
      `„${question}“ ist eine gute Frage, aber ich bin nur eine Vorführung, ohne Sprachmodell. Ihre Frage ist trotzdem sicher: ` +
      "Laden Sie die Seite neu, öffnen Sie sie in einem zweiten Fenster, oder ziehen Sie dem Server den Stecker. " +
      "Sie ist immer noch da. Was möchten Sie darüber wissen?",
    topics: {
      "Was geschieht ohne Netz?":
        "Was Sie schreiben, bleibt in diesem Browser und wird gesendet, sobald der Server wieder antwortet. " +
        "Hat inzwischen jemand anders geschrieben, bleibt beides erhalten.",
      "Wie geht es auf dem Handy weiter?":
        "Drücken Sie oben auf „Continue on your phone“: Bild scannen oder Code eintippen. Beide Geräte folgen dann einander.",
      "Was wird gespeichert?":
        "Dieses Gespräch mit seinen Antworten, als ein JSON-Dokument unter einer Id. Wie man es liest, steht unter /docs.",
    },
    other: "Das habe ich notiert. Ich bin nur eine Vorführung und kann diese Fragen beantworten:",
  },
  es: {
    gender: "Gracias. ¿Cómo describe su género?",
    genders: ["Femenino", "Masculino", "No binario", "Prefiero no decirlo"],
    age: "¿Y cuántos años tiene?",
    ages: ["Prefiero no decirlo"],
    ageAgain: "No lo he entendido. Escriba un número del 1 al 120, por ejemplo 34.",
    question: "No necesito más. ¿Qué le gustaría preguntar?",
    reply: (question) =>
      `«${question}» es una buena pregunta, pero soy solo una demostración, sin ningún modelo detrás. Su pregunta está a salvo: ` +
      "recargue la página, ábrala en otra ventana o desenchufe el servidor. Seguirá aquí. ¿Qué quiere saber sobre eso?",
    topics: {
      "¿Qué pasa sin conexión?":
        "Lo que escribe se guarda en este navegador y se envía en cuanto el servidor vuelve a responder. " +
        "Si otra persona ha escrito mientras tanto, se conserva todo.",
      "¿Cómo sigo en mi teléfono?":
        "Pulse «Continue on your phone» arriba: escanee la imagen o escriba el código. Los dos dispositivos se siguen entre sí.",
      "¿Qué se guarda?":
        "Esta conversación con sus respuestas, como un documento JSON bajo un id. En /docs se explica cómo leerlo.",
    },
    other: "Lo he anotado. Soy solo una demostración, y estas son las preguntas que sé responder:",
  },
};

const GREETING = {
  id: "ask-language", // the same on every device, so it stands there once when two of them begin at the same time
  role: "bot",
  text: "Hello! I am a small demo bot, and I forget nothing. Which language do you speak?",
  lang: "en",
};

/** What a chat begins with. */
export const NEW_CHAT = { messages: [], currentStep: "language", answers: {} };

/** Whether this is a state of this bot. Other programs may save on the same server, and they may save anything. */
export function isChat(state) {
  return (
    isObject(state) && Array.isArray(state.messages) && state.messages.every(isMessage) && (state.answers === undefined || isObject(state.answers))
  );
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isMessage(value) {
  return isObject(value) && ["id", "role", "text"].every((name) => typeof value[name] === "string");
}

/** The messages of a chat; a new one begins with the greeting. */
export function messagesOf(state) {
  return state.messages.length ? state.messages : [GREETING];
}

/**
 * Where the script stands: the first question without an answer. `currentStep` says the same to other programs; but when two
 * devices have answered at once, only what was answered is certain.
 */
export function stepOf({ answers = {} }) {
  return STEPS.find((step) => answers[step] === undefined) ?? "chat";
}

/** The answers that buttons offer, in the language of the chat. */
export function choicesOf(state) {
  const { genders, ages, topics } = textsOf(state.answers);
  return { language: Object.values(LANGUAGES), gender: genders, age: ages, question: [], chat: Object.keys(topics) }[stepOf(state)];
}

/** The language of the chat, as in the attribute `lang`. */
export function languageOf({ answers = {} }) {
  return Object.hasOwn(LANGUAGES, answers.language) ? answers.language : "en";
}

function textsOf(answers = {}) {
  return TEXTS[languageOf({ answers })];
}

/** The state after the person has said something, with what the bot says to it. The state itself is not changed. */
export function say(state, text) {
  const said = { id: newId(), role: "user", text, at: new Date().toISOString() };
  const step = stepOf(state);
  const answers = { ...state.answers };
  const value = understood(step, text);
  if (value !== undefined && step !== "chat") answers[step] = value;
  const next = { ...state, answers, messages: [...messagesOf(state), said] };
  next.currentStep = stepOf(next);
  next.messages.push(reply(next, step, said, value));
  return next;
}

/** What an answer means; undefined if it means nothing. */
function understood(step, text) {
  if (step === "language") {
    const wanted = text.toLowerCase();
    return Object.keys(LANGUAGES).find((code) => code === wanted || LANGUAGES[code].toLowerCase() === wanted);
  }
  if (step === "age") {
    const declined = Object.values(TEXTS).some(({ ages }) => ages.includes(text));
    const age = /^\d{1,3}$/.test(text) ? Number(text) : NaN;
    return declined ? "not said" : age >= 1 && age <= 120 ? age : undefined;
  }
  return text;
}

function reply(state, step, said, value) {
  const texts = textsOf(state.answers);
  const message = (id, text) => ({ id, role: "bot", text, at: said.at, lang: languageOf(state) });
  if (value === undefined) {
    return message(`re-${said.id}`, step === "age" ? texts.ageAgain : `Please choose one: ${Object.values(LANGUAGES).join(", ")}.`);
  }
  if (step === "chat") {
    return message(`re-${said.id}`, Object.hasOwn(texts.topics, said.text) ? texts.topics[said.text] : texts.other);
  }
  if (state.currentStep === "chat") return message(`re-${said.id}`, texts.reply(short(said.text)));
  const id = `ask-${state.currentStep}`; // the same on every device; but no list may have it twice
  return message(state.messages.some((other) => other.id === id) ? `re-${said.id}` : id, texts[state.currentStep]);
}

function short(text) {
  return text.length > 80 ? `${text.slice(0, 79)}…` : text;
}

/** An id that nothing else has. `crypto.randomUUID` is missing where the page came over plain http from another machine. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
