"""A node with keys to verify, and texts that look like keys."""

import json, random, secrets, subprocess, urllib.error, urllib.request, zlib

from .machine import Process, free_address, resident_mib, wait_for, wait_until

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BATCH = 500


def checksummed(text):
    number, tail = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        tail = DIGITS[digit] + tail
    return text + tail


def digits(count):
    return "".join(random.choices(DIGITS, k=count))


def stranger():
    """A key that nobody issued: its lookup id is unknown, its checksum right."""
    return checksummed(f"ks_live_{digits(12)}_{digits(43)}")


def with_another_secret(key):
    """A key with the lookup id of one that was issued, and another secret."""
    public = key.rsplit("_", 1)[0]
    return checksummed(f"{public}_{digits(43)}")


class Api:
    def __init__(self, address, key=None):
        self.base, self.key = f"http://{address}", key

    def raw(self, method, path, body=None, key=None):
        headers = {"content-type": "application/json"}
        if key or self.key:
            headers["x-api-key"] = key or self.key
        return self.send(method, path, headers, None if body is None else json.dumps(body))

    def send(self, method, path, headers, text=None):
        """The body of the answer, as it came."""
        return self.answer(method, path, headers, text)[1]

    def answer(self, method, path, headers, text=None):
        """The headers of the answer and its body, as it came."""
        data = None if text is None else text.encode()
        request = urllib.request.Request(self.base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.headers.items(), answer.read()
        except urllib.error.HTTPError as error:
            problem = error.read(4_000).decode(errors="replace")
            raise RuntimeError(f"{method} {path}: {error.code} {problem}") from error

    def call(self, *request, **more):
        return json.loads(self.raw(*request, **more))


class Verify:
    """A verification of a key, as a service asks for it."""

    path, media_type = "/v1/verify", "application/json"

    def headers(self, node, key):
        return {"x-api-key": node.caller}

    def body(self, node, key):
        return json.dumps(node.body(key), separators=(",", ":"))


class Introspect:
    """An introspection of a key, or of a token, as a service asks for it."""

    path, media_type = "/oauth/introspect", "application/x-www-form-urlencoded"

    def __init__(self, asker, accept=None):
        self.asker, self.accept = asker, accept

    def headers(self, node, key):
        accept = {"accept": self.accept} if self.accept else {}
        return {"x-api-key": self.asker, **accept}

    def body(self, node, key):
        # Neither a key nor a token holds a character that a form would have to escape.
        return f"token={key}"


class IssueToken:
    """The swap of a key for an access token, by its holder."""

    path, media_type = "/oauth/token", "application/x-www-form-urlencoded"

    def headers(self, node, key):
        return {"x-api-key": key}

    def body(self, node, key):
        return "grant_type=client_credentials"


VERIFY = Verify()


class Node:
    """A keystead that a caller may verify keys at. `keys` are those issued through its API."""

    def __init__(self, programs, scratch, name, keys, limits=(), settings=None):
        self.programs, self.name = programs, name
        self.folder = scratch / name
        self.log = open(scratch / f"{name}.log", "wb")
        self.environment = {
            "KEYSTEAD__DATA_DIR": str(self.folder),
            "KEYSTEAD__SERVER__WORKERS": "1",
            "KEYSTEAD__SERVER__DRAIN_DELAY": "0s",
            "KEYSTEAD__ARGON2__MEMORY_KIB": "8",
            "KEYSTEAD__ARGON2__PASSES": "1",
            "KEYSTEAD__ARGON2__DANGEROUS_WEAK_ARGON2": "true",
            **(settings or {}),
        }
        if "KEYSTEAD__DATABASE__URL" in self.environment:
            self.environment["KEYSTEAD__SECRETS__MASTER_KEY"] = secrets.token_hex(32)
        self.process = None
        try:
            self.start()
            self.set_up(keys, limits)
        except BaseException:
            self.stop()
            raise

    def set_up(self, keys, limits):
        self.owner = (self.folder / "owner.key").read_text().strip()
        api = Api(self.address, self.owner)
        api.call("POST", "/v1/services", {
            "slug": "invoicing", "scopes": [{"name": "invoice:read"}, {"name": "invoice:send"}],
        })
        api.call("POST", "/v1/consumers", {"slug": "acme", "name": "ACME"})
        self.caller = api.call("POST", "/v1/keys", {
            "name": "gateway", "consumer": "acme",
            "grants": [{"service": "keystead", "scopes": ["verify:invoicing"]}],
        })["api_key"]
        self.keys, self.key_id = [], None
        while len(self.keys) < keys:
            count = min(BATCH, keys - len(self.keys))
            made = api.call("POST", "/v1/keys/batch", {"items": [{
                "name": "a worker of acme", "consumer": "acme", "rate_limits": list(limits),
                "grants": [{"service": "invoicing", "scopes": ["invoice:read", "invoice:send"]}],
            }] * count})
            self.keys += [item["api_key"] for item in made["items"]]
            self.key_id = made["items"][0]["key"]["id"]
        # The verifiers of a batch are computed afterwards, on the same core.
        wait_until(lambda: self.metric("keystead_verifiers_pending ") == 0)

    def start(self, wrap=()):
        """Starts it, within another program if need be, and says after how many seconds it was ready."""
        self.address = free_address()
        self.process = Process(
            [*wrap, self.programs.keystead, "serve"],
            {**self.environment, "KEYSTEAD__SERVER__LISTEN": self.address}, self.log,
        )
        return wait_for(self.address, "/health/ready", pause=0.005)

    def fill(self, count, lines):
        """Copies one of its keys so often, straight into the database, while it is stopped."""
        subprocess.run(
            [self.programs.fill, self.key_id, str(count), lines], check=True,
            env={**self.environment, "KEYSTEAD__SERVER__LISTEN": self.address},
        )

    def body(self, key):
        return {"api_key": key, "service": "invoicing", "required_scopes": ["invoice:read"]}

    def ask(self, asked, key):
        """The body of the answer to what is asked about a key, as it came."""
        return self.answer(asked, key)[1]

    def answer(self, asked, key):
        """The same with its headers."""
        headers = {"content-type": asked.media_type, **asked.headers(self, key)}
        return Api(self.address).answer("POST", asked.path, headers, asked.body(self, key))

    def asker(self):
        """A key that may introspect for the service of the others."""
        return Api(self.address, self.owner).call("POST", "/v1/keys", {
            "name": "introspector", "consumer": "acme",
            "grants": [{"service": "keystead", "scopes": ["introspect:invoicing"]}],
        })["api_key"]

    def tokens(self):
        """An access token of each of its keys, of the longest life there is."""
        api = Api(self.address, self.owner)
        api.call("PATCH", "/v1/services/invoicing", {"tokens": {"ttl": "15m"}})
        return [json.loads(self.ask(IssueToken(), key))["access_token"] for key in self.keys]

    def metric(self, line):
        """The value of the line of /metrics that begins so."""
        text = Api(self.address).raw("GET", "/metrics").decode()
        values = [row.rsplit(" ", 1)[1] for row in text.splitlines() if row.startswith(line)]
        return sum(map(float, values))

    def resident_mib(self):
        return resident_mib(self.process.child.pid)

    def stop(self):
        if self.process:
            self.process.stop()
