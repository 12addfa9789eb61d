//! What is kept of a secret for looking it up: HMAC-SHA-256 (RFC 2104) of the whole plaintext under
//! a pepper. Without the pepper it verifies nothing.

use std::fmt;

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::Binary;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::ZeroizeOnDrop;

use super::secret::ApiKey;
use crate::master::DerivedKey;

/// Equal only to itself, compared in constant time; safe as the key of a map, since who can choose
/// its bytes has the pepper.
#[derive(Clone, Copy, Eq, Hash, AsExpression, FromSqlRow)]
#[diesel(sql_type = Binary)]
#[expect(
    clippy::derived_hash_with_manual_eq,
    reason = "equality differs from the derived one in its timing alone"
)]
pub struct Fingerprint([u8; 32]);

/// A pepper as the state of HMAC after it was keyed: the same for every fingerprint, and a secret
/// like the pepper itself. It is overwritten when dropped: hmac and sha2 have their feature for it.
pub struct Pepper(Hmac<Sha256>);

const _: () = {
    const fn is_overwritten<T: ZeroizeOnDrop>() {}
    is_overwritten::<Sha256>();
};

impl Pepper {
    pub fn new(key: &DerivedKey) -> Self {
        #[expect(
            clippy::expect_used,
            clippy::missing_panics_doc,
            reason = "HMAC takes any key"
        )]
        let keyed = Hmac::new_from_slice(key.expose_secret()).expect("HMAC takes any key length");
        Self(keyed)
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(..)")
    }
}

impl Fingerprint {
    pub fn of(key: &ApiKey, pepper: &Pepper) -> Self {
        Self::of_text(key.expose_secret(), pepper)
    }

    /// Of a plaintext that is not copied.
    pub fn of_text(key: &str, pepper: &Pepper) -> Self {
        let mut mac = pepper.0.clone();
        mac.update(key.as_bytes());
        Self(mac.finalize().into_bytes().into())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(..)")
    }
}

impl<DB: diesel::backend::Backend> FromSql<Binary, DB> for Fingerprint
where
    Vec<u8>: FromSql<Binary, DB>,
{
    fn from_sql(bytes: DB::RawValue<'_>) -> deserialize::Result<Self> {
        let bytes = Vec::<u8>::from_sql(bytes)?;
        let bytes: Result<[u8; 32], _> = bytes.try_into();
        bytes
            .map(Self)
            .map_err(|_bytes| "a fingerprint must have 32 bytes".into())
    }
}

impl<DB: diesel::backend::Backend> ToSql<Binary, DB> for Fingerprint
where
    [u8]: ToSql<Binary, DB>,
{
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, DB>) -> serialize::Result {
        self.0.as_slice().to_sql(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::MasterKey;

    #[test]
    fn a_fingerprint_is_the_hmac_of_the_whole_plaintext() {
        let derived = MasterKey::new([7; 32]).derive("keystead pepper 1");
        let pepper = Pepper::new(&derived);
        let key = ApiKey::of_test("what-do-ya-want-for-nothing");
        for _ in 0..2 {
            let mut mac = Hmac::<Sha256>::new_from_slice(derived.expose_secret()).unwrap();
            mac.update(b"what-do-ya-want-for-nothing");
            mac.verify_slice(Fingerprint::of(&key, &pepper).as_bytes())
                .unwrap();
        }
    }

    #[test]
    fn a_fingerprint_says_nothing_without_the_pepper() {
        use sha2::Digest as _;
        let master = MasterKey::new([7; 32]);
        let [one, two] =
            ["pepper 1", "pepper 2"].map(|purpose| Pepper::new(&master.derive(purpose)));
        let key = ApiKey::of_test("0123456789abcdef");
        assert_ne!(Fingerprint::of(&key, &one), Fingerprint::of(&key, &two));
        let plain: [u8; 32] = Sha256::digest(key.expose_secret()).into();
        assert_ne!(Fingerprint::of(&key, &one), Fingerprint::from_bytes(plain));
        assert_eq!(
            format!("{:?}", Fingerprint::of(&key, &one)),
            "Fingerprint(..)"
        );
    }
}
