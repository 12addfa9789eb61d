//! The one source of randomness: the operating system's generator, or a seeded one for tests.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::{StdRng, SysRng};
use rand::{Rng as _, SeedableRng as _, TryRng as _};

/// Where random bytes come from.
#[derive(Clone, Debug)]
pub enum Entropy {
    /// The operating system's generator (`getrandom`).
    System,
    /// Repeatable, for tests alone.
    Seeded(Arc<Mutex<StdRng>>),
}

impl Entropy {
    pub fn seeded(seed: u64) -> Self {
        Self::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Fills `bytes` with random ones.
    ///
    /// # Panics
    /// If the operating system's generator fails: nothing safe can be done without it.
    #[expect(
        clippy::panic,
        reason = "a key made without randomness would be worse than a crash"
    )]
    pub fn fill(&self, bytes: &mut [u8]) {
        match self {
            Self::System => {
                if let Err(error) = SysRng.try_fill_bytes(bytes) {
                    panic!("the operating system's random generator failed: {error}");
                }
            }
            Self::Seeded(rng) => {
                rng.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .fill_bytes(bytes);
            }
        }
    }

    /// Bytes that nobody has by chance but that need not be secret, such as a request id: from a
    /// generator of the thread that the system's seeds, without a system call each.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads randomness"
    )]
    pub fn nonce<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        match self {
            Self::System => rand::rng().fill_bytes(&mut bytes),
            Self::Seeded(_) => self.fill(&mut bytes),
        }
        bytes
    }

    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }
}
