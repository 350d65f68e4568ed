"""The MCP server that the official conformance suite is run against, on the Python SDK 2.x.

    python fixture_server.py             a child on stdio that speaks both eras, as the SDK does
    python fixture_server.py --legacy    a child that knows nothing of 2026-07-28
    python fixture_server.py --modern    a child that speaks 2026-07-28 alone
    python fixture_server.py --bare      its names without `test_`, for a server called `test` behind `/mcp`
    python fixture_server.py --http PORT the same server over the SDK's own Streamable HTTP, at /mcp

Its tools ask the user in whichever way the connection's era has: requests to the client before
2026-07-28, `input_required` results since.
"""

import argparse
import asyncio
import json
import logging
import warnings

import mcp_types as types
from mcp.server.caching import CACHEABLE_METHODS, CacheHint
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.runner import _serve_modern_stream, serve_loop
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp.shared.message import ServerMessageMetadata

import fixture_content as content
from fixture_content import says

NAME, VERSION = "conformance-fixture", "1.2.3"
MODERN = "2026-07-28"
NOT_FOUND_BEFORE_2026 = -32002  # of a resource; since then it is INVALID_PARAMS
STEP = 0.05  # seconds between notes, as the suite describes it

ASKED = {  # method -> the capability that it takes, and the SDK's request and result
    "elicitation/create": ("elicitation", types.ElicitRequest, types.ElicitResult),
    "sampling/createMessage": ("sampling", types.CreateMessageRequest, types.CreateMessageResult),
    "roots/list": ("roots", types.ListRootsRequest, types.ListRootsResult),
}

LEFT_OUT = "test_"  # what names lack with --bare

bus = InMemorySubscriptionBus()
subscribed = set()  # URIs, by legacy clients
bare = False


class InputRequired(Exception):
    """Ends this round of a modern request: the client asks its user and comes back."""

    def __init__(self, result):
        super().__init__("input required")
        self.result = result


class Call:
    """One request being served: what it tells its client, and asks of it."""

    def __init__(self, ctx, params):
        self.ctx = ctx
        self.modern = ctx.protocol_version >= MODERN
        # The SDK seals the state: one that was tampered with does not come this far.
        state = getattr(params, "request_state", None)
        responses = getattr(params, "input_responses", None) or {}
        self.resumed = state is not None
        self.answers = json.loads(state or "{}") | {key: plain(value) for key, value in responses.items()}

    def can(self, capability):
        return getattr(self.ctx.session.client_capabilities, capability, None) is not None

    async def ask(self, keep_state=False, **requests):
        """The client's answers by key; with `keep_state` a modern client must bring our state back."""
        if self.modern:
            needed = {ASKED[request["method"]][0] for request in requests.values()}
            if undeclared := {name: {} for name in sorted(needed) if not self.can(name)}:
                missing = {"requiredCapabilities": undeclared}
                text = f"The client has not declared {', '.join(undeclared)}"
                raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, text, missing)
            return self._ask_by_result(keep_state, requests)
        # Older revisions have no error for it: the client refuses, as the SDK's own requests expect.
        # All at once, as a server may: the answers can come in any order.
        answers = await asyncio.gather(*(self._ask_by_request(request) for request in requests.values()))
        return dict(zip(requests, answers))

    def _ask_by_result(self, keep_state, requests):
        missing = {key: request for key, request in requests.items() if key not in self.answers}
        if missing:
            result = {"resultType": "input_required", "inputRequests": missing}
            if keep_state:
                result["requestState"] = json.dumps(self.answers)
            raise InputRequired(result)
        if keep_state and not self.resumed:
            raise MCPError(types.INVALID_PARAMS, "requestState is missing")
        return {key: self.answers[key] for key in requests}

    async def _ask_by_request(self, request):
        _, request_type, result_type = ASKED[request["method"]]
        about = ServerMessageMetadata(related_request_id=self.ctx.request_id)
        answer = await self.ctx.session.send_request(
            request_type.model_validate(request), result_type, metadata=about
        )
        return plain(answer)

    async def log(self, data):
        await self.ctx.session.send_log_message("info", data, related_request_id=self.ctx.request_id)

    async def changed(self, event, notify):
        """Tells the clients of both eras: on `subscriptions/listen` streams, or on their connection."""
        await bus.publish(event)
        if not self.modern:
            await notify()


def plain(answer):
    return answer if isinstance(answer, dict) else answer.model_dump(mode="json", by_alias=True)


def always(blocks):
    async def answer(_call, _arguments):
        return {"content": blocks}

    return answer


async def repeat(_, arguments):
    return says(json.dumps(arguments))


async def logging_tool(call, _):
    for step in ("started", "processing data", "completed"):
        await call.log(f"Tool execution {step}")
        await asyncio.sleep(STEP)
    return says("Tool with logging executed successfully")


async def progress_tool(call, _):
    for progress in (0, 50, 100):
        await call.ctx.session.report_progress(progress, 100, f"Completed step {progress} of 100")
        await asyncio.sleep(STEP)
    return says("Tool with progress executed successfully")


async def sampling(call, arguments):
    answer = await call.ask(answer=content.sample(arguments["prompt"]))
    return says(f"LLM response: {answer['answer']['content']['text']}")


async def elicited(call, key, request, keep_state=False):
    answer = (await call.ask(keep_state, **{key: request}))[key]
    return says(f"User response: action={answer['action']}, content={json.dumps(answer.get('content'))}")


async def greet(call, _):
    answer = (await call.ask(user_name=content.ASK_NAME))["user_name"]
    return says(f"Hello, {(answer.get('content') or {}).get('name')}!")


async def confirm(call, _):
    await call.ask(keep_state=True, confirm=content.ASK_OK)
    return says("state-ok")


async def roots(call, _):
    answer = await call.ask(client_roots=content.ROOTS)
    return says("Roots: " + ", ".join(root["uri"] for root in answer["client_roots"]["roots"]))


async def many_inputs(call, _):
    answers = await call.ask(
        keep_state=True,
        user_name=content.ASK_NAME,
        greeting=content.ASK_GREETING,
        client_roots=content.ROOTS,
    )
    return says(json.dumps(answers))


async def many_rounds(call, _):
    answers = await call.ask(keep_state=True, step1=content.ASK_FIRST_NAME)
    answers |= await call.ask(keep_state=True, step2=content.ASK_COLOR)
    return says(json.dumps(answers))


async def whatever_the_client_can(call, _):
    wanted = {"user_name": content.ASK_NAME, "capital_question": content.ASK_CAPITAL}
    able = {key: request for key, request in wanted.items() if call.can(ASKED[request["method"]][0])}
    if call.modern:
        return says(json.dumps(await call.ask(**able)))
    # Before 2026 one asks for what one needs most, if the client can do it at all.
    key = next(reversed(able), None)
    return says(json.dumps(await call.ask(**{key: able[key]}) if key else {}))


async def fail(*_):
    return says("This tool intentionally returns an error for testing", isError=True)


async def change_tools(call, _):
    await call.changed(ToolsListChanged(), call.ctx.session.send_tool_list_changed)
    return says("tools changed")


async def change_prompts(call, _):
    await call.changed(PromptsListChanged(), call.ctx.session.send_prompt_list_changed)
    return says("prompts changed")


async def update_resource(call, _):
    async def notify():
        if content.WATCHED in subscribed:
            await call.ctx.session.send_resource_updated(content.WATCHED)

    await call.changed(ResourceUpdated(content.WATCHED), notify)
    return says("resource updated")


TOOLS = {
    **{name: always(blocks) for name, blocks in content.STATIC_ANSWERS.items()},
    "test_tool_with_logging": logging_tool,
    "test_tool_with_progress": progress_tool,
    "test_error_handling": fail,
    "test_sampling": sampling,
    "test_elicitation": lambda call, a: elicited(call, "user", content.ask_user(a["message"])),
    "test_elicitation_sep1034_defaults": lambda call, _: elicited(call, "values", content.ASK_WITH_DEFAULTS),
    "test_elicitation_sep1330_enums": lambda call, _: elicited(call, "values", content.ASK_WITH_ENUMS),
    "json_schema_2020_12_tool": repeat,
    "test_custom_headers": repeat,
    "test_missing_capability": lambda call, _: sampling(call, {"prompt": "Are you there?"}),
    "test_streaming_elicitation": greet,
    "test_logging_tool": logging_tool,
    "test_trigger_tool_change": change_tools,
    "test_trigger_prompt_change": change_prompts,
    "test_trigger_resource_update": update_resource,
    "test_input_required_result_elicitation": greet,
    "test_input_required_result_sampling": lambda call, _: sampling(call, {"prompt": content.CAPITAL}),
    "test_input_required_result_list_roots": roots,
    "test_input_required_result_request_state": confirm,
    "test_input_required_result_multiple_inputs": many_inputs,
    "test_input_required_result_multi_round": many_rounds,
    "test_input_required_result_tampered_state": confirm,
    "test_input_required_result_capabilities": whatever_the_client_can,
}


def listed(items):
    return [item | {"name": item["name"].removeprefix(LEFT_OUT)} for item in items] if bare else items


def named(params, known):
    """The params with the name that is known here."""
    whole = LEFT_OUT + params.name
    return params.model_copy(update={"name": whole}) if bare and whole in known else params


async def list_tools(_ctx, _params):
    return {"tools": listed([content.tool(name) for name in TOOLS])}


async def call_tool(ctx, params):
    params = named(params, TOOLS)
    if params.name not in TOOLS:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    call = Call(ctx, params)
    try:
        return await TOOLS[params.name](call, params.arguments or {})
    except InputRequired as round_over:
        return round_over.result
    except MCPError as refusal:
        if call.modern:
            raise
        return says(f"Error: {refusal}", isError=True)


async def list_resources(_ctx, _params):
    return {"resources": content.RESOURCE_LIST}


async def list_templates(_ctx, _params):
    return {"resourceTemplates": content.TEMPLATE_LIST}


async def read_resource(ctx, params):
    uri = params.uri
    if uri in content.RESOURCES:
        return {"contents": [{"uri": uri, **content.RESOURCES[uri]}]}
    if uri.startswith(content.TEMPLATE_HEAD) and uri.endswith(content.TEMPLATE_TAIL):
        key = uri[len(content.TEMPLATE_HEAD) : -len(content.TEMPLATE_TAIL)]
        data = {"id": key, "templateTest": True, "data": f"Data for ID: {key}"}
        return {"contents": [{"uri": uri, "mimeType": "application/json", "text": json.dumps(data)}]}
    modern = ctx.protocol_version >= MODERN
    raise MCPError(types.INVALID_PARAMS if modern else NOT_FOUND_BEFORE_2026, "Resource not found", {"uri": uri})


async def subscribe(_ctx, params):
    subscribed.add(params.uri)
    return {}


async def unsubscribe(_ctx, params):
    subscribed.discard(params.uri)
    return {}


async def list_prompts(_ctx, _params):
    return {"prompts": listed(content.PROMPT_LIST)}


async def get_prompt(ctx, params):
    params = named(params, [prompt["name"] for prompt in content.PROMPT_LIST])
    if params.name == content.PROMPT_THAT_ASKS:
        try:
            answer = await Call(ctx, params).ask(user_context=content.ASK_CONTEXT)
        except InputRequired as round_over:
            return round_over.result
        said = json.dumps(answer["user_context"].get("content"))
        return {"messages": [content.user(content.text_block(f"Context: {said}"))]}
    if params.name not in content.PROMPTS:
        raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    _, messages = content.PROMPTS[params.name]
    try:
        return {"messages": messages(params.arguments or {})}
    except KeyError as missing:
        raise MCPError(types.INVALID_PARAMS, f"Missing argument: {missing}") from None


async def complete(_ctx, params):
    values = [word for word in content.COMPLETIONS if word.startswith(params.argument.value)]
    return {"completion": {"values": values, "total": len(values), "hasMore": False}}


async def set_level(_ctx, _params):
    return {}


def whole(handler):
    """The result as the modern era wants it; the SDK sieves `resultType` out for the older ones."""

    async def handle(ctx, params):
        return {"resultType": "complete", **await handler(ctx, params)}

    return handle


def build():
    server = Server(
        NAME,
        version=VERSION,
        instructions="Answers what the conformance suite asks.",
        cache_hints={method: CacheHint(ttl_ms=1000, scope="public") for method in CACHEABLE_METHODS},
        on_list_tools=whole(list_tools),
        on_call_tool=whole(call_tool),
        on_list_resources=whole(list_resources),
        on_list_resource_templates=whole(list_templates),
        on_read_resource=whole(read_resource),
        on_subscribe_resource=subscribe,
        on_unsubscribe_resource=unsubscribe,
        on_subscriptions_listen=ListenHandler(bus),
        on_list_prompts=whole(list_prompts),
        on_get_prompt=whole(get_prompt),
        on_completion=whole(complete),
        on_set_logging_level=set_level,
    )
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=NAME))
    return server


async def serve_stdio(server, legacy, modern):
    changes = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
    options = server.create_initialization_options(changes)
    async with stdio_server() as (read, write):
        if legacy:  # the SDK's loop of the handshake alone: `server/discover` is not found there
            await serve_loop(server, read, write, lifespan_state={}, init_options=options)
        elif modern:  # the half of the SDK's loop that an opening request of 2026-07-28 chooses
            await _serve_modern_stream(server, read, write, lifespan_state={}, raise_exceptions=False)
        else:
            await server.run(read, write, options)


def serve_http(server, port, legacy):
    import uvicorn

    app = server.streamable_http_app()
    if legacy:
        app = refuse_modern(app)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def refuse_modern(app):
    """Answers a version header of the newer era as the SDK 1.x does."""
    said = "Bad Request: Unsupported protocol version"
    body = json.dumps({"jsonrpc": "2.0", "id": "server-error", "error": {"code": -32600, "message": said}})

    async def guarded(scope, receive, send):
        version = dict(scope.get("headers") or ()).get(b"mcp-protocol-version", b"")
        if version.decode("latin-1") < MODERN:
            return await app(scope, receive, send)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})

    return guarded


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--legacy", action="store_true", help="know nothing of 2026-07-28")
    parser.add_argument("--modern", action="store_true", help="speak 2026-07-28 alone, on stdio")
    parser.add_argument("--bare", action="store_true", help=f"leave {LEFT_OUT} out of all names")
    parser.add_argument("--http", type=int, metavar="PORT", help="serve the SDK's HTTP instead of stdio")
    wanted = parser.parse_args()
    global bare
    bare = wanted.bare
    logging.basicConfig(level=logging.WARNING)  # on stderr
    warnings.simplefilter("ignore", MCPDeprecationWarning)  # legacy clients live on what is deprecated
    server = build()
    if wanted.http:
        serve_http(server, wanted.http, wanted.legacy)
    else:
        asyncio.run(serve_stdio(server, wanted.legacy, wanted.modern))


if __name__ == "__main__":
    main()
