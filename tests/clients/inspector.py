"""The Inspector's two command lines as clients of the fixture: inspector.py URL legacy|modern.

`inspector --cli` does one request for each run and declares no elicitation; `mcpdo` keeps a
connection and can answer one. Neither shows progress notes: the call that sends them must end well.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile

import expect


class Mcpdo:
    """A connection of a daemon of our own."""

    def __init__(self, url, era, env):
        self._env = dict(env)
        for line in self._run("private").splitlines():
            for word in shlex.split(line.removeprefix("export ")):
                name, _, value = word.rstrip(";").partition("=")
                self._env[name] = value
        self._era = era
        connected = self("connect", url, "--transport", "http", "--era", era, "--connection", era)
        expect.same("the era", connected["protocolEra"], era)

    def __call__(self, *words):
        return json.loads(self._run("--connection", self._era, "--format", "json", *words))

    def _run(self, *words):
        return run(["mcpdo", *words], self._env)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(
            ["mcpdo", "daemon", "stop"], env=self._env, stdin=subprocess.DEVNULL, capture_output=True, timeout=expect.LIMIT
        )


def run(command, env):
    ran = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=expect.LIMIT
    )
    if ran.returncode != 0:
        raise expect.Miss(f"{' '.join(command)} ended with {ran.returncode}: {ran.stdout}{ran.stderr}")
    return ran.stdout


def once(url, era, env, method, *more):
    command = ["inspector", "--cli", url, "--transport", "http", "--protocol-era", era, "--method", method]
    return json.loads(run([*command, "--format", "json", "--quiet", *more], env))["result"]


def use(url, era):
    with tempfile.TemporaryDirectory(prefix="mcpo-inspector-") as home:  # the user's own is not touched
        env = os.environ | {"HOME": home, "MCP_INSPECTOR_SECRET_STORE": "memory"}
        ask_once(url, era, env)
        with Mcpdo(url, era, env) as mcpdo:
            be_asked(mcpdo)


def ask_once(url, era, env):
    expect.listed([tool["name"] for tool in once(url, era, env, "tools/list")["tools"]])
    called = once(url, era, env, "tools/call", "--tool-name", expect.TEXT_TOOL)
    expect.same("a call", called["content"][0]["text"], expect.TEXT)
    called = once(url, era, env, "tools/call", "--tool-name", expect.PROGRESS_TOOL)
    expect.same("a call with progress", called["content"][0]["text"], expect.PROGRESS_TEXT)


def be_asked(mcpdo):
    pending = mcpdo("tools/call", expect.ELICITING_TOOL, json.dumps(expect.QUESTION))["elicitationPending"]
    expect.same("the question", pending["message"], expect.QUESTION["message"])
    fields = [f"{name}:={value}" for name, value in expect.ANSWER.items()]
    called = mcpdo("elicitation/respond", pending["elicitationId"], *fields)
    expect.same("the elicitation's answer", called["content"][0]["text"], expect.ANSWERED)


if __name__ == "__main__":
    use(*sys.argv[1:])
