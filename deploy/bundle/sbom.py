"""A bundle's software bill of materials: CycloneDX 1.6, the same bytes for the same wheels."""

import json
import uuid
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from deploy.bundle.wheels import Wheel

NAMESPACE = UUID("6b7f5c0e-0d0c-5d0e-9d63-3b2f6f6d9a41")


def make_sbom(*, root: str, wheels: Mapping[str, Wheel]) -> bytes:
    """The bill of the bundle whose distribution is `root`: hashes, licences, who needs whom.

    Without a time: when it was made says nothing about what is in it.
    """
    content = "\n".join(f"{wheel.name} {wheel.sha256}" for wheel in wheels.values())
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, content)}",
        "version": 1,
        "metadata": {"component": _component(wheels[root], kind="application")},
        "components": [
            _component(wheel, kind="library") for name, wheel in wheels.items() if name != root
        ],
        "dependencies": [
            {"ref": _reference(wheel), "dependsOn": _needs(wheel, wheels)}
            for wheel in wheels.values()
        ],
    }
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _reference(wheel: Wheel) -> str:
    version = str(wheel.version).replace("+", "%2B")
    return f"pkg:pypi/{wheel.name}@{version}"


def _component(wheel: Wheel, *, kind: str) -> dict[str, Any]:
    licence = wheel.licence
    return {
        "type": kind,
        "bom-ref": _reference(wheel),
        "purl": _reference(wheel),
        "name": wheel.name,
        "version": str(wheel.version),
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
        **({"licenses": [{"license": {"name": licence}}]} if licence else {}),
    }


def _needs(wheel: Wheel, wheels: Mapping[str, Wheel]) -> list[str]:
    """What it requires, as far as that is in the bundle; extras that others asked for too."""
    extras = frozenset(wheel.metadata.get_all("Provides-Extra") or [])
    names = {
        need.name.lower().replace("_", "-").replace(".", "-") for need in wheel.requires(extras)
    }
    return sorted(_reference(wheels[name]) for name in names if name in wheels)
