// A client that got its tokens with openid-client. The first argument is JSON: the issuer, and what to
// ask for. Prints what the library made of each answer, as a JSON array.
import * as client from 'openid-client';

const { issuer, requests } = JSON.parse(process.argv[2]);

// How each method is configured in the library; a header of one's own is its documented extension.
const authentication = {
    basic: (secret) => client.ClientSecretBasic(secret),
    post: (secret) => client.ClientSecretPost(secret),
    header: (secret) => (_server, _client, _body, headers) => headers.set('x-api-key', secret),
};

const answers = [];
for (const { method, id, secret, parameters } of requests) {
    const config = await client.discovery(
        new URL(`${issuer}/.well-known/oauth-authorization-server`),
        id,
        undefined,
        authentication[method](secret),
        { execute: [client.allowInsecureRequests] },
    );
    if (config.serverMetadata().issuer !== issuer) {
        throw new Error(`the metadata names ${config.serverMetadata().issuer}`);
    }
    try {
        answers.push(await client.clientCredentialsGrant(config, new URLSearchParams(parameters)));
    } catch (error) {
        if (!(error instanceof client.ResponseBodyError) && !(error instanceof client.WWWAuthenticateChallengeError)) {
            throw error;
        }
        answers.push({ error: error.error ?? error.cause?.[0]?.scheme, status: error.status });
    }
}
console.log(JSON.stringify(answers));
