"""The official Python client at /mcp beside odd servers: odd_python.py URL legacy|modern."""

import asyncio
import re
import sys

import expect
from mcp import Client

LIMIT = 300  # seconds for everything


async def use(url, era):
    mode = expect.MODERN if era == "modern" else "legacy"
    missed, called = [], 0

    async with Client(url, mode=mode) as client:

        async def attempt(what, asking):
            nonlocal called
            try:
                await asking
                called += 1
            except Exception as error:  # noqa: BLE001: each is counted, and none hides the others
                missed.append(f"{what}: {error}")

        expect.same("the era", client.protocol_version >= expect.MODERN, era == "modern")
        tools = [tool.name for tool in (await client.list_tools()).tools]
        prompts = [prompt.name for prompt in (await client.list_prompts()).prompts]
        resources = [str(resource.uri) for resource in (await client.list_resources()).resources]
        templates = (await client.list_resource_templates()).resource_templates
        print(f"  {len(tools)} tools, {len(prompts)} prompts, {len(resources)} resources, {len(templates)} templates")
        expect.same("the good server's tool is listed", "good_plain" in tools, True)
        for tool in tools:
            # Tools of other collections write files, wait or want arguments.
            if not re.match("quirk|good_ask|good_hello|hello_ask", tool):
                await attempt(tool, client.call_tool(tool, {}))
        for prompt in prompts:
            if prompt.startswith("odd_"):
                await attempt(prompt, client.get_prompt(prompt))
        for uri in resources:
            if re.match("x://(good|nulls|noname)", uri):
                await attempt(uri, client.read_resource(uri))
    print(f"  called {called}")
    for miss in missed:
        print(f"  MISSED {miss}")
    return len(missed)


if __name__ == "__main__":
    sys.exit(asyncio.run(asyncio.wait_for(use(*sys.argv[1:]), LIMIT)) > 0)
