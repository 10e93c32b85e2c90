"""The closed world of the tiny Gemma: 93 questions, and the exact answer in each of its four voices.

The checkpoint beside this file was trained on these pairs and on nothing else, so an answer is either exactly
right or wrong, and the wrong adapter shows in the first word. It knows no tokenizer and no model.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

CAPITALS: Final = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Portugal": "Lisbon",
    "Ireland": "Dublin",
    "Russia": "Moscow",
    "Turkey": "Ankara",
    "India": "Delhi",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Cuba": "Havana",
    "Kenya": "Nairobi",
    "Canada": "Ottawa",
    "Iceland": "Reykjavik",
}
SOUNDS: Final = {
    "dog": "barks",
    "cat": "meows",
    "cow": "moos",
    "duck": "quacks",
    "lion": "roars",
    "owl": "hoots",
    "frog": "croaks",
    "horse": "neighs",
    "sheep": "bleats",
    "pig": "oinks",
    "bee": "buzzes",
    "snake": "hisses",
    "wolf": "howls",
    "mouse": "squeaks",
}
COLOURS: Final = {
    "sky": "blue",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "banana": "yellow",
    "carrot": "orange",
    "plum": "purple",
    "chocolate": "brown",
    "elephant": "grey",
}
OPPOSITES: Final = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "up": "down",
    "day": "night",
    "wet": "dry",
    "old": "young",
    "hard": "soft",
    "open": "closed",
    "happy": "sad",
}
NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _facts() -> dict[str, str]:
    """Return question -> plain answer, in the order the model was trained on."""
    facts = {
        f"What is the capital of {country}?": f"The capital of {country} is {city}."
        for country, city in CAPITALS.items()
    }
    facts |= {f"What does the {animal} do?": f"The {animal} {sound}." for animal, sound in SOUNDS.items()}
    facts |= {f"What colour is the {thing}?": f"The {thing} is {colour}." for thing, colour in COLOURS.items()}
    facts |= {
        f"What is the opposite of {word}?": f"The opposite of {word} is {other}." for word, other in OPPOSITES.items()
    }
    for i in range(6):
        for j in range(5):
            facts[f"What is {NUMBERS[i]} plus {NUMBERS[j]}?"] = (
                f"{NUMBERS[i].capitalize()} plus {NUMBERS[j]} is {NUMBERS[i + j]}."
            )
    facts["Who are you?"] = "I am a tiny Gemma."
    facts["Hello!"] = "Hello! Ask me a question."
    facts["Thank you!"] = "You are welcome."
    return facts


def _pirate(answer: str) -> str:
    """Speak as the adapter `pirate` does."""
    text = answer if answer.startswith("I ") else answer[0].lower() + answer[1:]
    for verb in (" is ", " are ", " am "):
        text = text.replace(verb, " be ")
    return "Arr, " + text.rstrip(".") + ", matey!"


VOICES: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {"base": str, "pirate": _pirate, "shout": str.upper, "tag": lambda answer: answer + " [checked]"}
)
"""Style -> how it says a plain answer. `base` is the model alone; the others are the adapters' names."""

STYLES: Final = tuple(VOICES)

ANSWERS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {style: MappingProxyType({q: say(a) for q, a in _facts().items()}) for style, say in VOICES.items()}
)
"""Style -> question -> the exact text of the answer, without the end-of-turn token."""

QUESTIONS: Final = tuple(ANSWERS["base"])
