//! Secret keys and signatures in minisign's formats. Verifying is the crate `minisign-verify`'s; this is what it takes to make what it verifies.
//!
//! Keys with a password need scrypt, which this program does without: those are for the program `minisign`, whose signatures serve just as well.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};

/// Ed25519, of the content itself, and of its hash.
const PLAIN: [u8; 2] = *b"Ed";
const PREHASHED: [u8; 2] = *b"ED";
/// BLAKE2b, for the check sum.
const BLAKE2B: [u8; 2] = *b"B2";
const NO_PASSWORD: [u8; 2] = [0, 0];
const ID: usize = 8;
/// Algorithm, password function, check sum function, salt, two limits; then id, seed, public key and check sum.
const HEAD: usize = 6 + 32 + 8 + 8;
const SECRET: usize = HEAD + ID + 64 + 32;

/// A secret key with its id.
pub(crate) struct SecretKey {
    id: [u8; ID],
    /// Seed and public key, as they are written.
    raw: [u8; 64],
    pair: Ed25519KeyPair,
}

impl SecretKey {
    /// A new one.
    pub(crate) fn generate() -> Result<Self, String> {
        let random = SystemRandom::new();
        let (mut id, mut seed) = ([0; ID], [0; 32]);
        let failed = |_| "the system gives no random numbers".to_owned();
        random.fill(&mut id).map_err(failed)?;
        random.fill(&mut seed).map_err(failed)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|e| e.to_string())?;
        let mut raw = [0; 64];
        raw[..32].copy_from_slice(&seed);
        raw[32..].copy_from_slice(pair.public_key().as_ref());
        Ok(Self { id, raw, pair })
    }

    /// Reads the text of a key file.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let line = text.lines().nth(1).unwrap_or_default().trim();
        let bytes = STANDARD.decode(line).ok().filter(|b| b.len() == SECRET && b[..2] == PLAIN && b[4..6] == BLAKE2B);
        let bytes = bytes.ok_or("it is no minisign secret key")?;
        if bytes[2..4] != NO_PASSWORD {
            return Err("it has a password; sign with the program `minisign` (`minisign -S -s KEYFILE -m FILE`), whose signature serves just as well".to_owned());
        }
        let (mut id, mut raw) = ([0; ID], [0; 64]);
        id.copy_from_slice(&bytes[HEAD..HEAD + ID]);
        raw.copy_from_slice(&bytes[HEAD + ID..HEAD + ID + 64]);
        // The program `minisign` leaves zeros where there is no password.
        let sum = &bytes[HEAD + ID + 64..];
        if checksum(&id, &raw)[..] != *sum && sum.iter().any(|b| *b != 0) {
            return Err("it is damaged: its check sum is wrong".to_owned());
        }
        let pair = Ed25519KeyPair::from_seed_and_public_key(&raw[..32], &raw[32..]).map_err(|e| format!("it is damaged: {e}"))?;
        Ok(Self { id, raw, pair })
    }

    /// The text of its file.
    pub(crate) fn to_text(&self, comment: &str) -> String {
        let mut bytes = Vec::with_capacity(SECRET);
        bytes.extend_from_slice(&PLAIN);
        bytes.extend_from_slice(&NO_PASSWORD);
        bytes.extend_from_slice(&BLAKE2B);
        bytes.resize(HEAD, 0);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.raw);
        bytes.extend_from_slice(&checksum(&self.id, &self.raw));
        format!("untrusted comment: {comment}\n{}\n", STANDARD.encode(bytes))
    }

    /// The public key in base64.
    pub(crate) fn public(&self) -> String {
        STANDARD.encode([&PLAIN[..], &self.id, self.pair.public_key().as_ref()].concat())
    }

    /// The text of a signature file. The trusted comment, a line, is signed too.
    pub(crate) fn sign(&self, bytes: &[u8], untrusted: &str, trusted: &str) -> String {
        let signature = self.pair.sign(blake2b_simd::blake2b(bytes).as_bytes());
        let global = self.pair.sign(&[signature.as_ref(), trusted.as_bytes()].concat());
        let first = STANDARD.encode([&PREHASHED[..], &self.id, signature.as_ref()].concat());
        format!("untrusted comment: {untrusted}\n{first}\ntrusted comment: {trusted}\n{}\n", STANDARD.encode(global))
    }
}

fn checksum(id: &[u8; ID], raw: &[u8; 64]) -> [u8; 32] {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    state.update(&PLAIN).update(id).update(raw);
    let mut out = [0; 32];
    out.copy_from_slice(state.finalize().as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let key = SecretKey::generate().unwrap();
        let text = key.to_text("x");
        let read = SecretKey::parse(&text).unwrap();
        assert_eq!((read.public(), read.to_text("x")), (key.public(), text.clone()));
        assert_eq!(read.sign(b"x", "a", "b"), key.sign(b"x", "a", "b"));
        let line = text.lines().nth(1).unwrap();
        let mut bytes = STANDARD.decode(line).unwrap();
        let broken = |bytes: &[u8]| SecretKey::parse(&format!("c\n{}\n", STANDARD.encode(bytes))).err().unwrap();
        bytes[80] ^= 1;
        assert!(broken(&bytes).contains("damaged"));
        bytes[2..4].copy_from_slice(b"Sc");
        assert!(broken(&bytes).contains("password"));
        assert!(broken(&bytes[1..]).contains("no minisign secret key"));
        assert!(SecretKey::parse("").is_err());
    }

    /// `minisign -G -W` and `minisign -S` of version 0.11 made these, for a file that holds `test` and a line feed.
    #[test]
    fn the_program_minisign_makes_the_same() {
        const KEY: &str = include_str!("../tests/minisign/test.key");
        const PUBLIC: &str = include_str!("../tests/minisign/test.pub");
        const SIGNATURE: &str = include_str!("../tests/minisign/test.minisig");
        let key = SecretKey::parse(KEY).unwrap();
        assert_eq!(key.public(), PUBLIC.lines().nth(1).unwrap());
        let lines: Vec<&str> = SIGNATURE.lines().collect();
        let trusted = lines[2].strip_prefix("trusted comment: ").unwrap();
        let untrusted = lines[0].strip_prefix("untrusted comment: ").unwrap();
        assert_eq!(key.sign(b"test\n", untrusted, trusted), SIGNATURE);
    }
}
