"""Open WebUI's own code: what it makes of a document, and how it calls a tool."""

import asyncio
import copy
import json
import logging
import os
import re
import tempfile

# It looks for a database and its own files as soon as it is imported.
_data = tempfile.TemporaryDirectory(prefix="openwebui-zoo-")
os.environ |= {"DATA_DIR": _data.name, "FROM_INIT_PY": "true", "WEBUI_SECRET_KEY": "test", "GLOBAL_LOG_LEVEL": "ERROR"}

from open_webui.utils import tools  # noqa: E402

logging.disable(logging.CRITICAL)
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Where Open WebUI and models' APIs look for schemas below a schema.
LISTS = ("anyOf", "oneOf", "allOf")


def specs(document):
    """The functions that Open WebUI offers to a model, as it sends them."""
    payload = tools.convert_openapi_to_tool_payload(copy.deepcopy(document))
    return [tools.clean_openai_tool_schema(spec) for spec in payload]


def call(url, document, name, arguments, headers):
    """The answer that the model gets."""
    data = {"openapi": document}
    answer, _ = asyncio.run(tools.execute_tool_server(url, headers, {}, name, arguments, data))
    return answer


def faults(spec):
    """What a model's API would refuse in a function."""
    found = []
    if not NAME.fullmatch(spec["name"]):
        found.append(f"the name {spec['name']!r}")
    try:
        json.dumps(spec, allow_nan=False)
    except ValueError as fault:
        found.append(f"no JSON: {fault}")
    parameters = spec["parameters"]
    if parameters.get("type") != "object" or not isinstance(parameters.get("properties"), dict):
        found.append("the parameters are no object")
    else:
        for name in parameters.get("required", []):
            if name not in parameters["properties"]:
                found.append(f"{name!r} is required and not there")
        _look(parameters, "parameters", found)
    return found


def _look(schema, place, found):
    if not isinstance(schema, dict):
        found.append(f"{place} is {schema!r}")
        return
    if "$ref" in schema:
        found.append(f"{place} has a reference, which nobody resolves")
    if not any(key in schema for key in ("type", "anyOf", "properties")):
        found.append(f"{place} has no type")
    types = schema.get("type")
    if "array" in (types if isinstance(types, list) else [types]) and not isinstance(schema.get("items"), dict):
        found.append(f"{place} is an array without items")
    for key in LISTS:
        if key in schema:
            if not schema[key]:
                found.append(f"{place}.{key} is empty")
            for index, inner in enumerate(schema[key]):
                _look(inner, f"{place}.{key}[{index}]", found)
    for name, inner in schema.get("properties", {}).items():
        _look(inner, f"{place}.properties.{name}", found)
    if "items" in schema:
        _look(schema["items"], f"{place}.items", found)
