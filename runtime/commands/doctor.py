"""``gemlane doctor``: would ``gemlane serve`` work with these settings, and how well?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from typing import Final

from tqdm import tqdm

from convert.cores import n_physical_cores
from convert.gguf.header import GgufHeader
from runtime import config
from runtime.config import Settings
from runtime.doctor import adapters, build, files, memory
from runtime.doctor.engine import check_engine
from runtime.doctor.finding import Finding, Severity, fault, note, render
from runtime.doctor.machine import CPU_FLAGS, check_processor, check_threads, read_machine
from runtime.errors import ConfigError

EPILOG: Final = "It takes every setting of gemlane serve, from the same places, and changes nothing."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: those of ``serve``, and two."""
    parser.epilog = EPILOG
    parser.add_argument("--quick", action="store_true", help="do not load the model")
    parser.add_argument("--json", action="store_true", help="as JSON")
    config.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look at everything; 1 if there is a fault."""
    findings = list(_examine(arguments))
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        print(render(findings, shutil.get_terminal_size().columns))
    return 1 if any(finding.severity is Severity.FAULT for finding in findings) else 0


def _examine(arguments: argparse.Namespace) -> Iterator[Finding]:
    machine, library = read_machine(), build.probe_library()
    yield from build.check_build(library)
    wanted = build.wanted_flags(library, CPU_FLAGS)
    if wanted or not library.error:
        yield check_processor(machine, wanted)
    yield build.check_http()
    try:
        settings = config.resolve(arguments)
    except ConfigError as error:
        yield fault("settings", str(error))
        return
    yield from build.check_cluster(settings.cluster)
    if not library.error:
        yield from build.check_devices(library, settings.engine.gpu_layers)
        yield check_threads(machine, settings.engine.threads, n_physical_cores())
    model, finding = files.check_model(settings)
    yield finding
    if model is not None:
        yield memory.check_memory(settings.engine, *model, machine)
        yield from adapters.check_adapters(settings, converts=not arguments.quick)
    yield from files.check_prefix_dir(settings.engine.prefix_dir)
    yield files.check_tokens(settings.server)
    yield files.check_address(settings.server)
    if model is not None and not library.error:
        yield from _start(arguments, settings, model[0])


def _start(arguments: argparse.Namespace, settings: Settings, header: GgufHeader) -> Iterator[Finding]:
    if arguments.quick:
        yield note("engine", "not started", "Leave --quick out to load the model and prove the lanes")
        return
    with tqdm(total=100, desc="loading", unit="%", leave=False, disable=None, file=sys.stderr) as bar:
        yield from check_engine(
            settings.engine, header, lambda fraction: bar.update(max(0, round(fraction * 100) - bar.n))
        )
