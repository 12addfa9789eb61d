// A client that got its tokens with openid-client, exchanges, introspects and revokes them. The first
// argument is JSON: the issuer, and what to do. Prints what the library made of each answer, as a JSON array.
import * as client from 'openid-client';

const { issuer, requests } = JSON.parse(process.argv[2]);

// How each method is configured in the library; a header of one's own is its documented extension.
const authentication = {
    basic: (secret) => client.ClientSecretBasic(secret),
    post: (secret) => client.ClientSecretPost(secret),
    header: (secret) => (_server, _client, _body, headers) => headers.set('x-api-key', secret),
};

// What each request does; a token is asked for unless it says.
const doing = {
    token: (config, { parameters }) => client.clientCredentialsGrant(config, new URLSearchParams(parameters)),
    exchange: (config, { grant, parameters }) =>
        client.genericGrantRequest(config, grant, new URLSearchParams(parameters)),
    introspect: (config, { token }) => client.tokenIntrospection(config, token),
    introspect_jwt: (config, { token }) => client.tokenIntrospection(config, token),
    revoke: async (config, { token }) => (await client.tokenRevocation(config, token)) ?? null,
};

const answers = [];
for (const request of requests) {
    const { what = 'token', method, id, secret } = request;
    const config = await client.discovery(
        new URL(`${issuer}/.well-known/oauth-authorization-server`),
        id,
        what === 'introspect_jwt' ? { introspection_signed_response_alg: 'ES256' } : undefined,
        authentication[method](secret),
        { execute: [client.allowInsecureRequests] },
    );
    if (config.serverMetadata().issuer !== issuer) {
        throw new Error(`the metadata names ${config.serverMetadata().issuer}`);
    }
    try {
        answers.push(await doing[what](config, request));
    } catch (error) {
        if (!(error instanceof client.ResponseBodyError) && !(error instanceof client.WWWAuthenticateChallengeError)) {
            throw error;
        }
        answers.push({ error: error.error ?? error.cause?.[0]?.scheme, status: error.status });
    }
}
console.log(JSON.stringify(answers));
