//! The durable proof of a secret: an argon2id (RFC 9106) PHC string, independent of any server
//! secret.
//!
//! Here is the computation alone, which takes milliseconds of a core; who calls it, how often and
//! on which thread is in [`super::hash`].

use std::fmt;

use argon2::password_hash::phc::PasswordHash;
use argon2::{ARGON2ID_IDENT, Algorithm, Argon2, Params, PasswordHasher as _, Version};
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::Text;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::secret::ApiKey;
use crate::entropy::Entropy;

/// What one run costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Settings {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl Default for Argon2Settings {
    /// 19 MiB and 2 passes: a setting that OWASP's password storage cheat sheet approves.
    fn default() -> Self {
        Self {
            memory_kib: 19_456,
            passes: 2,
            lanes: 1,
        }
    }
}

/// Each is as strong as the others: less memory is made up for by more passes.
const OWASP_MINIMA: [(u32, u32); 5] = [
    (47_104, 1),
    (19_456, 2),
    (12_288, 3),
    (9_216, 4),
    (7_168, 5),
];

/// The bounds of what is run, whoever wrote the parameters.
const MEMORY_KIB_MAX: u32 = 256 * 1024;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 8;
const PHC_LEN_MAX: usize = 512;

impl Argon2Settings {
    /// # Errors
    /// Which bound is broken.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(self.lanes.saturating_mul(8)..=MEMORY_KIB_MAX).contains(&self.memory_kib) {
            return Err("memory_kib must lie between 8 for each lane and 262144 (256 MiB)");
        }
        if !(1..=PASSES_MAX).contains(&self.passes) {
            return Err("passes must lie between 1 and 16");
        }
        if !(1..=LANES_MAX).contains(&self.lanes) {
            return Err("lanes must lie between 1 and 8");
        }
        Ok(())
    }

    pub fn meets_owasp_minimum(&self) -> bool {
        OWASP_MINIMA
            .iter()
            .any(|(memory_kib, passes)| self.memory_kib >= *memory_kib && self.passes >= *passes)
    }
}

/// An argon2id PHC string.
#[derive(Clone, PartialEq, Eq, AsExpression, FromSqlRow)]
#[diesel(sql_type = Text)]
pub struct Verifier(String);

const SHAPE: &str = "must be an argon2id PHC string: $argon2id$v=19$m=..,t=..,p=..$salt$hash";

impl Verifier {
    /// Parses what came from outside. What came from the database is held to the same before it is
    /// run.
    ///
    /// # Errors
    /// What it must be; never the value.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        parse(text).map(|_parts| Self(text.to_owned()))
    }

    /// Computes the verifier of a key: milliseconds of a core.
    pub(super) fn compute(
        settings: Argon2Settings,
        key: &ApiKey,
        entropy: &Entropy,
    ) -> Result<Self, Failure> {
        let salt: [u8; 16] = entropy.bytes();
        let hash = argon2(settings)?.hash_password_with_salt(bytes(key), &salt)?;
        Ok(Self(hash.to_string()))
    }

    /// Whether this is the verifier of that key: milliseconds of a core.
    pub(super) fn verify(&self, key: &ApiKey) -> Result<bool, Failure> {
        let (settings, hash) = parse(&self.0).map_err(Failure::Unusable)?;
        let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else {
            return Err(Failure::Unusable(SHAPE));
        };
        let mut output = Zeroizing::new(vec![0; expected.len()]);
        argon2_with(settings, expected.len())?
            .hash_password_into(bytes(key), salt, &mut output)
            .map_err(|error| Failure::Run(error.to_string()))?;
        Ok(output.ct_eq(expected.as_bytes()).into())
    }

    /// A stored text of any shape.
    #[cfg(test)]
    pub(crate) fn of_test(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a run gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("a stored verifier {0}")]
    Unusable(&'static str),
    #[error("argon2 failed: {0}")]
    Run(String),
}

impl From<argon2::password_hash::Error> for Failure {
    fn from(error: argon2::password_hash::Error) -> Self {
        Self::Run(error.to_string())
    }
}

fn bytes(key: &ApiKey) -> &[u8] {
    key.expose_secret().as_bytes()
}

fn argon2(settings: Argon2Settings) -> Result<Argon2<'static>, Failure> {
    argon2_with(settings, Params::DEFAULT_OUTPUT_LEN)
}

fn argon2_with(settings: Argon2Settings, output_len: usize) -> Result<Argon2<'static>, Failure> {
    let Argon2Settings {
        memory_kib,
        passes,
        lanes,
    } = settings;
    let params = Params::new(memory_kib, passes, lanes, Some(output_len))
        .map_err(|error| Failure::Run(error.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Reads and bounds everything before a byte of memory is taken for it.
fn parse(text: &str) -> Result<(Argon2Settings, PasswordHash), &'static str> {
    if text.len() > PHC_LEN_MAX || !text.is_ascii() {
        return Err(SHAPE);
    }
    let hash = PasswordHash::new(text).map_err(|_bad_shape| SHAPE)?;
    if hash.algorithm != ARGON2ID_IDENT || hash.version != Some(Version::V0x13.into()) {
        return Err(SHAPE);
    }
    let parameter = |name: &str| hash.params.get_decimal(name).ok_or(SHAPE);
    let settings = Argon2Settings {
        memory_kib: parameter("m")?,
        passes: parameter("t")?,
        lanes: parameter("p")?,
    };
    // Anything else would be silently ignored.
    if hash.params.iter().count() != 3 {
        return Err(SHAPE);
    }
    settings.check()?;
    let long_enough = hash.hash.as_ref().is_some_and(|hash| hash.len() >= 16);
    if hash.salt.is_none() || !long_enough {
        return Err(SHAPE);
    }
    Ok((settings, hash))
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

impl<DB: diesel::backend::Backend> FromSql<Text, DB> for Verifier
where
    String: FromSql<Text, DB>,
{
    fn from_sql(bytes: DB::RawValue<'_>) -> deserialize::Result<Self> {
        String::from_sql(bytes).map(Self)
    }
}

impl<DB: diesel::backend::Backend> ToSql<Text, DB> for Verifier
where
    str: ToSql<Text, DB>,
{
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, DB>) -> serialize::Result {
        self.0.as_str().to_sql(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::secret::LookupId;
    use crate::text::{Environment, Prefix};

    const WEAK: Argon2Settings = Argon2Settings {
        memory_kib: 8,
        passes: 1,
        lanes: 1,
    };

    fn key(entropy: &Entropy) -> ApiKey {
        ApiKey::generate(
            &Prefix::parse("ks").unwrap(),
            &Environment::parse("live").unwrap(),
            &LookupId::new(entropy),
            entropy,
        )
    }

    #[test]
    fn a_verifier_proves_its_key_and_no_other() {
        let entropy = Entropy::seeded(1);
        let (one, other) = (key(&entropy), key(&entropy));
        let verifier = Verifier::compute(WEAK, &one, &entropy).unwrap();
        assert!(verifier.verify(&one).unwrap());
        assert!(!verifier.verify(&other).unwrap());
        assert_ne!(
            verifier,
            Verifier::compute(WEAK, &one, &entropy).unwrap(),
            "each has a salt of its own"
        );
        assert!(!format!("{verifier:?}").contains("argon2"));
    }

    #[test]
    fn the_default_is_the_owasp_minimum_and_says_so_in_the_string() {
        let entropy = Entropy::seeded(2);
        let settings = Argon2Settings::default();
        assert!(settings.meets_owasp_minimum());
        assert!(!WEAK.meets_owasp_minimum());
        let verifier = Verifier::compute(settings, &key(&entropy), &entropy).unwrap();
        assert!(
            verifier
                .as_str()
                .starts_with("$argon2id$v=19$m=19456,t=2,p=1$")
        );
        assert_eq!(Verifier::parse(verifier.as_str()), Ok(verifier));
    }

    #[test]
    fn a_verifier_made_elsewhere_is_read() {
        // One of the test vectors of the reference implementation.
        let text = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ\
                    $CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let verifier = Verifier::parse(text).unwrap();
        assert!(verifier.verify(&ApiKey::of_test("password")).unwrap());
        assert!(!verifier.verify(&ApiKey::of_test("passwore")).unwrap());
    }

    #[test]
    fn parameters_that_would_hurt_are_refused_before_they_run() {
        let salt = "c29tZXNhbHQ";
        let hash = "CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let long = "A".repeat(10_000);
        for text in [
            format!("$argon2id$v=19$m=4194304,t=1,p=1${salt}${hash}"),
            format!("$argon2id$v=19$m=262145,t=1,p=1${salt}${hash}"),
            format!("$argon2id$v=19$m=19456,t=4294967295,p=1${salt}${hash}"),
            format!("$argon2id$v=19$m=19456,t=17,p=1${salt}${hash}"),
            format!("$argon2id$v=19$m=19456,t=0,p=1${salt}${hash}"),
            format!("$argon2id$v=19$m=19456,t=1,p=9${salt}${hash}"),
            format!("$argon2id$v=19$m=19456,t=1,p=0${salt}${hash}"),
            format!("$argon2id$v=19$m=19456,t=1,p=4294967295${salt}${hash}"),
            format!("$argon2id$v=19$m=7,t=1,p=1${salt}${hash}"),
            format!("$argon2id$v=19$m=99999999999,t=1,p=1${salt}${hash}"),
            format!("$argon2id$v=19$m=-1,t=1,p=1${salt}${hash}"),
            format!("$argon2id$v=19$m=19456,t=2${salt}${hash}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1,keyid=AAAA${salt}${hash}"),
            format!("$argon2id$v=16$m=19456,t=2,p=1${salt}${hash}"),
            format!("$argon2id$m=19456,t=2,p=1${salt}${hash}"),
            format!("$argon2i$v=19$m=19456,t=2,p=1${salt}${hash}"),
            format!("$argon2d$v=19$m=19456,t=2,p=1${salt}${hash}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1${salt}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1${salt}$AAAA"),
            format!("$argon2id$v=19$m=19456,t=2,p=1${salt}${long}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1${salt}${hash}é"),
            "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234".to_owned(),
            "$argon2id$v=19$".to_owned(),
            "é".to_owned(),
            String::new(),
        ] {
            assert!(Verifier::parse(&text).is_err(), "{text}");
            let stored = Verifier(text);
            let ran = stored.verify(&ApiKey::of_test("password"));
            assert!(matches!(ran, Err(Failure::Unusable(_))), "{}", stored.0);
        }
    }

    #[test]
    fn settings_out_of_bounds_are_named() {
        let default = Argon2Settings::default();
        assert_eq!(default.check(), Ok(()));
        for bad in [
            Argon2Settings {
                memory_kib: 262_145,
                ..default
            },
            Argon2Settings {
                memory_kib: 7,
                ..default
            },
            Argon2Settings {
                passes: 0,
                ..default
            },
            Argon2Settings {
                passes: 17,
                ..default
            },
            Argon2Settings {
                lanes: 0,
                ..default
            },
            Argon2Settings {
                lanes: 9,
                ..default
            },
            Argon2Settings {
                lanes: u32::MAX,
                ..default
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
