//! Base62 of fixed width, alphabet `0-9A-Za-z`, most significant digit first, and the checksum of a
//! key: CRC-32/ISO-HDLC (the one of zlib and GitHub's tokens) in six digits.

use zeroize::{Zeroize as _, Zeroizing};

pub const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// 62^6 exceeds 2^32, so six digits hold any CRC-32.
pub const CHECKSUM_LEN: usize = 6;

/// Writes a big-endian number in `N` digits, padded on the left with `0`. The digits of a secret
/// are one, so they are overwritten when dropped, like the scratch space.
///
/// `N` digits must be able to hold the number: 6 for 4 bytes, 43 for 32.
pub fn encode<const N: usize>(number: &[u8]) -> Zeroizing<[u8; N]> {
    let mut number = number.to_vec();
    let mut digits = Zeroizing::new([b'0'; N]);
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in &mut number {
            let value = remainder * 256 + u32::from(*byte);
            // remainder < 62, so the quotient is below 256 and nothing is cut off.
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            remainder = value % 62;
        }
        *digit = character(remainder);
    }
    debug_assert!(
        number.iter().all(|byte| *byte == 0),
        "the number needs more than {N} digits"
    );
    number.zeroize();
    digits
}

/// The checksum that ends a key, over everything before it.
pub fn checksum(text: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut number = crc32fast::hash(text);
    let mut digits = [b'0'; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = character(number % 62);
        number /= 62;
    }
    digits
}

/// Whether all of them are digits. It looks at all, without branches, and so at many at a time.
pub fn is_number(digits: &[u8]) -> bool {
    digits
        .iter()
        .fold(true, |all, digit| all & digit.is_ascii_alphanumeric())
}

#[expect(
    clippy::indexing_slicing,
    reason = "the remainder of a division by 62 is below 62"
)]
fn character(remainder: u32) -> u8 {
    ALPHABET[usize::try_from(remainder % 62).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text<const N: usize>(number: &[u8]) -> String {
        String::from_utf8(encode::<N>(number).to_vec()).unwrap()
    }

    #[test]
    fn the_checksum_is_the_one_that_published_github_tokens_carry() {
        // A revoked token that was published with an article on the format. GitHub leaves the
        // prefix out of its checksum; ours is over everything before it.
        assert_eq!(&checksum(b"zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ"), b"0mLq17");
        assert_eq!(&checksum(b"ghp_zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ"), b"23hDkE");
    }

    #[test]
    fn the_crc_is_iso_hdlc() {
        // The check value of the catalogue of parametrised CRC algorithms.
        assert_eq!(crc32fast::hash(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn the_width_is_fixed_and_the_largest_numbers_fit() {
        assert_eq!(text::<6>(&[0; 4]), "000000");
        assert_eq!(text::<6>(&[0xff; 4]), "4gfFC3");
        assert_eq!(text::<43>(&[0; 32]), "0".repeat(43));
        assert_eq!(text::<43>(&[0xff; 32]).len(), 43);
    }

    proptest! {
        #[test]
        fn the_digits_say_the_number(number: u128) {
            let digits = text::<22>(&number.to_be_bytes());
            let back = digits.bytes().fold(0_u128, |sum, digit| {
                let value = ALPHABET.iter().position(|c| *c == digit).unwrap();
                sum.wrapping_mul(62).wrapping_add(value as u128)
            });
            prop_assert_eq!(back, number);
        }
    }
}
