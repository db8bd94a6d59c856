//! AES-128 in counter mode, by the crates `aes` and `ctr`.
//!
//! A crate of its own, since `opt-level` is chosen by crate, and generic code is compiled with that of the crate that uses it. Optimised
//! for size, AES takes 3 (`"s"`) or 30 (`"z"`) times as many instructions; the rest of the gateway hardly notices.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use aes::Aes128Enc;
use aes::cipher::{Array, InnerIvInit, KeyInit, StreamCipherCore};
use ctr::{CtrCore, flavors};

/// A key. There is one for each call, and expanded it takes 176 bytes, three lines of the cache. So it is expanded for each packet where
/// the processor has instructions for that, which takes some 10 ns, and once elsewhere.
pub struct Key(Form);

enum Form {
    Short([u8; 16]),
    Expanded(Box<Aes128Enc>),
}

impl Key {
    /// Keeps `key` in the form that suits the processor.
    pub fn new(key: &[u8; 16]) -> Self {
        if has_aes_instructions() { Self(Form::Short(*key)) } else { Self::expanded(key) }
    }

    /// Expands `key` once.
    #[inline(never)] // In another crate it would be compiled as that crate is.
    pub fn expanded(key: &[u8; 16]) -> Self {
        Self(Form::Expanded(Box::new(Aes128Enc::new(key.into()))))
    }

    /// The keystream of a 128-bit big-endian counter that starts at `iv`.
    #[inline(never)]
    pub fn keystream(&self, iv: &[u8; 16]) -> Keystream {
        let key = match &self.0 {
            Form::Short(key) => Aes128Enc::new(key.into()),
            Form::Expanded(key) => (**key).clone(),
        };
        Keystream(CtrCore::inner_iv_init(key, iv.into()))
    }
}

/// Whether the crate `aes` uses instructions of this processor.
fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

/// A keystream, from where it was last used.
pub struct Keystream(CtrCore<Aes128Enc, flavors::Ctr128BE>);

impl Keystream {
    /// Encrypts or decrypts whole blocks of 16 bytes in place. Bytes behind the last whole block stay as they are.
    #[inline(never)]
    pub fn apply(&mut self, blocks: &mut [u8]) {
        // As `apply_keystream_blocks`, which goes byte by byte when the linked program is optimised for size.
        for blocks in blocks.as_chunks_mut().0.chunks_mut(8) {
            let mut stream = [Array([0; 16]); 8];
            self.0.write_keystream_blocks(&mut stream[..blocks.len()]);
            for (block, stream) in blocks.iter_mut().zip(stream) {
                *block = (u128::from_ne_bytes(*block) ^ u128::from_ne_bytes(stream.0)).to_ne_bytes();
            }
        }
    }
}
