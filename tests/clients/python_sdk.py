"""The Python SDK as a client of the fixture: python_sdk.py URL legacy|modern."""

import asyncio
import sys

import expect
from mcp import Client
from mcp.types import ElicitResult


async def answer(_context, params):
    expect.same("the question", params.message, expect.QUESTION["message"])
    return ElicitResult(action="accept", content=expect.ANSWER)


async def use(url, era):
    mode = expect.MODERN if era == "modern" else "legacy"
    seen = []

    async def note(progress, _total, _message):
        seen.append(progress)

    async with Client(url, mode=mode, elicitation_callback=answer) as client:
        expect.same("the era", client.protocol_version >= expect.MODERN, era == "modern")
        expect.listed([tool.name for tool in (await client.list_tools()).tools])
        called = await client.call_tool(expect.TEXT_TOOL, {})
        expect.same("a call", called.content[0].text, expect.TEXT)
        await client.call_tool(expect.PROGRESS_TOOL, {}, progress_callback=note)
        expect.same("progress", seen, expect.PROGRESS)
        called = await client.call_tool(expect.ELICITING_TOOL, expect.QUESTION)
        expect.same("the elicitation's answer", called.content[0].text, expect.ANSWERED)


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(use(*sys.argv[1:]), expect.LIMIT))
