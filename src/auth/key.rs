//! A key that signatures are verified with: one key, one algorithm (RFC 8725 §3.1).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use super::strict;

/// The most keys an issuer publishes; more are not looked through.
const KEYS_MAX: usize = 100;

/// The longest `kid`, in bytes.
pub(super) const KID_BYTES_MAX: usize = 256;

/// What only the holder of a private or symmetric key knows (RFC 7518 §6).
const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// A public key, or a shared secret, and the one algorithm it is used with.
#[derive(Clone, Debug)]
pub struct VerificationKey {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl VerificationKey {
    pub fn hmac(secret: &[u8], algorithm: Algorithm) -> Self {
        Self {
            kid: None,
            algorithm,
            key: DecodingKey::from_secret(secret),
        }
    }

    /// Reads a public key from PEM. It verifies the first of `algorithms` that its type allows.
    ///
    /// # Errors
    /// What the text must be.
    pub fn from_pem(pem: &str, algorithms: &[Algorithm]) -> Result<Self, &'static str> {
        if pem.contains("PRIVATE KEY") {
            return Err("is a private key, which belongs to the issuer alone; \
                        make its public half with: openssl pkey -pubout");
        }
        if pem.contains("CERTIFICATE") {
            return Err("is a certificate; take its public key with: openssl x509 -pubkey -noout");
        }
        let pem = pem.as_bytes();
        let key = DecodingKey::from_rsa_pem(pem)
            .or_else(|_not_rsa| DecodingKey::from_ec_pem(pem))
            .or_else(|_not_ec| DecodingKey::from_ed_pem(pem))
            .map_err(
                |_not_ed| "must be a public key of type RSA, P-256, P-384 or Ed25519 in PEM",
            )?;
        // The same rules as for published keys: read it as one.
        Jwk::from_decoding_key(&key, None)
            .ok()
            .and_then(|jwk| serde_json::to_value(jwk).ok())
            .and_then(|jwk| Self::from_jwk(jwk.as_object()?, algorithms))
            .ok_or(
                "must be a key that one of the algorithms can use: RSA from 2048 bits for RS and \
                 PS, P-256 for ES256, P-384 for ES384, Ed25519 for EdDSA",
            )
    }

    /// Reads a published key (RFC 7517 §4). `None` if it is not there to verify signatures with
    /// one of `algorithms`. Where it does not name its algorithm, it is the first of them that its
    /// type allows.
    pub fn from_jwk(jwk: &Map<String, Value>, algorithms: &[Algorithm]) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        if PRIVATE_MEMBERS.iter().any(|name| jwk.contains_key(*name)) {
            return None;
        }
        if jwk.contains_key("use") && text("use") != Some("sig") {
            return None;
        }
        if let Some(operations) = jwk.get("key_ops") {
            operations
                .as_array()?
                .iter()
                .find(|operation| *operation == "verify")?;
        }
        let kid = match jwk.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str().filter(|kid| is_kid(kid))?.to_owned()),
        };
        let (usable, key): (&[Algorithm], _) = match (text("kty")?, text("crv")) {
            ("RSA", _) => (
                &[
                    Algorithm::RS256,
                    Algorithm::RS384,
                    Algorithm::RS512,
                    Algorithm::PS256,
                    Algorithm::PS384,
                    Algorithm::PS512,
                ],
                rsa(text("n")?, text("e")?)?,
            ),
            ("EC", Some("P-256")) => (&[Algorithm::ES256], point(text("x")?, text("y")?, 32)?),
            ("EC", Some("P-384")) => (&[Algorithm::ES384], point(text("x")?, text("y")?, 48)?),
            ("OKP", Some("Ed25519")) => (
                &[Algorithm::EdDSA],
                DecodingKey::from_ed_der(&bytes(text("x")?).filter(|x| x.len() == 32)?),
            ),
            _ => return None,
        };
        let algorithm = match jwk.get("alg") {
            Some(named) => *algorithms
                .iter()
                .find(|algorithm| named.as_str() == Some(&format!("{algorithm:?}")))?,
            None => *algorithms.iter().find(|one| usable.contains(one))?,
        };
        usable.contains(&algorithm).then_some(Self {
            kid,
            algorithm,
            key,
        })
    }

    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether `signature` (base64url) is this key's over `message` under its own algorithm.
    pub fn verifies(&self, signature: &str, message: &str) -> bool {
        jsonwebtoken::crypto::verify(signature, message.as_bytes(), &self.key, self.algorithm)
            .unwrap_or(false)
    }
}

/// Reads a key set (RFC 7517 §5). Keys that are not there to verify signatures with are left out.
/// `None` if it is not a key set, has too many keys or none that is of use.
pub(super) fn read_set(json: &[u8], algorithms: &[Algorithm]) -> Option<Vec<VerificationKey>> {
    let document = strict::object(json)?;
    let published = document.get("keys")?.as_array()?;
    if published.len() > KEYS_MAX {
        return None;
    }
    let keys: Vec<VerificationKey> = published
        .iter()
        .filter_map(|jwk| VerificationKey::from_jwk(jwk.as_object()?, algorithms))
        .collect();
    (!keys.is_empty()).then_some(keys)
}

/// 1 to 256 printable ASCII characters: it stands in logs, and nowhere else than in a comparison.
pub(super) fn is_kid(kid: &str) -> bool {
    (1..=KID_BYTES_MAX).contains(&kid.len()) && kid.bytes().all(|b| (0x20..0x7f).contains(&b))
}

fn bytes(base64url: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(base64url).ok()
}

/// RSA from 2048 bits (RFC 7518 §3.3) to 8192, with a public exponent that is odd and from 3.
fn rsa(modulus: &str, exponent: &str) -> Option<DecodingKey> {
    let (modulus, exponent) = (bytes(modulus)?, bytes(exponent)?);
    let start = modulus.iter().position(|byte| *byte != 0)?;
    let modulus = modulus.get(start..)?;
    let bits = modulus.len() * 8 - usize::try_from(modulus.first()?.leading_zeros()).ok()?;
    let exponent_value = exponent.iter().try_fold(0_u32, |value, byte| {
        value.checked_mul(256)?.checked_add(u32::from(*byte))
    })?;
    let good = (2048..=8192).contains(&bits) && exponent_value >= 3 && exponent_value % 2 == 1;
    good.then(|| DecodingKey::from_rsa_raw_components(modulus, &exponent))
}

/// An uncompressed point (SEC 1 §2.3.3). Whether it is on the curve is seen when it is used.
fn point(x: &str, y: &str, coordinate_bytes: usize) -> Option<DecodingKey> {
    let (x, y) = (bytes(x)?, bytes(y)?);
    if x.len() != coordinate_bytes || y.len() != coordinate_bytes {
        return None;
    }
    let mut point = vec![4];
    point.extend_from_slice(&x);
    point.extend_from_slice(&y);
    Some(DecodingKey::from_ec_der(&point))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::forge::{self, Signers, encode, pem};
    use super::*;

    const ALL: [Algorithm; 5] = [
        Algorithm::RS256,
        Algorithm::PS256,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
    ];

    fn with(mut jwk: Value, changes: &Value) -> Map<String, Value> {
        for (name, value) in changes.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        let Value::Object(jwk) = jwk else {
            panic!("an object");
        };
        jwk
    }

    fn algorithm(alg: &str, changes: &Value) -> Option<Algorithm> {
        let jwk = with(Signers::shared().jwk(alg, "k"), changes);
        VerificationKey::from_jwk(&jwk, &ALL).map(|key| key.algorithm())
    }

    #[test]
    fn a_key_is_used_with_one_algorithm() {
        let none = json!({});
        assert_eq!(algorithm("RS256", &none), Some(Algorithm::RS256));
        assert_eq!(algorithm("ES256", &none), Some(Algorithm::ES256));
        assert_eq!(algorithm("ES384", &none), Some(Algorithm::ES384));
        assert_eq!(algorithm("EdDSA", &none), Some(Algorithm::EdDSA));
        let named = json!({"alg": "PS256"});
        assert_eq!(algorithm("RS256", &named), Some(Algorithm::PS256));
    }

    #[test]
    fn a_key_that_is_not_there_to_verify_with_is_left_out() {
        let weak = encode([0xff; 128]);
        for (alg, changes) in [
            ("RS256", json!({"alg": "RS512"})),
            ("RS256", json!({"alg": "ES256"})),
            ("RS256", json!({"alg": "HS256"})),
            ("RS256", json!({"alg": "none"})),
            ("RS256", json!({"alg": 1})),
            ("ES256", json!({"alg": "ES384"})),
            ("RS256", json!({"use": "enc"})),
            ("RS256", json!({"use": null})),
            ("RS256", json!({"key_ops": ["sign"]})),
            ("RS256", json!({"key_ops": "verify"})),
            ("RS256", json!({"n": weak})),
            ("RS256", json!({"e": encode([1])})),
            ("RS256", json!({"e": encode([4])})),
            ("RS256", json!({"e": encode([1; 9])})),
            ("RS256", json!({"n": "!"})),
            ("RS256", json!({"d": "x"})),
            ("RS256", json!({"kty": "oct", "k": "x"})),
            ("RS256", json!({"kty": "rsa"})),
            ("ES256", json!({"crv": "P-521"})),
            ("ES256", json!({"crv": "secp256k1"})),
            ("ES256", json!({"x": encode([1; 31])})),
            ("ES256", json!({"crv": "P-384"})),
            ("EdDSA", json!({"crv": "Ed448"})),
            ("EdDSA", json!({"x": encode([1; 33])})),
            ("ES256", json!({"kid": 1})),
            ("ES256", json!({"kid": "k\n"})),
            ("ES256", json!({"kid": "k".repeat(257)})),
        ] {
            assert_eq!(algorithm(alg, &changes), None, "{alg} {changes}");
        }
        assert!(algorithm("RS256", &json!({"key_ops": ["verify"]})).is_some());
    }

    #[test]
    fn a_key_set_has_a_bound_and_something_of_use() {
        let jwk = Signers::shared().jwk("ES256", "k");
        let set = |keys: Vec<Value>| json!({ "keys": keys }).to_string();
        let read = |text: &str| read_set(text.as_bytes(), &ALL).map(|keys| keys.len());
        assert_eq!(read(&set(vec![jwk.clone(); 100])), Some(100));
        assert_eq!(read(&set(vec![jwk.clone(); 101])), None);
        assert_eq!(read(&set(vec![])), None);
        assert_eq!(read(&set(vec![json!(1), json!({"kty": "oct"})])), None);
        assert_eq!(read(&set(vec![json!(1), jwk.clone()])), Some(1));
        assert_eq!(read("{}"), None);
        assert_eq!(read("[]"), None);
        assert_eq!(read(r#"{"keys":{}}"#), None);
        let doubled = format!("{{\"keys\":[],\"keys\":[{jwk}]}}");
        assert_eq!(read(&doubled), None);
    }

    #[test]
    fn a_point_off_the_curve_verifies_nothing() {
        let ours = Signers::shared();
        let token = ours.token("ES256", "{}", "{}");
        let (message, signature) = token.rsplit_once('.').unwrap();
        let good = with(ours.jwk("ES256", "k"), &json!({}));
        let off = with(ours.jwk("ES256", "k"), &json!({"y": encode([7; 32])}));
        let verifies = |jwk| {
            VerificationKey::from_jwk(jwk, &ALL)
                .unwrap()
                .verifies(signature, message)
        };
        assert!(verifies(&good));
        assert!(!verifies(&off));
    }

    #[test]
    fn a_public_key_is_read_from_pem_and_nothing_else_is() {
        let ours = Signers::shared();
        for (alg, expected) in [
            ("RS256", Algorithm::RS256),
            ("ES256", Algorithm::ES256),
            ("ES384", Algorithm::ES384),
            ("EdDSA", Algorithm::EdDSA),
        ] {
            let key = VerificationKey::from_pem(&ours.pem(alg), &ALL).unwrap();
            assert_eq!(key.algorithm(), expected);
            let token = ours.token(alg, "{}", "{}");
            let (message, signature) = token.rsplit_once('.').unwrap();
            assert!(key.verifies(signature, message), "{alg}");
        }
        let rsa = ours.pem("RS256");
        assert!(VerificationKey::from_pem(&rsa, &[Algorithm::ES256]).is_err());
        for (text, fault) in [
            (pem("PRIVATE KEY", &ours.spki("RS256")), "is a private key"),
            (pem("RSA PRIVATE KEY", b"x"), "is a private key"),
            (pem("CERTIFICATE", b"x"), "is a certificate"),
            (pem("PUBLIC KEY", b"x"), "must be a public key"),
            (forge::noise(1), "must be a public key"),
            (String::new(), "must be a public key"),
        ] {
            let error = VerificationKey::from_pem(&text, &ALL).unwrap_err();
            assert!(error.starts_with(fault), "{error}");
        }
    }
}
