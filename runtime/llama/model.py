"""A base model: its weights, its vocabulary, and the conversion between text and tokens."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from convert.rules.gemma import END_OF_TURN, TURN_TOKENS
from runtime.errors import InvalidRequest, ModelLoadError
from runtime.generation import Prompt
from runtime.llama.devices import Placement, apply_placement
from runtime.llama.library import Library

# A piece is at most one vocabulary entry; Gemma's longest is 48 bytes ("<0x..>" and runs of spaces included).
_PIECE_BYTES = 256
_TEXT_BYTES = 1024
_ON_CPU = Placement()
# ggml-cpu/repack.cpp, the name of its buffers' type.
_REPACKED = "CPU_REPACK"
# SentencePiece's U+2581, which stands for a space in the vocabulary.
_SPACE = "\u2581".encode()


class Model:
    """A loaded GGUF model. Owns native memory: ``free`` it after every context that uses it."""

    def __init__(
        self, library: Library, path: Path, *, placement: Placement = _ON_CPU, on_progress: Callable[[float], bool]
    ) -> None:
        """Load ``path``, whose header has been checked.

        Args:
            library: llama.cpp, started.
            path: a GGUF file.
            placement: how to spread it over devices.
            on_progress: called with the fraction that is loaded, 0 to 1; loading stops when it returns False.

        Raises:
            ModelLoadError: llama.cpp refused the file; the message has its reason.
        """
        self.handle = self._load(library, path, placement, on_progress)
        n_repacked = sum(n_bytes for name, n_bytes in library.take_model_buffers() if name == _REPACKED)
        self.is_repacked = 2 * n_repacked > self.size_bytes
        """Whether most weights are in the form that the processor's kernels for groups of rows take."""
        self.library = library
        self.placement = placement
        self.vocabulary = native.llama_model_get_vocab(self.handle)
        """llama.cpp's own, for what is made from it."""
        self._vocab = self.vocabulary
        self.n_vocab: int = native.llama_vocab_n_tokens(self._vocab)
        self._bos: int = native.llama_vocab_bos(self._vocab)
        self._pieces: dict[int, bytes] = {}
        self._control_tokens, self._longest_token_bytes = self._read_vocabulary()
        self._end_of_turn = self._control_tokens.get(END_OF_TURN)
        self.has_turn_tokens = all(text in self._control_tokens for text in TURN_TOKENS)
        """Whether Gemma's chat template can be written in this vocabulary."""
        self._control_texts = {token: text for text, token in self._control_tokens.items()}
        self.end_tokens = tuple(token for token in range(self.n_vocab) if self._is_end(token))
        """Tokens that end an answer: ``<eos>``, ``<end_of_turn>`` and others that the file marks so."""
        self._ends = frozenset(self.end_tokens)
        longest_first = sorted(self._control_tokens, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @staticmethod
    def _load(library: Library, path: Path, placement: Placement, on_progress: Callable[[float], bool]) -> Any:
        """llama.cpp's handle of the file's model; raises as ``__init__``."""

        @native.llama_progress_callback  # type: ignore[untyped-decorator]
        def progress(fraction: float, _user_data: object) -> bool:
            return on_progress(fraction)

        parameters = native.llama_model_default_params()
        _kept_until_loaded = apply_placement(placement, parameters)
        parameters.progress_callback = progress
        overrides = _overrides()
        parameters.kv_overrides = overrides
        library.take_errors()
        library.take_model_buffers()
        handle = native.llama_model_load_from_file(str(path).encode(), parameters)
        if not handle:
            reason = library.take_errors() or "loading was stopped"
            raise ModelLoadError(f"llama.cpp cannot load {path}: {reason}")
        return handle

    def free(self) -> None:
        """Give the native memory back."""
        native.llama_model_free(self.handle)
        self.handle = None

    def _read_vocabulary(self) -> tuple[dict[str, int], int]:
        """The control tokens by their text, and the bytes of the longest token's text.

        Turn tokens are found by their text: files of spring 2024 mark them NORMAL.
        """
        controls: dict[str, int] = {}
        longest = 1
        turn_tokens = {text.encode() for text in TURN_TOKENS}
        for token in range(self.n_vocab):
            text = native.llama_vocab_get_text(self._vocab, token)
            if len(text) > longest:
                longest = max(longest, len(text.replace(_SPACE, b" ")))
            if text in turn_tokens or native.llama_vocab_is_control(self._vocab, token):
                controls[text.decode(errors="replace")] = token
        controls.pop("", None)
        return controls, longest

    @property
    def description(self) -> str:
        """The model's own name, or llama.cpp's description of its shape."""
        buffer = ctypes.create_string_buffer(_TEXT_BYTES)
        if native.llama_model_meta_val_str(self.handle, b"general.name", buffer, _TEXT_BYTES) > 0:
            return buffer.value.decode(errors="replace")
        native.llama_model_desc(self.handle, buffer, _TEXT_BYTES)
        return buffer.value.decode(errors="replace")

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights."""
        return int(native.llama_model_size(self.handle))

    @property
    def n_params(self) -> int:
        """Number of weights."""
        return int(native.llama_model_n_params(self.handle))

    @property
    def n_layers(self) -> int:
        """Transformer blocks."""
        return int(native.llama_model_n_layer(self.handle))

    @property
    def n_ctx_train(self) -> int:
        """Longest sequence the model was trained on, in tokens."""
        return int(native.llama_model_n_ctx_train(self.handle))

    def min_tokens(self, prompt: Prompt) -> int:
        """A number of tokens that the prompt has at least, known without tokenising it."""
        return sum(len(segment.text.encode()) for segment in prompt.segments) // self._longest_token_bytes

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens, with ``<bos>`` in front unless the prompt itself begins with it.

        Token ids stay as they are.

        Control tokens are found only where the segment says so; the text between them is tokenised across segment
        borders, so the result is that of the whole string wherever no user wrote a control token.

        Raises:
            InvalidRequest: a chat prompt, and the vocabulary lacks the tokens of Gemma's turns; or a token id is not in
                the vocabulary.
        """
        if prompt.is_chat and not self.has_turn_tokens:
            missing = ", ".join(text for text in TURN_TOKENS if text not in self._control_tokens)
            raise InvalidRequest(
                f"this model cannot chat in Gemma's template: its vocabulary has no {missing}; send a raw prompt"
            )
        if prompt.tokens:
            if not 0 <= min(prompt.tokens) <= max(prompt.tokens) < self.n_vocab:
                raise InvalidRequest(f"the prompt holds a token id outside of 0..{self.n_vocab - 1}")
            return list(prompt.tokens)
        tokens: list[int] = []
        text = ""
        for segment in prompt.segments:
            if not segment.has_control_tokens:
                text += segment.text
                continue
            position = 0
            for match in self._control_pattern.finditer(segment.text):
                tokens += self._tokenize_text(text + segment.text[position : match.start()])
                tokens.append(self._control_tokens[match.group()])
                text, position = "", match.end()
            text += segment.text[position:]
        tokens += self._tokenize_text(text)
        if self._bos >= 0 and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)
        return tokens

    def is_bos_added(self, prompt: Prompt) -> bool:
        """Whether the first of the prompt's tokens is a ``<bos>`` that the prompt itself does not hold."""
        if prompt.tokens or self._bos < 0:
            return False
        first = prompt.segments[0] if prompt.segments else None
        bos = self._control_texts.get(self._bos, "")
        return not (first is not None and first.has_control_tokens and bos and first.text.startswith(bos))

    def _tokenize_text(self, text: str) -> list[int]:
        return self.tokenize_bytes(text.encode())

    def tokenize_bytes(self, raw: bytes) -> list[int]:
        """The tokens of plain text in UTF-8; nothing in it is a control token. Any thread.

        Raises:
            InvalidRequest: the vocabulary turns it into more tokens than it has bytes.
        """
        if not raw:
            return []
        # A token is at least one byte of text, but for a space that some vocabularies put in front.
        buffer = np.empty(len(raw) + 1, np.int32)
        pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        add_special, parse_special = False, False
        n_tokens = native.llama_tokenize(self._vocab, raw, len(raw), pointer, len(buffer), add_special, parse_special)
        if n_tokens < 0:
            raise InvalidRequest("the prompt's text has more tokens than bytes")
        return [int(token) for token in buffer[:n_tokens]]

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; none for a control token. One character may be spread over several tokens."""
        known = self._pieces.get(token)
        if known is None and token in self._control_texts:
            known = self._pieces[token] = b""
        if known is None:
            buffer = ctypes.create_string_buffer(_PIECE_BYTES)
            with_control_tokens = False
            size = native.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, 0, with_control_tokens)
            known = self._pieces[token] = buffer.raw[: max(0, size)]
        return known

    def name(self, token: int) -> bytes:
        """The bytes of a token as ``piece`` gives them, but a control token's name: ``<end_of_turn>``."""
        text = self._control_texts.get(token)
        return self.piece(token) if text is None else text.encode()

    def is_control(self, token: int) -> bool:
        """Whether the token stands for no text."""
        return token in self._control_texts

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return token in self._ends

    def _is_end(self, token: int) -> bool:
        return token == self._end_of_turn or bool(native.llama_vocab_is_eog(self._vocab, token))


def _overrides() -> ctypes.Array[native.llama_model_kv_override]:
    """Metadata that is the same for every Gemma, for files that do not say it; the last, empty one ends the list.

    Source: llama.h struct llama_model_kv_override; src/llama-vocab.cpp (add_space_prefix is true by default).
    """
    overrides: ctypes.Array[native.llama_model_kv_override] = (native.llama_model_kv_override * 2)()
    overrides[0].tag = native.LLAMA_KV_OVERRIDE_TYPE_BOOL
    overrides[0].key = b"tokenizer.ggml.add_space_prefix"
    overrides[0].value.val_bool = False
    return overrides
