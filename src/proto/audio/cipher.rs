//! AES-128 in counter mode, by the crate `aes` or by OpenSSL, whichever suits the processor.

use std::fmt;

use mqtt_websocket_proxy_cipher::Key;

/// A call's AES-128 key.
pub struct Cipher(Implementation);

enum Implementation {
    /// The crate `aes`: by the instructions of the processor, else in software without tables.
    Crate(Key),
    /// OpenSSL's code for processors with NEON but without AES instructions.
    #[cfg(openssl_cipher)]
    OpenSsl(openssl_cipher::Context),
}

impl Cipher {
    /// Takes `key`.
    pub fn new(key: &[u8; 16]) -> Self {
        #[cfg(openssl_cipher)]
        if openssl_cipher::is_faster()
            && let Ok(context) = openssl_cipher::Context::new(key)
        {
            return Self(Implementation::OpenSsl(context));
        }
        Self::with_crate(key)
    }

    fn with_crate(key: &[u8; 16]) -> Self {
        Self(Implementation::Crate(Key::new(key)))
    }

    /// Encrypts or decrypts `data` in place in counter mode, with a 128-bit big-endian counter that starts at `iv`.
    pub fn apply(&self, iv: &[u8; 16], data: &mut [u8]) {
        match &self.0 {
            Implementation::Crate(key) => apply_by_crate(key, iv, data),
            #[cfg(openssl_cipher)]
            Implementation::OpenSsl(context) => context.apply(iv, data),
        }
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

/// Both implementations process so many bytes, eight blocks, at once, or a part of them. An ordinary packet is one such batch.
const BATCH: usize = 128;

fn apply_by_crate(key: &Key, iv: &[u8; 16], data: &mut [u8]) {
    /// AES in software processes two blocks at once, on 64 bits four, and one block takes as long as all.
    const STEP: usize = if cfg!(target_pointer_width = "64") { 64 } else { 32 };

    let mut keystream = key.keystream(iv);
    in_batches(data, STEP, |batches| keystream.apply(batches));
}

/// Calls `apply` for all whole batches in place, then for the rest, padded to a multiple of `step`.
fn in_batches(data: &mut [u8], step: usize, mut apply: impl FnMut(&mut [u8])) {
    let (body, tail) = data.split_at_mut(data.len() / BATCH * BATCH);
    if !body.is_empty() {
        apply(body);
    }
    if !tail.is_empty() {
        let mut padded = [0; BATCH];
        padded[..tail.len()].copy_from_slice(tail);
        apply(&mut padded[..tail.len().next_multiple_of(step)]);
        tail.copy_from_slice(&padded[..tail.len()]);
    }
}

/// AES by OpenSSL's EVP. Where the processor has no AES instructions but NEON, its bit-sliced code takes a quarter of the crate's
/// instructions. With AES instructions the crate is faster.
#[cfg(any(openssl_cipher, all(test, feature = "tls", not(windows), not(target_vendor = "apple"))))]
mod openssl_cipher {
    use std::cell::RefCell;

    use openssl::cipher::Cipher;
    use openssl::cipher_ctx::CipherCtx;
    use openssl::error::ErrorStack;

    use super::{BATCH, in_batches};

    /// Whether the crate has no code for this processor's AES instructions, or it has none.
    #[cfg(openssl_cipher)]
    pub(super) fn is_faster() -> bool {
        #[cfg(target_arch = "aarch64")]
        return !std::arch::is_aarch64_feature_detected!("aes");
        #[cfg(not(target_arch = "aarch64"))]
        true
    }

    pub(super) struct Context(RefCell<CipherCtx>);

    impl Context {
        pub(super) fn new(key: &[u8; 16]) -> Result<Self, ErrorStack> {
            let mut context = CipherCtx::new()?;
            context.encrypt_init(Some(Cipher::aes_128_ctr()), Some(key), Some(&[0; 16]))?;
            Ok(Self(RefCell::new(context)))
        }

        /// Always whole batches: runs of fewer than eight blocks are processed by tables, slower, and in a time that depends on the
        /// data.
        pub(super) fn apply(&self, iv: &[u8; 16], data: &mut [u8]) {
            let mut context = self.0.borrow_mut();
            let mut done = context.encrypt_init(None, None, Some(iv)).is_ok();
            in_batches(data, BATCH, |batches| {
                done = done && context.cipher_update_inplace(batches, batches.len()).is_ok();
            });
            if !done {
                // It has no reason to fail. If it does, nothing may leave unencrypted.
                data.fill(0);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// AES block by block, with a counter of its own.
    fn reference(key: &[u8; 16], iv: &[u8; 16], data: &mut [u8]) {
        use aes::cipher::{BlockCipherEncrypt, KeyInit};
        let key = aes::Aes128Enc::new(key.into());
        for (i, block) in data.chunks_mut(16).enumerate() {
            let mut keystream = u128::from_be_bytes(*iv).wrapping_add(i as u128).to_be_bytes().into();
            key.encrypt_block(&mut keystream);
            block.iter_mut().zip(keystream).for_each(|(byte, key)| *byte ^= key);
        }
    }

    proptest! {
        #[test]
        fn all_implementations_agree_at_every_length(
            key in any::<[u8; 16]>(),
            mut iv in any::<[u8; 16]>(),
            overflows in any::<bool>(),
            plain in prop::collection::vec(any::<u8>(), 0..1400),
        ) {
            if overflows {
                iv[1..15].fill(0xff);
            }
            let mut expected = plain.clone();
            reference(&key, &iv, &mut expected);
            let mut by_crate = plain.clone();
            Cipher::with_crate(&key).apply(&iv, &mut by_crate);
            prop_assert_eq!(&by_crate, &expected);
            let mut by_expanded_key = plain.clone();
            apply_by_crate(&Key::expanded(&key), &iv, &mut by_expanded_key);
            prop_assert_eq!(&by_expanded_key, &expected);
            #[cfg(all(feature = "tls", not(windows), not(target_vendor = "apple")))]
            {
                let context = openssl_cipher::Context::new(&key).unwrap();
                // A context is used for many packets.
                context.apply(&[7; 16], &mut [0; 77]);
                let mut by_openssl = plain.clone();
                context.apply(&iv, &mut by_openssl);
                prop_assert_eq!(&by_openssl, &expected);
            }
        }
    }

    /// NIST SP 800-38A, F.5.1.
    #[test]
    #[cfg(all(feature = "tls", not(windows), not(target_vendor = "apple")))]
    fn openssl_matches_the_vectors_of_nist() {
        let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
        let block = |text: &str| <[u8; 16]>::try_from(hex(text)).unwrap();
        let context = openssl_cipher::Context::new(&block("2b7e151628aed2a6abf7158809cf4f3c")).unwrap();
        let mut data = hex(
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
        );
        context.apply(&block("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), &mut data);
        assert_eq!(
            data,
            hex(
                "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee"
            )
        );
    }
}
