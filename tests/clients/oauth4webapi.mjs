// A client that got its tokens with oauth4webapi. The first argument is JSON: the issuer, and what to
// ask for. Prints what the library made of each answer, as a JSON array.
import * as oauth from 'oauth4webapi';

const { issuer, requests } = JSON.parse(process.argv[2]);
const http = { [oauth.allowInsecureRequests]: true };

// How each method is configured in the library; a header of one's own is its documented extension.
const authentication = {
    basic: (secret) => oauth.ClientSecretBasic(secret),
    post: (secret) => oauth.ClientSecretPost(secret),
    header: (secret) => (_server, _client, _body, headers) => headers.set('x-api-key', secret),
};

const url = new URL(issuer);
const discovered = await oauth.discoveryRequest(url, { ...http, algorithm: 'oauth2' });
const server = await oauth.processDiscoveryResponse(url, discovered);

const answers = [];
for (const { method, id, secret, parameters } of requests) {
    const client = { client_id: id };
    const response = await oauth.clientCredentialsGrantRequest(
        server,
        client,
        authentication[method](secret),
        new URLSearchParams(parameters),
        http,
    );
    try {
        answers.push(await oauth.processClientCredentialsResponse(server, client, response));
    } catch (error) {
        if (!(error instanceof oauth.ResponseBodyError) && !(error instanceof oauth.WWWAuthenticateChallengeError)) {
            throw error;
        }
        answers.push({ error: error.error ?? error.cause?.[0]?.scheme, status: error.status });
    }
}
console.log(JSON.stringify(answers));
