//! Sixteen lanes of f32 on whatever the processor has, chosen once at run time.
//!
//! Every kernel is written over vectors of exactly sixteen lanes, so that sums are split in the same way on AVX-512 (one register), AVX2
//! (two) and elsewhere (an array): all paths with a fused multiply-add give the same bits. Without one (x86-64 before Haswell) products are
//! rounded before they are added, and the bits differ; [`Path::describe`] says which of the two it is.

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// Operations on sixteen lanes. A value of the type is the proof that the processor has the instructions.
pub(super) trait Simd: Copy {
    /// Sixteen lanes.
    type V: Copy;
    /// Rows of a tile of the matrix product: as many as the registers hold.
    const ROWS: usize;
    /// Vectors in a row of that tile.
    const VECTORS: usize;
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Reads sixteen values.
    fn load(self, x: &[f32; LANES]) -> Self::V;
    /// Writes sixteen values.
    fn store(self, x: &mut [f32; LANES], v: Self::V);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the path has a fused multiply-add.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a > b ? a : b` per lane: `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b` per lane: `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The low nine bits of each lane moved to the exponent and sign: `2^n` from `1.5 * 2^23 + 127 + n`, and 0 where `n = -127`.
    fn exponent(self, v: Self::V) -> Self::V;
}

/// Arrays, left to the compiler: every processor that has neither AVX-512 nor AVX2 with FMA.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

/// Whether [`Portable`] has a fused multiply-add that is an instruction and not a library call.
const PORTABLE_FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

impl Simd for Portable {
    type V = [f32; LANES];
    const ROWS: usize = 4;
    const VECTORS: usize = 1;
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }
    #[inline(always)]
    fn store(self, x: &mut [f32; LANES], v: Self::V) {
        *x = v;
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| if PORTABLE_FMA { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] })
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn exponent(self, v: Self::V) -> Self::V {
        std::array::from_fn(|i| f32::from_bits(v[i].to_bits() << 23))
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions behind proof that the processor has them")]
mod x86 {
    use super::{LANES, Simd};
    use std::arch::x86_64::*;

    /// Proof of AVX-512F (which implies AVX2 and FMA).
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Avx512(());

    /// Proof of AVX2 and FMA.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Avx2(());

    impl Avx512 {
        /// The proof, if the processor and the system have it.
        pub(in super::super) fn detect() -> Option<Self> {
            (std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("fma")).then_some(Avx512(()))
        }
    }

    impl Avx2 {
        /// The proof, if the processor and the system have it.
        pub(in super::super) fn detect() -> Option<Self> {
            (std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")).then_some(Avx2(()))
        }
    }

    impl Simd for Avx512 {
        type V = __m512;
        const ROWS: usize = 8;
        const VECTORS: usize = 2;
        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: `self` exists only where AVX-512F was detected (here and below).
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> __m512 {
            // SAFETY: AVX-512F is there, and `x` is sixteen readable values.
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, x: &mut [f32; LANES], v: __m512) {
            // SAFETY: AVX-512F is there, and `x` is sixteen writable values.
            unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see `splat`.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see `splat`.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see `splat`.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see `splat`.
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see `splat`.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see `splat`.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see `splat`.
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        fn exponent(self, v: __m512) -> __m512 {
            // SAFETY: see `splat`.
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(v))) }
        }
    }

    impl Simd for Avx2 {
        type V = [__m256; 2];
        const ROWS: usize = 6;
        const VECTORS: usize = 1;
        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            // SAFETY: `self` exists only where AVX2 and FMA were detected (here and below).
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> Self::V {
            // SAFETY: AVX2 is there, and `x` is sixteen readable values.
            unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
        }
        #[inline(always)]
        fn store(self, x: &mut [f32; LANES], v: Self::V) {
            // SAFETY: AVX2 is there, and `x` is sixteen writable values.
            unsafe {
                _mm256_storeu_ps(x.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(x.as_mut_ptr().add(8), v[1]);
            }
        }
        #[inline(always)]
        fn add(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see `splat`.
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn sub(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see `splat`.
            unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see `splat`.
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn div(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see `splat`.
            unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: see `splat`.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        fn max(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see `splat`.
            unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn min(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see `splat`.
            unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn exponent(self, v: Self::V) -> Self::V {
            // SAFETY: see `splat`.
            unsafe {
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v[0]))),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v[1]))),
                ]
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// Which instructions the backend uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// The best that the processor has.
    Best,
    /// AVX-512F.
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// What the compiler makes of plain code for its baseline.
    Portable,
}

/// A set of instructions that was found on this processor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable(Portable),
}

impl Path {
    /// The path for `set`, if the processor has it.
    pub(super) fn new(set: InstructionSet) -> Option<Path> {
        match set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => Avx512::detect().map(Path::Avx512),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Avx2::detect().map(Path::Avx2),
            #[cfg(not(target_arch = "x86_64"))]
            InstructionSet::Avx512 | InstructionSet::Avx2 => None,
            InstructionSet::Portable => Some(Path::Portable(Portable)),
            InstructionSet::Best => {
                [InstructionSet::Avx512, InstructionSet::Avx2, InstructionSet::Portable].into_iter().find_map(Path::new)
            }
        }
    }

    /// The instructions, for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(_) => "avx512f",
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(_) => "avx2",
            Path::Portable(_) => "portable",
        }
    }

    /// What decides the bits of results: whether products are fused into sums.
    pub(super) fn fused(self) -> bool {
        !matches!(self, Path::Portable(_)) || PORTABLE_FMA
    }
}

/// Defines `fn name(path, args…)`, which runs the generic `body(simd, args…)` compiled for the instructions of `path`. The body and all
/// that it calls must be `#[inline(always)]`: code that is not inlined into the entry point is compiled without the instructions.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        #[expect(unsafe_code, reason = "calls code compiled for instructions that were detected")]
        $vis fn $name(path: $crate::cpu::simd::Path, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            fn avx512(s: $crate::cpu::simd::Avx512, $($arg: $ty),*) $(-> $ret)? {
                $body(s, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2(s: $crate::cpu::simd::Avx2, $($arg: $ty),*) $(-> $ret)? {
                $body(s, $($arg),*)
            }
            match path {
                // SAFETY: the token exists only where the instructions were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Path::Avx512(s) => unsafe { avx512(s, $($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Path::Avx2(s) => unsafe { avx2(s, $($arg),*) },
                $crate::cpu::simd::Path::Portable(s) => $body(s, $($arg),*),
            }
        }
    };
}
pub(super) use dispatch;

/// How many vectors cover `n` values.
#[inline(always)]
pub(super) fn vectors(n: usize) -> usize {
    n.div_ceil(LANES)
}

/// Vector `c` of `x`; lanes past its end are `fill`.
#[inline(always)]
pub(super) fn at_or<S: Simd>(s: S, x: &[f32], c: usize, fill: f32) -> S::V {
    let rest = x.get(c * LANES..).unwrap_or(&[]);
    match rest.first_chunk::<LANES>() {
        Some(full) => s.load(full),
        None => {
            let mut lanes = [fill; LANES];
            lanes[..rest.len()].copy_from_slice(rest);
            s.load(&lanes)
        }
    }
}

/// Vector `c` of `x`; lanes past its end are 0.
#[inline(always)]
pub(super) fn at<S: Simd>(s: S, x: &[f32], c: usize) -> S::V {
    at_or(s, x, c, 0.0)
}

/// `v`, which is vector `c` of `n` values, with 0 in the lanes past their end.
#[inline(always)]
pub(super) fn zero_tail<S: Simd>(s: S, v: S::V, n: usize, c: usize) -> S::V {
    let left = n.saturating_sub(c * LANES);
    if left >= LANES {
        return v;
    }
    let mut l = lanes(s, v);
    l[left..].fill(0.0);
    s.load(&l)
}

/// Writes vector `c` of `x`; lanes past its end are dropped.
#[inline(always)]
pub(super) fn put<S: Simd>(s: S, x: &mut [f32], c: usize, v: S::V) {
    let rest = x.get_mut(c * LANES..).unwrap_or(&mut []);
    match rest.first_chunk_mut::<LANES>() {
        Some(full) => s.store(full, v),
        None => {
            let mut lanes = [0.0; LANES];
            s.store(&mut lanes, v);
            let n = rest.len();
            rest.copy_from_slice(&lanes[..n]);
        }
    }
}

/// The lanes of `v`.
#[inline(always)]
pub(super) fn lanes<S: Simd>(s: S, v: S::V) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    s.store(&mut lanes, v);
    lanes
}

/// The sum of the lanes, as a tree: halves, quarters, pairs.
#[inline(always)]
pub(super) fn sum<S: Simd>(s: S, v: S::V) -> f32 {
    let l = lanes(s, v);
    let e: [f32; 8] = std::array::from_fn(|i| l[i] + l[i + 8]);
    let q: [f32; 4] = std::array::from_fn(|i| e[i] + e[i + 4]);
    (q[0] + q[2]) + (q[1] + q[3])
}

/// The largest lane (NaN lanes may be passed over).
#[inline(always)]
pub(super) fn largest<S: Simd>(s: S, v: S::V) -> f32 {
    let l = lanes(s, v);
    let max = |a: f32, b: f32| if a > b { a } else { b };
    let e: [f32; 8] = std::array::from_fn(|i| max(l[i], l[i + 8]));
    let q: [f32; 4] = std::array::from_fn(|i| max(e[i], e[i + 4]));
    max(max(q[0], q[2]), max(q[1], q[3]))
}

/// `e^x` per lane: argument reduction by `ln 2` in two parts (Cody & Waite 1980) and a polynomial of degree 6, within 1.5 units in the last
/// place for `-87.3 <= x <= 88.3`; 0 below about -87.7, about 2.4e38 above 88.37, NaN for NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    let x = s.min(s.splat(88.37), s.max(s.splat(-88.0), x));
    let shifted = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(SHIFT));
    let n = s.sub(shifted, s.splat(SHIFT));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let p = s.fma(s.splat(1.987_569_1e-4), r, s.splat(1.398_2e-3));
    let p = s.fma(p, r, s.splat(8.333_452e-3));
    let p = s.fma(p, r, s.splat(4.166_579_6e-2));
    let p = s.fma(p, r, s.splat(1.666_666_5e-1));
    let p = s.fma(p, r, s.splat(0.5));
    let p = s.fma(p, s.mul(r, r), s.add(r, s.splat(1.0)));
    s.mul(p, s.exponent(s.add(shifted, s.splat(127.0))))
}

/// `1 / (1 + e^-x)` per lane.
#[inline(always)]
pub(super) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(s.splat(1.0), s.add(s.splat(1.0), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    fn exp_body<S: Simd>(s: S, x: &[f32], out: &mut [f32]) {
        for c in 0..vectors(x.len()) {
            put(s, out, c, exp(s, at(s, x, c)));
        }
    }
    dispatch!(fn exp_all(x: &[f32], out: &mut [f32]) = exp_body);

    fn paths() -> Vec<Path> {
        [InstructionSet::Avx512, InstructionSet::Avx2, InstructionSet::Portable].into_iter().filter_map(Path::new).collect()
    }

    #[test]
    fn exp_is_within_two_units_of_f64() {
        let x: Vec<f32> = (0..400_001).map(|i| -87.3 + i as f32 * (175.6 / 400_000.0)).collect();
        for path in paths() {
            let mut out = vec![0.0; x.len()];
            exp_all(path, &x, &mut out);
            let worst = x.iter().zip(&out).map(|(&x, &y)| {
                let want = f64::from(x).exp();
                ((f64::from(y) - want) / want).abs()
            });
            let worst = worst.fold(0.0, f64::max) / f64::from(f32::EPSILON);
            assert!(worst < 1.5, "{}: {worst} units", path.name());
        }
    }

    #[test]
    fn exp_at_its_ends() {
        let x = [f32::NEG_INFINITY, -1e30, -200.0, -88.0, 0.0, -0.0, 100.0, f32::INFINITY, f32::NAN, 1e-30];
        for path in paths() {
            let mut out = [0.0; 10];
            exp_all(path, &x, &mut out);
            assert_eq!(out[..6], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0], "{}", path.name());
            assert!(out[6] > 2e38 && out[7] > 2e38 && out[8].is_nan() && out[9] == 1.0, "{}: {out:?}", path.name());
        }
    }

    #[test]
    fn fused_paths_agree_bitwise() {
        let x: Vec<f32> = (0..9999).map(|i| -90.0 + i as f32 * 0.018).collect();
        let all: Vec<Vec<u32>> = paths()
            .into_iter()
            .filter(|p| p.fused())
            .map(|path| {
                let mut out = vec![0.0; x.len()];
                exp_all(path, &x, &mut out);
                out.into_iter().map(f32::to_bits).collect()
            })
            .collect();
        assert!(all.windows(2).all(|w| w[0] == w[1]));
    }
}
