"""`inspect` shows what a file or folder is, from its header, without loading numpy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from convert.commands.arguments import main
from convert.commands.inspection import inspect
from convert.conversion.conversion import Options, convert_adapter
from convert.errors import MalformedGguf
from tests.convert.checkpoints import peft
from tests.convert.gguf_bytes import adapter, pair
from tests.convert.variants import mlx
from tests.tiny_gemma.files import BASE


def test_a_model(base_gguf: Path) -> None:
    """Inspect shows a model's sizes, shapes and types, and whether it has a template."""
    facts = inspect(base_gguf)
    assert facts["kind"] == "model"
    assert facts["type"] == "f32"
    assert facts["parameters"] == 1_443_072
    assert (facts["layers"], facts["width"], facts["vocabulary"], facts["chat_template"]) == (2, 256, 1024, True)
    assert facts["tensors"] == {"F32": 20}
    assert facts["size_bytes"] == base_gguf.stat().st_size


def test_an_adapter_and_its_base(tmp_path: Path, base_gguf: Path, adapters_dir: Path) -> None:
    """Inspect shows an adapter's alpha, ranks and modules; with a base, whether it fits, or the broken rule."""
    path = tmp_path / "tag.gguf"
    convert_adapter(adapters_dir / "tag", base_gguf, path, Options("q8_0"))
    facts = inspect(path, base_gguf)
    assert (facts["alpha"], facts["ranks"], facts["layers"], facts["fits_base"]) == (16.0, [8], 2, True)
    assert "invocation_tokens" not in facts
    path.write_bytes(adapter(*pair(n_in=2048, n_out=2048)).bytes())
    facts = inspect(path, BASE)
    assert facts["fits_base"] is False
    assert "made for a weight of [2048, 2048]" in str(facts["problem"])


def test_folders_and_safetensors(tmp_path: Path, adapters_dir: Path) -> None:
    """Inspect reads checkpoints, adapters of both dialects, and a single safetensors file."""
    assert inspect(BASE)["kind"] == "checkpoint"
    assert inspect(BASE)["tensors"] == {"BF16": 20}
    assert inspect(adapters_dir / "tag")["r"] == 8
    assert "alora_invocation_tokens" not in inspect(adapters_dir / "tag")
    assert inspect(mlx(tmp_path / "mlx"))["scale"] == 2.0
    assert inspect(BASE / "model.safetensors")["parameters"] == 1_443_072


def test_an_alora_shows_its_invocation_tokens(tmp_path: Path, base_gguf: Path) -> None:
    """Inspect shows the invocation tokens of an activated LoRA, as a PEFT folder and as a GGUF."""
    folder, path = peft(tmp_path / "alora", "tag", alora_invocation_tokens=[106, 970]), tmp_path / "alora.gguf"
    convert_adapter(folder, base_gguf, path, Options("f16"))
    assert inspect(folder)["alora_invocation_tokens"] == [106, 970]
    assert inspect(path)["invocation_tokens"] == [106, 970]


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """Inspect refuses a file of random bytes as the reader does."""
    path = tmp_path / "x.gguf"
    path.write_bytes(b"nonsense")
    with pytest.raises(MalformedGguf):
        inspect(path)


def test_json_and_text(base_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inspect prints the same facts as JSON and as text."""
    assert main(["inspect", str(base_gguf), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect(base_gguf)
    assert main(["inspect", str(base_gguf)]) == 0
    assert "parameters              1,443,072" in capsys.readouterr().out


def test_numpy_is_not_loaded() -> None:
    """Inspect of a file loads neither numpy nor gguf nor llama.cpp."""
    program = "import sys, convert.commands.inspect; print({'numpy', 'gguf', 'llama_cpp'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
