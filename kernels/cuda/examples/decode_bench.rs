//! Times a whole generation step of Qwen3-8B's shape with random weights, recorded and replayed as CUDA graphs.
//!
//!     decode_bench [--context N] [--rank R] [--layers L] [BATCH...]
//!
//! Prints microseconds of each part of a layer (all layers' parts in one graph, so that no weight is found in the cache) and of the whole step.

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use trainer_kernels::nf4::{Absmax, DoubleQuant, FloatType, Nf4};
use trainer_kernels::ops::AttentionShape;
use trainer_kernels_cuda::archive::Archive;
use trainer_kernels_cuda::code::Code;
use trainer_kernels_cuda::device::Device;
use trainer_kernels_cuda::launch::{CachedScratch, DeviceNf4, KvCache, SmallLora, SmallMember, small_scratch};
use trainer_kernels_cuda::memory::{Buffer, Floats, Tensor};
use trainer_kernels_cuda::selftest::Random;

type Outcome<T> = Result<T, Box<dyn Error>>;

const HIDDEN: usize = 4096;
const WIDE: usize = 12288;
const VOCABULARY: usize = 151_936;
const SHAPE: AttentionShape = AttentionShape { heads: 32, kv_heads: 8, head_dim: 128 };
const EPS: f32 = 1e-6;

/// A projection with its adapter.
struct Linear {
    weight: DeviceNf4,
    lora: Option<(Floats, Floats)>,
    rank: usize,
}

impl Linear {
    fn member(&self, column: usize) -> SmallMember<'_> {
        let lora = self.lora.as_ref().map(|(a, b)| SmallLora { a, b, rank: self.rank, scale: 1.0 });
        SmallMember { weight: &self.weight, column, lora, bias: None }
    }

    fn plain(&self, column: usize) -> SmallMember<'_> {
        SmallMember { weight: &self.weight, column, lora: None, bias: None }
    }
}

struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Random bytes and scales that weights of any shape are cut from.
struct Source {
    bytes: Vec<u8>,
    floats: Vec<f32>,
    nested: trainer_kernels::nf4::NestedAbsmax,
    code: [f32; 16],
    starts: AtomicUsize,
}

impl Source {
    fn new() -> Outcome<Self> {
        let mut random = Random::new(7);
        let small = Nf4::quantize(&random.values(1 << 20), &[1024, 1024], 64, DoubleQuant::default())?;
        let Absmax::Nested(nested) = small.absmax().clone() else { return Err("no nested scales".into()) };
        let bytes = (0..5 << 20).flat_map(|_| random.bits().to_le_bytes()).collect();
        let floats = random.values(1 << 20).iter().map(|v| v * 0.02).collect();
        Ok(Self { bytes, floats, nested, code: *small.code(), starts: AtomicUsize::new(0) })
    }

    fn weight(&self, device: &Device, rows: usize, cols: usize) -> Outcome<DeviceNf4> {
        let start = self.starts.fetch_add(4096, Ordering::Relaxed) % (8 << 20);
        let packed = self.bytes.get(start..start + rows * cols / 2).ok_or("too few bytes")?.to_vec();
        let blocks = rows * cols / 64;
        let mut nested = self.nested.clone();
        nested.codes = nested.codes.iter().copied().cycle().take(blocks).collect();
        nested.absmax = nested.absmax.iter().map(|v| v * 0.02).cycle().take(blocks.div_ceil(nested.blocksize)).collect();
        nested.offset *= 0.02;
        Ok(device.nf4(&Nf4::from_parts(packed, Absmax::Nested(nested), &[rows, cols], 64, self.code, FloatType::Bf16)?)?)
    }

    fn linear(&self, device: &Device, rows: usize, cols: usize, rank: usize) -> Outcome<Linear> {
        let floats = |n: usize| -> Outcome<Floats> { Ok(device.floats(self.floats.get(..n).ok_or("too few values")?)?) };
        let lora = if rank > 0 { Some((floats(rank * cols)?, floats(rows * rank)?)) } else { None };
        Ok(Linear { weight: self.weight(device, rows, cols)?, lora, rank })
    }
}

/// What a step works in.
struct Space {
    n: usize,
    longest: usize,
    x: Tensor,
    normed: Tensor,
    qkv: Tensor,
    q: Tensor,
    mixed: Tensor,
    delta: Tensor,
    gate_up: Tensor,
    wide: Tensor,
    mid: Floats,
    rstd: Floats,
    logits: Floats,
    cache: KvCache,
    scratch: CachedScratch,
    positions: Buffer<u32>,
    slots: Buffer<u32>,
}

fn main() {
    if let Err(e) = run() {
        eprintln!("decode_bench: {e}");
        std::process::exit(2);
    }
}

/// The median microseconds of a replay of what `launches` launches.
fn time(device: &Device, launches: impl FnOnce() -> trainer_kernels_cuda::Result<()>) -> Outcome<f64> {
    if std::env::var_os("DECODE_BENCH_ONCE").is_some() {
        // For a profiler: nothing but the launches.
        launches()?;
        device.synchronize()?;
        return Ok(f64::NAN);
    }
    let mut graph = device.capture(launches)?;
    let stream = device.stream();
    let mut samples = Vec::new();
    for sample in 0..15 {
        let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        graph.launch()?;
        graph.launch()?;
        let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        end.synchronize()?;
        if sample >= 4 {
            samples.push(f64::from(start.elapsed_ms(&end)?) * 500.0);
        }
    }
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().ok_or_else(|| "no samples".into())
}

fn run() -> Outcome<()> {
    let (mut context, mut rank, mut count, mut batches) = (384usize, 32usize, 36usize, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = |to: &mut usize| -> Outcome<()> {
            *to = args.next().ok_or("a number is missing")?.parse()?;
            Ok(())
        };
        match arg.as_str() {
            "--context" => value(&mut context)?,
            "--rank" => value(&mut rank)?,
            "--layers" => value(&mut count)?,
            other => batches.push(other.parse::<usize>()?),
        }
    }
    if batches.is_empty() {
        batches = vec![1, 8, 32];
    }
    let device = Device::open(0, &Code::with(Archive::embedded()?, None))?;
    let source = Source::new()?;
    let layers = (0..count)
        .map(|_| {
            let make = |rows, cols| source.linear(&device, rows, cols, rank);
            Ok(Layer {
                q: make(SHAPE.q_width(), HIDDEN)?,
                k: make(SHAPE.kv_width(), HIDDEN)?,
                v: make(SHAPE.kv_width(), HIDDEN)?,
                o: make(HIDDEN, SHAPE.q_width())?,
                gate: make(WIDE, HIDDEN)?,
                up: make(WIDE, HIDDEN)?,
                down: make(HIDDEN, WIDE)?,
            })
        })
        .collect::<Outcome<Vec<_>>>()?;
    let mut head = Tensor::new(device.arena(), VOCABULARY, HIDDEN, "the head")?;
    let piece = source.weight(&device, 128, HIDDEN)?;
    (0..VOCABULARY / 128).try_for_each(|i| device.nf4_unpack(&piece, &mut head, 128 * i))?;
    device.synchronize()?;
    let packed: usize = layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]).map(|l| l.weight.bytes()).sum();
    println!(
        "{count} layers, {:.3} GB packed, head {:.3} GB, adapter rank {rank}, context {context}",
        packed as f64 / 1e9,
        head.rows() as f64 * 8192.0 / 1e9
    );
    let norm = device.floats(&vec![1.0; HIDDEN])?;
    let head_norm = device.floats(&vec![1.0; SHAPE.head_dim])?;
    let angles = device.angles(context, SHAPE.head_dim, 1e6)?;
    for n in batches {
        measure(&device, n, context, rank, &layers, &head, [&norm, &head_norm], &angles)?;
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "a model and its sizes")]
fn measure(
    device: &Device,
    n: usize,
    context: usize,
    rank: usize,
    layers: &[Layer],
    head: &Tensor,
    [norm, head_norm]: [&Floats; 2],
    angles: &trainer_kernels_cuda::launch::Angles,
) -> Outcome<()> {
    let mut random = Random::new(n as u64);
    let mut tensor = |cols: usize| -> Outcome<Tensor> { Ok(device.tensor(cols, &random.values(n * cols))?) };
    let mut s = Space {
        n,
        longest: context,
        x: tensor(HIDDEN)?,
        normed: tensor(HIDDEN)?,
        qkv: tensor(SHAPE.qkv_width())?,
        q: tensor(SHAPE.q_width())?,
        mixed: tensor(SHAPE.q_width())?,
        delta: tensor(HIDDEN)?,
        gate_up: tensor(2 * WIDE)?,
        wide: tensor(WIDE)?,
        mid: device.floats(&vec![0.0; small_scratch(n, HIDDEN, 3 * rank).max(small_scratch(n, WIDE, rank)).max(1)])?,
        rstd: device.floats(&vec![0.0; n])?,
        logits: device.buffer(n * VOCABULARY, "logits")?,
        cache: device.kv_cache(layers.len(), n, context, SHAPE)?,
        scratch: device.cached_scratch(n, context, SHAPE)?,
        positions: device.upload(&vec![context as u32 - 1; n], "positions")?,
        slots: device.upload(&(0..n as u32).collect::<Vec<_>>(), "slots")?,
    };
    println!("batch {n}");
    let count = layers.len() as f64;
    let show = |what: &str, us: f64, weights: usize| {
        let rate = if weights > 0 { format!("{:6.3} TB/s of weights", weights as f64 / us / 1e6) } else { String::new() };
        println!("  {what:28} {us:9.2} us {rate}");
    };
    type Part<'a> = (&'a str, usize, &'a dyn Fn(&mut Space, usize, &Layer) -> trainer_kernels_cuda::Result<()>);
    let bytes = |l: &[&Linear]| l.iter().map(|l| l.weight.bytes()).sum::<usize>();
    let first = layers.first().ok_or("no layers")?;
    let qkv = |s: &mut Space, l: &Layer, tile| {
        let (q, kv) = (SHAPE.q_width(), SHAPE.kv_width());
        device.nf4_linear_tiled(s.n, &s.normed, &[l.q.member(0), l.k.member(q), l.v.member(q + kv)], &mut s.mid, &mut s.qkv, tile)
    };
    let o = |s: &mut Space, l: &Layer, tile| device.nf4_linear_tiled(s.n, &s.mixed, &[l.o.member(0)], &mut s.mid, &mut s.delta, tile);
    let down = |s: &mut Space, l: &Layer, tile| device.nf4_linear_tiled(s.n, &s.wide, &[l.down.member(0)], &mut s.mid, &mut s.delta, tile);
    let swiglu = |s: &mut Space, l: &Layer, tile| {
        device.nf4_swiglu_tiled(s.n, &s.normed, l.gate.member(0), l.up.member(0), &mut s.mid, &mut s.wide, tile)
    };
    let residual = |s: &mut Space| device.add_rms_norm_in_place(s.n, &mut s.x, &s.delta, norm, EPS, &mut s.normed, &mut s.rstd);
    let rope = |s: &mut Space, i: usize| {
        device.qk_norm_rope_append(s.n, i, &s.positions, &s.slots, angles, SHAPE, &s.qkv, head_norm, head_norm, EPS, &mut s.q, &mut s.cache)
    };
    let attend = |s: &mut Space, i: usize| {
        device.attention_cached(s.n, i, SHAPE, &s.q, &s.cache, &s.positions, &s.slots, s.longest, &mut s.scratch, &mut s.mixed)
    };
    let rotated = |s: &mut Space, i: usize| {
        device.attention_rotated(
            s.n,
            i,
            SHAPE,
            &s.qkv,
            angles,
            head_norm,
            head_norm,
            EPS,
            &mut s.cache,
            &s.positions,
            &s.slots,
            s.longest,
            &mut s.scratch,
            &mut s.mixed,
        )
    };
    let (short, tall) = (Some(64), None);
    let parts: [Part<'_>; 15] = [
        ("attention with rope", 4 * n * context * SHAPE.kv_width(), &|s, i, _| rotated(s, i)),
        ("norm", 0, &|s, _, _| residual(s)),
        ("qkv, tile 64", bytes(&[&first.q, &first.k, &first.v]), &|s, _, l| qkv(s, l, short)),
        ("qkv, default", bytes(&[&first.q, &first.k, &first.v]), &|s, _, l| qkv(s, l, tall)),
        ("rope and append", 0, &|s, i, _| rope(s, i)),
        ("attention", 4 * n * context * SHAPE.kv_width(), &|s, i, _| attend(s, i)),
        ("o, tile 64", bytes(&[&first.o]), &|s, _, l| o(s, l, short)),
        ("o, default", bytes(&[&first.o]), &|s, _, l| o(s, l, tall)),
        ("swiglu, tile 64", bytes(&[&first.gate, &first.up]), &|s, _, l| swiglu(s, l, short)),
        ("swiglu, default", bytes(&[&first.gate, &first.up]), &|s, _, l| swiglu(s, l, tall)),
        ("gate and up, unfused", bytes(&[&first.gate, &first.up]), &|s, _, l| {
            device.nf4_linear(s.n, &s.normed, &[l.gate.member(0), l.up.member(WIDE)], &mut s.mid, &mut s.gate_up)
        }),
        ("down, tile 64", bytes(&[&first.down]), &|s, _, l| down(s, l, short)),
        ("down, default", bytes(&[&first.down]), &|s, _, l| down(s, l, tall)),
        ("gate and up, no adapter", bytes(&[&first.gate, &first.up]), &|s, _, l| {
            device.nf4_linear(s.n, &s.normed, &[l.gate.plain(0), l.up.plain(WIDE)], &mut s.mid, &mut s.gate_up)
        }),
        ("down, no adapter", bytes(&[&first.down]), &|s, _, l| {
            device.nf4_linear(s.n, &s.wide, &[l.down.plain(0)], &mut s.mid, &mut s.delta)
        }),
    ];
    for (what, weights, part) in parts {
        let us = time(device, || layers.iter().enumerate().try_for_each(|(i, l)| part(&mut s, i, l)))? / count;
        show(what, us, weights);
    }
    let us = time(device, || device.bf16_linear_small(s.n, &s.normed, head, &mut s.logits))?;
    show("head", us, 2 * VOCABULARY * HIDDEN);
    for tile in [tall, short] {
        let step = |s: &mut Space| {
            device.rms_norm(s.n, &s.x, norm, EPS, &mut s.normed, &mut s.rstd)?;
            for (i, l) in layers.iter().enumerate() {
                if i > 0 {
                    residual(s)?;
                }
                qkv(s, l, tile)?;
                rotated(s, i)?;
                o(s, l, tile)?;
                residual(s)?;
                swiglu(s, l, tile)?;
                down(s, l, tile)?;
            }
            residual(s)?;
            device.bf16_linear_small(s.n, &s.normed, head, &mut s.logits)
        };
        let us = time(device, || step(&mut s))?;
        println!("  whole step, tile {tile:?}: {us:.0} us, {:.0} tokens/s", n as f64 * 1e6 / us);
    }
    Ok(())
}
