"""What the fixture server says: the names and shapes that the official conformance suite asks for.

Plain JSON values as they go over the wire; `fixture_server.py` holds the behaviour.
"""

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SILENCE = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA="

STRING = {"type": "string"}


def text_block(value):
    return {"type": "text", "text": value}


def says(value, **more):
    """A tool's result of one text block."""
    return {"content": [text_block(value)], **more}


def embedded(uri, mime_type, text):
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": text}}


IMAGE_BLOCK = {"type": "image", "data": PIXEL, "mimeType": "image/png"}
AUDIO_BLOCK = {"type": "audio", "data": SILENCE, "mimeType": "audio/wav"}

STATIC_ANSWERS = {
    "test_simple_text": [text_block("This is a simple text response for testing.")],
    "test_image_content": [IMAGE_BLOCK],
    "test_audio_content": [AUDIO_BLOCK],
    "test_embedded_resource": [
        embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
    ],
    "test_multiple_content_types": [
        text_block("Multiple content types test:"),
        IMAGE_BLOCK,
        embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
    ],
}


def form(message, required=(), **properties):
    """What `elicitation/create` asks: one form."""
    schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sample(prompt, max_tokens=100):
    messages = [{"role": "user", "content": text_block(prompt)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": max_tokens}}


ROOTS = {"method": "roots/list", "params": {}}
ASK_NAME = form("What is your name?", ["name"], name=STRING)
ASK_COLOR = form("Step 2: What is your favorite color?", ["color"], color=STRING)
ASK_FIRST_NAME = form("Step 1: What is your name?", ["name"], name=STRING)
ASK_OK = form("Please confirm", ["ok"], ok={"type": "boolean"})
ASK_CONTEXT = form("What context should the prompt use?", ["context"], context=STRING)
CAPITAL = "What is the capital of France?"
ASK_CAPITAL = sample(CAPITAL)
ASK_GREETING = sample("Generate a greeting", 50)


def ask_user(message):
    username = {"type": "string", "description": "User's response"}
    email = {"type": "string", "description": "User's email address"}
    return form(message, ["username", "email"], username=username, email=email)


ASK_WITH_DEFAULTS = form(  # SEP-1034
    "Please check the values",
    name={"type": "string", "default": "John Doe"},
    age={"type": "integer", "default": 30},
    score={"type": "number", "default": 95.5},
    status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    verified={"type": "boolean", "default": True},
)


def titled(*pairs):
    return [{"const": value, "title": title} for value, title in pairs]


ASK_WITH_ENUMS = form(  # SEP-1330
    "Please choose",
    untitledSingle={"type": "string", "enum": ["option1", "option2", "option3"]},
    titledSingle={
        "type": "string",
        "oneOf": titled(("value1", "First Option"), ("value2", "Second Option"), ("value3", "Third Option")),
    },
    legacyEnum={
        "type": "string",
        "enum": ["opt1", "opt2", "opt3"],
        "enumNames": ["Option One", "Option Two", "Option Three"],
    },
    untitledMulti={"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
    titledMulti={
        "type": "array",
        "items": {"anyOf": titled(("value1", "First Choice"), ("value2", "Second Choice"))},
    },
)

SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": STRING, "city": STRING},
        }
    },
    "properties": {
        "name": STRING,
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": STRING,
        "email": STRING,
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}



def one_argument(name, **more):
    return {"type": "object", "properties": {name: STRING | more}, "required": [name]}


SCHEMAS = {
    "test_sampling": one_argument("prompt"),
    "test_elicitation": one_argument("message"),
    "test_custom_headers": one_argument("region", **{"x-mcp-header": "Region"}),
    "json_schema_2020_12_tool": SCHEMA_2020_12,
}


def tool(name):
    schema = SCHEMAS.get(name, {"type": "object", "properties": {}})
    return {"name": name, "description": f"Conformance fixture {name}", "inputSchema": schema}


TEMPLATE_HEAD, TEMPLATE_TAIL = "test://template/", "/data"
WATCHED = "test://watched-resource"
RESOURCES = {
    "test://static-text": {
        "mimeType": "text/plain",
        "text": "This is the content of the static text resource.",
    },
    "test://static-binary": {"mimeType": "image/png", "blob": PIXEL},
    WATCHED: {"mimeType": "text/plain", "text": "Watched resource content"},
}
RESOURCE_LIST = [
    {"uri": uri, "name": uri.removeprefix("test://"), "mimeType": content["mimeType"]}
    for uri, content in RESOURCES.items()
]
TEMPLATE_LIST = [
    {
        "uriTemplate": f"{TEMPLATE_HEAD}{{id}}{TEMPLATE_TAIL}",
        "name": "template",
        "mimeType": "application/json",
    }
]


def user(content):
    return {"role": "user", "content": content}


def argument(name):
    return {"name": name, "description": f"The prompt's {name}", "required": True}


PROMPTS = {
    "test_simple_prompt": ([], lambda _: [user(text_block("This is a simple prompt for testing."))]),
    "test_prompt_with_arguments": (
        [argument("arg1"), argument("arg2")],
        lambda a: [user(text_block(f"Prompt with arguments: arg1='{a['arg1']}', arg2='{a['arg2']}'"))],
    ),
    "test_prompt_with_embedded_resource": (
        [argument("resourceUri")],
        lambda a: [
            user(embedded(a["resourceUri"], "text/plain", "Embedded resource content for testing.")),
            user(text_block("Please process the embedded resource above.")),
        ],
    ),
    "test_prompt_with_image": (
        [],
        lambda _: [user(IMAGE_BLOCK), user(text_block("Please analyze the image above."))],
    ),
}
PROMPT_THAT_ASKS = "test_input_required_result_prompt"
PROMPT_LIST = [
    {"name": name, "description": f"Conformance fixture {name}", "arguments": arguments}
    for name, (arguments, _) in [*PROMPTS.items(), (PROMPT_THAT_ASKS, ([], None))]
]

COMPLETIONS = ["paris", "park", "party"]
