"""Reading what a Streamable HTTP server may answer, and saying which contender was not there."""

import json
import unittest

from bench.__main__ import installed
from bench.contender import Contender, Fault, Missing
from bench.contenders.peers import Peer
from bench.mcp_line import response_in
from bench.report import table
from bench.rounds import Samples

JSON, SSE = "application/json", "text/event-stream"
RESPONSE = {"jsonrpc": "2.0", "id": 7, "result": {}}
NOTE = {"jsonrpc": "2.0", "method": "notifications/message", "params": {}}


def stream(*messages, end="\n"):
    return "".join(f"event: message{end}data: {json.dumps(one)}{end}{end}" for one in messages).encode()


class Answers(unittest.TestCase):
    def test_json_and_sse_say_the_same(self):
        self.assertEqual(response_in(JSON, json.dumps(RESPONSE).encode(), 7), RESPONSE)
        self.assertEqual(response_in(SSE, stream(RESPONSE), 7), RESPONSE)
        self.assertEqual(response_in(SSE, stream(RESPONSE, end="\r\n"), 7), RESPONSE)

    def test_pings_priming_and_notifications_are_no_response(self):
        before = b": ping\n\nid: 1\ndata: \n\n" + stream(NOTE)
        self.assertEqual(response_in(SSE, before + stream(RESPONSE), 7), RESPONSE)

    def test_data_on_two_lines_is_one_message(self):
        self.assertEqual(response_in(SSE, b'data: {"id":\ndata: 7, "result": {}}\n\n', 7)["id"], 7)

    def test_anything_but_one_response_of_this_request_is_a_fault(self):
        for body in (stream(), stream(NOTE), stream(RESPONSE, RESPONSE), stream({**RESPONSE, "id": 8})):
            with self.assertRaises(Fault):
                response_in(SSE, body, 7)

    def test_a_stream_that_breaks_off_is_a_fault(self):
        with self.assertRaises(Fault):
            response_in(SSE, stream(RESPONSE).removesuffix(b"\n"), 7)

    def test_another_type_is_a_fault(self):
        with self.assertRaisesRegex(Fault, "text/html"):
            response_in("text/html", b"<p>", 7)


class Here(Contender):
    name = "here"

    def __exit__(self, *_):
        pass

    def connect(self):
        raise AssertionError


class Gone(Peer):
    name = "gone"
    installs = [["sh", "-c", "echo no network >&2; exit 1"]]


class MissingPeers(unittest.TestCase):
    def test_a_peer_that_cannot_be_installed_is_named_with_the_reason(self):
        here = Here()
        running, missing = installed([here, Gone()])
        self.assertEqual(running, [here])
        self.assertEqual(list(missing), ["gone"])
        self.assertIn("no network", missing["gone"])

    def test_its_tool_may_be_missing_too(self):
        class NoTool(Gone):
            installs = [["scripts/there-is-no-such-script"]]

        with self.assertRaises(Missing):
            NoTool().install()

    def test_the_table_has_a_line_for_it(self):
        lines = table({"stdio": Samples([[1_000_000]])}, ["stdio"], ["gone"]).splitlines()
        self.assertEqual(lines[-1].split(), ["gone", "missing", "-", "-", "-", "-"])


if __name__ == "__main__":
    unittest.main()
