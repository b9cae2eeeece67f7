//! Reading `tokenizer.json` and its companions, and recognising what the native encoder can serve.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::error::TextError;
use crate::vocab::{AddedToken, TokenTable};

/// The largest file that is read. Qwen3's `tokenizer.json` has 11 MB.
const MAX_FILE: u64 = 256 << 20;

/// The split pattern of Qwen2, Qwen2.5 and Qwen3.
pub(crate) const QWEN_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Reads a file of at most 256 MiB.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TextError> {
    let at = |source| TextError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(at)?;
    let size = file.metadata().map_err(at)?.len();
    let mut bytes = Vec::new();
    if size <= MAX_FILE {
        // The file may grow between the two calls, and special files have no size.
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(at)?;
    }
    let size = size.max(bytes.len() as u64);
    if size > MAX_FILE { Err(TextError::TooLarge { path: path.to_owned(), size, limit: MAX_FILE }) } else { Ok(bytes) }
}

/// As [`read`]; none if there is no such file.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    match read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(TextError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// SHA-256 in hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 in hex over the files that are there, each with its name and length so that no two sets of files give the same input.
pub(crate) fn digest(files: &[(&str, Option<&[u8]>)]) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in files {
        if let Some(bytes) = bytes {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// An error about `tokenizer.json`.
pub(crate) fn invalid(message: impl Into<String>) -> TextError {
    TextError::Invalid { file: "tokenizer.json", message: message.into() }
}

/// `tokenizer.json`, its model not yet parsed.
#[derive(Debug, Deserialize)]
pub(crate) struct TokenizerFile<'a> {
    #[serde(default)]
    pub added_tokens: Vec<AddedSpec>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
    #[serde(borrow)]
    model: &'a RawValue,
}

/// An entry of `added_tokens`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AddedSpec {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    pub special: bool,
}

impl AddedSpec {
    pub fn token(&self) -> AddedToken {
        AddedToken { id: self.id, text: self.content.clone(), special: self.special }
    }
}

/// Parses `tokenizer.json` and refuses decoders other than byte-level ones.
pub(crate) fn parse(json: &[u8]) -> Result<TokenizerFile<'_>, TextError> {
    let file: TokenizerFile<'_> = serde_json::from_slice(json).map_err(|source| TextError::Json { file: "tokenizer.json", source })?;
    if let Some(t) = file.added_tokens.iter().find(|t| t.content.is_empty()) {
        return Err(invalid(format!("the added token with id {} has no text", t.id)));
    }
    match kind(&file.decoder) {
        Some("ByteLevel") => Ok(file),
        Some(other) => Err(TextError::Unsupported { what: format!("the decoder is of type {other:?}") }),
        None => Err(TextError::Unsupported { what: "there is no decoder".into() }),
    }
}

fn kind(part: &Option<Value>) -> Option<&str> {
    part.as_ref().and_then(|p| p.get("type")).and_then(Value::as_str)
}

/// A byte-level BPE model of the Qwen family.
#[derive(Debug)]
pub(crate) struct NativeModel {
    /// Tokens with their ids, each token once.
    pub vocab: Vec<(String, u32)>,
    /// Pairs in order of rank.
    pub merges: Vec<(String, String)>,
    /// Whether text is brought into NFC first.
    pub nfc: bool,
}

/// What a `tokenizer.json` is.
pub(crate) enum Recognised {
    /// The native encoder serves it.
    Native(NativeModel),
    /// It does not, and why.
    Other(String),
}

/// Decides by structure alone whether the native encoder serves a tokenizer: NFC or no normalizer, Qwen's pattern, byte level, plain BPE, and
/// added tokens that match their exact text.
pub(crate) fn recognise(file: &TokenizerFile<'_>) -> Result<Recognised, TextError> {
    let other = |why: &str| Ok(Recognised::Other(why.to_owned()));
    let nfc = match (&file.normalizer, kind(&file.normalizer)) {
        (None, _) => false,
        (_, Some("NFC")) => true,
        _ => return other("its normalizer is not NFC"),
    };
    if !is_qwen_split(&file.pre_tokenizer) {
        return other("its pre-tokenizer is not Qwen's");
    }
    if file.added_tokens.iter().any(|t| t.single_word || t.lstrip || t.rstrip || t.normalized) {
        return other("an added token is matched by other rules than its exact text");
    }
    let head: ModelHead = match serde_json::from_str(file.model.get()) {
        Ok(head) => head,
        Err(_) => return other("its model is not BPE"),
    };
    if !head.is_plain() {
        return other("its model is not BPE without dropout, unknown token, affixes and byte fallback");
    }
    // From here on the file claims to be what it looks like, so faults are errors.
    let BpeSpec { vocab, merges } =
        serde_json::from_str(file.model.get()).map_err(|source| TextError::Json { file: "tokenizer.json (model)", source })?;
    Ok(Recognised::Native(NativeModel { vocab: vocab.0, merges: merges.into_iter().map(|m| m.0).collect(), nfc }))
}

/// Qwen's `Split` by its pattern, then `ByteLevel` without a pattern of its own.
fn is_qwen_split(pre_tokenizer: &Option<Value>) -> bool {
    let Some([split, bytes]) =
        pre_tokenizer.as_ref().filter(|p| p["type"] == "Sequence").and_then(|p| p["pretokenizers"].as_array()).map(Vec::as_slice)
    else {
        return false;
    };
    split["type"] == "Split"
        && split["pattern"]["Regex"] == QWEN_PATTERN
        && split["behavior"] == "Isolated"
        && split["invert"] == false
        && bytes["type"] == "ByteLevel"
        && bytes["add_prefix_space"] == false
        && bytes["use_regex"] == false
}

/// The options of a model.
#[derive(Debug, Deserialize)]
struct ModelHead {
    #[serde(rename = "type")]
    kind: String,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
}

impl ModelHead {
    fn is_plain(&self) -> bool {
        self.kind == "BPE"
            && self.dropout.is_none_or(|d| d == 0.0)
            && self.unk_token.is_none()
            && self.continuing_subword_prefix.as_deref().unwrap_or_default().is_empty()
            && self.end_of_word_suffix.as_deref().unwrap_or_default().is_empty()
            && self.byte_fallback != Some(true)
            && self.ignore_merges != Some(true)
    }
}

#[derive(Deserialize)]
struct BpeSpec {
    vocab: Vocab,
    merges: Vec<MergePair>,
}

/// A vocabulary as a list: a map would only be walked.
struct Vocab(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Vocab;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tokens to ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Vocab(all))
            }
        }
        d.deserialize_map(V)
    }
}

/// A merge: `["a", "b"]`, or in older files `"a b"`.
struct MergePair((String, String));

impl<'de> Deserialize<'de> for MergePair {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = MergePair;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge as [\"a\", \"b\"] or \"a b\"")
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<MergePair, E> {
                match s.split_once(' ') {
                    Some((a, b)) if !b.contains(' ') => Ok(MergePair((a.to_owned(), b.to_owned()))),
                    _ => Err(E::invalid_value(de::Unexpected::Str(s), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<MergePair, A::Error> {
                let a = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let b = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                match seq.next_element::<de::IgnoredAny>()? {
                    None => Ok(MergePair((a, b))),
                    Some(_) => Err(de::Error::invalid_length(3, &self)),
                }
            }
        }
        d.deserialize_any(V)
    }
}

/// The tokens that other files name.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
    pub bos: Option<u32>,
}

/// The parts of `tokenizer_config.json` that matter here.
#[derive(Debug, Default, Deserialize)]
struct Config {
    eos_token: Option<TokenName>,
    pad_token: Option<TokenName>,
    bos_token: Option<TokenName>,
    added_tokens_decoder: Option<HashMap<String, ConfigToken>>,
}

#[derive(Debug, Deserialize)]
struct ConfigToken {
    content: String,
}

/// A token by its text, alone or in an object.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenName {
    Text(String),
    Object { content: String },
}

/// The parts of `generation_config.json` that matter here.
#[derive(Debug, Default, Deserialize)]
struct Generation {
    eos_token_id: Option<OneOrMore>,
    pad_token_id: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

impl Settings {
    /// Reads the companions of `tokenizer.json` and checks them against it.
    pub fn new(config: Option<&[u8]>, generation: Option<&[u8]>, table: &TokenTable) -> Result<Self, TextError> {
        const CONFIG: &str = "tokenizer_config.json";
        const GENERATION: &str = "generation_config.json";
        let config: Config = parse_or_default(CONFIG, config)?;
        let generation: Generation = parse_or_default(GENERATION, generation)?;
        for (id, token) in config.added_tokens_decoder.iter().flatten() {
            let same = id.parse().ok().and_then(|id: u32| table.added_by_id(id)).is_some_and(|t| t.text == token.content);
            if !same {
                let message = format!(
                    "added_tokens_decoder has {:?} with id {id}, which tokenizer.json does not; the two files are of different tokenizers",
                    token.content
                );
                return Err(TextError::Invalid { file: CONFIG, message });
            }
        }
        let named = |key: &str, name: &Option<TokenName>| -> Result<Option<u32>, TextError> {
            let Some(TokenName::Text(text) | TokenName::Object { content: text }) = name else { return Ok(None) };
            let id = table.added_by_text(text).map(|t| t.id).or_else(|| table.find(text));
            let message = || format!("{key} is {text:?}, which is no token of tokenizer.json");
            id.map(Some).ok_or_else(|| TextError::Invalid { file: CONFIG, message: message() })
        };
        let numbered = |key: &str, id: u32| -> Result<u32, TextError> {
            let message = || format!("{key} is {id}, which is no token of tokenizer.json");
            table.get(id).map(|_| id).ok_or_else(|| TextError::Invalid { file: GENERATION, message: message() })
        };
        let mut eos: Vec<u32> = named("eos_token", &config.eos_token)?.into_iter().collect();
        let more = match generation.eos_token_id {
            None => Vec::new(),
            Some(OneOrMore::One(id)) => vec![id],
            Some(OneOrMore::More(ids)) => ids,
        };
        for id in more {
            if !eos.contains(&numbered("eos_token_id", id)?) {
                eos.push(id);
            }
        }
        let pad = match (named("pad_token", &config.pad_token)?, generation.pad_token_id) {
            (Some(id), _) => Some(id),
            (None, Some(id)) => Some(numbered("pad_token_id", id)?),
            (None, None) => None,
        };
        Ok(Self { eos, pad, bos: named("bos_token", &config.bos_token)? })
    }
}

fn parse_or_default<T: for<'de> Deserialize<'de> + Default>(file: &'static str, json: Option<&[u8]>) -> Result<T, TextError> {
    json.map_or_else(|| Ok(T::default()), |json| serde_json::from_slice(json).map_err(|source| TextError::Json { file, source }))
}
