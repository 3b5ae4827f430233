"""Whether a JSON schema has an answer that ends: one that needs itself inside itself has none.

Knows the keywords that nest. What a schema allows in full is llguidance's to say; what this does not know it
takes for something that ends.
"""

from collections.abc import Mapping
from urllib.parse import unquote

from pearl_rt.types.json import Json


def endless_reference(schema: Json | bool) -> str | None:
    """A $ref that every answer of the schema goes through without end; None: there is an answer that ends.

    The references that end are found in rounds, from none: one ends if all that its schema needs ends.
    """
    ending: set[str] = set()
    wanted = _references(schema)
    while True:
        news = {ref for ref in wanted - ending if _ends(_target(schema, ref), ending)}
        if _ends(schema, ending | news):
            return None
        if not news:
            return min(wanted - ending, key=len)
        ending |= news


def _references(schema: object) -> set[str]:
    found, level = set(), [schema]
    while level:
        inside: list[object] = []
        for each in level:
            if isinstance(each, Mapping):
                if isinstance(each.get("$ref"), str):
                    found.add(each["$ref"])
                inside += each.values()
            elif isinstance(each, list):
                inside += each
        level = inside
    return found


def _target(schema: object, ref: str) -> object:
    """What a reference into the same document names; True, which ends, for any other."""
    if not ref.startswith("#"):
        return True
    found = schema
    for step in ref[1:].split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return True
    return found


def _ends(schema: object, ending: set[str]) -> bool:
    """Whether an answer that ends is possible, if these references have one."""
    if not isinstance(schema, Mapping):
        return True
    if "const" in schema or "enum" in schema:
        return True
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref not in ending:
        return False
    if not all(_ends(part, ending) for part in _listed(schema.get("allOf"))):
        return False
    for name in ("anyOf", "oneOf"):
        parts = _listed(schema.get(name))
        if parts and not any(_ends(part, ending) for part in parts):
            return False
    types = schema.get("type")
    types = [types] if isinstance(types, str) else types if isinstance(types, list) else None
    object_ends = _object_ends(schema, ending)
    array_ends = _array_ends(schema, ending)
    if types is None:
        return True  # a number, say
    return any({"object": object_ends, "array": array_ends}.get(name, True) for name in map(str, types))


def _object_ends(schema: Mapping[str, object], ending: set[str]) -> bool:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    return all(_ends(properties.get(name, True), ending) for name in _listed(schema.get("required")))


def _array_ends(schema: Mapping[str, object], ending: set[str]) -> bool:
    least = schema.get("minItems", 0)
    first = _listed(schema.get("prefixItems"))
    if not isinstance(least, int) or least < 1:
        return True
    if not all(_ends(part, ending) for part in first[:least]):
        return False
    return least <= len(first) or _ends(schema.get("items", True), ending)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []
