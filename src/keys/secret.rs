//! The plaintext of a key and its public part.
//!
//! ```text
//! ks_live_4hT0aZq81xPd_<43 characters><6 characters>
//! |  |    |             |              CRC-32 of everything before it
//! |  |    |             32 random bytes
//! |  |    lookup id: public, belongs to the key, outlives its secrets
//! |  environment
//! prefix
//! ```
//!
//! Parsing is the first thing that happens to what a stranger sends. It looks at the length before
//! anything else, allocates only for what has the shape of a key, and hashes nothing.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::base62::{self, CHECKSUM_LEN};
use super::legacy::LegacyFormat;
use super::lookup_id::LOOKUP_ID_LEN;
pub use super::lookup_id::LookupId;
use crate::entropy::Entropy;
use crate::text::{Environment, Prefix};

/// The longest key, in characters; the longest that Keystead makes has 96.
pub const KEY_LEN_MAX: usize = 128;

/// 62^43 just exceeds 2^256, so 43 digits hold 32 bytes.
const SECRET_LEN: usize = 43;
const SECRET_BYTES: usize = 32;

/// A plaintext: known to its holder, here only while it is being made or judged.
///
/// Clones share one copy, which is overwritten when the last of them is dropped. It serializes
/// only as a [`RevealedKey`].
#[derive(Clone)]
pub struct ApiKey(Arc<Zeroizing<String>>);

impl ApiKey {
    /// Makes a new secret for the key with this lookup id.
    pub fn generate(
        prefix: &Prefix,
        environment: &Environment,
        lookup_id: &LookupId,
        entropy: &Entropy,
    ) -> Self {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        entropy.fill(&mut *bytes);
        // The buffer never grows, so no part of the plaintext is left behind in a smaller one.
        let mut text = Zeroizing::new(String::with_capacity(KEY_LEN_MAX));
        for part in [prefix.as_str(), environment.as_str(), lookup_id.as_str()] {
            text.push_str(part);
            text.push('_');
        }
        let secret = base62::encode::<SECRET_LEN>(&*bytes);
        text.extend(secret.iter().map(|digit| char::from(*digit)));
        let checksum = base62::checksum(text.as_bytes());
        text.extend(checksum.map(char::from));
        Self(Arc::new(text))
    }

    /// A plaintext as it was presented.
    pub(crate) fn copy_of(text: &str) -> Self {
        Self(Arc::new(Zeroizing::new(text.to_owned())))
    }

    /// A plaintext of any shape.
    #[cfg(test)]
    pub(crate) fn of_test(text: &str) -> Self {
        Self::copy_of(text)
    }

    /// Whether no other copy is in memory.
    #[cfg(test)]
    pub(crate) fn is_last_copy(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// The plaintext. Every use of this is a place to look at when something leaked.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }

    /// Compares in constant time.
    pub fn is_same_as(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq as _;
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// A plaintext on its way to its holder: the member `api_key` of the answers to create and rotate,
/// and of nothing else.
#[derive(Clone, Debug)]
pub struct RevealedKey(pub ApiKey);

impl Serialize for RevealedKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

crate::string_schema!(
    RevealedKey,
    crate::schema::string(
        "^[a-z][a-z0-9]{1,15}_[a-z][a-z0-9]{0,15}_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}$",
        96,
        "ks_live_4hT0aZq81xPd_0kx6M0WM5Q3zTtFyhJ3NlQOXjc9dB5a7uGvEPHgwRb82yCd4"
    )
);

/// What somebody says is a key, as it stands in a request body. Not looked at yet.
#[derive(Clone)]
pub struct UnparsedKey(Zeroizing<String>);

crate::string_schema!(
    UnparsedKey,
    crate::schema::string("", 65_536, "ks_live_4hT0aZq81xPd_...")
);

impl UnparsedKey {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub fn expose_secret(&self) -> &str {
        &self.0
    }

    pub fn parse(&self, formats: &[LegacyFormat]) -> Presented {
        Presented::parse(&self.0, formats)
    }
}

impl fmt::Debug for UnparsedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnparsedKey(..)")
    }
}

impl<'de> Deserialize<'de> for UnparsedKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// What was presented as a key.
#[derive(Clone, Debug)]
pub enum Presented {
    /// It has our shape and its checksum is right.
    Native { key: ApiKey, lookup_id: LookupId },
    /// It has the shape of keys brought from another system.
    Foreign(ApiKey),
    /// It cannot be a key.
    Malformed,
}

impl Presented {
    pub fn parse(text: &str, formats: &[LegacyFormat]) -> Self {
        match Shape::of(text, formats) {
            Shape::Native(lookup_id) => Self::Native {
                key: ApiKey::copy_of(text),
                lookup_id,
            },
            Shape::Foreign => Self::Foreign(ApiKey::copy_of(text)),
            Shape::Malformed => Self::Malformed,
        }
    }
}

/// As [`Presented`], of a text that is not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    Native(LookupId),
    Foreign,
    Malformed,
}

impl Shape {
    /// There is exactly one spelling of a key: nothing is trimmed, decoded or folded.
    pub fn of(text: &str, formats: &[LegacyFormat]) -> Self {
        if text.len() > KEY_LEN_MAX {
            return Self::Malformed;
        }
        if let Some(lookup_id) = native(text) {
            return Self::Native(lookup_id);
        }
        if formats.iter().any(|format| format.matches(text)) {
            return Self::Foreign;
        }
        Self::Malformed
    }
}

/// The lookup id of a text that has our shape and the right checksum.
fn native(text: &str) -> Option<LookupId> {
    let bytes = text.as_bytes();
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_LEN>()?;
    let (head, secret) = body.split_last_chunk::<SECRET_LEN>()?;
    let (head, lookup_id) = head
        .strip_suffix(b"_")?
        .split_last_chunk::<LOOKUP_ID_LEN>()?;
    let mut labels = head.strip_suffix(b"_")?.split(|byte| *byte == b'_');
    let (prefix, environment) = (labels.next()?, labels.next()?);
    let shaped = labels.next().is_none()
        && is_label(prefix, 2)
        && is_label(environment, 1)
        && base62::is_number(secret);
    if !shaped {
        return None;
    }
    let lookup_id = LookupId::from_bytes(lookup_id)?;
    (base62::checksum(body) == *checksum).then_some(lookup_id)
}

/// `[a-z][a-z0-9]*` of `length_min` to 16 characters, as [`Prefix`] and [`Environment`] are.
fn is_label(text: &[u8], length_min: usize) -> bool {
    (length_min..=16).contains(&text.len())
        && text.first().is_some_and(u8::is_ascii_lowercase)
        && text
            .iter()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The pattern by which secret scanners find keys with this prefix (RE2 and PCRE alike).
///
/// A CRC-32 in base62 begins with 0 to 4, which halves the noise at no cost.
pub fn scanner_pattern(prefix: &Prefix) -> String {
    pattern(prefix.as_str())
}

/// The pattern of keys with any prefix: which prefixes are in use is nobody's business.
pub fn any_prefix_pattern() -> String {
    pattern("[a-z][a-z0-9]{1,15}")
}

fn pattern(prefix: &str) -> String {
    format!(
        r"\b{prefix}_[a-z][a-z0-9]{{0,15}}_[0-9A-Za-z]{{{LOOKUP_ID_LEN}}}_[0-9A-Za-z]{{{SECRET_LEN}}}[0-4][0-9A-Za-z]{{5}}\b"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::keys::legacy::Alphabet;

    fn generate(entropy: &Entropy) -> ApiKey {
        ApiKey::generate(
            &Prefix::parse("ks").unwrap(),
            &Environment::parse("live").unwrap(),
            &LookupId::new(entropy),
            entropy,
        )
    }

    fn is_malformed(text: &str) -> bool {
        matches!(Presented::parse(text, &[]), Presented::Malformed)
    }

    #[test]
    fn a_generated_key_is_native_and_carries_its_lookup_id() {
        let entropy = Entropy::seeded(1);
        let lookup_id = LookupId::new(&entropy);
        let key = ApiKey::generate(
            &Prefix::parse("abcdefghijklmnop").unwrap(),
            &Environment::parse("abcdefghijklmno9").unwrap(),
            &lookup_id,
            &entropy,
        );
        assert_eq!(key.expose_secret().len(), 96, "the longest there is");
        match Presented::parse(key.expose_secret(), &[]) {
            Presented::Native {
                key: parsed,
                lookup_id: id,
            } => {
                assert!(parsed.is_same_as(&key));
                assert_eq!(id, lookup_id);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_buffer_of_a_plaintext_never_grew() {
        let key = generate(&Entropy::seeded(2));
        assert_eq!(key.0.capacity(), KEY_LEN_MAX);
    }

    #[test]
    fn a_flipped_character_is_malformed_wherever_it_is() {
        let key = generate(&Entropy::seeded(3));
        let good = key.expose_secret();
        assert!(!is_malformed(good));
        for place in 0..good.len() {
            for other in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_".chars() {
                let mut text = good.to_owned();
                text.replace_range(place..=place, &other.to_string());
                assert!(text == good || is_malformed(&text), "{place} {other}");
            }
        }
    }

    #[test]
    fn a_key_has_one_spelling() {
        let key = generate(&Entropy::seeded(4));
        let good = key.expose_secret();
        let full_width: String = good
            .chars()
            .map(|c| char::from_u32(u32::from(c) + 0xfee0).unwrap())
            .collect();
        let mut spellings = vec![
            String::new(),
            full_width,
            good.to_uppercase(),
            good.to_lowercase(),
            good.replacen("ks", "KS", 1),
            good.replacen("ks", "Ks", 1),
            good.replacen("live", "Live", 1),
            good.replace('_', "%5F"),
            good.replacen('_', "%5f", 1),
            good.replace('_', "-"),
            good.replacen('_', "__", 1),
            good.replacen('_', "\u{200b}_", 1),
            good.replacen("ks", "ｋs", 1),
            format!("\"{good}\""),
            format!("Bearer {good}"),
            format!("{good}, {good}"),
            format!("{good}{good}"),
            good[..good.len() - 1].to_owned(),
            good[1..].to_owned(),
        ];
        for noise in [
            " ", "\t", "\r\n", "\n", "\0", "%00", "=", "_", "0", "\u{200b}", "\u{feff}", "\u{a0}",
        ] {
            spellings.push(format!("{good}{noise}"));
            spellings.push(format!("{noise}{good}"));
        }
        // Nor does a format of foreign keys let them in.
        let foreign = LegacyFormat::new("sk_", 20, 128, Alphabet::Token68).unwrap();
        for text in spellings {
            assert!(is_malformed(&text), "{text:?}");
            let presented = Presented::parse(&text, std::slice::from_ref(&foreign));
            assert!(matches!(presented, Presented::Malformed), "{text:?}");
        }
    }

    #[test]
    fn a_statement_in_place_of_a_key_is_malformed() {
        for text in [
            "' OR '1'='1",
            "%",
            "_",
            "x' UNION SELECT 1--",
            "';SELECT pg_sleep(5)--",
            "___",
            "*",
        ] {
            assert!(is_malformed(text), "{text}");
        }
    }

    #[test]
    fn what_is_too_long_is_malformed_whatever_matches_it() {
        let formats = [LegacyFormat::new("", 16, 128, Alphabet::Token68).unwrap()];
        assert!(matches!(
            Presented::parse(&"a".repeat(128), &formats),
            Presented::Foreign(_)
        ));
        for length in [129, 257, 4_001, 65_536, 1 << 20] {
            let presented = Presented::parse(&"a".repeat(length), &formats);
            assert!(matches!(presented, Presented::Malformed), "{length}");
        }
    }

    #[test]
    fn our_own_keys_stay_native_beside_a_format_that_matches_them() {
        let formats = [LegacyFormat::new("ks_", 20, 128, Alphabet::UrlSafe).unwrap()];
        let key = generate(&Entropy::seeded(5));
        assert!(matches!(
            Presented::parse(key.expose_secret(), &formats),
            Presented::Native { .. }
        ));
    }

    #[test]
    fn a_plaintext_shows_nowhere_but_where_it_is_revealed() {
        let key = generate(&Entropy::seeded(6));
        let secret = key.expose_secret();
        let unparsed: UnparsedKey =
            serde_json::from_value(serde_json::Value::from(secret)).unwrap();
        let shown = format!(
            "{key:?} {unparsed:?} {:?} {:?}",
            unparsed.parse(&[]),
            RevealedKey(key.clone())
        );
        assert!(!shown.contains(&secret[22..]), "{shown}");
        assert_eq!(
            serde_json::to_value(RevealedKey(key.clone())).unwrap(),
            serde_json::Value::from(secret)
        );
    }

    fn scanner(pattern: &str) -> impl Fn(&str) -> Option<String> {
        use regex_automata::dfa::regex::Regex;
        let bytes = regex_automata::util::syntax::Config::new().unicode(false);
        let regex = Regex::builder().syntax(bytes).build(pattern).unwrap();
        move |text| regex.find(text).map(|found| text[found.range()].to_owned())
    }

    #[test]
    fn the_scanner_pattern_finds_keys_and_only_them() {
        let pattern = scanner_pattern(&Prefix::parse("ks").unwrap());
        let find = scanner(&pattern);
        let entropy = Entropy::seeded(7);
        for _ in 0..1000 {
            let key = generate(&entropy);
            let line = format!("{{\"api_key\": \"{}\"}}", key.expose_secret());
            assert_eq!(find(&line).as_deref(), Some(key.expose_secret()));
        }
        let key = generate(&entropy);
        let good = key.expose_secret();
        for other in [
            good.replacen("ks", "kt", 1),
            format!("x{good}"),
            format!("{good}0"),
            good[..good.len() - 1].to_owned(),
            good.replacen("live", "LIVE", 1),
        ] {
            assert_eq!(find(&other), None, "{other}");
        }
    }

    /// How far the counts are from the expected ones, in standard deviations of chi-square.
    fn deviation(counts: &[u32; 62], expected: &[f64; 62]) -> f64 {
        let chi_square: f64 = counts
            .iter()
            .zip(expected)
            .filter(|(_, expected)| **expected > 0.0)
            .map(|(count, expected)| (f64::from(*count) - expected).powi(2) / expected)
            .sum();
        let freedom = f64::from(expected.iter().map(|e| u32::from(*e > 0.0)).sum::<u32>() - 1);
        (chi_square - freedom) / (2.0 * freedom).sqrt()
    }

    /// What the first (0) or second (1) digit of 43 is, of a number below 2^256.
    fn expected_digit(place: i32, total: f64) -> [f64; 62] {
        // 2^256 in units of the first digit, 62^42: 60 whole ones and a part.
        let first = 2_f64.powi(256) / 62_f64.powi(42);
        let mut expected = [0.0; 62];
        for (digit, expected) in (0_u32..).zip(&mut expected) {
            let digit = f64::from(digit);
            let units = match place {
                0 => (first - digit).clamp(0.0, 1.0),
                _ => (first.floor() + (first.fract() * 62.0 - digit).clamp(0.0, 1.0)) / 62.0,
            };
            *expected = units / first * total;
        }
        expected
    }

    #[test]
    fn a_hundred_thousand_keys_are_different_and_even() {
        const KEYS: u32 = 100_000;
        const LOOKUP: usize = 8;
        const SECRET: usize = 21;
        let entropy = Entropy::System;
        let mut seen = HashSet::new();
        let mut lookup_ids = HashSet::new();
        let mut counts = vec![[0_u32; 62]; KEY_LEN_MAX];
        for _ in 0..KEYS {
            let key = generate(&entropy);
            let text = key.expose_secret().to_owned();
            for (place, byte) in text.bytes().enumerate() {
                if let Some(digit) = base62::ALPHABET.iter().position(|c| *c == byte) {
                    counts[place][digit] += 1;
                }
            }
            assert!(lookup_ids.insert(text[LOOKUP..LOOKUP + LOOKUP_ID_LEN].to_owned()));
            assert!(seen.insert(text));
        }
        let total = f64::from(KEYS);
        let even = [total / 62.0; 62];
        let lookup = (LOOKUP..LOOKUP + LOOKUP_ID_LEN).map(|place| (place, even));
        let secret = (0..)
            .zip(SECRET..SECRET + SECRET_LEN)
            .map(|(digit, place)| match digit {
                0 | 1 => (place, expected_digit(digit, total)),
                _ => (place, even),
            });
        for (place, expected) in lookup.chain(secret) {
            let deviation = deviation(&counts[place], &expected);
            // By chance once in some 10^8 runs; a bias of one part in fifty is 20 and more.
            assert!(deviation < 8.0, "place {place} is {deviation} off");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = Presented::parse(&text, &[]);
        }

        #[test]
        fn parsing_never_panics_on_what_looks_like_a_key(
            text in "[a-zé]{0,3}_[a-z\u{200b}]{0,17}_[0-9A-Za-zé]{11,13}_[0-9A-Za-zé]{45,50}_?",
        ) {
            let foreign = LegacyFormat::new("", 20, 128, Alphabet::UrlSafe).unwrap();
            let presented = Presented::parse(&text, &[foreign]);
            let is_native = matches!(presented, Presented::Native { .. });
            prop_assert!(!is_native, "a checksum is not guessed");
        }

        #[test]
        fn every_prefix_and_environment_makes_a_native_key(
            prefix in "[a-z][a-z0-9]{1,15}",
            environment in "[a-z][a-z0-9]{0,15}",
            seed: u64,
        ) {
            let entropy = Entropy::seeded(seed);
            let key = ApiKey::generate(
                &Prefix::parse(&prefix).unwrap(),
                &Environment::parse(&environment).unwrap(),
                &LookupId::new(&entropy),
                &entropy,
            );
            let presented = Presented::parse(key.expose_secret(), &[]);
            let is_native = matches!(presented, Presented::Native { .. });
            prop_assert!(is_native);
        }
    }
}
