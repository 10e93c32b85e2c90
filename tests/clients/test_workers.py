"""Workers on Cloudflare's own runtimes, with this server behind ``env.AI``: workerd, Miniflare, ``wrangler dev``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import installed
from tests.clients.asking import QUESTION, get_json
from tests.clients.conftest import PAGE_LORA, Command, Needs, Ran
from tests.end_to_end.serving import MODEL, ROOT, Server
from tests.tiny_gemma.facts import ANSWERS

WORKERD = ROOT / "scripts" / "workerd"
PAGE = WORKERD / "page.ts"
BINDING = installed.PROGRAMS / "binding.ts"
OLD_WRANGLER = "wrangler-4.35"


def check_page(answer: dict[str, Any]) -> None:
    """What the page's Worker gives: a story, by whatever the sampler chose."""
    assert list(answer) == ["response", "usage"]
    assert answer["response"]
    assert answer["usage"]["completion_tokens"] > 0


def check_binding(outcome: dict[str, Any], error_name: str = "AiError") -> None:
    """What ``programs/binding.ts`` must have seen."""
    assert outcome["answers"] == {voice: ANSWERS[voice][QUESTION] for voice in ("base", "pirate")}
    assert "".join(outcome["stream"]) == ANSWERS["pirate"][QUESTION]
    assert len(outcome["stream"]) > 5
    assert outcome["raw"] == {"status": 200, "response": ANSWERS["base"][QUESTION]}
    assert outcome["usage"]["total_tokens"] > 0
    assert outcome["models"] == [MODEL]
    texts = {case: error["text"] for case, error in outcome["errors"].items()}
    assert re.search(r"\b3037: .*nobody", texts["unknown_lora"]), texts
    assert re.search(r"\b3037: .*nobody", texts["bad_stream"]), texts
    assert re.search(r"\b5006: .*'/temperature' must be <= 5$", texts["bad_body"]), texts
    assert re.search(r"\b5007: No such model @cf/nobody/nothing", texts["unknown_model"]), texts
    assert {error["name"] for error in outcome["errors"].values()} == {error_name}


def test_the_page_s_worker_is_kept_word_for_word() -> None:
    """The file that runs names the page's placeholder, and nothing of ours."""
    source = PAGE.read_text()
    assert f'lora: "{PAGE_LORA}", //the finetune id OR name' in source
    assert source.startswith("export interface Env {\nAI: Ai;\n}\n")
    assert source.endswith("} satisfies ExportedHandler<Env>;\n")


def test_workerd(server: Server, command: Command, tmp_path: Path, ran: Ran) -> None:
    """The page's code as it is, with another adapter in its place, and a Worker of one's own."""
    script, url = ROOT / "scripts" / "worker", ("--url", server.url)
    if not (ROOT / ".gemlane/workerd/installed.json").is_file():
        pytest.skip("workerd is not installed; scripts/test --clients installs it")
    for arguments in ((), ("--lora", "shout")):
        done = command(script, *url, *arguments)
        assert done.returncode == 0, done.stderr
        check_page(json.loads(done.stdout))
    shutil.copy(BINDING, tmp_path)
    done = command(script, *url, BINDING.name)  # as seen from where it is called
    assert done.returncode == 0, done.stderr
    check_binding(json.loads(done.stdout))
    version = json.loads((ROOT / ".gemlane/workerd/node_modules/workerd/package.json").read_text())["version"]
    ran("npm workerd (scripts/worker)", version, "the page's Worker unchanged; base, adapter, stream, errors, models")


def test_scripts_worker_says_what_is_wrong(server: Server, command: Command) -> None:
    """An adapter that is not there, and a server that is not there."""
    script = ROOT / "scripts" / "worker"
    if not (ROOT / ".gemlane/workerd/installed.json").is_file():
        pytest.skip("workerd is not installed; scripts/test --clients installs it")
    done = command(script, "--url", server.url, "--lora", "nobody")
    assert done.returncode == 1
    assert "3037" in done.stderr
    assert "nobody" in done.stderr
    assert PAGE_LORA not in done.stderr
    done = command(script, "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "does gemlane listen" in done.stderr


def test_scripts_worker_carries_a_token(guarded: Server, command: Command) -> None:
    """The binding has none of its own; its configuration adds it."""
    script, url = ROOT / "scripts" / "worker", ("--url", guarded.url)
    if not (ROOT / ".gemlane/workerd/installed.json").is_file():
        pytest.skip("workerd is not installed; scripts/test --clients installs it")
    done = command(script, *url, "--token", "token")
    assert done.returncode == 0, done.stderr
    check_page(json.loads(done.stdout))
    done = command(script, *url)
    assert done.returncode == 1
    assert "--token" in done.stderr


def test_miniflare(server: Server, command: Command, needs: Needs, ran: Ran) -> None:
    """Miniflare's remote-proxy form needs nothing but a URL."""
    needs("npm")
    for worker, check in ((PAGE, check_page), (BINDING, check_binding)):
        done = command(*installed.program("npm", "miniflare.mjs"), worker, GEMLANE_URL=server.url)
        assert done.returncode == 0, done.stderr + done.stdout
        check(json.loads(done.stdout))
    ran("npm miniflare", installed.version("miniflare"), "the page's Worker; base, adapter, stream, errors, models")


def test_miniflare_with_a_token(guarded: Server, command: Command, needs: Needs, ran: Ran) -> None:
    """The URL that Miniflare is given holds the token; without it the Worker's call is refused."""
    needs("npm")
    program = installed.program("npm", "miniflare.mjs")
    done = command(*program, PAGE, GEMLANE_URL=f"{guarded.url}/?token=token")
    assert done.returncode == 0, done.stderr + done.stdout
    check_page(json.loads(done.stdout))
    assert command(*program, PAGE, GEMLANE_URL=f"{guarded.url}/?token=wrong").returncode != 0
    ran("npm miniflare, tokens", installed.version("miniflare"), "the page's Worker, the token in the URL")


def test_the_ai_sdk_inside_a_worker(server: Server, command: Command, needs: Needs, ran: Ran) -> None:
    """``workers-ai-provider`` over ``env.AI``, where its ``lora`` setting travels among the options."""
    needs("npm")
    program = installed.program("npm", "miniflare.mjs")
    worker = installed.HOME / "npm" / "programs" / "ai_sdk_worker.ts"
    done = command(*program, worker, GEMLANE_URL=server.url)
    assert done.returncode == 0, done.stderr + done.stdout
    outcome = json.loads(done.stdout)
    assert outcome["answers"] == {voice: ANSWERS[voice][QUESTION] for voice in ("base", "pirate")}
    assert "".join(outcome["stream"]) == ANSWERS["pirate"][QUESTION]
    assert len(outcome["stream"]) > 5
    assert "nobody" in outcome["error"]["text"], outcome["error"]
    ran(
        "npm workers-ai-provider, AI",
        installed.version("workers-ai-provider"),
        "in a Worker: base, adapter, stream, errors",
    )


def test_the_package_that_came_before_the_binding(server: Server, command: Command, needs: Needs, ran: Ran) -> None:
    """``@cloudflare/ai``, which Workers of 2024 import, wraps today's binding."""
    needs("npm")
    program = installed.program("npm", "miniflare.mjs")
    worker = installed.HOME / "npm" / "programs" / "cloudflare_ai_worker.ts"
    done = command(*program, worker, GEMLANE_URL=server.url)
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["answers"] == {voice: ANSWERS[voice][QUESTION] for voice in ("base", "pirate")}
    ran("npm @cloudflare/ai", installed.version("@cloudflare/ai"), "in a Worker: base, adapter")


def test_wrangler_dev_through_the_shim(
    server: Server, quiet: dict[str, str], needs: Needs, tmp_path: Path, ran: Ran
) -> None:
    """The newest wrangler: one line of wrangler.jsonc differs, the Worker does not."""
    needs("npm")
    shutil.copytree(WORKERD / "ai-shim", tmp_path / "ai-shim")
    shim = tmp_path / "ai-shim" / "wrangler.jsonc"
    shim.write_text(shim.read_text().replace("http://127.0.0.1:8080", server.url))
    binding = {"services": [{"binding": "AI", "service": "ai-shim"}]}
    environment = quiet | {"WRANGLER_REGISTRY_PATH": str(tmp_path / "registry")}
    for worker, check in ((PAGE, check_page), (BINDING, lambda outcome: check_binding(outcome, "Error"))):
        with developing("npm", tmp_path, worker, binding, environment) as url:
            check(get_json(url))
    ran("npm wrangler dev (ai-shim)", installed.version("wrangler"), "the page's Worker; base, adapter, stream, errors")


def test_wrangler_dev_of_old(server: Server, quiet: dict[str, str], needs: Needs, tmp_path: Path, ran: Ran) -> None:
    """With wrangler up to 4.35 the project stays as it is, and only the environment differs."""
    needs(OLD_WRANGLER)
    environment = quiet | {
        "CLOUDFLARE_API_BASE_URL": f"{server.url}/client/v4",
        "CLOUDFLARE_API_TOKEN": "token",
        "CLOUDFLARE_ACCOUNT_ID": "local",
        "WRANGLER_REGISTRY_PATH": str(tmp_path / "registry"),
    }
    for worker, check in ((PAGE, check_page), (BINDING, check_binding)):
        with developing(OLD_WRANGLER, tmp_path, worker, {"ai": {"binding": "AI"}}, environment) as url:
            check(get_json(url))
    ran("npm wrangler dev (env)", installed.version("wrangler", OLD_WRANGLER), "the page's Worker; all of the binding")


@contextlib.contextmanager
def developing(
    npm_set: str, folder: Path, worker: Path, binding: dict[str, Any], environment: dict[str, str]
) -> Iterator[str]:
    """``wrangler dev`` of ``worker`` with ``binding``; gives its address."""
    project = {"name": "page", "main": "page.ts", "compatibility_date": "2025-09-01", **binding}
    (folder / "wrangler.jsonc").write_text(json.dumps(project))
    shutil.copy(worker, folder / "page.ts")
    configs = ["-c", "wrangler.jsonc", *(["-c", "ai-shim/wrangler.jsonc"] if "services" in binding else [])]
    wrangler = installed.package("wrangler", npm_set) / "bin" / "wrangler.js"
    process = subprocess.Popen(
        [installed.node(), wrangler, "dev", *configs, "--port", "0", "--inspector-port", "0"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        log = []
        for line in process.stdout:
            log.append(line)
            if found := re.search(r"Ready on (http://\S+)", line):
                yield found[1]
                break
        else:
            pytest.fail("".join(log))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
