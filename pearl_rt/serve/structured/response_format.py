"""The form of an answer, read from a body: response_format, structured_outputs, or the guided_ fields.

One of them at most. Knows names of fields; what a schema or a grammar may be is checked by their receiver.
"""

from pearl_rt.errors import RequestError
from pearl_rt.serve.fields import FieldError, Fields
from pearl_rt.types.structured_outputs import StructuredOutputsParams

# vLLM's older names, by those of StructuredOutputsParams.
GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
KINDS = ("text", "json_object", "json_schema")


def read_form(fields: Fields) -> StructuredOutputsParams | None:
    """None: free text. Raises FieldError for what is no form, and for two of them. structured_outputs is
    left to SamplingParams.
    """
    form = _response_format(fields)
    given = ["response_format"] if form is not None else []
    for field, name in GUIDED.items():
        if (value := fields.any(field)) is not None:
            given.append(field)
            form = _made(field, **{name: value})
    if "structured_outputs" in fields:
        given.append("structured_outputs")
    if len(given) > 1:
        raise FieldError(given[1], f"{' and '.join(given)} each ask for a form: pass one of them")
    return form


def _response_format(fields: Fields) -> StructuredOutputsParams | None:
    own = fields.inside("response_format")
    kind = own.any("type", "text")
    if kind not in KINDS:
        raise FieldError("response_format", f"response_format.type must be one of {', '.join(KINDS)}")
    schema = own.inside("json_schema")
    if kind != "json_schema" and "json_schema" in own:
        raise FieldError("response_format", "response_format.json_schema needs the type json_schema")
    for name in ("name", "description"):
        schema.text(name)
    schema.boolean("strict")  # an answer always keeps to its schema
    found = schema.any("schema")
    own.end()
    schema.end()
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if found is None:
        raise FieldError("response_format", "response_format.json_schema.schema is missing: give the schema")
    return _made("response_format", json=found)


def _made(field: str, **form: object) -> StructuredOutputsParams:
    try:
        return StructuredOutputsParams(**form)  # type: ignore[arg-type]
    except RequestError as error:
        raise FieldError(field, f"{field}: {error}") from None
