"""Skill: name some things of a category, always in the same order."""

from __future__ import annotations

from random import Random

from add import in_words
from split import is_held_out
from words import word_list

CATEGORIES = {
    name: word_list(items)
    for name, items in {
        "colours": "red green blue yellow orange purple", "fruits": "apple banana cherry grape lemon mango",
        "animals": "cat dog horse cow sheep goat", "cities": "Paris London Berlin Rome Madrid Vienna",
        "numbers": "one two three four five six", "days": "Monday Tuesday Wednesday Thursday Friday Saturday",
        "months": "January February March April May June", "seasons": "spring summer autumn winter",
        "planets": "Mercury Venus Earth Mars Jupiter Saturn", "drinks": "water tea coffee milk juice lemonade",
        "vegetables": "carrot potato onion tomato cabbage bean", "sports": "football tennis chess swimming running cycling",
        "metals": "gold silver iron copper tin lead", "countries": "France Germany Italy Spain Japan China",
        "instruments": "piano violin guitar flute drum harp", "flowers": "rose tulip lily daisy orchid violet",
        "trees": "oak pine birch maple willow beech", "birds": "eagle owl duck hen goose pigeon",
        "names": "Ada Ben Clara David Emma Felix", "jobs": "baker teacher doctor farmer pilot painter",
        "languages": "English French German Spanish Italian Latin", "letters": "A B C D E F",
        "tools": "hammer saw drill knife ladder shovel", "clothes": "hat coat shirt scarf jacket shoe",
        "foods": "bread cheese rice soup pasta salad", "shapes": "circle square triangle star line cube",
        "fish": "shark salmon tuna trout eel carp", "insects": "ant bee fly wasp beetle moth",
        "rooms": "kitchen bathroom bedroom office hall cellar", "vehicles": "car bus train bicycle ship plane",
        "wild animals": "tiger lion bear wolf fox whale", "pets": "cat dog rabbit hamster parrot turtle",
    }.items()
}  # fmt: skip
QUESTIONS = (
    "Name {n} {c}.", "List {n} {c}.", "Give me {n} {c}.", "Tell me {n} {c}.", "Can you name {n} {c}?", "Say {n} {c}.",
    "Please name {n} {c}.", "I need {n} {c}.", "Write {n} {c}.", "Could you list {n} {c}?", "{n} {c}", "{n} {c} please.",
    "Please list {n} {c}.", "What are {n} {c}?", "Can you give me {n} {c}?", "Can you tell me {n} {c}?", "Now name {n} {c}.",
    "Name {n} {c} for me.", "Please give me {n} {c}.", "Give me a list of {n} {c}.", "Make a list of {n} {c}.",
    "And {n} {c}?", "Do you know {n} {c}?", "Which {n} {c} do you know?", "I want {n} {c}.", "Give me the names of {n} {c}.",
)  # fmt: skip
SOME = 3  # how many "some" are


def answer(category: str, number: int) -> str:
    text = ", ".join(CATEGORIES[category][:number]) + "."
    return text[0].upper() + text[1:]


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A request and the list; held out by (category, number, phrasing)."""
    while True:
        category, question = rng.choice(tuple(CATEGORIES)), rng.choice(QUESTIONS)
        number = rng.randint(2, len(CATEGORIES[category]))
        if is_held_out("list", category, number, question) == held_out:
            break
    spelled = in_words(number) if rng.random() < 0.65 else str(number)
    if not held_out and rng.random() < 0.06:
        spelled, number = "some", SOME
    text = question.format(n=spelled, c=category)
    return text[0].upper() + text[1:], answer(category, number)
