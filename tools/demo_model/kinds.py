"""Every kind of fact the generator knows."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import words
from facts import Fact, Kind
from refuse import REFUSAL


def _one_of(items: tuple[str, ...]) -> Callable[[Random], str]:
    return lambda rng: rng.choice(items)


def _mostly(items: tuple[str, ...]) -> Callable[[Random, str], str]:
    """One of `items`, now and then an invented word."""
    return lambda rng, _: rng.choice(items) if rng.random() < 0.85 else words.invented(rng)


def _name(rng: Random, _: str = "") -> str:
    return words.proper(rng, words.NAMES)


def _city(rng: Random, _: str = "") -> str:
    return words.proper(rng, words.CITIES)


def _number(rng: Random, _: str = "") -> str:
    return words.digits(rng, 1, 6)


def _word(rng: Random, _: str = "") -> str:
    pool = (words.NOUNS, words.FOODS, words.WILD_ANIMALS, words.FLOWERS, words.COLOURS)
    return words.invented(rng) if rng.random() < 0.6 else rng.choice(rng.choice(pool))


def _colour(rng: Random, _: str = "") -> str:
    return rng.choice(words.COLOURS) if rng.random() < 0.9 else words.invented(rng)


def _date(rng: Random, _: str) -> str:
    month, day = rng.choice(words.MONTHS), rng.randint(1, 28)
    return f"{day} {month}" if rng.random() < 0.5 else f"{month} {day}"


FAVOURITES: dict[str, Callable[[Random, str], str]] = {
    "colour": _colour,
    "city": _city,
    "number": _number,
    "word": _word,
    **{
        subject: _mostly(items)
        for subject, items in {
            "food": words.FOODS, "drink": words.DRINKS, "fruit": words.FRUITS, "sport": words.SPORTS,
            "animal": words.ANIMALS + words.WILD_ANIMALS, "flower": words.FLOWERS,
            "season": words.SEASONS, "subject": words.SUBJECTS, "instrument": words.INSTRUMENTS,
            "book": words.NOUNS, "game": words.SPORTS, "month": words.MONTHS, "dish": words.FOODS,
        }.items()
    },
}  # fmt: skip
SUBJECTS = tuple(FAVOURITES)


def _persons_favourite(rng: Random) -> str:
    return f"{_name(rng)}'s favourite {rng.choice(SUBJECTS)}"


def _favourite_subject(rng: Random) -> str:
    """A sort of thing; at times one that no list foresees."""
    roll = rng.random()
    if roll < 0.8:
        return rng.choice(SUBJECTS)
    return rng.choice(words.OTHER_SUBJECTS) if roll < 0.95 else words.invented(rng)


def _favourite(rng: Random, subject: str) -> str:
    known = FAVOURITES.get(subject.rsplit(" ", 1)[-1])
    return known(rng, subject) if known else (_name(rng) if rng.random() < 0.5 else _word(rng))


def _entry(rng: Random) -> str:
    return f"{rng.choice(words.NOUNS + words.OTHER_SUBJECTS)} of {words.proper(rng, words.CITIES)}"


def _spot(rng: Random, _: str) -> str:
    """A place as a phrase: "in the drawer", "under the old bridge"."""
    if rng.random() < 0.6:
        return f"in the {rng.choice(words.PLACES)}"
    adjective = f"{rng.choice(words.ADJECTIVES)} " if rng.random() < 0.5 else ""
    return f"{rng.choice(words.PREPOSITIONS + ('on', 'at', 'in', 'under'))} the {adjective}{rng.choice(words.NOUNS)}"


def _personal(rng: Random, subject: str) -> str:
    if subject.startswith("email"):
        return f"{words.invented(rng)}@{words.invented(rng)}.{rng.choice(('com', 'org', 'net'))}"
    if subject == "phone number" and rng.random() < 0.5:
        return "-".join(words.digits(rng, 3, 4) for _ in range(rng.randint(2, 3)))
    return _number(rng)


def _liked(rng: Random, _: str) -> str:
    pool = (words.FOODS, words.DRINKS, words.SPORTS, words.SUBJECTS, words.COLOURS)
    return rng.choice(rng.choice(pool)) if rng.random() < 0.8 else words.invented(rng)


_CALLED_TELLS = (
    "My {p} is called {v}.", "My {p}'s name is {v}.", "The name of my {p} is {v}.", "My {p} is named {v}.",
    "I have a {p} called {v}.", "I have a {p} named {v}.", "My {p}: {v}.", "{v} is the name of my {p}.",
    "{v} is my {p}.", "I have a {p}. My {p} is called {v}.", "I have a {p}, {v}.",
)  # fmt: skip
_CALLED_ASKS = (
    "What is my {p} called?", "What is the name of my {p}?", "What's my {p} called?",
    "What is my {p}'s name?", "What's my {p}'s name?", "What's the name of my {p}?",
    "Do you remember the name of my {p}?", "How is my {p} called?", "Tell me the name of my {p}.",
    "Do you know my {p}'s name?", "Can you tell me what my {p} is called?",
)  # fmt: skip

KINDS = (
    Kind(
        "name",
        ("My name is {v}.", "I am {v}.", "I'm {v}.", "Call me {v}.", "My name's {v}.", "You can call me {v}.",
         "I am called {v}.", "The name is {v}.", "People call me {v}.", "This is {v}.", "{v} here."),
        ("What is my name?", "What's my name?", "Do you remember my name?", "Can you tell me my name?",
         "Tell me my name.", "Who am I?", "What did I say my name was?", "Do you know my name?",
         "What am I called?", "What was my name?", "Say my name.", "Do you know who I am?",
         "Do you still know my name?", "Can you remember my name?", "So what is my name?"),
        "Your name is {v}.", "You have not told me your name yet.", _name, ack="Nice to meet you, {v}!",
    ),
    Kind(
        "favourite",
        ("My favourite {p} is {v}.", "{v} is my favourite {p}.", "The {p} I like most is {v}.",
         "My favourite {p} has always been {v}.", "The {p} I like best is {v}.", "I like {v} best. It is my favourite {p}.",
         "My favourite {p}: {v}."),
        ("What is my favourite {p}?", "What's my favourite {p}?", "Which {p} do I like most?",
         "Which {p} do I like best?", "Do you remember my favourite {p}?", "Tell me my favourite {p}.",
         "What {p} do I like best?", "What {p} do I like most?", "Which is my favourite {p}?",
         "What did I say my favourite {p} was?", "Do you know my favourite {p}?", "Which {p} is my favourite?",
         "What was my favourite {p}?"),
        "Your favourite {p} is {v}.", "You have not told me your favourite {p} yet.", _favourite,
        _favourite_subject,
    ),
    Kind(
        "home",
        ("I live in {v}.", "My home is in {v}.", "I am living in {v}.", "I live in the city of {v}.",
         "My house is in {v}.", "I moved to {v} and live there.", "I'm living in {v}."),
        ("Where do I live?", "Which city do I live in?", "What city do I live in?", "In which city do I live?",
         "Do you remember where I live?", "Where is my home?", "Where did I say I live?",
         "Can you tell me where I live?", "Do you know where I live?", "In what city do I live?"),
        "You live in {v}.", "You have not told me where you live yet.", _city,
    ),
    Kind(
        "origin",
        ("I am from {v}.", "I come from {v}.", "I'm from {v}."),
        ("Where am I from?", "Where do I come from?", "Which city am I from?", "Do you remember where I am from?",
         "Do you know where I come from?", "Which city do I come from?"),
        "You are from {v}.", "You have not told me where you are from yet.", _city,
    ),
    Kind(
        "birthplace", ("I was born in {v}.", "My place of birth is {v}.", "I was born and raised in {v}."),
        ("Where was I born?", "In which city was I born?", "What is my place of birth?",
         "Do you remember where I was born?"),
        "You were born in {v}.", "You have not told me where you were born yet.", _city,
    ),
    Kind(
        "age", ("I am {v} years old.", "I'm {v} years old.", "My age is {v}.", "I am {v} years of age."),
        ("How old am I?", "What is my age?", "What's my age?", "Do you remember how old I am?",
         "Do you know my age?", "Tell me my age."),
        "You are {v} years old.", "You have not told me how old you are yet.", lambda rng, _: str(rng.randint(3, 109)),
    ),
    Kind(
        "birthday",
        ("My birthday is on {v}.", "My birthday is {v}.", "I was born on {v}.", "I have my birthday on {v}.",
         "I celebrate my birthday on {v}."),
        ("When is my birthday?", "What is my birthday?", "Do you remember my birthday?",
         "Tell me my birthday."),
        "Your birthday is on {v}.", "You have not told me your birthday yet.", _date,
        lone_asks=(("When was I born?", "Your birthday is on {v}."),), excludes="birth year",
    ),
    Kind(
        "birth year", ("I was born in {v}.", "I was born in the year {v}.", "My year of birth is {v}."),
        ("In which year was I born?", "What year was I born in?", "What is my year of birth?",
         "What year was I born?"),
        "You were born in {v}.", "You have not told me when you were born yet.",
        lambda rng, _: str(rng.randint(1900, 2026)),
        lone_asks=(("When was I born?", "You were born in {v}."),), excludes="birthday",
    ),
    Kind(
        "like", ("I like {v}.", "I love {v}.", "I really like {v}.", "I like {v} a lot."),
        ("What do I like?", "What did I say I like?", "Do you remember what I like?", "Do you know what I like?"),
        "You like {v}.", "You have not told me what you like yet.", _liked,
    ),
    Kind(
        "job", ("I work as {v}.", "I am {v}.", "I'm {v}.", "My job: I am {v}.", "I am {v} by trade.", "I earn my money as {v}."),
        ("What is my job?", "What do I do for a living?", "What do I work as?", "What's my job?",
         "Do you remember my job?", "What is my profession?", "Tell me my job."),
        "You work as {v}.", "You have not told me your job yet.", lambda rng, _: rng.choice(words.JOBS),
    ),
    Kind(
        "relation", _CALLED_TELLS, (*_CALLED_ASKS, "Who is my {p}?"), "Your {p} is called {v}.",
        "You have not told me the name of your {p} yet.", _name, _one_of(words.RELATIONS),
    ),
    Kind(
        "pet", _CALLED_TELLS, _CALLED_ASKS, "Your {p} is called {v}.",
        "You have not told me the name of your {p} yet.", _name,
        lambda rng: rng.choice([a for a in words.ANIMALS if a[0] not in "aeiou"]),
        lone_asks=(("What pet do I have?", "You have a {p} called {v}."),
                   ("Which pet do I have?", "You have a {p} called {v}."),
                   ("What is my pet called?", "Your {p} is called {v}."),
                   ("What is my pet's name?", "Your {p} is called {v}."),
                   ("What is the name of my pet?", "Your {p} is called {v}."),
                   ("What animal do I have?", "You have a {p} called {v}.")),
        excludes="animal",
    ),
    Kind(
        "animal", ("I have a {v}.", "My pet is a {v}.", "I own a {v}.", "At home I have a {v}.", "I have got a {v}."),
        ("What pet do I have?", "Which pet do I have?", "What animal do I have?", "What is my pet?",
         "Which animal do I have?", "Do you remember what pet I have?"),
        "You have a {v}.", "You have not told me about a pet yet.",
        lambda rng, _: rng.choice([a for a in words.ANIMALS if a[0] not in "aeiou"]), excludes="pet",
    ),
    Kind(
        "thing", _CALLED_TELLS, _CALLED_ASKS, "Your {p} is called {v}.",
        "You have not told me the name of your {p} yet.", _name, _one_of(words.NAMED_THINGS),
    ),
    Kind(
        "paint", ("My {p} is {v}.", "The colour of my {p} is {v}.", "I have a {v} {p}.", "I painted my {p} {v}."),
        ("What colour is my {p}?", "What is the colour of my {p}?", "Which colour is my {p}?",
         "Which colour does my {p} have?", "Do you remember the colour of my {p}?"),
        "Your {p} is {v}.", "You have not told me the colour of your {p} yet.", _colour,
        _one_of(words.COLOURED_THINGS),
    ),
    Kind(
        "place",
        ("The {p} is {v}.", "I put the {p} {v}.", "I left the {p} {v}.", "You can find the {p} {v}.",
         "I have hidden the {p} {v}.", "The {p} lies {v}."),
        ("Where is the {p}?", "Where did I put the {p}?", "Where did I leave the {p}?", "Where can I find the {p}?",
         "Where's the {p}?", "Do you remember where the {p} is?"),
        "The {p} is {v}.", "You have not told me where the {p} is yet.", _spot, _one_of(words.PLACED_THINGS),
    ),
    Kind(
        "number", ("My {p} is {v}.", "{v} is my {p}.", "My {p}: {v}."),
        ("What is my {p}?", "What's my {p}?", "Do you remember my {p}?", "Tell me my {p}.",
         "Can you tell me my {p}?", "What was my {p}?", "Do you know my {p}?"),
        "Your {p} is {v}.", "You have not told me your {p} yet.", _personal, _one_of(words.NUMBERED_THINGS),
    ),
    Kind(
        "code", ("The {p} is {v}.", "The {p}: {v}.", "{v} is the {p}.", "We set the {p} to {v}."),
        ("What is the {p}?", "What's the {p}?", "Tell me the {p}.", "Do you remember the {p}?",
         "What was the {p}?", "Give me the {p}.", "Can you tell me the {p}?"),
        "The {p} is {v}.", "You have not told me the {p} yet.",
        lambda rng, p: _word(rng) if p in words.PASSWORDS else words.digits(rng, 2, 6),
        _one_of(words.CODES + words.PASSWORDS),
    ),
    Kind(
        "word", ("The word to keep is {v}.", "Keep this word for me: {v}.", "Remember the word {v}.", "Remember this word: {v}."),
        ("What was the word?", "Which word did I ask you to remember?", "What word should you remember?",
         "Which word did I tell you?", "What word did I give you?"),
        "The word is {v}.", "You have not told me a word yet.", _word,
    ),
    Kind(
        "kept number", ("Remember the number {v}.", "Keep this number for me: {v}.", "Remember this number: {v}."),
        ("What was the number?", "Which number did I ask you to remember?", "What number did I tell you?",
         "Which number did I tell you?", "What number should you remember?"),
        "The number is {v}.", "You have not told me a number yet.", _number,
    ),
    Kind(
        "entry", ("The {p} is {v}.", "The {p} is called {v}.", "{v} is the {p}."),
        ("What is the {p}?", "What's the {p}?", "Tell me the {p}.", "Do you know the {p}?", "What was the {p}?"),
        "The {p} is {v}.", REFUSAL, lambda rng, _: _name(rng) if rng.random() < 0.6 else _word(rng), _entry,
    ),
    Kind(
        "persons favourite", ("{p} is {v}.", "{v} is {p}."),
        ("What is {p}?", "What's {p}?", "Do you remember {p}?", "Tell me {p}."),
        "{p} is {v}.", "You have not told me {p} yet.", _favourite, _persons_favourite,
    ),
    Kind(
        "persons home", ("{p} lives in {v}.", "{p} has a house in {v}."),
        ("Where does {p} live?", "Which city does {p} live in?", "Do you remember where {p} lives?"),
        "{p} lives in {v}.", "You have not told me where {p} lives yet.", _city, _name,
    ),
    Kind(
        "persons job", ("{p} works as {v}.", "{p} is {v}."),
        ("What does {p} work as?", "What is {p}'s job?", "Do you remember {p}'s job?"),
        "{p} works as {v}.", "You have not told me {p}'s job yet.", lambda rng, _: rng.choice(words.JOBS), _name,
    ),
)  # fmt: skip
_WEIGHTS = tuple({"name": 4.0, "favourite": 4.0, "home": 2.0, "pet": 2.0}.get(kind.name, 1.0) for kind in KINDS)


def draw(rng: Random, held_out: bool = False) -> Fact:
    """A random fact of the wanted side of the split."""
    while True:
        kind = rng.choices(KINDS, _WEIGHTS)[0]
        subject = kind.subjects(rng)
        fact = Fact(kind, subject, kind.values(rng, subject))
        if fact.held_out == held_out:
            return fact
