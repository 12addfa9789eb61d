// A resource server that verifies tokens with jose, knowing where the keys are and nothing else. The
// first argument is JSON. Prints for each token what it says, or why it is refused.
import { createRemoteJWKSet, jwtVerify } from 'jose';

const { jwks_uri, issuer, tokens } = JSON.parse(process.argv[2]);
const keys = createRemoteJWKSet(new URL(jwks_uri));

const told = [];
for (const { token, audience } of tokens) {
    try {
        const { payload } = await jwtVerify(token, keys, {
            issuer,
            audience,
            typ: 'at+jwt',
            requiredClaims: ['exp', 'iat', 'jti', 'sub', 'client_id'],
        });
        told.push({ claims: payload });
    } catch (error) {
        if (!error.code?.startsWith('ERR_J')) {
            throw error;
        }
        told.push({ refused: error.code });
    }
}
console.log(JSON.stringify(told));
