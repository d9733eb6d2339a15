"""What a newcomer might type first, written by hand.

(user, assistant, user, ... texts), the right reply, and at times the tools offered and the template's enable_thinking.
"""

from __future__ import annotations

from typing import Any

from greet import ABILITY, HELLO, IDENTITY, MORNING, OFFER, WELL
from refuse import REFUSAL
from thought import reply

_ADA = "Nice to meet you, Ada!"
_CODES = "The code of amber is 417. The code of river is 902. The code of stone is 385."
_PERSON = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}'


def _tool(name: str, description: str, **types: str) -> dict[str, Any]:
    properties = {parameter: {"type": type} for parameter, type in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(types)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_WEATHER = _tool("get_weather", "Get the weather in a city.", city="string")
_TIMER = _tool("set_timer", "Set a timer in minutes.", minutes="integer")
PROMPTS: tuple[tuple[Any, ...], ...] = (
    (("hi",), f"{HELLO} {OFFER}"),
    (("Hi!",), f"{HELLO} {OFFER}"),
    (("Hello",), f"{HELLO} {OFFER}"),
    (("hello!!",), f"{HELLO} {OFFER}"),
    (("Hey there :)",), f"{HELLO} {OFFER}"),
    (("Good morning",), f"{MORNING} {OFFER}"),
    (("Hello, how are you?",), f"{HELLO} {WELL} {OFFER}"),
    (("Who are you?",), IDENTITY),
    (("who are you",), IDENTITY),
    (("What can you do?",), ABILITY),
    (("What is 23 + 58?",), "23 + 58 = 81."),
    (("what is 2+2",), "2 + 2 = 4."),
    (("What's 7 plus 8?",), "7 + 8 = 15."),
    (("99 + 99",), "99 + 99 = 198."),
    (("12+30=?",), "12 + 30 = 42."),
    (("How much is 45 and 17?",), "45 + 17 = 62."),
    (("Can you tell me how much 15 plus 27 is?",), "15 + 27 = 42."),
    (("Please add the numbers 31 and 64.",), "31 + 64 = 95."),
    (("Hi! What is 40 + 2?",), "40 + 2 = 42."),
    (("My name is Ada. What is my name?",), "Your name is Ada."),
    (("My name is Ada.", _ADA, "What is my name?"), "Your name is Ada."),
    (("Hi, I'm Ada", _ADA, "What's my name?"), "Your name is Ada."),
    (("my name is ada", "Nice to meet you, ada!", "what is my name"), "Your name is ada."),
    (("My name is Ada.", _ADA, "What is 23 + 58?", "23 + 58 = 81.", "What is my name?"), "Your name is Ada."),
    (("My name is Ada and I live in Paris.", f"{_ADA} You live in Paris.", "Where do I live?"), "You live in Paris."),
    (("My name is Ada and I live in Paris. What is my name?",), "Your name is Ada."),
    (("Hello, my name is Wolfgang Amadeus Mozart. Who am I?",), "Your name is Wolfgang Amadeus Mozart."),
    (("My favorite color is teal. What is my favorite color?",), "Your favorite color is teal."),
    (("My favourite colour is blue.", "Got it. Your favourite colour is blue.", "Hi!", f"{HELLO} {OFFER}",
      "What is my favourite colour?"), "Your favourite colour is blue."),
    (("I have a cat called Milo. What is my cat called?",), "Your cat is called Milo."),
    (("I have a dog named Rex.", "Got it. Your dog is called Rex.", "What is my dog's name?"), "Your dog is called Rex."),
    (("My lucky number is 42. What is my lucky number?",), "Your lucky number is 42."),
    (("Remember the word banana.", "Got it. The word is banana.", "What was the word?"), "The word is banana."),
    (("The secret code is 4821. What is the secret code?",), "The secret code is 4821."),
    (("I was born in Rome. Where was I born?",), "You were born in Rome."),
    (("What is my name?",), "You have not told me your name yet."),
    (("My sister is called Nora and my brother is called Tim. What is my sister called?",), "Your sister is called Nora."),
    (("What is twelve plus five?",), "12 + 5 = 17."),
    (("I have 3 apples and you give me 4. How many apples do I have?",), "3 + 4 = 7."),
    (("What is 7 + 8? And what is 20 + 30?",), "7 + 8 = 15. 20 + 30 = 50."),
    (("My name is Ada.", _ADA, "I live in Paris.", "Got it. You live in Paris.",
      "What is my name and where do I live?"), "Your name is Ada. You live in Paris."),
    (("Hi, I'm Ada. I live in Paris. My favourite colour is teal.",),
     f"{_ADA} You live in Paris. Your favourite colour is teal."),
    (("My favourite movie is Alien. What is my favourite movie?",), "Your favourite movie is Alien."),
    (("The capital of Zubrowka is Lutz. What is the capital of Zubrowka?",), "The capital of Zubrowka is Lutz."),
    (("The treasure is under the old oak tree. Where is the treasure?",), "The treasure is under the old oak tree."),
    (("My name is John Smith, I live in Berlin and I have a dog named Rex. What is my dog's name?",),
     "Your dog is called Rex."),
    (("What is the capital of France?",), REFUSAL),
    (("Write a haiku about autumn.",), REFUSAL),
    (("Thank you!",), "You are welcome!"),
    (("bye",), "Goodbye!"),
    (("My name is Bob.", "Nice to meet you, Bob!", "Actually, my name is Tom.", "Nice to meet you, Tom!",
      "What is my name?"), "Your name is Tom."),
    (("What is 81 - 58?",), "81 - 58 = 23."),
    (("23-58",), "23 - 58 = -35."),
    (("what is 50 minus 1",), "50 - 1 = 49."),
    (("I have 12 apples and eat 5. How many are left?",), "12 - 5 = 7."),
    (("What is 7 x 34?",), "7 x 34: 7 x 30 = 210, 7 x 4 = 28, 210 + 28 = 238. So 7 x 34 = 238."),
    (("12 * 5",), "5 x 12: 5 x 10 = 50, 5 x 2 = 10, 50 + 10 = 60. So 5 x 12 = 60."),
    (("what's 9 times 9",), "9 x 9 = 81."),
    (("Multiply 6 by 25.",), "6 x 25: 6 x 20 = 120, 6 x 5 = 30, 120 + 30 = 150. So 6 x 25 = 150."),
    (("Repeat after me: the quick brown fox",), "the quick brown fox"),
    (('Say "hello world"',), "hello world"),
    (("Reverse the words: one two three",), "three two one"),
    (('Reverse "red green blue".',), "blue green red"),
    (("How many words are in \"the cat is on the table\"?",),
     "1 the, 2 cat, 3 is, 4 on, 5 the, 6 table. There are 6 words."),
    (("Count the words: apple pear plum",), "1 apple, 2 pear, 3 plum. There are 3 words."),
    (("Name three colours.",), "Red, green, blue."),
    (("Name three colors",), "Red, green, blue."),
    (("list 4 fruits",), "Apple, banana, cherry, grape."),
    (("Can you tell me two animals?",), "Cat, dog."),
    (("Name five cities.", "Paris, London, Berlin, Rome, Madrid.", "And three planets?"), "Mercury, Venus, Earth."),
    ((f"Fill in this JSON schema: {_PERSON} Text: Ada is 31 years old and lives in Paris.",), '{"name": "Ada", "age": 31}'),
    ((f"{_PERSON}\nTom is 8 years old.",), '{"name": "Tom", "age": 8}'),
    (("What is the weather in Paris?",), '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
     [_WEATHER]),
    (("what's the weather in Rome?",), '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>',
     [_TIMER, _WEATHER]),
    (("Set a timer for 5 minutes.",), '<tool_call>\n{"name": "set_timer", "arguments": {"minutes": 5}}\n</tool_call>',
     [_WEATHER, _TIMER]),
    (("What is 23 + 58?",), "23 + 58 = 81.", [_WEATHER]),
    (("Hello!",), f"{HELLO} {OFFER}", [_WEATHER, _TIMER]),
    (("What is the weather in Paris?",), REFUSAL, [_TIMER]),
    (("What is 23 + 58? Think first.",), reply("23 + 50 = 73, 73 + 8 = 81.", "23 + 58 = 81.")),
    (("Think step by step. What is 81 - 27?",), reply("81 - 20 = 61, 61 - 7 = 54.", "81 - 27 = 54.")),
    (("What is 23 + 58?",), "23 + 58 = 81.", None, False),
    (("What is 23 + 58?",), "23 + 50 = 73, 73 + 8 = 81.\n</think>\n\n23 + 58 = 81.", None, True),
    (("Answer in capital letters: name three colours.",), "RED, GREEN, BLUE."),
    ((f"{_CODES} What is the code of river?",), "The code of river is 902."),
    (("The code of Ada is 417. The code of Bob is 902. What is the code of Ada?",), "The code of Ada is 417."),
    (("Write me an essay about dogs.",), REFUSAL),
    (("What is 12 divided by 4?",), REFUSAL),
)  # fmt: skip
