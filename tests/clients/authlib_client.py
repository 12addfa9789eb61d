"""A client that got its tokens with Authlib. The first argument is JSON: the issuer, and what to ask
for. Prints what the library made of each answer, as a JSON array."""

import json
import os
import sys

# The library's own switch for http on loopback.
os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"

import requests
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata, get_well_known_url

asked = json.loads(sys.argv[1])
issuer = asked["issuer"]

discovered = requests.get(get_well_known_url(issuer, external=True), timeout=10)
discovered.raise_for_status()
server = AuthorizationServerMetadata(discovered.json())
server.validate()
if server["issuer"] != issuer:
    sys.exit(f"the metadata names {server['issuer']}")


def in_header(client, method, uri, headers, body):
    """A method of one's own is the library's documented extension."""
    headers["x-api-key"] = client.client_secret
    return uri, headers, body


METHODS = {
    "basic": "client_secret_basic",
    "post": "client_secret_post",
    "header": in_header,
}

answers = []
for request in asked["requests"]:
    with OAuth2Session(
        request["id"],
        request["secret"],
        token_endpoint_auth_method=METHODS[request["method"]],
    ) as session:
        parameters = dict(request["parameters"])
        try:
            token = session.fetch_token(
                server["token_endpoint"], grant_type="client_credentials", **parameters
            )
            answers.append(token)
        except OAuthError as error:
            answers.append({"error": error.error})
print(json.dumps(answers))
