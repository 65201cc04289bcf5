"""A bot with four questions: language, gender, age, and what the person wants to know. It is the same on every channel.

chatstate serve --bot examples.onboarding_bot:bot
"""

from __future__ import annotations

from chatstate import Turn

LANGUAGES = {"en": "English", "de": "Deutsch"}
TEXTS = {
    "en": {
        "gender": "Thank you. How would you describe your gender?",
        "genders": ["Female", "Male", "Non-binary", "I'd rather not say"],
        "age": "And how old are you?",
        "ages": ["I'd rather not say"],
        "again": "Please type a number from 1 to 120, such as 34.",
        "question": "That is all I need. What would you like to ask?",
        "answer": "“{text}” is a good question. I keep it with your answers: {answers}.",
    },
    "de": {
        "gender": "Danke. Wie beschreiben Sie Ihr Geschlecht?",
        "genders": ["Weiblich", "Männlich", "Nicht binär", "Keine Angabe"],
        "age": "Und wie alt sind Sie?",
        "ages": ["Keine Angabe"],
        "again": "Bitte schreiben Sie eine Zahl von 1 bis 120, zum Beispiel 34.",
        "question": "Mehr brauche ich nicht. Was möchten Sie fragen?",
        "answer": "„{text}“ ist eine gute Frage. Ich hebe sie mit Ihren Antworten auf: {answers}.",
    },
}


async def bot(turn: Turn) -> None:
    answers = turn.state.setdefault("answers", {})
    step, choice = turn.state.get("currentStep"), turn.message.choice
    text = choice.title if choice else turn.message.text.strip() or "(a file)"
    if step is None or (step == "language" and not (choice and choice.id in LANGUAGES)):
        turn.state["currentStep"] = "language"
        await turn.reply("Please choose one." if step else "Hello! Which language do you speak?", choices=LANGUAGES)
        return
    if step == "language":
        answers["language"] = choice.id
    texts = TEXTS.get(answers.get("language"), TEXTS["en"])
    if step == "language" or (step == "gender" and choice and text not in texts["genders"]):  # a button of before
        turn.state["currentStep"] = "gender"
        await turn.reply(texts["gender"], choices=texts["genders"])
    elif step == "gender":
        answers["gender"] = text
        turn.state["currentStep"] = "age"
        await turn.reply(texts["age"], choices=texts["ages"])
    elif step == "age" and text not in texts["ages"] and not (text.isdecimal() and 1 <= int(text) <= 120):
        await turn.reply(texts["again"], choices=texts["ages"])
    elif step == "age":
        answers["age"] = int(text) if text.isdecimal() else text
        turn.state["currentStep"] = "question"
        await turn.reply(texts["question"])
    else:
        answers["question"] = text
        await turn.reply(texts["answer"].format(text=text, answers=", ".join(map(str, answers.values()))))
