//! The manifest and the configuration of a component.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;
use trainer_plugin_host::Inspection;

use super::SIGNATURE;
use crate::{Digest, StoreError};

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";
/// The time in a configuration. The same component gives the same artifact, whenever it is pushed.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// A part of an artifact.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// What an image manifest says, as far as it is needed here. More may stand in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest and checks that it is that of one component.
    pub(super) fn parse(bytes: &[u8], reference: &str) -> Result<Self, StoreError> {
        let wrong = |message: String| StoreError::Artifact { reference: reference.to_owned(), message };
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| wrong(format!("its manifest is no JSON ({e})")))?;
        if value.get("manifests").is_some() {
            return Err(wrong("it is an index of several artifacts; name one of them by its digest, @sha256:...".to_owned()));
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| wrong(format!("its manifest does not read ({e})")))?;
        if manifest.schema_version != 2 {
            return Err(wrong(format!("its manifest has schema version {}", manifest.schema_version)));
        }
        if manifest.config.media_type != CONFIG {
            return Err(wrong(format!("its configuration is {:?}, not {CONFIG}", short(&manifest.config.media_type))));
        }
        match manifest.layers.as_slice() {
            [layer] if layer.media_type == LAYER => Ok(manifest),
            [layer] => Err(wrong(format!("its layer is {:?}, not {LAYER}", short(&layer.media_type)))),
            layers => Err(wrong(format!("it has {} layers, not one", layers.len()))),
        }
    }

    /// Digest and size of the component.
    pub(super) fn component(&self, reference: &str) -> Result<(Digest, u64), StoreError> {
        let wrong = |message: String| StoreError::Artifact { reference: reference.to_owned(), message };
        let layer = self.layers.first().ok_or_else(|| wrong("it has no layer".to_owned()))?;
        let digest = layer.digest.parse().map_err(|m: String| wrong(format!("the digest of its layer: {m}")))?;
        Ok((digest, layer.size))
    }

    /// The signature, if it has one.
    pub(super) fn signature(&self) -> Option<&str> {
        self.annotations.get(SIGNATURE).map(String::as_str)
    }
}

fn short(text: &str) -> String {
    crate::http::line(text).chars().take(80).collect()
}

/// What is pushed: the parts and the manifest that names them.
pub(crate) struct Parts {
    pub(super) config: Vec<u8>,
    pub(super) manifest: Vec<u8>,
}

/// What a push came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Pushed {
    /// The digest of the manifest.
    pub(crate) manifest: Digest,
    /// Bytes that were sent; what the registry had already is not sent again.
    pub(crate) sent: u64,
}

impl Parts {
    /// Makes the artifact of a component.
    pub(super) fn new(component: &[u8], about: &Inspection, signature: Option<&str>) -> Result<Self, StoreError> {
        let digest = Digest::of(component).to_string();
        let exports: Vec<String> = about.kinds.iter().map(|k| format!("{}@{}", k.kind.interface(), k.version)).collect();
        let config = json!({
            "created": CREATED,
            "author": null,
            "architecture": "wasm",
            "os": "wasip2",
            "layerDigests": [digest],
            "component": { "exports": exports, "imports": about.imports, "target": null },
        });
        let config = config.to_string().into_bytes();
        let title = |name: &str| BTreeMap::from([("org.opencontainers.image.title".to_owned(), format!("{name}.wasm"))]);
        let mut annotations = BTreeMap::from([
            ("org.opencontainers.image.title".to_owned(), about.name.clone()),
            ("org.opencontainers.image.version".to_owned(), about.version.clone()),
            ("org.opencontainers.image.description".to_owned(), about.description.clone()),
        ]);
        if let Some(signature) = signature {
            annotations.insert(SIGNATURE.to_owned(), signature.to_owned());
        }
        let descriptor = |media_type: &str, bytes: &[u8], annotations| Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes).to_string(),
            size: bytes.len() as u64,
            annotations,
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            config: descriptor(CONFIG, &config, BTreeMap::new()),
            layers: vec![descriptor(LAYER, component, title(&about.name))],
            annotations,
        };
        let manifest = serde_json::to_vec(&manifest)
            .map_err(|e| StoreError::Artifact { reference: about.name.clone(), message: format!("its manifest cannot be written: {e}") })?;
        Ok(Self { config, manifest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(change: impl FnOnce(&mut serde_json::Value)) -> Result<Manifest, String> {
        let component = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/prebuilt/math_mix.wasm")).unwrap();
        let about = trainer_plugin_host::inspect(&component).unwrap();
        let parts = Parts::new(&component, &about, Some("signature")).unwrap();
        let mut value = serde_json::from_slice(&parts.manifest).unwrap();
        change(&mut value);
        Manifest::parse(value.to_string().as_bytes(), "oci://x/y:z").map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_made_is_what_is_read() {
        let read = manifest(|_| {}).unwrap();
        assert_eq!(read.signature(), Some("signature"));
        assert_eq!(read.layers[0].annotations["org.opencontainers.image.title"], "math_mix.wasm");
        // Whatever else stands in a manifest does not matter.
        manifest(|m| m["artifactType"] = json!("x")).unwrap();
        manifest(|m| m["layers"][0]["data"] = json!("x")).unwrap();
    }

    #[test]
    fn the_configuration_is_that_of_a_component() {
        let component = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/prebuilt/math_mix.wasm")).unwrap();
        let about = trainer_plugin_host::inspect(&component).unwrap();
        let parts = Parts::new(&component, &about, None).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&parts.config).unwrap();
        assert_eq!((&config["architecture"], &config["os"]), (&json!("wasm"), &json!("wasip2")));
        assert_eq!(config["layerDigests"], json!([Digest::of(&component).to_string()]));
        assert_eq!(
            config["component"]["exports"],
            json!(["trainer:dataset-formatter/formatter@0.1.0", "trainer:mixing-policy/policy@0.1.0"])
        );
    }

    #[test]
    fn other_artifacts_are_refused() {
        let refused = |change: fn(&mut serde_json::Value), word: &str| {
            let error = manifest(change).unwrap_err();
            assert!(error.contains(word) && error.contains("oci://x/y:z"), "{error}");
        };
        refused(|m| m["config"]["mediaType"] = json!("application/vnd.oci.image.config.v1+json"), "its configuration is");
        refused(|m| m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip"), "its layer is");
        refused(|m| m["layers"] = json!([]), "0 layers");
        refused(|m| m["layers"] = json!([m["layers"][0], m["layers"][0]]), "2 layers");
        refused(|m| m["manifests"] = json!([]), "several artifacts");
        refused(|m| m["schemaVersion"] = json!(1), "schema version 1");
        refused(|m| *m = json!([]), "does not read");
        let digest = manifest(|m| m["layers"][0]["digest"] = json!("sha512:0")).unwrap().component("oci://x/y:z").unwrap_err();
        assert!(digest.to_string().contains("digest of its layer"), "{digest}");
    }
}
