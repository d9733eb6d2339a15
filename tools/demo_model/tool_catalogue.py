"""Tools that a conversation may offer: what they do, under changing names, and how a user asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import words
from split import is_held_out

Value = str | int


@dataclass(frozen=True)
class Parameter:
    names: tuple[str, ...]
    type: str
    value: Callable[[Random], Value]


@dataclass(frozen=True)
class Intent:
    """One purpose. Requests hold the parameters' values as {0}, {1}."""

    name: str
    tool_names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]


@dataclass(frozen=True)
class Tool:
    """An intent under one name, with one name for each parameter."""

    intent: Intent
    name: str
    description: str
    parameters: tuple[str, ...]

    def schema(self) -> dict[str, Any]:
        """OpenAI's function format."""
        properties = {
            name: {"type": parameter.type}
            for name, parameter in zip(self.parameters, self.intent.parameters, strict=True)
        }
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {"type": "object", "properties": properties, "required": list(self.parameters)},
            },
        }


def _city(rng: Random) -> str:
    return words.coined(rng).capitalize() if rng.random() < 0.2 else rng.choice(words.CITIES)


def _name(rng: Random) -> str:
    return words.coined(rng).capitalize() if rng.random() < 0.2 else rng.choice(words.NAMES)


def _thing(rng: Random) -> str:
    return words.coined(rng) if rng.random() < 0.2 else rng.choice(words.NOUNS + words.COLOURED_THINGS)


def _food(rng: Random) -> str:
    return rng.choice(words.FOODS)


def _language(rng: Random) -> str:
    return rng.choice(("English", "French", "German", "Spanish", "Italian", "Latin"))


def _number(rng: Random) -> int:
    return rng.randint(2, 99)


def _device(rng: Random) -> str:
    return rng.choice(("lamp", "heater", "radio", "fan", "oven", "alarm", "printer", "computer", "fridge", "camera"))


_PLACE = Parameter(("city", "location", "place", "town"), "string", _city)
_FROM = Parameter(("from", "start", "origin"), "string", _city)
_TO = Parameter(("to", "end", "destination", "goal"), "string", _city)
_PERSON = Parameter(("name", "person", "recipient", "contact"), "string", _name)
_MINUTES = Parameter(("minutes", "duration", "time"), "integer", _number)
_DEVICE = Parameter(("device", "name", "machine"), "string", _device)

INTENTS = (
    Intent(
        "weather", ("get_weather", "weather", "fetch_weather", "weather_lookup", "current_weather"),
        ("Get the weather in a city.", "Tells the weather of a place.", "Current weather for a city."), (_PLACE,),
        ("What is the weather in {0}?", "How is the weather in {0}?", "Weather in {0}?", "Tell me the weather in {0}.",
         "What is the weather like in {0}?", "What's the weather in {0}?", "Is it raining in {0}?",
         "Can you check the weather in {0}?", "I need the weather for {0}."),
    ),
    Intent(
        "time", ("get_time", "time", "clock", "current_time", "local_time"),
        ("Get the time in a city.", "Tells what time it is in a place.", "Current time of a city."), (_PLACE,),
        ("What time is it in {0}?", "What is the time in {0}?", "Time in {0}?", "Tell me the time in {0}.",
         "What's the time in {0}?", "Can you tell me what time it is in {0}?", "How late is it in {0}?"),
    ),
    Intent(
        "distance", ("get_distance", "distance", "measure_distance", "how_far"),
        ("Get the distance between two cities.", "Tells how far two places are apart."), (_FROM, _TO),
        ("How far is it from {0} to {1}?", "What is the distance from {0} to {1}?", "Distance from {0} to {1}?",
         "Tell me the distance between {0} and {1}.", "How many kilometres is it from {0} to {1}?", "How far is {1} from {0}?"),
    ),
    Intent(
        "message", ("send_message", "send_text", "message", "write_message"),
        ("Send a message to a person.", "Sends a short message."),
        (_PERSON, Parameter(("text", "message", "content", "body"), "string", lambda rng: rng.choice(_MESSAGES))),
        ('Send {0} the message "{1}".', 'Tell {0} "{1}".', 'Send "{1}" to {0}.', 'Write "{1}" to {0}.',
         'Please send {0} a message: "{1}".', 'Text {0} "{1}".'),
    ),
    Intent(
        "call", ("call", "phone", "make_call", "call_person", "dial"),
        ("Call a person on the phone.", "Makes a phone call."), (_PERSON,),
        ("Call {0}.", "Please call {0}.", "Can you call {0}?", "Phone {0}.", "I want to talk to {0} on the phone.",
         "Make a call to {0}.", "Ring {0}."),
    ),
    Intent(
        "timer", ("set_timer", "timer", "start_timer", "countdown"),
        ("Set a timer in minutes.", "Starts a timer."), (_MINUTES,),
        ("Set a timer for {0} minutes.", "Start a timer of {0} minutes.", "Timer for {0} minutes.", "Please set a timer for {0} minutes.",
         "Can you set a timer for {0} minutes?", "Wake me in {0} minutes.", "{0} minutes timer please."),
    ),
    Intent(
        "switch_on", ("turn_on", "switch_on", "power_on", "start_device"),
        ("Turn a device on.", "Switches a device on."), (_DEVICE,),
        ("Turn on the {0}.", "Switch on the {0}.", "Please turn on the {0}.", "Turn the {0} on.", "Can you switch the {0} on?"),
    ),
    Intent(
        "switch_off", ("turn_off", "switch_off", "power_off", "stop_device"),
        ("Turn a device off.", "Switches a device off."), (_DEVICE,),
        ("Turn off the {0}.", "Switch off the {0}.", "Please turn off the {0}.", "Turn the {0} off.", "Can you switch the {0} off?"),
    ),
    Intent(
        "translate", ("translate", "translate_word", "translator", "get_translation"),
        ("Translate a word into a language.", "Translates a word."),
        (Parameter(("word", "text"), "string", _thing), Parameter(("language", "target", "to"), "string", _language)),
        ("Translate {0} into {1}.", "What is {0} in {1}?", "How do you say {0} in {1}?", "Please translate {0} into {1}.",
         "Translate the word {0} into {1}."),
    ),
    Intent(
        "order", ("order_food", "order", "order_meal", "place_order"),
        ("Order food.", "Orders portions of a dish."),
        (Parameter(("dish", "food", "meal"), "string", _food), Parameter(("number", "count", "portions"), "integer", _number)),
        ("Order {1} portions of {0}.", "I want {1} portions of {0}.", "Please order {1} portions of {0}.", "Get me {1} portions of {0}.",
         "Can you order {1} portions of {0}?"),
    ),
    Intent(
        "price", ("get_price", "price", "price_lookup", "find_price"),
        ("Get the price of an item.", "Tells what a thing costs."), (Parameter(("item", "product", "thing"), "string", _thing),),
        ("What does the {0} cost?", "How much is the {0}?", "What is the price of the {0}?", "Price of the {0}?",
         "How much does the {0} cost?", "Tell me the price of the {0}."),
    ),
    Intent(
        "search", ("search", "web_search", "search_web", "find", "lookup"),
        ("Search the web.", "Searches for a topic."), (Parameter(("query", "topic", "text"), "string", _thing),),
        ("Search for {0}.", "Look up {0}.", "Search the web for {0}.", "Please search for {0}.", "Can you search for {0}?",
         "Google {0}.", "Find something about {0}."),
    ),
    Intent(
        "hotel", ("book_hotel", "hotel", "book_room", "reserve_hotel"),
        ("Book a hotel in a city for some nights.", "Books a hotel."),
        (_PLACE, Parameter(("nights", "days", "number"), "integer", _number)),
        ("Book a hotel in {0} for {1} nights.", "I need a hotel in {0} for {1} nights.", "Find me a hotel in {0} for {1} nights.",
         "Please book a room in {0} for {1} nights.", "Hotel in {0}, {1} nights."),
    ),
    Intent(
        "music", ("play_music", "play", "play_song", "music"),
        ("Play music of an artist.", "Plays songs."), (Parameter(("artist", "singer", "musician"), "string", _name),),
        ("Play something by {0}.", "Play music by {0}.", "Play a song by {0}.", "I want to hear {0}.", "Please play music by {0}.",
         "Put on some {0}."),
    ),
    Intent(
        "convert", ("convert_money", "convert_currency", "exchange", "currency"),
        ("Convert euros into another currency.", "Converts an amount of euros."),
        (Parameter(("amount", "euros", "value"), "integer", _number),
         Parameter(("currency", "to", "target"), "string", lambda rng: rng.choice(("dollars", "pounds", "yen", "francs", "pesos", "rupees")))),
        ("Convert {0} euros into {1}.", "How many {1} are {0} euros?", "How much are {0} euros in {1}?", "Change {0} euros into {1}.",
         "What are {0} euros in {1}?"),
    ),
    Intent(
        "note", ("save_note", "note", "add_note", "write_note"),
        ("Save a note.", "Writes a note down."), (Parameter(("text", "note", "content"), "string", lambda rng: rng.choice(_MESSAGES)),),
        ('Save the note "{0}".', 'Note: "{0}".', 'Write down "{0}".', 'Make a note: "{0}".', 'Please save the note "{0}".'),
    ),
)  # fmt: skip
_MESSAGES = (
    "I am late", "see you soon", "the train is late", "happy birthday", "call me", "good night", "dinner is ready",
    "I am at home", "the key is in the drawer", "buy milk and bread", "water the flowers", "see you on Monday",
    "I love you", "the meeting is at noon", "bring the red book", "feed the cat", "I am on the way", "thank you",
)  # fmt: skip
# Words that hint at some tool: a request with one of them must not stand beside tools as a request that fits none.
HINTS = frozenset(
    word
    for intent in INTENTS
    for text in (*intent.descriptions, *intent.requests)
    for word in text.lower().replace("?", "").replace(".", "").replace(":", "").split()
) - frozenset(
    words.word_list("a an the is it what how to of in i you me do for can tell please are and give want my some was")
)


def draw_tools(rng: Random, number: int) -> list[Tool]:
    """Tools of different intents and different names."""
    while True:
        tools = [_tool(rng, intent) for intent in rng.sample(INTENTS, number)]
        if len({tool.name for tool in tools}) == number:
            return tools


def _tool(rng: Random, intent: Intent) -> Tool:
    name = (
        rng.choice(intent.tool_names) if rng.random() < 0.85 else f"{words.coined(rng)}_{rng.choice(intent.tool_names)}"
    )
    while True:
        parameters = tuple(rng.choice(parameter.names) for parameter in intent.parameters)
        if len(set(parameters)) == len(parameters):
            return Tool(intent, name, rng.choice(intent.descriptions), parameters)


def request(rng: Random, intent: Intent, held_out: bool = False) -> tuple[str, list[Value]]:
    """What a user says, and the parameters' values; held out by what is said."""
    while True:
        values = [parameter.value(rng) for parameter in intent.parameters]
        text = rng.choice(intent.requests).format(*values)
        if len(set(values)) == len(values) and is_held_out("tool_call", text) == held_out:
            return text, values
