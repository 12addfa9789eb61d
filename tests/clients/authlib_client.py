"""A client that got its tokens with Authlib, exchanges, introspects and revokes them. The first argument
is JSON: the issuer, and what to do. Prints what the library made of each answer, as a JSON array."""

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
        revocation_endpoint_auth_method=METHODS[request["method"]],
    ) as session:
        parameters = dict(request.get("parameters", []))
        what = request.get("what", "token")
        grant = request.get("grant", "client_credentials")
        try:
            if what in ("token", "exchange"):
                answers.append(
                    session.fetch_token(
                        server["token_endpoint"], grant_type=grant, **parameters
                    )
                )
                continue
            if what == "introspect":
                told = session.introspect_token(
                    server["introspection_endpoint"], token=request["token"]
                )
            else:
                told = session.revoke_token(
                    server["revocation_endpoint"], token=request["token"]
                )
            told.raise_for_status()
            answers.append(told.json())
        except OAuthError as error:
            answers.append({"error": error.error})
print(json.dumps(answers))
