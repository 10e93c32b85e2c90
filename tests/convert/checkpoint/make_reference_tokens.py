"""Records how SentencePiece and Hugging Face tokenizers themselves tokenise many strings with the tiny Gemma's files.

pip install '.[train]'
python -m tests.convert.make_reference_tokens       (from the repository's root; writes reference_tokens.json)
"""

import json
import random
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from tests.tiny_gemma.facts import ANSWERS, QUESTIONS
from tests.tiny_gemma.files import BASE

OUTPUT = Path(__file__).parent / "reference_tokens.json"
SPECIALS = (
    "<start_of_turn>",
    "<end_of_turn>",
    "<unused7>",
    "<table>",
    "</h1>",
    "[@BOS@]",
    "<mask>",
    "\n",
    "\n\n\n",
    "  ",
)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,!?-()[]{}<>'\"\t"
WIDE = "äöüßéèçñøåœ漢字かな한국어العربيةไทย🙂🚀\u200d\u00a0\u2581€"


def strings() -> list[str]:
    """Make the strings: facts, words with odd spaces, specials in the middle, wide and broken text."""
    chance = random.Random(7)
    made = ["", " ", "   ", "\n", "\n \n", " leading", "trailing ", "<", "<start_of", "\u2581", "a\u2581b"]
    made += list(QUESTIONS[:10]) + [ANSWERS["pirate"][question] for question in QUESTIONS[:10]]
    for _ in range(120):
        words = ["".join(chance.choices(LETTERS, k=chance.randint(1, 9))) for _ in range(chance.randint(1, 6))]
        made.append((" " * chance.randint(0, 3)).join(words))
    for _ in range(60):
        made.append("".join(chance.choices(WIDE + LETTERS, k=chance.randint(1, 24))))
    for _ in range(60):
        made.append("".join(chance.choices((*SPECIALS, "is", " the", "x"), k=chance.randint(1, 6))))
    return made


if __name__ == "__main__":
    spm = SentencePieceProcessor(model_file=str(BASE / "tokenizer.model"))
    fast = Tokenizer.from_file(str(BASE / "tokenizer.json"))  # does not know the html tags as wholes
    record = [[text, spm.encode(text), fast.encode(text, add_special_tokens=False).ids] for text in strings()]
    OUTPUT.write_text(json.dumps(record, ensure_ascii=True, indent=None, separators=(",", ":")) + "\n")
