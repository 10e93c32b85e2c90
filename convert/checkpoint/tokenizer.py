"""Reads all tokenizer files of a checkpoint into one `Vocabulary`.

`tokenizer.model` is preferred for the pieces: it knows the true type of each. transformers 5 saves only
`tokenizer.json`, which holds the same vocabulary as merges (see `tokenizer_json`). Tokens that were added in training
may stand in `tokenizer.json`, `tokenizer_config.json` or `added_tokens.json`; all three are read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from convert.checkpoint.sentencepiece import read_pieces
from convert.checkpoint.tokenizer_json import read_tokenizer_json
from convert.checkpoint.vocabulary import AddedToken, Piece, Vocabulary, complete
from convert.errors import MalformedFile, MalformedTokenizer, MissingFile
from convert.files import read_json_object, read_small
from convert.rules.gemma import START_OF_TURN, TURN_TOKENS
from convert.rules.model import NO_TURN_TOKENS, OTHER_TEMPLATE

MAX_CONFIG_BYTES: Final = 16 << 20
MAX_TEMPLATE_BYTES: Final = 1 << 20
MODEL_NAME: Final = "tokenizer.model"
JSON_NAME: Final = "tokenizer.json"
CONFIG_NAME: Final = "tokenizer_config.json"
ADDED_NAME: Final = "added_tokens.json"
SPECIAL_MAP_NAME: Final = "special_tokens_map.json"
_ROLES: Final = {
    "bos": "<bos>",
    "eos": "<eos>",
    "unknown": "<unk>",
    "padding": "<pad>",
    "eot": "<end_of_turn>",
}
_CONFIG_KEYS: Final = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_MORE_SPECIAL_KEYS: Final = ("additional_special_tokens", "extra_special_tokens")
_N_SHOWN: Final = 3  # examples in a warning


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The pieces of a checkpoint by id, the file they come from, and the tokens that `tokenizer.json` adds."""

    source: Path
    pieces: list[Piece]
    added: dict[int, AddedToken]
    warnings: tuple[str, ...] = ()


def has_tokenizer(directory: Path) -> bool:
    """Say whether a folder holds a tokenizer."""
    return (directory / MODEL_NAME).exists() or (directory / JSON_NAME).exists()


def read_vocabulary(directory: Path, n_vocab: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint.

    Args:
        directory: The checkpoint.
        n_vocab: Rows of its embedding; missing pieces are filled up with unused ones.

    Raises:
        MissingFile: There is neither a `tokenizer.model` nor a `tokenizer.json`.
        MalformedTokenizer, MalformedJson: A file cannot be read, or llama.cpp could not work with it.
    """
    config_path = directory / CONFIG_NAME
    config = read_json_object(config_path, MAX_CONFIG_BYTES) if config_path.exists() else {}
    found = _read_pieces(directory)
    sources = {JSON_NAME: found.added, CONFIG_NAME: _decoder(config, config_path)}
    added_path = directory / ADDED_NAME
    if added_path.exists():
        sources[ADDED_NAME] = _old_added_tokens(read_json_object(added_path, MAX_CONFIG_BYTES), added_path)
    added, disagreements = _merged(sources)
    added |= _more_special(directory, config, found.pieces, added)
    pieces = complete(found.pieces, added, n_vocab, found.source)
    template = _chat_template(directory, config, config_path)
    warnings = [*found.warnings, *disagreements, *_warnings(pieces, added, len(found.pieces), template)]
    return Vocabulary(
        pieces=pieces,
        special_ids=_special_ids(pieces, config, found.source),
        adds_bos=_flag(config, "add_bos_token", default=True),
        adds_eos=_flag(config, "add_eos_token", default=False),
        chat_template=template,
        warnings=tuple(warnings),
    )


def _read_pieces(directory: Path) -> _Pieces:
    """Read the pieces from `tokenizer.model`; from `tokenizer.json` if it is alone or the two disagree."""
    model_path, json_path = directory / MODEL_NAME, directory / JSON_NAME
    if not model_path.exists() and not json_path.exists():
        raise MissingFile(f"{directory}: neither {MODEL_NAME} nor {JSON_NAME}; save the tokenizer with the model")
    if not json_path.exists():
        return _Pieces(model_path, read_pieces(model_path), {})
    if not model_path.exists():
        return _Pieces(json_path, *read_tokenizer_json(json_path))
    pieces = read_pieces(model_path)
    try:
        others, added = read_tokenizer_json(json_path)
    except MalformedFile as error:
        return _Pieces(model_path, pieces, {}, (f"only {MODEL_NAME} is used: {error}",))
    longest = max(len(pieces), len(others))
    differing = [i for i in range(longest) if i not in added and _text(pieces, i) != _text(others, i)]
    if not differing:
        return _Pieces(model_path, pieces, added)
    first = differing[0]
    warning = (
        f"{JSON_NAME} and {MODEL_NAME} disagree about {len(differing)} tokens (token {first} is "
        f"{_text(others, first)!r} and {_text(pieces, first)!r}); {JSON_NAME} is used, as transformers uses it"
    )
    return _Pieces(json_path, others, added, (warning,))


def _text(pieces: list[Piece], token_id: int) -> str | None:
    return pieces[token_id].text if token_id < len(pieces) else None


def _merged(sources: Mapping[str, dict[int, AddedToken]]) -> tuple[dict[int, AddedToken], list[str]]:
    """Join the added tokens of several files; the first file that names an id decides its text.

    Returns:
        The tokens by id, special if any file that agrees on the text says so; and warnings of disagreements.
    """
    merged: dict[int, AddedToken] = {}
    named_by: dict[int, str] = {}
    warnings = []
    for file_name, added in sources.items():
        for token_id, token in added.items():
            known = merged.setdefault(token_id, token)
            before = named_by.setdefault(token_id, file_name)
            if known.text != token.text:
                warnings.append(
                    f"{before} calls token {token_id} {known.text!r}, but {file_name} {token.text!r}; the first is used"
                )
            elif token.is_special and not known.is_special:
                merged[token_id] = token
    if len(warnings) > _N_SHOWN:
        warnings[_N_SHOWN:] = [f"{len(warnings) - _N_SHOWN} more tokens are called differently by these files"]
    return merged, warnings


def _more_special(
    directory: Path, config: Mapping[str, object], pieces: list[Piece], added: Mapping[int, AddedToken]
) -> dict[int, AddedToken]:
    """Return the tokens that are only listed as special by their text, and have an id in the vocabulary."""
    map_path = directory / SPECIAL_MAP_NAME
    special_map = read_json_object(map_path, MAX_CONFIG_BYTES) if map_path.exists() else {}
    ids = {piece.text: token_id for token_id, piece in enumerate(pieces) if token_id not in added}
    ids |= {token.text: token_id for token_id, token in added.items()}
    texts = {text for source in (config, special_map) for text in _listed(source)}
    return {ids[text]: AddedToken(text, is_special=True) for text in texts if text in ids}


def _listed(source: Mapping[str, object]) -> Iterator[str]:
    for key in _MORE_SPECIAL_KEYS:
        entries = source.get(key)
        values = entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else ()
        for entry in values:
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str) and text:
                yield text


def _warnings(
    pieces: list[Piece], added: Mapping[int, AddedToken], n_named: int, template: str | None
) -> Iterator[str]:
    """Yield a warning for each thing that the user may expect of the vocabulary and that it does not have."""
    beyond = sorted(token_id for token_id in added if token_id >= len(pieces))
    if beyond:
        shown = ", ".join(f"{added[i].text!r} ({i})" for i in beyond[:_N_SHOWN])
        yield f"added tokens have no row in the embedding of {len(pieces)} rows and are left out: {shown}"
    n_unnamed = sum(token_id not in added for token_id in range(n_named, len(pieces)))
    if n_unnamed:
        yield (
            f"{n_unnamed} rows of the embedding have no token in the tokenizer's files; if the training added tokens, "
            "save its tokenizer with it"
        )
    texts = {piece.text for piece in pieces}
    missing = [text for text in TURN_TOKENS if text not in texts]
    if missing:
        yield NO_TURN_TOKENS.format(" and no ".join(missing))
    elif template is not None and START_OF_TURN not in template:
        yield OTHER_TEMPLATE


def _decoder(config: Mapping[str, object], path: Path) -> dict[int, AddedToken]:
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
        if type(token_id) is not int or token_id < 0:
            raise MalformedTokenizer(f"{path}: the id of {text[:80]!r} is not a number")
        added[token_id] = AddedToken(text, is_special=False)
    return added


def _special_ids(pieces: list[Piece], config: Mapping[str, object], source: Path) -> dict[str, int]:
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


def _flag(config: Mapping[str, object], key: str, *, default: bool) -> bool:
    value = config.get(key)
    return value if isinstance(value, bool) else default


def _chat_template(directory: Path, config: Mapping[str, object], config_path: Path) -> str | None:
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
