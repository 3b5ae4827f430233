"""Whether a JSON schema has an answer that ends: one that needs itself inside itself has none.

Knows the keywords that nest. What a schema allows in full is llguidance's to say; what this does not know it
takes for something that ends.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from pearl_rt.types.json import Json

MOST_REFERENCES = 2000  # different ones, in a schema: those that wait for each other cost their square


def endless_reference(schema: Json | bool) -> str | None:
    """A $ref that every answer of the schema goes through without end; None: there is an answer that ends.

    The references that end are found from those that need no other one: one ends if all that its schema needs
    ends, and is looked at again once one that it waits for has ended.
    """
    ending: set[str] = set()
    waiting: dict[str, list[str]] = {}
    left = sorted(references(schema))
    while left:
        ref = left.pop()
        if ref in ending:
            continue
        blocked = _needed(_target(schema, ref), ending)
        for needed in blocked:
            waiting.setdefault(needed, []).append(ref)
        if not blocked:
            ending.add(ref)
            left += waiting.pop(ref, ())
    return min(_needed(schema, ending), key=lambda ref: (len(ref), ref), default=None)


def references(schema: object) -> set[str]:
    """All that are named in a schema."""
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
        elif isinstance(found, list) and name.isdecimal() and len(name) < 9 and int(name) < len(found):
            found = found[int(name)]
        else:
            return True
    return found


def _needed(schema: object, ending: set[str]) -> set[str]:
    """References of which one has to end before an answer can; none: one ends, if those of `ending` do."""
    if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
        return set()
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref not in ending:
        return {ref}
    for part in _listed(schema.get("allOf")):
        if found := _needed(part, ending):
            return found
    for name in ("anyOf", "oneOf"):
        if found := _of_any(_needed(part, ending) for part in _listed(schema.get(name))):
            return found
    types = schema.get("type")
    types = [types] if isinstance(types, str) else types if isinstance(types, list) else []
    inside = {"object": _needed_by_object, "array": _needed_by_array}
    return _of_any(inside[name](schema, ending) if name in inside else set() for name in map(str, types))


def _of_any(ways: Iterable[set[str]]) -> set[str]:
    """What is needed where one way is enough; none, where there is no way at all, for others to say."""
    found: set[str] = set()
    for way in ways:
        if not way:
            return way
        found |= way
    return found


def _needed_by_object(schema: Mapping[str, object], ending: set[str]) -> set[str]:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    for name in _listed(schema.get("required")):
        if isinstance(name, str) and (found := _needed(properties.get(name, True), ending)):
            return found
    return set()


def _needed_by_array(schema: Mapping[str, object], ending: set[str]) -> set[str]:
    least = schema.get("minItems", 0)
    first = _listed(schema.get("prefixItems"))
    if not isinstance(least, int) or least < 1:
        return set()
    for part in first[:least]:
        if found := _needed(part, ending):
            return found
    return set() if least <= len(first) else _needed(schema.get("items", True), ending)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []
