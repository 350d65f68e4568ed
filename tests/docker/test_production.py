"""The production files: TLS on one origin, a login for downloads, and a bridge that may do next to nothing."""

import base64
import os
import re
import socket
import ssl
import unittest

import deck
import trustme
from stack import FIXTURES, HEALTH, NAMES, TAG, Stack, docker, free_port, result
from web import answers, first_admin, request, wait_for

FILES = ("docker-compose.yml", "docker-compose.prod.yml")
PLACES = {"command": "python3", "args": ["/app/fixtures/places_server.py"]}
# Stands in for the bridge and tells what nginx sent to it.
MIRROR = """
import http.server
class Mirror(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Set-Cookie", "from=bridge")
        self.end_headers()
        self.wfile.write(f"{self.path}\\n{self.headers}".encode())
http.server.HTTPServer(("", 8080), Mirror).serve_forever()
"""


class Production(unittest.TestCase):
    def test_one_origin_and_a_bridge_without_rights(self):
        http, https = free_port(), free_port()
        self.origin, self.http = f"https://localhost:{https}", f"http://localhost:{http}"
        stack = Stack(
            "production",
            FILES,
            (NAMES, HEALTH, FIXTURES),
            HTTP_PORT=str(http),
            HTTPS_PORT=str(https),
            PUBLIC_URL=self.origin,
        )
        with stack as self.stack:
            stack.configure(chart=deck.CHART, places=PLACES)
            refused = stack.run("up", "-d", check=False)
            self.assertRegex(refused.stderr, "does not exist: .*/certs/")
            self.certificate()
            (stack.folder / "secrets").mkdir(exist_ok=True)
            (stack.folder / "secrets/openai-api-key").write_text("sk-from-a-file\n")
            (stack.folder / "secrets/mcpo-api-key").write_text("mine:the-key-of-the-file\n")
            stack.compose("up", "-d")
            wait_for("nginx answers", answers(self.origin, trust=self.trust))
            for step in (
                self.secrets_come_from_files,
                self.the_bridge_has_no_rights,
                self.nothing_else_is_published,
                self.it_speaks_tls_and_says_so,
                self.web_sockets_pass,
                self.a_deck_is_made_all_the_same,
                self.temporary_files_lie_on_the_volume,
                self.a_download_needs_a_login,
                self.passwords_cannot_be_guessed_fast,
                self.cookies_do_not_reach_the_bridge,
                self.the_login_can_be_switched_off,
                self.a_config_change_reaches_the_volume,
                self.a_renewed_certificate_needs_a_reload_only,
            ):
                with self.subTest(step.__name__):
                    print(f"\n    {step.__name__.replace('_', ' ')}", end=" ", flush=True)
                    step()

    def certificate(self):
        authority = trustme.CA()
        made = authority.issue_cert("localhost")
        folder = self.stack.folder / "certs"
        folder.mkdir(exist_ok=True)
        (folder / "fullchain.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        (folder / "privkey.pem").write_bytes(made.private_key_pem.bytes())
        # As certbot leaves it.
        os.chmod(folder / "privkey.pem", 0o600)
        self.trust = authority.cert_pem.bytes().decode()

    def secrets_come_from_files(self):
        self.assertEqual(self.stack.exec("mcpo-bridge", "cat", "/run/mcpo/api-key"), "mine:the-key-of-the-file")
        environment = self.stack.exec("mcpo-bridge", "env") + self.stack.exec("openwebui", "env")
        self.assertNotIn("the-key-of-the-file", environment)
        process = self.stack.exec("openwebui", "sh", "-c", "tr '\\0' '\\n' </proc/1/environ")
        self.assertIn("OPENAI_API_KEY=sk-from-a-file", process)
        self.assertIn("the-key-of-the-file", process)  # in TOOL_SERVER_CONNECTIONS

    def the_bridge_has_no_rights(self):
        status = self.stack.exec("mcpo-bridge", "cat", "/proc/1/status")
        for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
            self.assertIn(line, status)
        self.assertEqual(self.stack.exec("mcpo-bridge", "id", "-u"), "10001")
        for path in ("/x", "/app/x", "/app/config/x", "/app/assets/x", "/run/mcpo/x", "/usr/local/bin/x"):
            refused = self.stack.run("exec", "-T", "mcpo-bridge", "touch", path, check=False)
            self.assertRegex(refused.stderr, "Read-only file system|Permission denied", path)
        # Open WebUI's secrets are not in reach of the servers that the bridge runs.
        self.assertNotIn("openwebui", self.stack.exec("mcpo-bridge", "ls", "/run"))
        network = docker("network", "inspect", "-f", "{{.Internal}}", f"{self.stack.project}_mcpo-network")
        self.assertEqual(network, "true")

    def temporary_files_lie_on_the_volume(self):
        # `/tmp` is a tmpfs of 64 MB here.
        call = self.stack.inner_chat()
        self.assertEqual(result(call("places", "grow", path="$TMPDIR/big", mib=200)), "grown")
        self.assertRegex(str(call("places", "bind_socket")), r"bound in \.\./tmp, 1\d bytes|bound in \.\./tmp, 2[0-4] bytes")
        size = self.stack.exec("mcpo-bridge", "sh", "-c", "du -m /tmp/mcpo-jobs/*/tmp/big | cut -f1")
        self.assertGreaterEqual(int(size), 200)

    def nothing_else_is_published(self):
        for port in (self.stack.bridge_port, self.stack.webui_port):
            with self.assertRaises(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=2)
        for path in ("/mcpo/time/openapi.json", "/mcp/time", "/metrics"):
            answer = request("GET", self.origin + path, trust=self.trust)
            self.assertNotIn(b"mcp", answer.body[:100].lower(), f"{path} reaches the bridge")

        answer = self.raw("GET /time/..%2ffiles/x HTTP/1.1")  # normalized, it is below /files/
        self.assertIn(b" 404 ", answer.split(b"\r\n")[0])

    def it_speaks_tls_and_says_so(self):
        plain = request("GET", f"{self.http}/some?page")
        self.assertEqual((plain.status, plain.headers["Location"]), (308, f"{self.origin}/some?page"))
        page = request("GET", self.origin, trust=self.trust)
        self.assertEqual(page.status, 200)
        for name in ("Strict-Transport-Security", "X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy"):
            self.assertIn(name, page.headers)
        self.assertNotRegex(page.headers["Server"], r"\d")
        self.assertRegex(self.tls().version(), r"TLSv1\.[23]")
        old = ssl.create_default_context(cadata=self.trust)
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with self.assertRaises(OSError):
            self.tls(old)

    def tls(self, context=None):
        context = context or ssl.create_default_context(cadata=self.trust)
        port = int(self.origin.rpartition(":")[2])
        raw = socket.create_connection(("localhost", port), timeout=10)
        connection = context.wrap_socket(raw, server_hostname="localhost")
        self.addCleanup(connection.close)
        return connection

    def web_sockets_pass(self):
        key = base64.b64encode(os.urandom(16)).decode()
        answer = self.raw(
            "GET /ws/socket.io/?EIO=4&transport=websocket HTTP/1.1",
            f"Origin: {self.origin}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        )
        self.assertIn(b" 101 ", answer.split(b"\r\n")[0])

    def raw(self, *lines):
        """The first bytes of the answer to a request that is sent as it stands."""
        connection = self.tls()
        host = self.origin.removeprefix("https://")
        connection.sendall("\r\n".join([*lines, f"Host: {host}", "", ""]).encode())
        return connection.recv(4096)

    def a_deck_is_made_all_the_same(self):
        deck.wait_until_offered(self.stack, "time", "excel", "powerpoint", "chart")
        self.link = deck.link(deck.make(self.stack.inner_chat()))
        self.assertRegex(self.link, "^/files/", "links are relative to the origin")

    def a_download_needs_a_login(self):
        url = self.origin + self.link
        refused = request("GET", url, trust=self.trust)
        self.assertEqual(refused.status, 401)
        self.assertIn("Log in", refused.body.decode())
        wrong = request("GET", url, headers={"Cookie": "token=eyJhbGciOiJIUzI1NiJ9.e30.AAAA"}, trust=self.trust)
        self.assertEqual(wrong.status, 401)
        user = first_admin(self.origin, self.trust).plain_user("hanako")
        user.wait_for_tools("powerpoint")
        self.cookie = {"Cookie": f"token={user.token}"}
        self.authorization = {"Authorization": f"Bearer {user.token}"}  # as programs send it
        deck.check(self.download(self.cookie))
        deck.check(self.download(self.authorization))
        self.assertEqual(request("HEAD", url, headers=self.cookie, trust=self.trust).status, 200)
        for method in ("POST", "PUT", "DELETE"):
            self.assertEqual(request(method, url, headers=self.cookie, trust=self.trust).status, 405)

    def download(self, headers=None):
        answer = request("GET", self.origin + self.link, headers=headers, trust=self.trust)
        self.assertEqual(answer.status, 200, answer.body[:200])
        self.assertIn("attachment", answer.headers["Content-Disposition"])
        return answer.body

    def passwords_cannot_be_guessed_fast(self):
        who = {"email": "hanako@x.example", "password": "wrong"}
        url = f"{self.origin}/api/v1/auths/signin"
        tries = [request("POST", url, who, trust=self.trust).status for _ in range(40)]
        self.assertIn(429, tries)

    def cookies_do_not_reach_the_bridge(self):
        self.stack.compose("stop", "mcpo-bridge")
        network, name = f"{self.stack.project}_mcpo-network", f"{self.stack.project}-mirror"
        docker("run", "-d", "--rm", "--name", name, "--network", network, "--network-alias", "mcpo-bridge",
               "--entrypoint", "python3", f"mcpo-bridge:{TAG}", "-c", MIRROR)  # fmt: skip
        try:
            sent = {**self.cookie, **self.authorization}
            url = f"{self.origin}/files/t/n"
            wait_for("the mirror answers", answers(url, headers=sent, trust=self.trust), 20)
            seen = request("GET", url, headers=sent, trust=self.trust)
        finally:
            docker("rm", "-f", name)
        self.assertIsNone(re.search("^(cookie|authorization):", seen.body.decode(), re.I | re.M), seen.body)
        self.assertNotIn("Set-Cookie", seen.headers)
        self.stack.compose("start", "mcpo-bridge")
        self.stack.wait_healthy("mcpo-bridge")
        # It has another address now, perhaps: nginx finds it without a restart.
        wait_for("downloads work again", answers(self.origin + self.link, headers=self.cookie, trust=self.trust), 20)

    def the_login_can_be_switched_off(self):
        self.stack.env["DOWNLOAD_LOGIN"] = "off"
        self.stack.compose("up", "-d")
        wait_for("nginx answers", answers(self.origin, trust=self.trust))
        deck.check(self.download())

    def a_config_change_reaches_the_volume(self):
        self.stack.configure(chart=deck.CHART, clock={"command": "python3", "args": ["-c", "pass"]})
        self.stack.compose("up", "-d")
        self.assertIn('"clock"', self.stack.exec("mcpo-bridge", "cat", "/app/config/mcp-servers.json"))

    def a_renewed_certificate_needs_a_reload_only(self):
        self.certificate()  # another authority's
        with self.assertRaises(OSError):
            request("GET", self.origin, trust=self.trust)
        self.stack.exec("nginx", "nginx", "-s", "reload")
        wait_for("nginx shows the new one", answers(self.origin, trust=self.trust), 20)
