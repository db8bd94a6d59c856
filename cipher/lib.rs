//! AES-128 in counter mode, by the crates `aes` and `ctr`.
//!
//! A crate of its own, since `opt-level` is chosen by crate, and generic code is compiled with that of the crate that uses it. Optimised
//! for size, AES takes 3 (`"s"`) or 30 (`"z"`) times as many instructions; the rest of the gateway hardly notices.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use aes::Aes128Enc;
use aes::cipher::{Array, InnerIvInit, KeyInit, StreamCipherCore};
use ctr::{CtrCore, flavors};

/// An expanded key.
pub struct Key(Aes128Enc);

impl Key {
    /// Expands `key`.
    #[inline(never)] // In another crate it would be compiled as that crate is.
    pub fn new(key: &[u8; 16]) -> Self {
        Self(Aes128Enc::new(key.into()))
    }

    /// The keystream of a 128-bit big-endian counter that starts at `iv`.
    #[inline(never)]
    pub fn keystream(&self, iv: &[u8; 16]) -> Keystream<'_> {
        Keystream(CtrCore::inner_iv_init(&self.0, iv.into()))
    }
}

/// A keystream, from where it was last used.
pub struct Keystream<'a>(CtrCore<&'a Aes128Enc, flavors::Ctr128BE>);

impl Keystream<'_> {
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
