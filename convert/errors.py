"""Everything that can go wrong in a conversion, one class for each thing a caller can act on.

    ConvertError
    ├── InvalidOption           the command line asks for something impossible
    ├── MissingFile             a file or directory that must be there is not
    ├── NotARegularFile         a directory, FIFO, socket or device where a file must be
    ├── MalformedFile           the bytes are not what the file claims to be
    │   ├── LfsPointer          a git-LFS pointer text instead of the file itself
    │   ├── MalformedGguf
    │   ├── MalformedSafetensors
    │   ├── MalformedJson
    │   └── MalformedTokenizer
    ├── UnsafeFile              a pickle: never opened
    ├── UnsupportedModel        a checkpoint that arch `gemma` cannot represent
    │   └── QuantizedSource     already quantised weights (bitsandbytes, GPTQ, AWQ, FP8)
    ├── UnsupportedAdapter      an adapter that a GGUF LoRA cannot represent
    ├── TensorMismatch          a tensor is missing, unknown, or of another shape than the base says
    ├── BadValue                NaN, infinity, or a number outside the range of the wanted type
    ├── RejectedAdapter          a GGUF that must not be handed to llama.cpp as an adapter
    ├── RejectedModel            a GGUF that must not be handed to llama.cpp as a model
    ├── OutputProblem           the result cannot be written: it exists, no space, no permission
    └── NativeFailure           llama.cpp's library is missing, refused, or died

Each message is one line and names the file, the tensor or key, what came and what was allowed.
"""

from typing import ClassVar


class ConvertError(Exception):
    """Base of all errors of this package; the message is one line fit for a user.

    Messages hold names from untrusted files, so characters that cannot be printed on one line are escaped.
    """

    code: ClassVar[str] = "convert_error"

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class InvalidOption(ConvertError):
    """An option or a combination of options that cannot be honoured."""

    code = "invalid_option"


class MissingFile(ConvertError):
    """A file or directory that must exist does not."""

    code = "missing_file"


class NotARegularFile(ConvertError):
    """Something other than a regular file: a directory, FIFO, socket or device."""

    code = "not_a_regular_file"


class MalformedFile(ConvertError):
    """The bytes of a file contradict its format."""

    code = "malformed_file"


class LfsPointer(MalformedFile):
    """A git-LFS pointer text where the file itself was expected."""

    code = "lfs_pointer"


class MalformedGguf(MalformedFile):
    """A GGUF header that cannot be read, or contradicts itself or the file's size."""

    code = "malformed_gguf"


class MalformedSafetensors(MalformedFile):
    """A safetensors header that cannot be read, or contradicts itself or the file's size."""

    code = "malformed_safetensors"


class MalformedJson(MalformedFile):
    """A JSON file that cannot be read or lacks a needed key of the needed type."""

    code = "malformed_json"


class MalformedTokenizer(MalformedFile):
    """A tokenizer file that cannot be read, or that llama.cpp could not work with."""

    code = "malformed_tokenizer"


class UnsafeFile(ConvertError):
    """A pickle. Opening one can run any program, so none is ever opened."""

    code = "unsafe_file"


class UnsupportedModel(ConvertError):
    """A checkpoint that llama.cpp's architecture `gemma` cannot represent."""

    code = "unsupported_model"


class QuantizedSource(UnsupportedModel):
    """A checkpoint whose weights are already quantised; the original weights are needed."""

    code = "quantized_source"


class UnsupportedAdapter(ConvertError):
    """An adapter that cannot be represented exactly as a GGUF LoRA on this base."""

    code = "unsupported_adapter"


class TensorMismatch(ConvertError):
    """A tensor is missing, not part of the model, or of another shape than it must have."""

    code = "tensor_mismatch"


class BadValue(ConvertError):
    """A weight or factor that is NaN, infinite, or outside the range of the wanted type."""

    code = "bad_value"


class RejectedAdapter(ConvertError):
    """A GGUF file that is not a sound LoRA adapter for the given base."""

    code = "invalid_adapter"


class RejectedModel(ConvertError):
    """A GGUF file that is not a sound base model."""

    code = "invalid_model"


class OutputProblem(ConvertError):
    """The result cannot be written: it exists, the disk is full, or the directory refuses."""

    code = "output_problem"


class NativeFailure(ConvertError):
    """llama.cpp's library is missing, refused the input, or died."""

    code = "native_failure"
