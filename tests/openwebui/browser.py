"""Chromium without a window, by its own protocol: signs in, looks at a page, takes a picture.

Runs in Open WebUI's environment, which has aiohttp:
browser.py CHROMIUM TOKEN FOLDER NAME URL WORDS [NAME URL WORDS …]. Each page is photographed once
WORDS are on it.
"""

import asyncio
import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

PATIENCE = 60
# What is new in Open WebUI lies over the first page that somebody sees.
CLOSE_NEWS = """[...document.querySelectorAll('button')]
    .filter(button => button.innerText.trim() === "Okay, Let's Go!").map(button => button.click()).length"""


class Page:
    def __init__(self, socket):
        self._socket, self._numbers = socket, itertools.count(1)

    async def ask(self, method, **params):
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async for message in self._socket:
            answer = json.loads(message.data)
            if answer.get("id") == number:
                return answer.get("result", {})

    async def run(self, script):
        answer = await self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        return answer.get("result", {}).get("value")

    async def until(self, script):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if await self.run(script):
                return True
            await asyncio.sleep(0.3)
        return False


async def look(port, token, folder, pages):
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            tabs = await answer.json()
        url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        async with session.ws_connect(url, max_msg_size=0) as socket:
            page, missing = Page(socket), []
            origin = "/".join(pages[0][1].split("/")[:3])
            await page.ask("Page.navigate", url=f"{origin}/health")
            await page.until(f"location.href.startsWith({origin!r})")
            await page.run(f"localStorage.token = {token!r}; localStorage.locale = 'en-US'")
            for name, address, words in pages:
                there = f"document.body && document.body.innerText.includes({words!r})"
                for _ in range(2):  # a part of the page that did not load leaves it at an error
                    await page.ask("Page.navigate", url=address)
                    if found := await page.until(there):
                        break
                await asyncio.sleep(2)  # pictures and fonts
                if await page.run(CLOSE_NEWS):
                    await asyncio.sleep(1)
                shot = await page.ask("Page.captureScreenshot", format="png")
                (folder / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
                if not found:
                    missing.append(f"{name}: {words!r} is not on the page")
            return missing


def end_group(group):
    """Ends the browser's helper processes, which write to the profile for a moment after the browser has ended."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise SystemExit("the browser's helper processes do not end")


def main():
    chromium, token, folder, *rest = sys.argv[1:]
    pages = list(zip(rest[::3], rest[1::3], rest[2::3], strict=True))
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command += ["--remote-allow-origins=*", "--window-size=1280,900", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            port_file, end = Path(profile) / "DevToolsActivePort", time.monotonic() + PATIENCE
            while not port_file.exists() or not port_file.read_text().strip():
                if time.monotonic() > end:
                    raise SystemExit("Chromium does not start")
                time.sleep(0.2)
            port = port_file.read_text().splitlines()[0]
            missing = asyncio.run(look(port, token, Path(folder), pages))
        finally:
            process.terminate()
            process.wait(30)
            end_group(process.pid)
    if missing:
        raise SystemExit("; ".join(missing))


if __name__ == "__main__":
    main()
