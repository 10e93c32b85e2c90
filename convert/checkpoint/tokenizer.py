"""A checkpoint's tokenizer files, whichever of them there are, to one `Vocabulary`.

`tokenizer.model` is preferred: it knows the true type of every piece. transformers 5 saves only
`tokenizer.json`, which holds the same vocabulary as merges (see `convert.checkpoint.tokenizer_json`).
"""

from pathlib import Path
from typing import Final

from convert.checkpoint.sentencepiece import read_pieces
from convert.checkpoint.tokenizer_json import read_tokenizer_json
from convert.checkpoint.vocabulary import AddedToken, Piece, Vocabulary, complete
from convert.errors import MalformedTokenizer, MissingFile
from convert.files import read_json_object, read_small

MAX_CONFIG_BYTES: Final = 16 << 20
MAX_TEMPLATE_BYTES: Final = 1 << 20
_ROLES: Final = {
    "bos": "<bos>",
    "eos": "<eos>",
    "unknown": "<unk>",
    "padding": "<pad>",
    "eot": "<end_of_turn>",
}
_CONFIG_KEYS: Final = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def read_vocabulary(directory: Path, n_vocab: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint.

    Args:
        directory: The checkpoint.
        n_vocab: Rows of its embedding; missing pieces are filled up with unused ones.

    Raises:
        MissingFile: There is neither a `tokenizer.model` nor a `tokenizer.json`.
        MalformedTokenizer, MalformedJson: A file cannot be read, or llama.cpp could not work with it.
    """
    config_path = directory / "tokenizer_config.json"
    config = read_json_object(config_path, MAX_CONFIG_BYTES) if config_path.exists() else {}
    model_path, json_path = directory / "tokenizer.model", directory / "tokenizer.json"
    added: dict[int, AddedToken] = {}
    if model_path.exists():
        source, pieces = model_path, read_pieces(model_path)
        added_path = directory / "added_tokens.json"
        if added_path.exists():
            added |= _old_added_tokens(read_json_object(added_path, MAX_CONFIG_BYTES), added_path)
    elif json_path.exists():
        source = json_path
        pieces, added = read_tokenizer_json(json_path)
    else:
        raise MissingFile(f"{directory}: neither tokenizer.model nor tokenizer.json; save the tokenizer with the model")
    added |= _added_tokens(config, config_path)
    whole = complete(pieces, added, n_vocab, source)
    return Vocabulary(
        pieces=whole,
        special_ids=_special_ids(whole, config, source),
        adds_bos=_flag(config, "add_bos_token", default=True),
        adds_eos=_flag(config, "add_eos_token", default=False),
        chat_template=_chat_template(directory, config, config_path),
    )


def _added_tokens(config: dict[str, object], path: Path) -> dict[int, AddedToken]:
    """Return the `added_tokens_decoder` of tokenizer_config.json."""
    decoder = config.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise MalformedTokenizer(f"{path}: added_tokens_decoder must be an object")
    added = {}
    for token_id, entry in decoder.items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if not (token_id.isascii() and token_id.isdigit() and len(token_id) < 10 and isinstance(text, str)):
            raise MalformedTokenizer(f"{path}: added_tokens_decoder[{token_id[:20]!r}] must be an id with a content")
        added[int(token_id)] = AddedToken(text, is_special=entry.get("special") is True)
    return added


def _old_added_tokens(tokens: dict[str, object], path: Path) -> dict[int, AddedToken]:
    """Return the tokens of added_tokens.json, text -> id, which older transformers wrote."""
    added = {}
    for text, token_id in tokens.items():
        if type(token_id) is not int:
            raise MalformedTokenizer(f"{path}: the id of {text[:80]!r} is not a number")
        added[token_id] = AddedToken(text, is_special=False)
    return added


def _special_ids(pieces: list[Piece], config: dict[str, object], source: Path) -> dict[str, int]:
    """Find the ids by the texts that the configuration gives, or else Gemma's own."""
    ids = {piece.text: token_id for token_id, piece in enumerate(pieces)}
    found = {}
    for role, usual_text in _ROLES.items():
        given = config.get(_CONFIG_KEYS.get(role, ""))
        if isinstance(given, dict):
            given = given.get("content")
        text = given if isinstance(given, str) and given in ids else usual_text
        if text in ids:
            found[role] = ids[text]
        elif role in ("bos", "eos"):
            raise MalformedTokenizer(f"{source}: there is no token {text!r} for {role}")
    return found


def _flag(config: dict[str, object], key: str, *, default: bool) -> bool:
    value = config.get(key)
    return value if isinstance(value, bool) else default


def _chat_template(directory: Path, config: dict[str, object], config_path: Path) -> str | None:
    """Return the template as text; it is never run here."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {e.get("name"): e.get("template") for e in template if isinstance(e, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise MalformedTokenizer(f"{config_path}: chat_template must be a text or a list of named texts")
    if template:
        return template
    path = directory / "chat_template.jinja"
    if path.exists():
        try:
            return read_small(path, MAX_TEMPLATE_BYTES).decode("utf-8") or None
        except UnicodeDecodeError as error:
            raise MalformedTokenizer(f"{path}: not UTF-8") from error
    return None
