"""A resource server that verifies tokens with PyJWT, knowing where the keys are and nothing else. The
first argument is JSON. Prints for each token what it says, or why it is refused."""

import json
import sys

import jwt

asked = json.loads(sys.argv[1])
keys = jwt.PyJWKClient(asked["jwks_uri"])

told = []
for one in asked["tokens"]:
    try:
        key = keys.get_signing_key_from_jwt(one["token"])
        claims = jwt.decode(
            one["token"],
            key,
            algorithms=[key.algorithm_name],
            issuer=asked["issuer"],
            audience=one["audience"],
            options={"require": ["exp", "iat", "iss", "aud", "sub", "jti"]},
        )
        told.append({"claims": claims})
    except (jwt.InvalidTokenError, jwt.PyJWKClientError) as error:
        told.append({"refused": type(error).__name__})
print(json.dumps(told))
