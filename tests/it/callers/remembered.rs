//! The tenants of people, and those that hosts step into, as a node remembers them: also while the database
//! is away, and no longer than they are there.

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::support::{Backend, Fault, Proxy, both, run, until};

both!(a_tenant_that_ends_locks_its_people_and_hosts_out_on_every_node);

/// Of any answer of a validation; longer on a machine that is busy.
pub(super) const ANSWERED_WITHIN_BUSY: Duration = Duration::from_millis(200 + 800);

/// How soon a change holds on another node.
const ELSEWHERE_WITHIN: Duration = Duration::from_secs(5);

/// Everybody with the role `admin` is one, in the tenant that the token names.
const BY_CLAIM: &str = "tenant_claim = \"org\"\n\
                        roles = [{claim = \"roles\", value = \"admin\", role = \"admin\"}]";

/// Makes a key of a new service and tells its plaintext.
async fn key_for_invoicing(owner: &Client) -> String {
    let service = json!({"slug": "invoicing"});
    owner.create("/v1/services", service).await;
    owner.create("/v1/consumers", json!({"slug": "shop"})).await;
    let grants = json!([{"service": "invoicing", "scopes": []}]);
    let new = json!({"name": "worker", "consumer": "shop", "grants": grants});
    text(&owner.create("/v1/keys", new).await, "/api_key")
}

fn verify(caller: &Client, key: &str) -> crate::support::Request {
    let body = json!({"api_key": key, "service": "invoicing"});
    caller.post("/v1/verify").json(body)
}

#[test]
fn keys_that_are_remembered_are_verified_for_people_while_the_database_is_away() {
    run(Backend::Postgres, async |home: Home| {
        let mut proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        let issuers = variable(&[issuer(A, BY_CLAIM)]);
        let settings = [("DATABASE__URL", url.as_str()), ("ISSUERS", &issuers)];
        let server = home.serve_with(&settings).await;
        let owner = server.owner();
        for slug in ["acme", "not-met", "nor-met"] {
            owner.create("/v1/tenants", json!({"slug": slug})).await;
        }
        let host = owner.within("acme");
        let (ours, theirs) = (
            key_for_invoicing(&owner).await,
            key_for_invoicing(&host).await,
        );
        let service = manager_key(&owner, &["verify"]).await;
        let service = server.client().with_key(&service);
        for (caller, key) in [(&owner, &ours), (&service, &ours), (&host, &theirs)] {
            let told = verify(caller, key).send().await.expect(200);
            assert_eq!(told["code"], "valid");
        }
        let timed = async |request: crate::support::Request| {
            let began = Instant::now();
            let answer = request.try_send().await.expect("an answer");
            let took = began.elapsed();
            assert!(took <= ANSWERED_WITHIN_BUSY, "{took:?}: {answer}");
            answer
        };
        // No person was here before.
        let person = |org: &str| bearer(&server, json!({"org": org}));
        // A look-up goes on while nobody waits for it: what the first asked for may be known to the second.
        for (fault, stranger) in [(Fault::Hang, "not-met"), (Fault::Refuse, "nor-met")] {
            proxy.set(fault).await;
            for _ in 0..3 {
                let token = token(&server.clock, json!({"org": "default"}));
                let for_person = verify(&service, &ours).header("x-keystead-on-behalf-of", &token);
                for (who, request) in [
                    ("a person", verify(&person("default"), &ours)),
                    ("one of another tenant", verify(&person("acme"), &theirs)),
                    ("a service for a person", for_person),
                    ("a host", verify(&host, &theirs)),
                ] {
                    let told = timed(request).await;
                    assert_eq!(told.status, 200, "{fault:?}, {who}: {told}");
                    assert_eq!(told.body["code"], "valid", "{fault:?}, {who}");
                }
                // Whoever cannot be known now is not told to be nobody.
                let stranger = person(stranger);
                let told = timed(verify(&stranger, &ours)).await;
                assert_eq!(told.status, 503, "{fault:?}: {told}");
            }
            proxy.set(Fault::None).await;
            let soon = Duration::from_secs(10);
            until(soon, "the database answers", async || {
                owner.get("/v1/services").send().await.status == 200
            })
            .await;
        }
        let stranger = person("nor-met");
        until(ELSEWHERE_WITHIN, "everybody is known", async || {
            let told = verify(&stranger, &ours).send().await;
            told.status == 200 && told.body["code"] == "unknown"
        })
        .await;
    });
}

async fn a_tenant_that_ends_locks_its_people_and_hosts_out_on_every_node(home: Home) {
    let issuers = [issuer(A, BY_CLAIM)];
    let here = serve(&home, &issuers).await;
    let there = serve(&home, &issuers).await;
    let owner = here.owner();
    owner.create("/v1/tenants", json!({"slug": "acme"})).await;
    let status = async |caller: &Client| caller.get("/v1/services").send().await.status;
    let person = |node: &Server| bearer(node, json!({"org": "acme"}));
    let host = |node: &Server| owner.at(node).within("acme");
    let expect = async |of_person: u16, of_host: u16, when: &str| {
        let told = (status(&person(&here)).await, status(&host(&here)).await);
        assert_eq!(told, (of_person, of_host), "{when}");
        until(ELSEWHERE_WITHIN, when, async || {
            let told = (status(&person(&there)).await, status(&host(&there)).await);
            told == (of_person, of_host)
        })
        .await;
    };
    expect(200, 200, "it is there").await;
    let act = async |verb: &str| {
        let request = owner.post(&format!("/v1/tenants/acme/{verb}"));
        request.json(json!({})).send().await.expect(200);
    };
    act("disable").await;
    expect(401, 200, "it is disabled").await;
    act("enable").await;
    expect(200, 200, "it is enabled").await;
    let delete = owner.request("DELETE".parse().unwrap(), "/v1/tenants/acme");
    let deleted = delete.send().await;
    assert_eq!(deleted.status, 204, "{deleted}");
    expect(401, 404, "it is deleted").await;
}
