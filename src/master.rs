//! The master key: 32 bytes outside the database, from which every other key is derived.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

use crate::entropy::Entropy;

/// One master key. Nothing is ever sealed with it directly: keys come by HKDF (RFC 5869), one per
/// purpose, so that no two purposes share one.
#[derive(Clone, ZeroizeOnDrop)]
pub struct MasterKey([u8; 32]);

/// A key for one purpose.
#[derive(Clone, ZeroizeOnDrop)]
pub struct DerivedKey([u8; 32]);

impl MasterKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits or base64 (with or without padding) of 32 bytes.
    ///
    /// # Errors
    /// What it must be; never the value.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        use base64::Engine as _;
        const SHAPE: &str = "must be 32 random bytes as 64 hexadecimal digits or as base64; \
                             make one with: openssl rand -hex 32";
        let text = text.trim();
        let mut decoded = if text.len() == 64 {
            hex::decode(text).map_err(|_bad_digit| SHAPE)?
        } else {
            base64::engine::general_purpose::STANDARD_NO_PAD
                .decode(text.trim_end_matches('='))
                .map_err(|_bad_digit| SHAPE)?
        };
        let bytes: Result<[u8; 32], _> = decoded.as_slice().try_into();
        decoded.zeroize();
        let bytes = bytes.map_err(|_bad_length| SHAPE)?;
        // A key typed by hand or filled with one byte protects nothing.
        let mut seen = bytes.to_vec();
        seen.sort_unstable();
        seen.dedup();
        let distinct = seen.len();
        seen.zeroize();
        if distinct < 8 {
            return Err("must be random: it has fewer than 8 different bytes; \
                        make one with: openssl rand -hex 32");
        }
        Ok(Self(bytes))
    }

    /// Tells keys apart without telling anything about them: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        let mut id = [0; 8];
        self.expand("keystead master id", &mut id);
        hex::encode(id)
    }

    /// The key for `purpose`, a constant of the code that may end in a number.
    pub fn derive(&self, purpose: &str) -> DerivedKey {
        let mut key = [0; 32];
        self.expand(purpose, &mut key);
        DerivedKey(key)
    }

    pub fn to_hex(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(hex::encode(self.0))
    }

    #[expect(
        clippy::expect_used,
        reason = "HKDF-SHA-256 fails only above 8160 bytes"
    )]
    fn expand(&self, purpose: &str, out: &mut [u8]) {
        Hkdf::<Sha256>::new(None, &self.0)
            .expand(purpose.as_bytes(), out)
            .expect("an output of 32 bytes is within HKDF's bound");
    }
}

impl DerivedKey {
    pub fn expose_secret(&self) -> &[u8; 32] {
        &self.0
    }

    /// HMAC-SHA-256 (RFC 2104) over the parts, each preceded by its length so that no two lists of
    /// parts give the same input.
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        use hmac::{KeyInit as _, Mac as _};
        #[expect(
            clippy::expect_used,
            clippy::missing_panics_doc,
            reason = "HMAC takes any key"
        )]
        let mut mac =
            hmac::Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key length");
        for part in parts {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// AES-256-GCM with a random nonce, which stands before it; `bound_to` is authenticated with it.
    /// `None` if it cannot be done.
    pub fn encrypt(&self, bound_to: &str, secret: &[u8], entropy: &Entropy) -> Option<Vec<u8>> {
        let nonce: [u8; NONCE_LEN] = entropy.bytes();
        let mut sealed = Zeroizing::new(secret.to_vec());
        let tag = self
            .cipher()?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound_to),
                &mut sealed,
            )
            .ok()?;
        Some([&nonce[..], &sealed, tag.as_ref()].concat())
    }

    /// `None` for what was not encrypted with this key for this very `bound_to`.
    pub fn decrypt(&self, bound_to: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut secret = Zeroizing::new(sealed.to_vec());
        let length = self
            .cipher()?
            .open_in_place(nonce, Aad::from(bound_to), &mut secret)
            .ok()?
            .len();
        secret.truncate(length);
        Some(secret)
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &self.0)
            .ok()
            .map(LessSafeKey::new)
    }

    /// Compares in constant time.
    pub fn verify(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        use subtle::ConstantTimeEq as _;
        self.mac(parts).ct_eq(mac).into()
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

impl fmt::Debug for DerivedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DerivedKey(..)")
    }
}

/// All master keys of this node: the first seals and derives, the others only open.
#[derive(Clone, Debug)]
pub struct MasterKeys {
    pub first: MasterKey,
    pub others: Vec<MasterKey>,
}

impl MasterKeys {
    pub fn by_id(&self, id: &str) -> Option<&MasterKey> {
        std::iter::once(&self.first)
            .chain(&self.others)
            .find(|key| key.id() == id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &MasterKey> {
        std::iter::once(&self.first).chain(&self.others)
    }
}
