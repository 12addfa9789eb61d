// An identity provider as a company has one: oidc-provider, with clients and resources as the first
// argument says. Its key comes with it, so that it is the same one after a restart. Prints one line
// when it listens, and one for each token that it issued.
import Provider, { errors } from 'oidc-provider';

const { port, clients, resources, jwks, claims, ttl } = JSON.parse(process.argv[2]);

const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: clients.map((client) => ({
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        id_token_signed_response_alg: jwks[0].alg,
        ...client,
    })),
    jwks: { keys: jwks },
    clientAuthMethods: ['client_secret_basic', 'client_secret_post'],
    scopes: [...new Set(Object.values(resources).flatMap((scope) => scope.split(' ')))],
    features: {
        devInteractions: { enabled: false },
        clientCredentials: { enabled: true },
        resourceIndicators: {
            enabled: true,
            getResourceServerInfo: (_ctx, resource) => {
                if (!Object.hasOwn(resources, resource)) {
                    throw new errors.InvalidTarget();
                }
                return {
                    scope: resources[resource],
                    audience: resource,
                    accessTokenFormat: 'jwt',
                    jwt: { sign: { alg: jwks[0].alg } },
                };
            },
        },
    },
    // What the directory knows of each client.
    extraTokenClaims: (_ctx, token) => claims?.[token.clientId],
    ttl: { ClientCredentials: ttl ?? 600 },
});
for (const event of ['grant.error', 'server_error']) {
    provider.on(event, (_ctx, error) => console.log(JSON.stringify({ error: error.error, detail: error.error_detail })));
}
provider.on('grant.success', (ctx) => console.log(JSON.stringify({ issued: ctx.oidc.client.clientId, scope: ctx.body.scope })));

provider.listen(port, '127.0.0.1', () => console.log(JSON.stringify({ listening: port })));
