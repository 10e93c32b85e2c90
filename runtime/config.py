"""Settings: each declared once, with its flag, environment variable, configuration key, default and help.

A value comes from the first that names it: the flag (``--n-ctx``), the environment (``GEMLANE_N_CTX``), the TOML file
of ``--config`` or ``GEMLANE_CONFIG`` (``n_ctx``), the default. Settings never change after the start.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import math
import os
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError

ENVIRONMENT_PREFIX = "GEMLANE_"
_PATHS = ("FILE", "DIR")
"""Placeholders in ``--help`` that stand for a path."""
_NO_SETTINGS = ("config", "url", "token")
"""GEMLANE_CONFIG names the file of settings; GEMLANE_URL and GEMLANE_TOKEN are read by clients of a server."""
DEFAULT = "default"
_LOG = logging.getLogger("gemlane")


def option(default: Any, help_text: str, *, choices: tuple[str, ...] = (), metavar: str | None = None) -> Any:
    """A field of a settings class that users can set."""
    metadata = {"help": help_text, "choices": choices, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine process needs to know."""

    model: str = option("", "the base model, a GGUF file", metavar="FILE")
    n_ctx: int = option(0, "longest sequence, prompt and answer, in tokens; 0: the model's, at most 4096", metavar="N")
    kv_cells: int = option(
        0,
        "tokens that all running sequences and kept prefixes may hold together; 0: parallel x n-ctx, at most 8192",
        metavar="N",
    )
    parallel: int = option(8, "sequences decoded at once; more requests wait their turn", metavar="N")
    threads: int = option(0, "threads that compute; 0: one for each physical core, within the CPU quota", metavar="N")
    gpu_layers: str = option(
        "auto", "layers held by GPUs: a number, all, or auto for as many as fit; 0: none", metavar="auto|all|N"
    )
    device: str = option(
        "",
        "GPUs to use, by the names that gemlane doctor shows, with commas between; none: no GPU; empty: all",
        metavar="NAMES",
    )
    tensor_split: str = option(
        "", "share of the layers for each GPU, as 3,1; empty: by their free memory", metavar="N,N"
    )
    flash_attn: str = option(
        "auto", "flash attention; auto: where the devices have it for this model", choices=("auto", "on", "off")
    )
    kv_offload: str = option(
        "on", "keys and values on the GPU of their layer (on), or in the machine's memory (off)", choices=("on", "off")
    )
    rpc: str = option(
        "",
        "llama.cpp RPC servers to use as devices, in a network you trust: it is neither encrypted nor protected",
        metavar="HOST:PORT,...",
    )
    adapter_batching: str = option(
        "auto",
        "mixed: different adapters in one batch; grouped: one adapter a batch; auto: mixed if its self-check passes",
        choices=("auto", "mixed", "grouped"),
    )
    lanes: int = option(8, "adapters (or blends) that one batch can mix", metavar="N")
    max_lora_rank: int = option(32, "highest rank a lane has room for, a multiple of 32", metavar="R")
    lane_type: str = option("q8_0", "number format of the lanes' weights", choices=("q8_0", "f16", "f32"))
    kv_type: str = option(
        "f16", "number format of the key-value cache; q8_0 halves its memory", choices=("f16", "q8_0", "f32")
    )
    step_budget_ms: int = option(400, "longest a step should take while others stream, in milliseconds", metavar="MS")
    draft_max: int = option(
        16,
        "most tokens that a step guesses ahead, from text that stands in the prompt or the answer already; 0: none",
        metavar="N",
    )
    load_timeout_s: int = option(
        120,
        "an engine whose loading shows no progress for this long is ended and started again, in seconds",
        metavar="S",
    )
    prefix_dir: str = option(
        "", "folder where hot prompt prefixes survive a restart; empty: they do not", metavar="DIR"
    )


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What only the web process needs to know."""

    host: str = option("127.0.0.1", "address to listen on; anything but loopback asks for a token", metavar="ADDRESS")
    port: int = option(8080, "port to listen on", metavar="PORT")
    socket: str = option("", "Unix socket to listen on instead, for this user alone", metavar="FILE")
    tls_cert: str = option("", "certificate chain in PEM, for https", metavar="FILE")
    tls_key: str = option("", "key of the certificate in PEM", metavar="FILE")
    adapters: str = option(
        "", "folder of adapters: GGUF files, and folders as PEFT and MLX leave them; it is watched", metavar="DIR"
    )
    state_dir: str = option(
        "",
        "folder where uploads and conversions are kept; empty: the platform's own, apart for each --adapters",
        metavar="DIR",
    )
    require_locked: str = option("", "file of SHA256  NAME lines; no adapter but those is served", metavar="FILE")
    token_file: str = option("", "file of bearer tokens, one a line; without it loopback needs none", metavar="FILE")
    admin_token_file: str = option(
        "", "file of tokens that may also change adapters; needed for that where --token-file is used", metavar="FILE"
    )
    allow_origin: str = option(
        "",
        "origins of web pages that may ask where no token is needed, separated by commas: https://page.example, null, "
        "or app:// for every origin of that scheme",
        metavar="ORIGINS",
    )
    system_role: str = option(
        "fold",
        "a system message is put before the first user turn (fold), left out as in 2024 (drop), or an error (reject)",
        choices=("fold", "drop", "reject"),
    )
    cloudflare_model: str = option(
        "auto",
        "Cloudflare's name of the model; auto: both names answer, and the catalogue lists that of the base's size",
        choices=("auto", "@cf/google/gemma-7b-it-lora", "@cf/google/gemma-2b-it-lora"),
    )
    max_queue: int = option(64, "requests that may wait beyond those that run; more are answered 429", metavar="N")
    request_timeout_s: int = option(600, "longest a request may take, in seconds", metavar="S")
    drain_s: int = option(
        10, "how long running answers may go on after SIGTERM, in seconds; a second signal cuts them", metavar="S"
    )
    max_body_mib: int = option(4, "largest request body, uploads aside, in MiB", metavar="MIB")
    max_adapters: int = option(
        100, "most adapters, above which no upload is taken; those of the folder are always served", metavar="N"
    )
    adapter_disk_mib: int = option(
        0, "most disk that uploads and conversions may take together, in MiB; 0: as much as there is", metavar="MIB"
    )
    max_adapter_mib: int = option(300, "largest uploaded adapter file, in MiB", metavar="MIB")
    log_level: str = option("info", "how much is logged", choices=("debug", "info", "warning", "error"))
    log_format: str = option("text", "lines for people, or JSON objects for machines", choices=("text", "json"))
    log_file: str = option("", "file to log to instead of standard error; it may be rotated", metavar="FILE")


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Where the engine runs, and how many replicas of it."""

    engine: str = option(
        "local",
        "local: one engine process of this machine; ray: replicas on a Ray cluster (pip install 'gemlane[cluster]')",
        choices=("local", "ray"),
    )
    replicas: int = option(1, "engines of --engine ray, each with its own lanes and prefixes", metavar="N")
    max_replicas: int = option(
        0, "replicas that Ray may start while all are busy, and end when they are idle; 0: no more", metavar="N"
    )
    ray_address: str = option(
        "",
        "the Ray cluster to use, HOST:PORT of its head, or auto for the one that runs here; empty: start a Ray of our "
        "own on loopback",
        metavar="ADDRESS",
    )
    replica_gpus: int = option(0, "GPUs that Ray keeps for each replica", metavar="N")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of ``gemlane serve``."""

    engine: EngineSettings
    server: ServerSettings
    cluster: ClusterSettings = ClusterSettings()


_GROUPS = (("engine", EngineSettings), ("server", ServerSettings), ("cluster", ClusterSettings))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a flag for every setting, and ``--config``."""
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file of settings, keys spelled like the flags with _ for -"
    )
    for title, kind in _GROUPS:
        group = parser.add_argument_group(title)
        for field in dataclasses.fields(kind):
            shown = f" (default: {field.default})" if field.default not in ("", 0) else ""
            group.add_argument(
                "--" + field.name.replace("_", "-"),
                default=None,
                choices=field.metadata["choices"] or None,
                metavar=field.metadata["metavar"],
                help=field.metadata["help"] + shown,
            )


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting: its value, and where it comes from (a flag, a variable, a key of the file, or `DEFAULT`)."""

    name: str
    value: Any
    source: str


def resolve(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings that flags, environment and file give together.

    Raises:
        ConfigError: a value of the wrong type, an unknown key, or a file that cannot be read.
    """
    values = {choice.name: choice.value for choice in choices(arguments, environment)}

    def build(kind: type[Any]) -> Any:
        return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})

    settings = Settings(build(EngineSettings), build(ServerSettings), build(ClusterSettings))
    _check(settings)
    return settings


def choices(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> list[Choice]:
    """Every setting with its value and its source, in the order of ``--help``.

    Raises:
        ConfigError: a value of the wrong type, an unknown key, or a file that cannot be read.
    """
    config_file = arguments.config or environment.get(ENVIRONMENT_PREFIX + "CONFIG", "")
    file_values = _read_file(Path(expanded(config_file))) if config_file else {}
    known = {field.name for field, _ in _all_fields()}
    if unknown := set(file_values) - known:
        name = min(unknown)
        raise ConfigError(f"{config_file}: unknown setting {name!r}{_nearest(name, known)}")
    _warn_of_unknown_variables(environment, known)

    def choose(field: dataclasses.Field[Any], kind: type) -> Choice:
        flag, variable = "--" + field.name.replace("_", "-"), ENVIRONMENT_PREFIX + field.name.upper()
        if (given := getattr(arguments, field.name)) is not None:
            source, value = flag, given
        elif variable in environment:
            source, value = variable, environment[variable]
        elif field.name in file_values:
            source, value = f"{config_file}: {field.name}", file_values[field.name]
        else:
            return Choice(field.name, field.default, DEFAULT)
        return Choice(field.name, _parse(source, field, kind, value), source)

    return [choose(field, kind) for field, kind in _all_fields()]


def _warn_of_unknown_variables(environment: Mapping[str, str], known: Set[str]) -> None:
    """Log environment variables that look like settings but are not, such as misspelled ones."""
    for variable in sorted(environment):
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if variable.startswith(ENVIRONMENT_PREFIX) and name not in {*known, *_NO_SETTINGS}:
            wanted = {ENVIRONMENT_PREFIX + one.upper() for one in known}
            _LOG.warning("the environment variable %s is not a setting%s", variable, _nearest(variable, wanted))


def _all_fields() -> Iterator[tuple[dataclasses.Field[Any], type]]:
    """Every setting, with the type of its value."""
    for _, kind in _GROUPS:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield field, hints[field.name]


def expanded(path: str) -> str:
    """``path`` as messages name it: with a leading ``~`` or ``~user`` replaced, and without a slash at its end.

    A shell replaces ``~`` only for some ways of giving it. An empty path stays empty.

    Raises:
        ConfigError: there is no such user.
    """
    if not path:
        return ""
    try:
        return str(Path(path).expanduser() if path.startswith("~") else Path(path))
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error}") from error


def _nearest(name: str, known: Iterable[str]) -> str:
    """How to go on after an unknown name."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "; see gemlane serve --help"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _parse(source: str, field: dataclasses.Field[Any], kind: type, value: Any) -> Any:
    """``value`` as ``kind``; ``source`` is what the user would call it."""
    if kind is int and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return int(value)
        except ValueError:
            raise ConfigError(f"{source} must be a whole number, not {value!r}") from None
    if kind is str and isinstance(value, str | int) and not isinstance(value, bool):
        choices = field.metadata["choices"]
        if choices and str(value) not in choices:
            raise ConfigError(f"{source} must be one of {', '.join(choices)}, not {value!r}")
        return expanded(str(value)) if field.metadata["metavar"] in _PATHS else str(value)
    raise ConfigError(f"{source} must be {'a whole number' if kind is int else 'text'}, not {value!r}")


def _check(settings: Settings) -> None:
    """Ranges that a type cannot say."""
    engine, server = settings.engine, settings.server
    limits = [
        ("--n-ctx", engine.n_ctx, 0, 1 << 20),
        ("--kv-cells", engine.kv_cells, 0, 1 << 24),
        ("--parallel", engine.parallel, 1, 256),
        ("--threads", engine.threads, 0, 1024),
        ("--lanes", engine.lanes, 1, 256),
        ("--max-lora-rank", engine.max_lora_rank, 32, 1024),
        ("--step-budget-ms", engine.step_budget_ms, 1, 60_000),
        ("--draft-max", engine.draft_max, 0, 32),
        ("--load-timeout-s", engine.load_timeout_s, 1, 86_400),
        ("--port", server.port, 0, 65_535),
        ("--max-queue", server.max_queue, 0, 100_000),
        ("--request-timeout-s", server.request_timeout_s, 1, 86_400),
        ("--drain-s", server.drain_s, 0, 86_400),
        ("--max-body-mib", server.max_body_mib, 1, 1024),
        ("--max-adapters", server.max_adapters, 1, 100_000),
        ("--max-adapter-mib", server.max_adapter_mib, 1, 16_384),
        ("--adapter-disk-mib", server.adapter_disk_mib, 0, 1 << 30),
        ("--replicas", settings.cluster.replicas, 1, 1024),
        ("--max-replicas", settings.cluster.max_replicas, 0, 1024),
        ("--replica-gpus", settings.cluster.replica_gpus, 0, 64),
    ]
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise ConfigError(f"{name} must be between {low} and {high}, not {value}")
    if engine.max_lora_rank % 32:
        raise ConfigError(f"--max-lora-rank must be a multiple of 32, not {engine.max_lora_rank}")
    if settings.cluster.engine == "local" and settings.cluster != ClusterSettings():
        raise ConfigError("--replicas, --max-replicas, --ray-address and --replica-gpus need --engine ray")
    if 0 < settings.cluster.max_replicas < settings.cluster.replicas:
        raise ConfigError("--max-replicas must be at least --replicas, or 0")
    _check_devices(engine)


def _check_devices(engine: EngineSettings) -> None:
    """Check the form of the device settings; the engine finds out whether the devices exist."""
    if engine.gpu_layers not in {"auto", "all"} and not engine.gpu_layers.isdecimal():
        raise ConfigError(f"--gpu-layers must be auto, all or a number of layers, not {engine.gpu_layers!r}")
    try:
        shares = [float(share) for share in engine.tensor_split.split(",")] if engine.tensor_split else []
    except ValueError:
        shares = [-1.0]
    if shares and not (all(0 <= share < math.inf for share in shares) and any(shares)):
        raise ConfigError(f"--tensor-split must be numbers with commas between, as 3,1, not {engine.tensor_split!r}")
    if engine.kv_type == "q8_0" and engine.flash_attn == "off":
        raise ConfigError("--kv-type q8_0 needs flash attention; leave --flash-attn auto")
