"""Tokenises texts with Hugging Face tokenizers.

Standard input: JSON, the path of a tokenizer.json, texts, and the control tokens that the file does not list as added.
Standard output: JSON, for each text its ids and the text that they decode to.
"""

import json
import sys

from tokenizers import Tokenizer

request = json.load(sys.stdin)
tokenizer = Tokenizer.from_file(request["path"])
tokenizer.add_special_tokens(request["control_tokens"])
rows = []
for text in request["texts"]:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    rows.append([ids, tokenizer.decode(ids, skip_special_tokens=False)])
json.dump(rows, sys.stdout)
