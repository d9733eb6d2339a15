"""Skill: fill JSON from a sentence under a given JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random

import words
from split import is_held_out

Fields = dict[str, object]  # by name, in the sentence's order; str, int or bool

_BOTH = (
    "Fill in this JSON schema: {s} Text: {t}", "Fill this schema from the text. Schema: {s} Text: {t}",
    "Schema: {s} Text: {t}", "Text: {t} Schema: {s}", "Extract JSON from this sentence: {t} Schema: {s}",
    "{t} Answer in JSON with this schema: {s}", "{t} Fill in the schema: {s}", "Read: {t} Answer with JSON of this schema: {s}",
    "Use this JSON schema: {s} Sentence: {t}", "Turn this into JSON: {t} The schema is {s}",
    "Fill JSON from this sentence: {t} The schema: {s}", "JSON schema: {s}\n{t}", "{t}\nSchema: {s}", "{s}\n{t}",
)  # fmt: skip
SYSTEMS = (
    "Answer in JSON with this schema: {s}", "Fill in this JSON schema: {s}", "Reply with JSON only. Schema: {s}",
    "Extract JSON from what the user says. Schema: {s}",
)  # fmt: skip


def _name(rng: Random) -> str:
    return words.coined(rng).capitalize() if rng.random() < 0.2 else rng.choice(words.NAMES)


def _city(rng: Random) -> str:
    return words.coined(rng).capitalize() if rng.random() < 0.15 else rng.choice(words.CITIES)


def _job(rng: Random) -> str:
    return rng.choice(words.JOBS).split(" ", 1)[1]


def _person(rng: Random) -> tuple[str, Fields]:
    """Name, and one to four clauses in any order."""
    name, age, city, job = _name(rng), rng.randint(3, 99), _city(rng), rng.choice(words.JOBS)
    animal = rng.choice([a for a in words.ANIMALS if a[0] not in "aeiou"])
    married, colour = rng.random() < 0.5, rng.choice(words.COLOURS)
    clauses: list[tuple[str, str, object]] = [
        (f"is {age} years old", "age", age), (f"lives in {city}", "city", city),
        (f"works as {job}", "job", job.split(" ", 1)[1]), (f"has a {animal}", "pet", animal),
        ("is married" if married else "is not married", "married", married), (f"likes {colour}", "colour", colour),
    ]  # fmt: skip
    chosen = rng.sample(clauses, rng.randint(1, 4))
    texts = [text for text, _, _ in chosen]
    joined = " and ".join(texts) if len(texts) < 3 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    return f"{name} {joined}.", {"name": name, **{field: value for _, field, value in chosen}}


def _product(rng: Random) -> tuple[str, Fields]:
    item, colour, price = rng.choice(words.COLOURED_THINGS), rng.choice(words.COLOURS), rng.randint(1, 999)
    sold = rng.random() < 0.5
    tail = rng.choice((f"costs {price} euros", f"is for sale for {price} euros"))
    fields: Fields = {"colour": colour, "item": item, "price": price}
    if rng.random() < 0.5:
        return f"The {colour} {item} {tail}.", fields
    return f"The {colour} {item} {tail} and is {'sold' if sold else 'not sold'}.", {**fields, "sold": sold}


def _trip(rng: Random) -> tuple[str, Fields]:
    name, day = _name(rng), rng.choice(words.DAYS)
    start, end = rng.sample(words.CITIES, 2)
    vehicle = rng.choice(("train", "bus", "car", "bicycle", "ship", "plane"))
    text = f"{name} travels from {start} to {end} by {vehicle}"
    fields: Fields = {"name": name, "from": start, "to": end, "vehicle": vehicle}
    return (f"{text}.", fields) if rng.random() < 0.5 else (f"{text} on {day}.", {**fields, "day": day})


def _meeting(rng: Random) -> tuple[str, Fields]:
    name, day, hour, city = _name(rng), rng.choice(words.DAYS), rng.randint(7, 20), _city(rng)
    fields: Fields = {"name": name, "day": day, "hour": hour}
    text = f"The meeting with {name} is on {day} at {hour}"
    return (f"{text}.", fields) if rng.random() < 0.5 else (f"{text} in {city}.", {**fields, "city": city})


def _order(rng: Random) -> tuple[str, Fields]:
    name, number = _name(rng), rng.randint(2, 99)
    item = rng.choice(("apples", "coins", "books", "pens", "eggs", "cards", "cups", "balls", "pears", "cookies"))
    paid = rng.random() < 0.5
    text = f"{name} {rng.choice(('orders', 'buys', 'wants'))} {number} {item}"
    fields: Fields = {"name": name, "number": number, "item": item}
    if rng.random() < 0.5:
        return f"{text}.", fields
    return f"{text} and has {'paid' if paid else 'not paid'}.", {**fields, "paid": paid}


Domain = Callable[[Random], tuple[str, Fields]]
_DOMAINS: tuple[Domain, ...] = (_person, _person, _product, _trip, _meeting, _order)
_TYPES = {str: "string", int: "integer", bool: "boolean"}


def schema(rng: Random, fields: Fields) -> tuple[str, Fields]:
    """A schema for some of the fields, in an order of its own, and the fields that it asks for."""
    names = rng.sample(tuple(fields), rng.randint(min(2, len(fields)), len(fields)))
    if rng.random() < 0.5:
        names = [name for name in fields if name in names]
    properties = {name: {"type": _TYPES[type(fields[name])]} for name in names}
    text = json.dumps({"type": "object", "properties": properties, "required": names}, ensure_ascii=False)
    return text, {name: fields[name] for name in names}


def series(rng: Random, held_out: bool = False) -> tuple[str, Iterator[tuple[str, str]]]:
    """A schema, and endless sentences that it fits with their answers; held out by a sentence's values."""
    domain = rng.choice(_DOMAINS)
    text, wanted = schema(rng, domain(rng)[1])
    return text, _filled(rng, domain, wanted, held_out)


def _filled(rng: Random, domain: Domain, names: Fields, held_out: bool) -> Iterator[tuple[str, str]]:
    while True:
        sentence, fields = domain(rng)
        if names.keys() <= fields.keys() and is_held_out("json", *fields.values()) == held_out:
            yield sentence, json.dumps({name: fields[name] for name in names}, ensure_ascii=False)


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A request with schema and sentence, and the JSON alone."""
    text, sentences = series(rng, held_out)
    sentence, answer = next(sentences)
    return rng.choice(_BOTH).replace("{s}", text).replace("{t}", sentence), answer
