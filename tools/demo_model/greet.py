"""Skill: greeting, small courtesies, and saying who is speaking."""

from __future__ import annotations

from random import Random
from re import sub

from refuse import ABILITY
from split import is_held_out

HELLO, MORNING, AFTERNOON, EVENING = "Hello!", "Good morning!", "Good afternoon!", "Good evening!"
OFFER = "How can I help you?"
IDENTITY = "I am the demo model of rtp_llm, a very small language model."
WELL = "I am fine, thank you."

OPENERS = {
    "Hi": HELLO, "Hello": HELLO, "Hey": HELLO, "Hi there": HELLO, "Hello there": HELLO, "Hey there": HELLO,
    "Hiya": HELLO, "Howdy": HELLO, "Greetings": HELLO, "Hi hi": HELLO, "Hello again": HELLO, "Yo": HELLO,
    "Welcome": HELLO, "Good day": HELLO, "Hallo": HELLO, "Hello hello": HELLO, "Oh hi": HELLO,
    "Good morning": MORNING, "Morning": MORNING, "Good afternoon": AFTERNOON, "Good evening": EVENING,
    "Evening": EVENING,
}  # fmt: skip
ADDRESSEES = (
    "friend", "my friend", "robot", "computer", "model", "assistant", "everyone", "you", "demo model",
    "little model", "my dear", "bot", "machine", "buddy", "dear assistant", "everybody",
)  # fmt: skip
FOLLOW_UPS = {
    "How are you?": WELL, "How are you doing?": WELL, "How are you today?": WELL, "How is it going?": WELL,
    "How's it going?": WELL, "How do you do?": WELL, "How do you feel?": WELL, "What's up?": WELL,
    "How are things?": WELL, "Are you well?": WELL, "How are you doing today?": WELL, "You okay?": WELL,
    "Who are you?": IDENTITY, "What are you?": IDENTITY, "What is your name?": IDENTITY,
    "What's your name?": IDENTITY, "Tell me who you are.": IDENTITY, "Tell me about yourself.": IDENTITY,
    "Introduce yourself.": IDENTITY, "Please introduce yourself.": IDENTITY, "Who am I talking to?": IDENTITY,
    "Are you a robot?": IDENTITY, "Are you a human?": IDENTITY, "What kind of model are you?": IDENTITY,
    "How old are you?": IDENTITY, "Where do you live?": IDENTITY, "Where are you from?": IDENTITY,
    "Are you an AI?": IDENTITY, "Who made you?": IDENTITY, "What do you like?": IDENTITY,
    "Do you have a name?": IDENTITY, "Which model are you?": IDENTITY, "Can you introduce yourself?": IDENTITY, "Who is this?": IDENTITY,
    "May I ask who you are?": IDENTITY, "What should I call you?": IDENTITY, "And who are you?": IDENTITY,
    "What can you do?": ABILITY, "What are you able to do?": ABILITY, "How can you help me?": ABILITY,
    "What do you know?": ABILITY, "Can you help me?": ABILITY, "What are your skills?": ABILITY,
    "What can you do for me?": ABILITY, "Tell me what you can do.": ABILITY, "Help": ABILITY,
    "I need help.": ABILITY, "What can I ask you?": ABILITY, "Please help me.": ABILITY,
    "Nice to meet you.": "Nice to meet you too.", "Pleased to meet you.": "Nice to meet you too.",
    "Are you there?": "Yes, I am here.", "Is anybody there?": "Yes, I am here.",
    "Can you hear me?": "Yes, I am here.",
}  # fmt: skip
CLOSINGS = {
    "Thanks": "You are welcome!", "Thank you": "You are welcome!", "Thanks a lot": "You are welcome!",
    "Thank you very much": "You are welcome!", "Many thanks": "You are welcome!", "Great": "You are welcome!",
    "Well done": "You are welcome!", "Thank you so much": "You are welcome!", "Perfect": "You are welcome!",
    "Cool": "You are welcome!", "Bye": "Goodbye!", "Goodbye": "Goodbye!", "See you": "Goodbye!",
    "See you later": "Goodbye!", "Bye bye": "Goodbye!", "Good night": "Good night!", "Farewell": "Goodbye!",
    "OK": "All right!", "Okay": "All right!", "Yes": "All right!", "No": "All right!", "Fine": "All right!",
    "Sure": "All right!", "I see": "All right!", "Very good": "You are welcome!", "Nice": "You are welcome!",
    "See you tomorrow": "Goodbye!", "Take care": "Goodbye!",
}  # fmt: skip


def key(text: str) -> str:
    """What two spellings of one greeting share: its letters."""
    return sub(r"[^a-z ]", "", text.lower()).strip()


_SINGLE_PARTS = frozenset(key(part) for part in (*OPENERS, *FOLLOW_UPS, *CLOSINGS))


def _compose(rng: Random, combined: bool) -> tuple[str, str]:
    """`combined` asks for at least two parts (a single part is always training material)."""
    kind = rng.random()
    addressee = rng.choice(("", " ", ", ")) if not combined else rng.choice((" ", ", "))
    who = addressee + rng.choice(ADDRESSEES) if addressee else ""
    if kind < 0.2:
        closing = rng.choice(tuple(CLOSINGS))
        return closing + who + rng.choice((".", "!", "")), CLOSINGS[closing]
    opener = rng.choice(tuple(OPENERS))
    if kind < 0.4:
        return opener + who + rng.choice((".", "!", "", "!", "!", " :)")), f"{OPENERS[opener]} {OFFER}"
    question = rng.choice(tuple(FOLLOW_UPS))
    reply = FOLLOW_UPS[question]
    if kind < 0.6 and not combined:
        return question, f"{reply} {OFFER}" if reply == WELL else reply
    who = who if rng.random() < 0.5 else ""
    tail = f" {OFFER}" if reply == WELL else ""
    return f"{opener}{who}{rng.choice(('!', ',', '.', '!'))} {question}", f"{OPENERS[opener]} {reply}{tail}"


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A greeting and its reply. Held out is by `key`, among greetings of two parts or more."""
    while True:
        text, reply = _compose(rng, held_out)
        words = key(text)
        if (is_held_out("greet", words) and words not in _SINGLE_PARTS) == held_out:
            return text, reply
