"""fastmcp as a client of the fixture: fastmcp_client.py URL legacy|modern."""

import asyncio
import sys

import expect
from fastmcp import Client
from fastmcp.client.elicitation import ElicitResult


async def answer(message, response_type, _params, _context):
    expect.same("the question", message, expect.QUESTION["message"])
    return ElicitResult(action="accept", content=response_type(**expect.ANSWER))


async def use(url, era):
    mode = expect.MODERN if era == "modern" else "legacy"
    seen = []

    async def note(progress, _total, _message):
        seen.append(progress)

    async with Client(url, mode=mode, elicitation_handler=answer, progress_handler=note) as client:
        expect.same("the era", client.protocol_version >= expect.MODERN, era == "modern")
        expect.listed([tool.name for tool in await client.list_tools()])
        called = await client.call_tool(expect.TEXT_TOOL, {})
        expect.same("a call", called.content[0].text, expect.TEXT)
        await client.call_tool(expect.PROGRESS_TOOL, {})
        expect.same("progress", seen, expect.PROGRESS)
        called = await client.call_tool(expect.ELICITING_TOOL, expect.QUESTION)
        expect.same("the elicitation's answer", called.content[0].text, expect.ANSWERED)


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(use(*sys.argv[1:]), expect.LIMIT))
