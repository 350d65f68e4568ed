"""HTTP as the tests need it: plain requests, Open WebUI's API, and the signed tokens that it sends."""

import base64
import hashlib
import hmac
import http.client
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self):
        return json.loads(self.body)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def request(method, url, body=None, headers=None, trust=None, timeout=120):
    """Every status is an answer; only a broken connection raises OSError."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    context = ssl.create_default_context(cadata=trust) if trust else None
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirects
    )
    try:
        with opener.open(urllib.request.Request(url, data, headers, method=method), timeout=timeout) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, error.read())


def wait_for(what, condition, seconds=60):
    """Its first true value."""
    until = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.2)


def answers(url, status=200, **options):
    def asked():
        try:
            return request("GET", url, timeout=5, **options).status == status
        except OSError:
            return False

    return asked


def user_token(user, secret):
    """X-OpenWebUI-User-Jwt, as Open WebUI signs it."""

    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    now = int(time.time())
    claims = {"sub": user, "iat": now, "exp": now + 300}
    signed = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()) + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(hmac.digest(secret.encode(), signed, hashlib.sha256))).decode()


class OpenWebUI:
    """Its API, for one person."""

    def __init__(self, url, trust=None):
        self.url, self.trust, self.token = url, trust, None

    def call(self, method, path, body=None):
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        answer = request(method, self.url + path, body, headers, trust=self.trust)
        if answer.status != 200:
            raise AssertionError(f"{method} {path}: {answer.status} {answer.body[:500]!r}")
        return answer.json()

    def sign(self, how, **who):
        self.token = self.call("POST", f"/api/v1/auths/{how}", who)["token"]
        return self

    def plain_user(self, name):
        """As an administrator: makes somebody who may only use what was given to him."""
        who = {"email": f"{name}@x.example", "password": "a-Long-one-1"}
        self.call("POST", "/api/v1/auths/add", {**who, "name": name, "role": "user"})
        return OpenWebUI(self.url, self.trust).sign("signin", **who)

    def tools(self):
        return {tool["id"] for tool in self.call("GET", "/api/v1/tools/")}

    def wait_for_tools(self, *servers):
        """Open WebUI asks each bridge's document anew, and leaves out what a busy machine answers too late."""
        wanted = {f"server:{name}" for name in servers}
        wait_for(f"{sorted(wanted)} in Open WebUI", lambda: wanted <= self.tools(), 120)


def first_admin(url, trust=None):
    who = {"name": "Admin", "email": "admin@x.example", "password": "a-Long-one-1"}
    return OpenWebUI(url, trust).sign("signup", **who)
