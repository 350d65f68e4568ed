"""What both sides are asked, and which differences are meant."""

import json
from dataclasses import dataclass, field
from urllib.parse import unquote

from sides import CHAT, Setup, basic, fixture

# Why an answer is another than mcpo's. A difference without such a reason fails the run.
REASONS = {
    "args": "arguments go on as sent: nothing is dropped, put in or rewritten, and a server's own "
    "defaults count",
    "basic": "Basic works, and is told apart from a wrong key, with and without `--strict-auth`",
    "audio": "audio is in the answer",
    "body": "a body that is no JSON object is refused wherever it is sent, with 400 for broken JSON",
    "code": "a server's schema holds: enum, limits and patterns are checked before the call",
    "cors": "the browser's own credentials are never sent along for `*`",
    "detail": "422 names the same fields in words of our own; a wrong value is shown, secrets are not",
    "error": "a tool's error comes with all its words, and without a Python text around it",
    "file": "what a tool wrote comes as a link",
    "forward": "header forwarding works",
    "id": "an operation is called as its tool (MCPO_OPERATION_IDS=mcpo: as in mcpo)",
    "kind": "what is not text or a picture is in the answer",
    "mend": "what small models send is mended where its meaning is exact (`\"5\"`, `null` for nothing), and else refused",
    "pages": "all pages of `tools/list` are read",
    "path": "everything stands below `--path-prefix`, so that a proxy needs one rule",
    "json": "JSON text becomes the list or object that the schema asks for",
    "slash": "an address that ends in a slash is the one without it, without a redirect",
    "schema": "an odd schema is mended, and harms no other tool",
    "structured": "structured content without text is in the answer",
    "text": "the error says what is missing and what to do",
    "type": "`Content-Type` is not looked at",
    "wider": "both forms of a path work, with and without what the proxy takes off",
}


@dataclass
class Case:
    name: str
    method: str = "POST"
    path: str = "/"
    body: object = None
    headers: dict = field(default_factory=dict)
    view: object = None
    better: str | None = None
    before: list = field(default_factory=list)  # asked first, answers not compared

    def ask(self, side):
        for earlier in self.before:
            earlier.ask(side)
        body = self.body if isinstance(self.body, (bytes, type(None))) else json.dumps(self.body).encode()
        kind = {"Content-Type": "application/json"} if body is not None else {}
        headers = {name: value for name, value in (kind | CHAT | self.headers).items() if value is not None}
        return (self.view or answered)(side.ask(self.method, self.path, body, headers))


def answered(answer):
    """The status, and what a caller reads of the body."""
    body = answer.json()
    if answer.status >= 400 and isinstance(body, dict):
        body = body.get("detail")
    return [answer.status, body]


def status(answer):
    return answer.status


def fields(answer):
    """Which fields a 422 names."""
    detail = answer.json().get("detail")
    places = sorted({".".join(map(str, fault["loc"][:2])) for fault in detail}) if isinstance(detail, list) else detail
    return [answer.status, places]


def headers_of(*names):
    return lambda answer: [answer.status, {name: answer.headers.get(name) for name in names}]


def paths(answer):
    return [answer.status, sorted(map(unquote, answer.json().get("paths", {})))]


def info(answer):
    said = answer.json()["info"]
    return [said["title"], said.get("description"), said["version"]]


def operation(path, *keys):
    def view(answer):
        found = answer.json()["paths"][path]["post"]
        return [found.get(key) for key in keys]

    return view


def arguments(path):
    """Names, types and needs of a tool's arguments, references followed."""

    def view(answer):
        document = answer.json()
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        return [sorted(schema.get("properties", {})), schema.get("required")]

    return view


def enum(answer):
    return '"red"' in answer.body.decode()


def tool(name, arguments=None, title=None, better=None, **more):
    """A call of the server `kinds`."""
    title = title or f"{name} {'no body' if arguments is None else json.dumps(arguments, ensure_ascii=False)}"
    return Case(title, path=f"/kinds/{name}", body=arguments, better=better, **more)


def get(title, path, view=answered, better=None, **more):
    return Case(title, "GET", path, view=view, better=better, **more)


TEXTS = ["words", "42", "007", "null", "true", '"quoted"', "[1, 2]", '{"a": 1}', "1e3", "", " 5 ", "日本語 🎉"]
TIME = {"command": "uvx", "args": ["--python", ">=3.11", "mcp-server-time==2026.10.19", "--local-timezone", "UTC"]}
EXCEL = {"command": "uvx", "args": ["--python", ">=3.11", "excel-mcp-server==2.2.2", "stdio", "--allow-dir", "."]}
ODD = ["recursive", "definitions", "boolean", "reserved", "tuple"]

RESULTS = [
    *(tool("say", {"text": text}) for text in TEXTS),
    tool("blocks", {"kind": "none"}),
    tool("blocks", {"kind": "one_text"}),
    tool("blocks", {"kind": "two_texts"}),
    tool("blocks", {"kind": "image"}),
    tool("blocks", {"kind": "text_and_image"}),
    tool("blocks", {"kind": "audio"}, better="audio"),
    tool("blocks", {"kind": "text_resource"}, better="kind"),
    tool("blocks", {"kind": "blob_resource"}, better="kind"),
    tool("blocks", {"kind": "resource_link"}, better="kind"),
    tool("structured", {"alone": False}),
    tool("structured", {"alone": True}, better="structured"),
]

ERRORS = [
    *(tool("refuse", {"code": code}) for code in (-32700, -32600, -32601, -32602, -32603, -32000, 7)),
    tool("refuse", {"code": -32602, "data": True}),
    tool("refuse", {"code": -32000, "data": True}),
    tool("fail", {"parts": ["it did not work"]}, better="error"),
    tool("fail", {"parts": ["one", "two"]}, better="error"),
    tool("fail", {"parts": []}, better="error"),
]

ARGUMENTS = [
    tool("typed", {"count": 1}, better="args"),
    tool("typed", {"count": 1, "size": 9}),
    tool("typed", {"count": 1, "size": 9, "note": "5"}),
    tool("typed", {"count": "5", "size": 9}),
    tool("typed", {"count": "five", "size": 9}, view=fields),
    tool("typed", {"count": "five", "size": 9}, title="the words of a 422", better="detail"),
    tool("typed", {"count": 1.0, "size": 9}, better="args"),
    tool("typed", {"count": 1.5, "size": 9}, view=fields),
    tool("typed", {"count": 1, "size": 9, "ratio": "0.5"}),
    tool("typed", {"count": 1, "size": 9, "flag": "true"}),
    tool("typed", {"count": 1, "size": 9, "flag": "yes"}, view=fields, better="mend"),
    tool("typed", {"count": 1, "size": 9, "note": None}, better="mend"),
    tool("typed", {"count": 1, "size": 9, "maybe": None}, better="args"),
    tool("typed", {"count": 1, "size": 9, "unknown": 3}, better="args"),
    tool("typed", {"count": 1, "size": 9, "list": ["1", 2]}),
    tool("typed", {"count": 1, "size": 9, "list": '["1", 2]'}, better="json"),
    tool("typed", {"count": 1, "size": 9, "place": '{"x": 1}'}, better="json"),
    tool("typed", {"count": 1, "size": 9, "place": {"x": 1}}),
    tool("typed", {"count": 1, "size": 9, "place": {}}, view=fields),
    tool("typed", {"count": 1, "size": 9, "_private": "p"}),
    tool("typed", {"count": 1, "size": 9, "choice": "blue"}, view=fields, better="code"),
    tool("typed", {"count": 1, "size": 9, "small": 12}, view=fields, better="code"),
    tool("typed", {"count": 1, "size": 9, "code": "x"}, view=fields, better="code"),
    tool("typed", {}, view=fields),
    tool("typed", {"size": 1, "count": None}, view=fields),
    tool("closed", {"a": 1}),
    tool("closed", {"a": 1, "b": 2}, view=fields, better="args"),
    tool("nothing"),
    tool("nothing", b"", title="nothing, an empty body"),
    tool("nothing", {}),
    tool("nothing", b"null", title="nothing, null as the body"),
    tool("nothing", {"x": 1}, better="args"),
    tool("nothing", b"{broken", title="nothing, a broken body", view=status, better="body"),
    tool("optional", {}),
    tool("optional", title="optional, no body", view=status, better="args"),
    tool("say", title="say, no body", view=fields, better="detail"),
    tool("say", b"null", title="say, null as the body", view=fields, better="detail"),
    tool("say", b"[]", title="say, a list as the body", view=status),
    tool("say", b"{broken", title="say, a broken body", view=status, better="body"),
    tool("say", {"text": "hi"}, title="say, without Content-Type", better="type", headers={"Content-Type": None}),
    tool("say", {"text": "hi"}, title="say, Content-Type text/plain", better="type",
         headers={"Content-Type": "text/plain"}),
]  # fmt: skip

NAMES = [
    Case("a tool with a slash, as it is", path="/kinds/with/slash", body={"text": "x"}),
    Case("a tool with a slash, encoded", path="/kinds/with%2Fslash", body={"text": "x"}, view=status),
    Case("a tool with a space", path="/kinds/with%20space", body={"text": "x"}),
    Case("a tool in Japanese", path="/kinds/%E6%97%A5%E6%9C%AC%E8%AA%9E", body={"text": "x"}),
    Case("a tool with a dot", path="/kinds/dotted.name", body={"text": "x"}),
    Case("a tool with capitals", path="/kinds/UPPER-case", body={"text": "x"}),
    Case("a disabled tool (disabledTools)", path="/kinds/hidden", body={}, view=status),
    Case("a disabled tool (disabled_tools)", path="/paged/hidden", body={}, view=status),
    Case("a tool of the last page", path="/paged/count", body={}, view=status, better="pages"),
    Case("a server with slashes in its name", path="/example.com/owner/kinds/say", body={"text": "x"}),
    get("its document", "/example.com/owner/kinds/openapi.json", paths),
    Case("a slash at the end", path="/kinds/say/", body={"text": "x"}, view=status, better="slash"),
    Case("an unknown tool", path="/kinds/none", body={}, better="text"),
    Case("an unknown server", path="/none/say", body={}, better="text"),
    Case("an unknown path", "GET", path="/none"),
    get("GET on a tool", "/kinds/say"),
    Case("PUT on a tool", "PUT", "/kinds/say", body={}),
    Case("DELETE on a tool", "DELETE", "/kinds/say"),
]

DOCUMENTS = [
    get("the root's document", "/openapi.json", paths),
    get("the root's page", "/docs", status),
    get("a server's page", "/kinds/docs", status),
    get("title, description, version", "/kinds/openapi.json", info),
    get("summary and description", "/kinds/openapi.json", operation("/say", "summary", "description")),
    get("operationId", "/kinds/openapi.json", operation("/say", "operationId"), better="id"),
    get("arguments of a tool", "/kinds/openapi.json", arguments("/say")),
    get("arguments of a larger tool", "/kinds/openapi.json", arguments("/typed")),
    get("an enum in the document", "/kinds/openapi.json", enum, better="schema"),
    get("servers", "/kinds/openapi.json", lambda a: a.json()["servers"]),
    get("tools of all pages", "/paged/openapi.json", lambda a: len(a.json()["paths"]), better="pages"),
    *(get(f"a server with an odd tool ({odd})", f"/{odd}/openapi.json", paths, better="schema") for odd in ODD),
    *(Case(f"the tool beside the odd one ({odd})", path=f"/{odd}/say", body={"text": "x"}, view=status,
           better="schema") for odd in ODD),
]  # fmt: skip

ORIGIN = {"Origin": "http://localhost:3000"}
PREFLIGHT = ORIGIN | {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
CORS = ("access-control-allow-origin",)
CORS_CASES = [
    Case("a preflight", "OPTIONS", "/kinds/say", headers=PREFLIGHT, view=headers_of(*CORS)),
    Case("credentials in a preflight", "OPTIONS", "/kinds/say", headers=PREFLIGHT,
         view=headers_of("access-control-allow-credentials"), better="cors"),
    get("a page of another origin reads", "/kinds/openapi.json", headers_of("access-control-allow-origin"),
        headers=ORIGIN, better="cors"),
]  # fmt: skip

REAL = [
    Case("time: convert_time", path="/time/convert_time",
         body={"source_timezone": "Asia/Tokyo", "time": "12:00", "target_timezone": "UTC"},
         view=lambda a: [a.status, a.json()["target"]["datetime"][10:]]),
    Case("time: a time zone that is none", path="/time/get_current_time", body={"timezone": "No/Where"}, better="error"),
    get("time: its tools", "/time/openapi.json", paths),
    get("excel: its tools", "/excel/openapi.json", paths),
    Case("excel: create_workbook", path="/excel/create_workbook", body={"path": "a.xlsx"},
         view=lambda a: [a.status, sorted(a.json()) if isinstance(a.json(), dict) else "text"], better="file"),
    Case("excel: describe_workbook", path="/excel/describe_workbook", body={"path": "a.xlsx"}, view=status),
    Case("excel: a workbook that is not there", path="/excel/describe_workbook", body={"path": "no.xlsx"}, view=status),
]  # fmt: skip

BEARER, WRONG = {"Authorization": "Bearer secret"}, {"Authorization": "Bearer wrong"}


def auth(prefix=""):
    """The same door in three states: no key, a wrong one, the right one."""
    say = {"path": "/kinds/say", "body": {"text": "x"}}
    return [
        Case("a call without a key", **say, view=headers_status, better="text"),
        Case("a call with a wrong key", **say, headers=WRONG),
        Case("a call with the key", **say, headers=BEARER),
        Case("a call with Basic and the key", **say, headers=basic("secret"), better="basic"),
        Case("a call with Basic and a wrong key", **say, headers=basic("wrong"), better="basic"),
        Case("a call with an empty Bearer", **say, headers={"Authorization": "Bearer "}, view=status),
        get("openapi.json without a key", "/kinds/openapi.json", status),
        get("openapi.json with a wrong key", "/kinds/openapi.json", status, headers=WRONG),
        get("openapi.json with the key", "/kinds/openapi.json", status, headers=BEARER),
        get("docs without a key", "/kinds/docs", status),
        get("docs with Basic and the key", "/kinds/docs", status, headers=basic("secret")),
        get("the root's document without a key", "/openapi.json", status),
        Case("OPTIONS without a key", "OPTIONS", "/kinds/say", headers=PREFLIGHT, view=status),
    ]


def headers_status(answer):
    challenge = (answer.headers.get("www-authenticate") or "").split(",")[0]
    return [*answered(answer), challenge]


KINDS = fixture(disabledTools=["hidden"])
FIRST = {
    "kinds": KINDS,
    "example.com/owner/kinds": KINDS,
    "paged": fixture(env={"PAGE_SIZE": "3"}, disabled_tools=["hidden"]),
    **{odd: fixture(odd) for odd in ODD},
    "time": TIME,
    "excel": EXCEL,
}
ANY_ORIGIN = ["--cors-allow-origins", "*"]
ENV = [Case("--env", path="/env", body={"name": "GIVEN"})]
KEYED = ["--api-key", "secret"]

# Each setup with its groups of cases.
PLAN = [
    (
        Setup("a config file", FIRST, ANY_ORIGIN, ready="/kinds/openapi.json"),
        {
            "Results": RESULTS,
            "Errors": ERRORS,
            "Arguments": ARGUMENTS,
            "Names and routes": NAMES,
            "Documents": DOCUMENTS,
            "Browsers (`--cors-allow-origins '*'`)": CORS_CASES,
            "Real servers": REAL,
        },
    ),
    (
        Setup("a key", {"kinds": KINDS}, KEYED + ANY_ORIGIN, ready="/kinds/openapi.json"),
        {"`--api-key`": auth()},
    ),
    (
        Setup("strict", {"kinds": KINDS}, [*KEYED, "--strict-auth", *ANY_ORIGIN], ready="/kinds/openapi.json"),
        {"`--api-key … --strict-auth`": auth()},
    ),
    (
        Setup("single", None, ["--env", "GIVEN=yes"], KINDS["command"].split() + KINDS["args"]),
        {
            "A single server (`-- command`)": [
                Case("a call", path="/say", body={"text": "hi"}),
                Case("a tool with a slash", path="/with/slash", body={"text": "x"}),
                Case("an unknown tool", path="/none", body={}, view=status),
                get("openapi.json", "/openapi.json", info),
                get("its operations", "/openapi.json", paths),
                get("docs", "/docs", status),
                get("GET on a tool", "/say"),
                *ENV,
            ]
        },
    ),
    (
        Setup("streamable", None, ["--type", "streamablehttp"], ["{UPSTREAM}/mcp/kinds"]),
        {"A single remote server (`--type streamablehttp -- URL`)": [
            Case("a call", path="/say", body={"text": "hi"}),
            get("its operations", "/openapi.json", paths),
        ]},
    ),
    (
        Setup("remote", {
            kind: {"type": kind, "url": "{UPSTREAM}/mcp/kinds"}
            for kind in ("streamable-http", "streamable_http", "streamablehttp")
        }, ready="/streamable-http/openapi.json"),
        {"Remote servers in the file": [
            Case(f"`type` {kind}", path=f"/{kind}/say", body={"text": "hi"})
            for kind in ("streamable-http", "streamable_http", "streamablehttp")
        ]},
    ),
    (
        Setup("forwarding", {"kinds": KINDS | {
            "client_header_forwarding": {"enabled": True, "whitelist": ["x-tenant"]}
        }}, ready="/kinds/openapi.json"),
        {"`client_header_forwarding`": [
            Case("a whitelisted header", path="/kinds/meta", body={}, headers={"X-Tenant": "a"}, better="forward"),
        ]},
    ),
    (
        Setup("prefix", {"kinds": KINDS}, ["--path-prefix", "api"], ready="/api/kinds/openapi.json"),
        {"`--path-prefix api`": [
            Case("a call below it", path="/api/kinds/say", body={"text": "hi"}),
            Case("a call without it", path="/kinds/say", body={"text": "hi"}, view=status),
            get("servers", "/api/kinds/openapi.json", lambda a: a.json()["servers"]),
            get("the root's page", "/docs", status, better="path"),
        ]},
    ),
    (
        Setup("root path", {"kinds": KINDS}, ["--root-path", "/outside"], ready="/outside/kinds/openapi.json"),
        {"`--root-path /outside`": [
            Case("a call without it, as a proxy sends it on", path="/kinds/say", body={"text": "hi"}, better="wider"),
            Case("a call with it", path="/outside/kinds/say", body={"text": "hi"}, view=status),
            get("servers", "/outside/kinds/openapi.json", lambda a: a.json()["servers"]),
            get("the root's document", "/openapi.json", status),
        ]},
    ),
    (
        Setup("tls", {"kinds": KINDS}, ready="/kinds/openapi.json", tls=True),
        {"`--ssl-certfile`, `--ssl-keyfile`": [Case("a call", path="/kinds/say", body={"text": "hi"})]},
    ),
]  # fmt: skip
