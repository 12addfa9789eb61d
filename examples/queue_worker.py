"""A worker of a queue that verifies the token in a message by itself, with PyJWT and the key set alone, and
gets a token of its own for a message whose token has ended while it waited.

Messages come on standard input, a line of JSON each: {"job": .., "token": ..}. For each a line says with
which token the job is done. Settings: KEYSTEAD is the server's URL, WORKER the worker's client id and API
key ("backend:ks_live_..."), AUDIENCE the service that the jobs are for.

pip install "PyJWT[crypto]"
"""

import argparse
import base64
import json
import os
import sys
import time
import urllib.parse
import urllib.request

import jwt


class Worker:
    def __init__(self, issuer, credentials, audience, late):
        self.issuer, self.credentials, self.audience, self.late = issuer, credentials, audience, late
        with urllib.request.urlopen(f"{issuer}/.well-known/oauth-authorization-server", timeout=5) as answer:
            metadata = json.load(answer)
        # It keeps the keys and asks again for one that it does not know.
        self.keys = jwt.PyJWKClient(metadata["jwks_uri"], timeout=5)
        self.token_endpoint = metadata["token_endpoint"]

    def verified(self, token, late=0):
        """What the token says. A token of Keystead's that has ended is a jwt.ExpiredSignatureError."""
        key = self.keys.get_signing_key_from_jwt(token)
        claims = jwt.decode(
            token, key, algorithms=[key.algorithm_name], issuer=self.issuer, audience=self.audience,
            options={"require": ["exp", "iat", "iss", "aud", "sub", "jti"]},
        )
        if claims["exp"] <= time.time() + late:
            raise jwt.ExpiredSignatureError("it has ended")
        return claims

    def own(self):
        """A token of the worker's own, by client credentials."""
        halves = [urllib.parse.quote_plus(half) for half in self.credentials.split(":", 1)]
        basic = base64.b64encode(":".join(halves).encode()).decode()
        form = {"grant_type": "client_credentials", "audience": self.audience}
        request = urllib.request.Request(
            self.token_endpoint, urllib.parse.urlencode(form).encode(), {"authorization": f"Basic {basic}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)["access_token"]

    def token_for(self, message):
        """The token that a job is done with, whose it is, and what it may do."""
        try:
            claims = self.verified(message["token"], self.late)
            return message["token"], "the message's", claims["scope"]
        except jwt.ExpiredSignatureError:
            # Signed by Keystead, so the message is one; but whoever sent it may have lost what he had.
            token = self.own()
            return token, "the worker's", self.verified(token)["scope"]


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--late", type=int, default=0, metavar="SECONDS",
                         help="as if the messages had waited so much longer")
    late = options.parse_args().late
    settings = [os.environ[name] for name in ("KEYSTEAD", "WORKER", "AUDIENCE")]
    worker = Worker(*settings, late)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            _token, whose, scope = worker.token_for(message)
            print(json.dumps({"job": message["job"], "with": whose, "scope": scope}))
        except (jwt.InvalidTokenError, jwt.PyJWKClientError) as error:
            print(json.dumps({"job": message.get("job"), "refused": type(error).__name__}))


main()
