"""The bill of materials of a bundle, in CycloneDX 1.6.

Source: CycloneDX 1.6 JSON schema, https://cyclonedx.org/docs/1.6/json/.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.bundling.wheels import Wheel


def render(version: str, wheels: Sequence[Wheel], llama_cpp: str, others: Sequence[dict[str, Any]]) -> str:
    """The document.

    Args:
        version: that of gemlane.
        wheels: what is installed.
        llama_cpp: the commit of llama.cpp inside llama-cpp-python.
        others: further components, already in CycloneDX's shape.
    """
    components = [_library(wheel) for wheel in wheels]
    components.append(
        {
            "type": "library",
            "bom-ref": f"llama.cpp@{llama_cpp}",
            "name": "llama.cpp",
            "version": llama_cpp,
            "purl": f"pkg:github/ggml-org/llama.cpp@{llama_cpp}",
            "licenses": [{"license": {"id": "MIT"}}],
        }
    )
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {"type": "application", "bom-ref": "bundle", "name": "gemlane", "version": version},
        },
        "components": [*components, *others],
    }
    return json.dumps(document, indent=1) + "\n"


def _library(wheel: Wheel) -> dict[str, Any]:
    reference = f"pkg:pypi/{wheel.name.lower().replace('_', '-')}@{wheel.version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": wheel.name,
        "version": wheel.version,
        "purl": reference,
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
    }
    return component | ({"licenses": [{"license": {"name": wheel.licence}}]} if wheel.licence else {})


def data_file(path: Path, kind: str, digest: str) -> dict[str, Any]:
    """A model or an adapter as a component."""
    return {
        "type": "machine-learning-model",
        "bom-ref": f"{kind}/{path.name}",
        "name": path.name,
        "description": kind,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def vendored(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A package of JavaScript that the playground carries, by its own manifest."""
    reference = f"pkg:npm/{entry['name']}@{entry['version']}"
    return {
        "type": "library",
        "bom-ref": reference,
        "name": entry["name"],
        "version": entry["version"],
        "purl": reference,
        "licenses": [{"license": {"name": entry["licence"]}}],
        "hashes": [{"alg": "SHA-256", "content": file["sha256"]} for file in entry["files"][:1]],
    }
