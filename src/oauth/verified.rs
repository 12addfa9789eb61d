//! Tokens of ours whose signature was found to be good: that stays true, and to find it out is most of the
//! work of a token that is presented again and again.
//!
//! They are remembered by the digest of their whole text, so one that differs in a single character is another
//! one. Nothing is remembered of a token that was refused, and nothing that may change: whoever finds one here
//! judges its end, its key and all that it was made from as if it had never been seen. What is remembered is
//! bounded by the bytes of the tokens, and goes when they end.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::own::OwnToken;
use crate::time::Timestamp;

/// So many bytes of tokens are remembered: of ordinary ones some 50,000.
const BYTES_MAX: u64 = 32 * 1024 * 1024;

/// So many there may be at first, before room is made for more.
const TOKENS_FORESEEN: usize = 10_000;

/// The digest of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Name([u8; SHA256_OUTPUT_LEN]);

impl Name {
    pub(super) fn of(token: &str) -> Self {
        let mut name = [0; SHA256_OUTPUT_LEN];
        name.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        Self(name)
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Name, Arc<OwnToken>> for ByBytes {
    fn weight(&self, _: &Name, own: &Arc<OwnToken>) -> u64 {
        // What is read from a token takes no more room than its text, beside what each takes.
        (size_of::<OwnToken>() + own.bytes) as u64
    }
}

/// Those that are remembered.
pub(super) struct VerifiedTokens(Cache<Name, Arc<OwnToken>, ByBytes>);

impl VerifiedTokens {
    pub(super) fn new() -> Self {
        Self(Cache::with_weighter(TOKENS_FORESEEN, BYTES_MAX, ByBytes))
    }

    pub(super) fn find(&self, name: &Name) -> Option<Arc<OwnToken>> {
        self.0.get(name)
    }

    /// Remembers one, unless it has ended already.
    pub(super) fn keep(&self, name: Name, own: &Arc<OwnToken>, now: Timestamp) {
        if own.expires_at > now {
            self.0.insert(name, Arc::clone(own));
        }
    }

    /// Forgets those that have ended.
    pub(super) fn forget_ended(&self, now: Timestamp) {
        self.0.retain(|_, own| own.expires_at > now);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::auth::jwt::Verified;
    use crate::entropy::Entropy;
    use crate::id::{ConsumerId, KeyId, SecretId, TokenId};

    const START: i64 = 1_800_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis((START + seconds) * 1000)
    }

    /// One that ends so many seconds after the start and whose text has so many bytes.
    fn token(end: i64, bytes: usize) -> Arc<OwnToken> {
        let nonce = Entropy::seeded(1).nonce();
        let claims = json!({
            "jti": TokenId::made_of(at(0), &nonce),
            "client_id": ConsumerId::made_of(at(0), &nonce),
            "aud": "invoicing",
            "iat": START,
            "keystead": {
                "service": "invoicing",
                "key_id": KeyId::made_of(at(0), &nonce),
                "secret_id": SecretId::made_of(at(0), &nonce),
            },
        });
        let Value::Object(claims) = claims else {
            unreachable!()
        };
        let verified = Verified {
            subject: "acme".to_owned(),
            expires_at: at(end),
            claims,
        };
        Arc::new(OwnToken::read("a key", bytes, &verified).unwrap())
    }

    #[test]
    fn the_digest_is_of_the_whole_token() {
        let text = "eyJ0eXAiOiJhdCtqd3QifQ.eyJzdWIiOiJhY21lIn0.c2lnbmF0dXJl";
        let verified = VerifiedTokens::new();
        verified.keep(Name::of(text), &token(60, text.len()), at(0));
        assert!(verified.find(&Name::of(text)).is_some());
        for index in 0..text.len() {
            for other in ['A', 'B'] {
                let mut changed = text.to_owned();
                changed.replace_range(index..=index, &other.to_string());
                let is_it = changed == text;
                assert_eq!(verified.find(&Name::of(&changed)).is_some(), is_it);
            }
            assert!(verified.find(&Name::of(&text[..index])).is_none());
        }
        assert!(verified.find(&Name::of(&format!("{text} "))).is_none());
    }

    #[test]
    fn a_token_goes_when_it_ends_and_is_not_kept_after() {
        let verified = VerifiedTokens::new();
        for end in 1..=100 {
            verified.keep(Name::of(&end.to_string()), &token(end, 600), at(0));
        }
        assert_eq!(verified.len(), 100);
        verified.forget_ended(at(40));
        assert_eq!(verified.len(), 60);
        assert!(verified.find(&Name::of("40")).is_none());
        assert!(verified.find(&Name::of("41")).is_some());
        verified.keep(Name::of("40"), &token(40, 600), at(40));
        assert_eq!(verified.len(), 60);
        verified.forget_ended(at(100));
        assert_eq!(verified.len(), 0);
    }

    #[test]
    fn what_is_remembered_is_bounded_by_the_bytes_of_the_tokens() {
        for bytes in [600, 8 * 1024] {
            let verified = VerifiedTokens::new();
            let one = token(60, bytes);
            for index in 0..120_000_u32 {
                verified.keep(Name::of(&index.to_string()), &one, at(0));
            }
            let held = verified.len() * (size_of::<OwnToken>() + bytes);
            let bound = usize::try_from(BYTES_MAX).unwrap();
            assert!(held <= bound, "{held}");
            assert!(held > bound / 2, "{held}");
        }
    }
}
