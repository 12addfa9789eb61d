// A client that got its tokens with oauth4webapi, exchanges, introspects and revokes them. The first
// argument is JSON: the issuer, and what to do. Prints what the library made of each answer, as a JSON array.
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

// What each request does, and how the library reads the answer; a token is asked for unless it says.
const introspect = (options) => [
    ({ token }, client, method) =>
        oauth.introspectionRequest(server, client, method, token, { ...http, ...options }),
    (client, response) => oauth.processIntrospectionResponse(server, client, response),
];
const doing = {
    token: [
        ({ parameters }, client, method) =>
            oauth.clientCredentialsGrantRequest(server, client, method, new URLSearchParams(parameters), http),
        (client, response) => oauth.processClientCredentialsResponse(server, client, response),
    ],
    exchange: [
        ({ grant, parameters }, client, method) =>
            oauth.genericTokenEndpointRequest(
                server,
                client,
                method,
                grant,
                new URLSearchParams(parameters),
                http,
            ),
        (client, response) => oauth.processGenericTokenEndpointResponse(server, client, response),
    ],
    introspect: introspect({}),
    introspect_jwt: introspect({ requestJwtResponse: true }),
    revoke: [
        ({ token }, client, method) => oauth.revocationRequest(server, client, method, token, http),
        async (_client, response) => (await oauth.processRevocationResponse(response)) ?? null,
    ],
};

const answers = [];
for (const request of requests) {
    const { what = 'token', method, id, secret } = request;
    const client = { client_id: id };
    const [send, read] = doing[what];
    const response = await send(request, client, authentication[method](secret));
    try {
        answers.push(await read(client, response));
    } catch (error) {
        if (!(error instanceof oauth.ResponseBodyError) && !(error instanceof oauth.WWWAuthenticateChallengeError)) {
            throw error;
        }
        answers.push({ error: error.error ?? error.cause?.[0]?.scheme, status: error.status });
    }
}
console.log(JSON.stringify(answers));
