//! A model as the tree of its modules, in the words of PyTorch: what `print(model)` shows in transformers and PEFT, with what each module holds.

use crate::adapter::{Adapter, LoraModule};
use crate::checkpoint::{Checkpoint, Storage};
use crate::config::ModelConfig;
use crate::layout::{norms, projections};
use crate::load::check_tensors;
use crate::{ModelError, Result};
use serde::Serialize;
use std::fmt;

/// What a module itself holds, without those below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// The shape of its weight.
    pub shape: Vec<usize>,
    /// How the weight is stored, such as `BF16`, `NF4 (double-quantized)` or `Q4_K`.
    pub storage: String,
    /// Values, a bias included.
    pub parameters: u64,
    /// Bytes in the file, those of 4-bit scales included.
    pub bytes: u64,
}

/// A module and those below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TreeNode {
    /// Its name in the module above; of several equal layers, their range.
    pub name: String,
    /// Its class with arguments, such as `Linear4bit(in_features=64, out_features=64, bias=False)`; for one with modules below it, the class alone.
    pub class: String,
    /// How many equal modules it stands for.
    pub count: usize,
    /// What it holds itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// The modules below it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<TreeNode>,
}

/// Sums over a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Values of the base model.
    pub parameters: u64,
    /// Their bytes as stored.
    pub bytes: u64,
    /// Linear layers in 4 bits.
    pub four_bit_linears: u64,
    /// Linear layers in 16 or 32 bits, or in blocks of a GGUF file.
    pub other_linears: u64,
    /// Values of the adapter.
    pub adapter_parameters: u64,
}

/// A model as a tree. `Display` prints it as PyTorch does, with a remark beside each module that holds something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelTree {
    /// Sums.
    pub totals: Totals,
    /// The outermost module.
    pub root: TreeNode,
}

impl TreeNode {
    fn new(name: &str, class: impl Into<String>, children: Vec<TreeNode>) -> Self {
        Self { name: name.to_string(), class: class.into(), count: 1, held: None, children }
    }

    fn leaf(name: &str, class: impl Into<String>) -> Self {
        Self::new(name, class, Vec::new())
    }

    fn renamed(mut self, name: &str) -> Self {
        self.name = name.to_string();
        self
    }

    fn add(&self, times: u64, totals: &mut Totals) {
        let times = times.saturating_mul(self.count as u64);
        match (&self.held, self.class.split('(').next()) {
            (Some(held), _) if held.storage == LORA => totals.adapter_parameters += times * held.parameters,
            (Some(held), class) => {
                totals.parameters += times * held.parameters;
                totals.bytes += times * held.bytes;
                match class {
                    Some("Linear4bit") => totals.four_bit_linears += times,
                    Some("Linear") => totals.other_linears += times,
                    _ => {}
                }
            }
            (None, _) => {}
        }
        self.children.iter().for_each(|child| child.add(times, totals));
    }
}

/// The storage of an adapter's parts: it is read as f32, whatever its file has.
const LORA: &str = "LoRA";

impl ModelTree {
    /// The tree of a checkpoint, whose tensors must be those of the configuration, with the parts of an adapter where there is one.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] if the checkpoint is not that of the configuration; an adapter whose modules are not the model's.
    pub fn new(checkpoint: &Checkpoint, config: &ModelConfig, adapter: Option<&Adapter>) -> Result<Self> {
        check_tensors(checkpoint, config)?;
        let builder = Builder { checkpoint, config, adapter };
        builder.check_adapter()?;
        let model = builder.model()?;
        let root = match adapter {
            Some(_) => {
                let lora = TreeNode::new("base_model", "LoraModel", vec![model.renamed("model")]);
                TreeNode::new("", "PeftModelForCausalLM", vec![lora])
            }
            None => model,
        };
        let mut totals = Totals::default();
        root.add(1, &mut totals);
        Ok(Self { totals, root })
    }
}

struct Builder<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    adapter: Option<&'a Adapter>,
}

impl Builder<'_> {
    fn storage(&self, tensor: &str) -> Result<Storage> {
        let missing = || ModelError::tensor(&self.checkpoint.describe(), tensor, "is missing");
        self.checkpoint.storage(tensor).ok_or_else(missing)
    }

    /// Shapes and places of the adapter's modules.
    fn check_adapter(&self) -> Result<()> {
        let Some(adapter) = self.adapter else { return Ok(()) };
        for (name, lora) in &adapter.modules {
            let error = |problem: String| Err(ModelError::Adapter { module: name.clone(), problem });
            let place = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            let place = place.and_then(|(layer, path)| Some((layer.parse::<usize>().ok()?, path)));
            let known = place.filter(|(layer, _)| *layer < self.config.num_hidden_layers);
            let found = known.and_then(|(_, path)| projections(self.config).into_iter().find(|p| p.0 == path));
            let Some((_, out_features, in_features, _)) = found else { return error("is not a projection of this model".to_string()) };
            if lora.rank > 0 && (lora.out_features != out_features || lora.in_features != in_features) {
                return error(format!("is {} x {}; the model's is {out_features} x {in_features}", lora.out_features, lora.in_features));
            }
        }
        Ok(())
    }

    fn model(&self) -> Result<TreeNode> {
        let c = self.config;
        let mut layers: Vec<TreeNode> = Vec::new();
        let mut first = 0;
        for number in 0..c.num_hidden_layers {
            let layer = self.layer(number)?;
            // As PyTorch: neighbours that print the same are one entry.
            match layers.last_mut() {
                Some(last) if last.class == layer.class && last.children == layer.children => {
                    last.count += 1;
                    last.name = format!("{first}-{number}");
                }
                _ => {
                    first = number;
                    layers.push(layer.renamed(&number.to_string()));
                }
            }
        }
        let inner = vec![
            self.embedding()?,
            TreeNode::new("layers", "ModuleList", layers),
            self.norm("norm", "model.norm.weight", c.hidden_size)?,
            TreeNode::leaf("rotary_emb", "Qwen3RotaryEmbedding()"),
        ];
        let head = if c.tie_word_embeddings {
            // The embedding's values, which count once.
            TreeNode::leaf("lm_head", linear_class("Linear", c.hidden_size, c.vocab_size, false))
        } else {
            self.linear("lm_head", "lm_head", c.vocab_size, c.hidden_size, false)?
        };
        Ok(TreeNode::new("", "Qwen3ForCausalLM", vec![TreeNode::new("model", "Qwen3Model", inner), head]))
    }

    fn embedding(&self) -> Result<TreeNode> {
        let c = self.config;
        let name = "model.embed_tokens.weight";
        let padding = c.pad_token_id.map(|id| format!(", padding_idx={id}")).unwrap_or_default();
        let mut node = TreeNode::leaf("embed_tokens", format!("Embedding({}, {}{padding})", c.vocab_size, c.hidden_size));
        let storage = self.storage(name)?;
        let parameters = (c.vocab_size as u64).saturating_mul(c.hidden_size as u64);
        node.held = Some(Held { shape: vec![c.vocab_size, c.hidden_size], storage: storage.form, parameters, bytes: storage.bytes });
        Ok(node)
    }

    fn norm(&self, name: &str, tensor: &str, len: usize) -> Result<TreeNode> {
        let eps = python_float(self.config.rms_norm_eps);
        let mut node = TreeNode::leaf(name, format!("Qwen3RMSNorm(({len},), eps={eps})"));
        let storage = self.storage(tensor)?;
        node.held = Some(Held { shape: vec![len], storage: storage.form, parameters: len as u64, bytes: storage.bytes });
        Ok(node)
    }

    fn layer(&self, number: usize) -> Result<TreeNode> {
        let c = self.config;
        let prefix = format!("model.layers.{number}");
        let mut attention = Vec::new();
        let mut mlp = Vec::new();
        for (path, out_features, in_features, bias) in projections(c) {
            let (group, name) = path.split_once('.').unwrap_or(("", path));
            let node = self.linear(name, &format!("{prefix}.{path}"), out_features, in_features, bias)?;
            if group == "mlp" { mlp.push(node) } else { attention.push(node) }
        }
        mlp.push(TreeNode::leaf("act_fn", "SiLUActivation()"));
        let mut outer = Vec::new();
        for (path, len) in norms(c) {
            let module = path.strip_suffix(".weight").unwrap_or(path);
            let tensor = format!("{prefix}.{path}");
            match module.split_once('.') {
                Some((_, name)) => attention.push(self.norm(name, &tensor, len)?),
                None => outer.push(self.norm(module, &tensor, len)?),
            }
        }
        let mut children = vec![TreeNode::new("self_attn", "Qwen3Attention", attention), TreeNode::new("mlp", "Qwen3MLP", mlp)];
        children.extend(outer);
        Ok(TreeNode::new("", "Qwen3DecoderLayer", children))
    }

    fn linear(&self, name: &str, module: &str, out_features: usize, in_features: usize, bias: bool) -> Result<TreeNode> {
        let weight = self.storage(&format!("{module}.weight"))?;
        let class = if weight.four_bit { "Linear4bit" } else { "Linear" };
        let mut parameters = (out_features as u64).saturating_mul(in_features as u64);
        let mut bytes = weight.bytes;
        if bias {
            parameters = parameters.saturating_add(out_features as u64);
            bytes = bytes.saturating_add(self.storage(&format!("{module}.bias"))?.bytes);
        }
        let mut node = TreeNode::leaf(name, linear_class(class, in_features, out_features, bias));
        node.held = Some(Held { shape: vec![out_features, in_features], storage: weight.form, parameters, bytes });
        let lora = self.adapter.and_then(|adapter| Some((adapter, adapter.modules.get(module)?)));
        Ok(match lora {
            Some((adapter, lora)) if lora.rank > 0 => with_lora(node, name, class, adapter, lora),
            _ => node,
        })
    }
}

/// A linear layer in PEFT's wrapping.
fn with_lora(base: TreeNode, name: &str, class: &str, adapter: &Adapter, lora: &LoraModule) -> TreeNode {
    let dropout = match adapter.config.dropout {
        0.0 => "Identity()".to_string(),
        p => format!("Dropout(p={}, inplace=False)", python_float(p)),
    };
    let part = |name: &str, in_features: usize, out_features: usize| {
        let mut node = TreeNode::leaf("default", linear_class("Linear", in_features, out_features, false));
        let parameters = (in_features as u64).saturating_mul(out_features as u64);
        let shape = vec![out_features, in_features];
        node.held = Some(Held { shape, storage: LORA.to_string(), parameters, bytes: parameters.saturating_mul(4) });
        TreeNode::new(name, "ModuleDict", vec![node])
    };
    let children = vec![
        base.renamed("base_layer"),
        TreeNode::new("lora_dropout", "ModuleDict", vec![TreeNode::leaf("default", dropout)]),
        part("lora_A", lora.in_features, lora.rank),
        part("lora_B", lora.rank, lora.out_features),
        TreeNode::leaf("lora_embedding_A", "ParameterDict()"),
        TreeNode::leaf("lora_embedding_B", "ParameterDict()"),
        TreeNode::leaf("lora_magnitude_vector", "ModuleDict()"),
    ];
    TreeNode::new(name, format!("lora.{class}"), children)
}

fn linear_class(class: &str, in_features: usize, out_features: usize, bias: bool) -> String {
    let bias = if bias { "True" } else { "False" };
    format!("{class}(in_features={in_features}, out_features={out_features}, bias={bias})")
}

/// A float as Python prints it: 1e-06, 0.1.
fn python_float(value: f64) -> String {
    if value != 0.0 && (value.abs() < 1e-4 || value.abs() >= 1e16) {
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(("+", exponent), |d| ("-", d));
        format!("{mantissa}e{sign}{digits:0>2}")
    } else {
        format!("{value:?}")
    }
}

/// A size for people.
fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= f64::from(1 << 30) => format!("{:.2} GiB", b / f64::from(1 << 30)),
        b if b >= f64::from(1 << 20) => format!("{:.1} MiB", b / f64::from(1 << 20)),
        b if b >= 1024.0 => format!("{:.1} KiB", b / 1024.0),
        _ => format!("{bytes} B"),
    }
}

/// A number with separators: 2,854,080.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        write!(f, "{} {}, {} parameters, {}", self.storage, shape.join(" x "), grouped(self.parameters), size(self.bytes))
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} parameters, {} as stored", grouped(self.parameters), size(self.bytes))?;
        write!(f, "; linear layers: {} in 4 bits, {} in others", self.four_bit_linears, self.other_linears)?;
        if self.adapter_parameters > 0 {
            let all = (self.parameters + self.adapter_parameters).max(1);
            let share = 100.0 * self.adapter_parameters as f64 / all as f64;
            write!(f, "; adapter: {} parameters ({share:.2} %)", grouped(self.adapter_parameters))?;
        }
        Ok(())
    }
}

impl fmt::Display for ModelTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<(String, Option<&Held>)> = Vec::new();
        print(&self.root, 0, &mut lines);
        let column = lines.iter().filter(|l| l.1.is_some()).map(|l| l.0.len()).max().unwrap_or(0);
        for (text, held) in lines {
            match held {
                Some(held) => writeln!(f, "{text:column$}  # {held}")?,
                None => writeln!(f, "{text}")?,
            }
        }
        Ok(())
    }
}

fn print<'a>(node: &'a TreeNode, depth: usize, lines: &mut Vec<(String, Option<&'a Held>)>) {
    let indent = "  ".repeat(depth);
    let name = if depth == 0 { String::new() } else { format!("({}): ", node.name) };
    let times = if node.count > 1 { format!("{} x ", node.count) } else { String::new() };
    if node.children.is_empty() {
        lines.push((format!("{indent}{name}{times}{}", node.class), node.held.as_ref()));
        return;
    }
    lines.push((format!("{indent}{name}{times}{}(", node.class), node.held.as_ref()));
    for child in &node.children {
        print(child, depth + 1, lines);
    }
    lines.push((format!("{indent})"), None));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_in_python_and_for_people() {
        for (value, text) in [(1e-6, "1e-06"), (0.1, "0.1"), (1e-5, "1e-05"), (2.5e-7, "2.5e-07"), (1.0, "1.0"), (1e-4, "0.0001")] {
            assert_eq!(python_float(value), text);
        }
        assert_eq!([0, 12, 123, 1234, 2_854_080].map(grouped), ["0", "12", "123", "1,234", "2,854,080"]);
        assert_eq!([512, 2048, 3 << 20, 5 << 30].map(size), ["512 B", "2.0 KiB", "3.0 MiB", "5.00 GiB"]);
    }
}
