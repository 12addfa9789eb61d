//! docs/oauth.md: each of its commands is run as it stands, and each test that it names is there.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::auditors::{blocks, holds};
use crate::support::programs::path_with_python;
use crate::support::{both, setting};

both!(every_command_of_the_guide_answers_what_is_said);

const GUIDE: &str = include_str!("../../../docs/oauth.md");

async fn every_command_of_the_guide_answers_what_is_said(home: Home) {
    let world = World::new(&home).await;
    let key = world.key().await;
    let slug = json!({"slug": "shop"});
    world.owner.create("/v1/services", slug).await;
    let slug = json!({"slug": "backend"});
    world.owner.create("/v1/consumers", slug).await;
    let of_both = async |consumer: &str, at_the_shop: &[&str]| {
        let grants = json!({"consumer": consumer, "grants": [
            {"service": "shop", "scopes": at_the_shop},
            {"service": "invoicing", "scopes": ["invoice:read"]},
        ]});
        text(&world.issue(&[], grants).await, "/api_key")
    };
    let customer = of_both("acme", &["cart", "invoice:read"]).await;
    let backend = of_both("backend", &["invoice:read"]).await;
    let service = world.asker(&["introspect:invoicing"]).await;
    let gateway = world.asker(&["verify:invoicing"]).await;
    let owner = world.asker(&["*"]).await;
    let folder = home.dir().join("guide");
    std::fs::create_dir(&folder).unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    std::os::unix::fs::symlink(examples, folder.join("examples")).unwrap();
    let path = path_with_python(&setting("PATH").expect("a path"));
    let (first, blocks) = blocks(GUIDE);
    assert!(blocks.len() >= 8, "{}", blocks.len());
    for block in blocks {
        let script = format!("{first}\n{}", block.script);
        let mut command = Command::new("sh");
        command
            .args(["-eu", "-c", &script])
            .current_dir(&folder)
            .env_clear()
            .env("PATH", &path)
            .env("KEYSTEAD", world.issuer())
            .env("KEY", &key)
            .env("SERVICE", &service)
            .env("GATEWAY", &gateway)
            .env("OWNER", &owner)
            .env("CUSTOMER", &customer)
            .env("BACKEND", &backend);
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output
            .await
            .unwrap()
            .expect("sh, curl and jq: install them");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}\n{output:?}", block.script);
        let answer: Value = serde_json::from_str(&told).expect(&told);
        let said = block.answer.expect("what it answers");
        assert!(holds(&answer, &said), "{}\n{answer:#}", block.script);
    }
}

#[test]
fn every_test_that_the_guide_names_is_there() {
    let here = [
        include_str!("asked.rs"),
        include_str!("at_gateway.rs"),
        include_str!("clients.rs"),
        include_str!("ended.rs"),
        include_str!("exchange.rs"),
        include_str!("exchange_ended.rs"),
        include_str!("exchange_refused.rs"),
        include_str!("published.rs"),
        include_str!("refused.rs"),
        include_str!("rotated.rs"),
        include_str!("signed_answers.rs"),
        include_str!("token.rs"),
        include_str!("../security/carriers.rs"),
        include_str!("../../../src/auth/fetched_keys.rs"),
        include_str!("../../../src/auth/hostile_tokens.rs"),
        include_str!("../../../src/auth/key.rs"),
        include_str!("../../../src/auth/strict.rs"),
        include_str!("../../../src/config/issuers.rs"),
        include_str!("../../../src/config/server.rs"),
        include_str!("../../../src/config/tests.rs"),
        include_str!("../../../src/http/tests/refusals.rs"),
        include_str!("../../../src/keys/secret.rs"),
        include_str!("../../../src/oauth/form.rs"),
        include_str!("../../../src/oauth/keyring/key.rs"),
    ];
    let conformance = GUIDE.split("## Conformance").nth(1).expect("the section");
    let named: Vec<&str> = conformance
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() >= 4)
        .collect();
    assert!(named.len() > 100, "{named:?}");
    for name in named {
        let test = format!("fn {name}(");
        assert!(here.iter().any(|file| file.contains(&test)), "{name}");
    }
}
