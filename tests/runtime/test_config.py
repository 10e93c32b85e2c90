"""Where the value of a setting comes from, and which values are refused."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from runtime import config
from runtime.errors import ConfigError

README = Path(__file__).resolve().parents[2] / "README.md"


def resolve(*flags: str, **environment: str) -> config.Settings:
    """Settings from a command line and an environment."""
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    return config.resolve(parser.parse_args(flags), environment)


def test_defaults_stand_when_nothing_is_said() -> None:
    """An empty command line is a complete configuration."""
    assert resolve() == config.Settings(config.EngineSettings(), config.ServerSettings())


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """A flag beats the environment, the environment beats the file, the file beats the default."""
    file = tmp_path / "gemlane.toml"
    file.write_text('n_ctx = 1\nlanes = 2\nparallel = 3\nhost = "::1"\n')
    settings = resolve("--config", str(file), "--n-ctx", "7", GEMLANE_N_CTX="5", GEMLANE_LANES="6")
    assert (settings.engine.n_ctx, settings.engine.lanes, settings.engine.parallel) == (7, 6, 3)
    assert settings.server.host == "::1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--n-ctx", "many"), "--n-ctx must be a whole number, not 'many'"),
        (("--parallel", "0"), "--parallel must be between 1 and 256, not 0"),
        (("--port", "70000"), "--port must be between 0 and 65535, not 70000"),
        (("--max-lora-rank", "40"), "--max-lora-rank must be a multiple of 32, not 40"),
        (("--gpu-layers", "-1"), "--gpu-layers must be auto, all or a number of layers, not '-1'"),
        (("--tensor-split", "1;2"), "--tensor-split must be numbers with commas between, as 3,1, not '1;2'"),
        (("--tensor-split", "0,0"), "--tensor-split must be numbers with commas between, as 3,1, not '0,0'"),
        (("--replicas", "2"), "--replicas, --max-replicas, --ray-address and --replica-gpus need --engine ray"),
        (("--engine", "ray", "--replicas", "0"), "--replicas must be between 1 and 1024, not 0"),
        (
            ("--engine", "ray", "--replicas", "4", "--max-replicas", "2"),
            "--max-replicas must be at least --replicas, or 0",
        ),
        (("--tensor-split", "nan"), "--tensor-split must be numbers with commas between, as 3,1, not 'nan'"),
        (("--kv-type", "q8_0", "--flash-attn", "off"), "--kv-type q8_0 needs flash attention; leave --flash-attn auto"),
    ],
)
def test_a_wrong_flag_is_named(flags: tuple[str, ...], message: str) -> None:
    """The message about a wrong flag says what came and what is allowed."""
    with pytest.raises(ConfigError) as error:
        resolve(*flags)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_ctx = true", "n_ctx must be a whole number, not True"),
        ("n_ctx = [1]", "n_ctx must be a whole number"),
        ("host = 1.5", "host must be text, not 1.5"),
        ('lane_type = "q3"', "lane_type must be one of q8_0, f16, f32, not 'q3'"),
        ("colour = 1", "unknown setting 'colour'"),
        ("n_ctx = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    """A typing mistake in the file is never ignored."""
    file = tmp_path / "gemlane.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"gemlane\.toml") as error:
        resolve("--config", str(file))
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message about a missing file holds the path and the system's reason."""
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml: No such file"):
        resolve("--config", str(tmp_path / "nowhere.toml"))


def test_a_wrong_environment_variable_is_named() -> None:
    """The message about a wrong environment variable names the variable, not the flag."""
    with pytest.raises(ConfigError, match="GEMLANE_PORT must be a whole number"):
        resolve(GEMLANE_PORT="http")


def test_settings_never_change() -> None:
    """Settings are frozen."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve().engine.n_ctx = 1  # type: ignore[misc]


def test_an_unknown_variable_is_warned_of_with_the_nearest_name(caplog: pytest.LogCaptureFixture) -> None:
    """A misspelt environment variable changes nothing, so the log names the setting that was probably meant."""
    assert resolve(GEMLANE_N_CTXX="5", HOME="/").engine.n_ctx == 0
    assert caplog.messages == [
        "the environment variable GEMLANE_N_CTXX is not a setting; did you mean 'GEMLANE_N_CTX'?"
    ]


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    """A misspelt key of the TOML file is an error that names the setting that was probably meant."""
    file = tmp_path / "gemlane.toml"
    file.write_text("max_quue = 1\n")
    with pytest.raises(ConfigError, match="unknown setting 'max_quue'; did you mean 'max_queue'"):
        resolve("--config", str(file))


def test_a_fraction_is_no_whole_number(tmp_path: Path) -> None:
    """A float in the TOML file is refused, not cut."""
    file = tmp_path / "gemlane.toml"
    file.write_text("port = 18341.5\n")
    with pytest.raises(ConfigError, match=r"port must be a whole number, not 18341\.5"):
        resolve("--config", str(file))


def test_a_tilde_is_expanded_in_every_way_of_giving_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flag, environment and file all take ~ for the home folder, for paths and for nothing else."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "gemlane.toml").write_bytes(b'\xef\xbb\xbfadapters = "~/voices"\nhost = "~"\n')
    settings = resolve("--config", "~/gemlane.toml", "--model=~/base.gguf", GEMLANE_PREFIX_DIR="~/prefixes")
    assert settings.engine.model == str(tmp_path / "base.gguf")
    assert settings.server.adapters == str(tmp_path / "voices")
    assert settings.engine.prefix_dir == str(tmp_path / "prefixes")
    assert settings.server.host == "~"
    with pytest.raises(ConfigError, match="~nobody-of-that-name"):
        resolve("--model", "~nobody-of-that-name/base.gguf")


def test_a_path_is_named_without_a_slash_at_its_end() -> None:
    """Each path has one spelling in messages and comparisons, however it was given; an empty path stays empty."""
    settings = resolve("--model", "./models//base.gguf", "--socket=/run/gemlane.sock/", GEMLANE_PREFIX_DIR="prefixes/")
    assert settings.engine.model == "models/base.gguf"
    assert settings.engine.prefix_dir == "prefixes"
    assert settings.server.socket == "/run/gemlane.sock"
    assert settings.server.adapters == ""
