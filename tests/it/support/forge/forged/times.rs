//! Times: of a wrong type, out of range, past, to come, too far apart.

use keystead::auth::jwt::Refusal;
use keystead::clock::Clock;
use serde_json::json;

use super::{Case, case, with_claims};

pub(super) fn cases(clock: &Clock) -> Vec<Case> {
    use Refusal::{Expired, Lifetime, NotYetValid};
    let now = clock.now().unix_seconds();
    let mut cases = Vec::new();
    for (name, refusal, changes) in [
        ("no exp", Lifetime, json!({"exp": null})),
        ("exp as text", Lifetime, json!({"exp": "never"})),
        (
            "exp as number in text",
            Lifetime,
            json!({"exp": (now + 300).to_string()}),
        ),
        ("exp with a fraction", Lifetime, json!({"exp": 1.5})),
        (
            "exp as a float",
            Lifetime,
            json!({"exp": 4_102_444_800.0_f64}),
        ),
        ("exp negative", Lifetime, json!({"exp": -1})),
        ("exp zero", Lifetime, json!({"exp": 0})),
        (
            "exp beyond 9999",
            Lifetime,
            json!({"exp": 253_402_300_800_i64}),
        ),
        ("exp of 64 bits", Lifetime, json!({"exp": u64::MAX})),
        ("exp as list", Lifetime, json!({"exp": [now + 300]})),
        ("exp true", Lifetime, json!({"exp": true})),
        ("exp 31 s ago", Expired, json!({"exp": now - 31})),
        ("nbf as text", Lifetime, json!({"nbf": "99999999999"})),
        ("nbf in 10 min", NotYetValid, json!({"nbf": now + 600})),
        ("nbf as list", Lifetime, json!({"nbf": [1]})),
        (
            "iat in 10 min",
            NotYetValid,
            json!({"iat": now + 600, "exp": now + 900}),
        ),
        ("iat as text", Lifetime, json!({"iat": "now"})),
        (
            "10 years of life",
            Lifetime,
            json!({"exp": now + 315_360_000}),
        ),
        (
            "10 years of life, issued long ago",
            Lifetime,
            json!({"iat": now - 315_000_000}),
        ),
        (
            "10 years of life, no iat",
            Lifetime,
            json!({"iat": null, "exp": now + 315_360_000}),
        ),
    ] {
        cases.push(case(name, refusal, with_claims(clock, changes)));
    }
    cases
}
