//! Matrix products.
//!
//! Each element of a result is one chain of multiply-adds over the inner dimension in ascending order, whatever the tile, the task, the
//! thread or the vector width: so results depend neither on how the work is cut nor on which other rows are computed in the same call.
//! The right operand is read in panels of 32 columns: frozen weights are packed into them once, and buffers are read in place (they end in
//! a line to spare, so that whole vectors can be read at the end of their last row). Several products can be chained into one sum (a projection and its adapter) without writing in between.

use super::buffer::Parts;
use super::pool::Pool;
use super::simd::{LANES, Path, Simd, dispatch};

/// Columns of a panel.
pub(super) const PANEL: usize = 32;
/// Rows that one task multiplies.
const TASK_ROWS: usize = 32;
/// Multiply-adds that make a task worth its overhead.
const TASK_WORK: usize = 1 << 20;

/// The right operand, `[k, n]`, in panels.
#[derive(Clone, Copy)]
pub(super) struct Rhs<'a> {
    data: &'a [f32],
    /// From a panel to the next.
    panel: usize,
    /// From a row of a panel to the next.
    row: usize,
}

impl<'a> Rhs<'a> {
    /// Panels as [`pack`] and [`pack_transposed`] write them.
    pub(super) fn packed(data: &'a [f32], k: usize) -> Self {
        Rhs { data, panel: PANEL * k, row: PANEL }
    }

    /// Panels of `panel` values each, of which the first rows are used.
    pub(super) fn panels(data: &'a [f32], panel: usize) -> Self {
        Rhs { data, panel, row: PANEL }
    }

    /// Row-major values with `stride` from row to row, read in place. `data` must go on for a vector after its last value.
    pub(super) fn in_place(data: &'a [f32], stride: usize) -> Self {
        Rhs { data, panel: PANEL, row: stride }
    }
}

/// One of the products that are summed.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    /// `[m, k]` with `lhs_stride` from row to row; or, for a transposed call, `[k, m]`.
    pub(super) lhs: &'a [f32],
    pub(super) lhs_stride: usize,
    pub(super) rhs: Rhs<'a>,
    pub(super) k: usize,
}

/// What becomes of the sum of the products.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    /// The sum is multiplied by this.
    pub(super) alpha: f32,
    /// It is added to what is there instead of replacing it.
    pub(super) accumulate: bool,
    /// Added to each row.
    pub(super) bias: Option<&'a [f32]>,
}

impl Finish<'_> {
    /// Replaces the output by the sum.
    pub(super) const STORE: Finish<'static> = Finish { alpha: 1.0, accumulate: false, bias: None };

    /// Replaces the output by `alpha` times the sum.
    pub(super) fn scaled(alpha: f32) -> Finish<'static> {
        Finish { alpha, accumulate: false, bias: None }
    }

    /// Adds `alpha` times the sum to the output.
    pub(super) fn add(alpha: f32) -> Finish<'static> {
        Finish { alpha, accumulate: true, bias: None }
    }
}

/// A sum of products `[m, n]` and where it goes.
#[derive(Clone)]
pub(super) struct Product<'a> {
    pub(super) m: usize,
    pub(super) n: usize,
    /// Whether the left operands are `[k, m]`.
    pub(super) transposed: bool,
    pub(super) terms: Vec<Term<'a>>,
    pub(super) out: Parts<'a>,
    /// Where element (0, 0) goes, and from row to row of the output.
    pub(super) start: usize,
    pub(super) stride: usize,
    pub(super) finish: Finish<'a>,
}

/// The block of a product that one call computes.
#[derive(Clone, Copy)]
struct Block {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

impl Product<'_> {
    /// The bounds that the kernel relies on. A violation is a bug of this crate, stopped before it can touch memory.
    fn check(&self) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        assert!(self.start + (self.m - 1) * self.stride + self.n <= self.out.len(), "matrix product: the output is too small");
        assert!(self.finish.bias.is_none_or(|b| b.len() >= self.n), "matrix product: the bias is too short");
        for term in self.terms.iter().filter(|t| t.k > 0) {
            let need = if self.transposed { (term.k - 1) * term.lhs_stride + self.m } else { (self.m - 1) * term.lhs_stride + term.k };
            assert!(need <= term.lhs.len(), "matrix product: the left operand is too small");
            let last = (self.n - 1) / PANEL;
            let width = (self.n - last * PANEL).next_multiple_of(LANES);
            // The last row of the last full panel may end later than that of a narrow last one.
            let full = if last > 0 { (last - 1) * term.rhs.panel + (term.k - 1) * term.rhs.row + PANEL } else { 0 };
            let need = full.max(last * term.rhs.panel + (term.k - 1) * term.rhs.row + width);
            assert!(need <= term.rhs.data.len(), "matrix product: the right operand is too small");
        }
    }
}

/// Computes products, whose outputs must not overlap, on all threads.
pub(super) fn run(pool: &Pool, path: Path, products: &[Product<'_>]) {
    products.iter().for_each(Product::check);
    let mut tasks = Vec::new();
    for (index, product) in products.iter().enumerate() {
        let k: usize = product.terms.iter().map(|t| t.k).sum();
        let panels = (TASK_WORK / (TASK_ROWS * PANEL * k.max(1))).max(1);
        for col in (0..product.n).step_by(panels * PANEL) {
            for row in (0..product.m).step_by(TASK_ROWS) {
                let block = Block { row, rows: TASK_ROWS.min(product.m - row), col, cols: (panels * PANEL).min(product.n - col) };
                tasks.push((index, block));
            }
        }
    }
    pool.run(tasks.len(), &|_, task| {
        if let Some((product, block)) = tasks.get(task).and_then(|(index, block)| Some((products.get(*index)?, *block))) {
            kernel(path, product, block);
        }
    });
}

/// Computes one product in the calling thread.
pub(super) fn serial(path: Path, product: &Product<'_>) {
    product.check();
    kernel(path, product, Block { row: 0, rows: product.m, col: 0, cols: product.n });
}

dispatch!(fn kernel(product: &Product<'_>, block: Block) = block_body);

#[inline(always)]
fn block_body<S: Simd>(s: S, product: &Product<'_>, block: Block) {
    for col in (block.col..block.col + block.cols).step_by(PANEL) {
        let width = PANEL.min(block.col + block.cols - col);
        if S::VECTORS == 2 && width > LANES {
            if product.transposed {
                panel::<S, 2, true>(s, product, block, col, width)
            } else {
                panel::<S, 2, false>(s, product, block, col, width)
            }
        } else {
            for half in (0..width).step_by(LANES) {
                let width = LANES.min(width - half);
                if product.transposed {
                    panel::<S, 1, true>(s, product, block, col + half, width);
                } else {
                    panel::<S, 1, false>(s, product, block, col + half, width);
                }
            }
        }
    }
}

/// All rows of the block for `width` columns from `col`, in tiles of as many rows as there are registers for.
#[inline(always)]
fn panel<S: Simd, const N: usize, const T: bool>(s: S, product: &Product<'_>, block: Block, col: usize, width: usize) {
    let end = block.row + block.rows;
    let mut row = block.row;
    while row < end {
        let rows = (end - row).min(S::ROWS);
        match rows {
            8 => tile::<S, 8, N, T>(s, product, row, col, width),
            7 => tile::<S, 7, N, T>(s, product, row, col, width),
            6 => tile::<S, 6, N, T>(s, product, row, col, width),
            5 => tile::<S, 5, N, T>(s, product, row, col, width),
            4 => tile::<S, 4, N, T>(s, product, row, col, width),
            3 => tile::<S, 3, N, T>(s, product, row, col, width),
            2 => tile::<S, 2, N, T>(s, product, row, col, width),
            _ => tile::<S, 1, N, T>(s, product, row, col, width),
        }
        row += rows;
    }
}

/// `M` rows and `width <= 16 N` columns.
#[inline(always)]
#[expect(unsafe_code, reason = "the innermost loop has no bounds checks; `Product::check` made them")]
fn tile<S: Simd, const M: usize, const N: usize, const T: bool>(s: S, product: &Product<'_>, row: usize, col: usize, width: usize) {
    let mut acc = [[s.splat(0.0); N]; M];
    for term in &product.terms {
        let rhs = term.rhs;
        // SAFETY: `Product::check` made sure that all rows, and all panels up to column `n` rounded up to a vector, are inside the operands.
        unsafe {
            let mut b = rhs.data.as_ptr().wrapping_add(col / PANEL * rhs.panel + col % PANEL);
            if T {
                let mut a = term.lhs.as_ptr().wrapping_add(row);
                for _ in 0..term.k {
                    let bv: [S::V; N] = std::array::from_fn(|j| s.load(&*b.add(j * LANES).cast::<[f32; LANES]>()));
                    for (i, sums) in acc.iter_mut().enumerate() {
                        let x = s.splat(*a.add(i));
                        for (sum, b) in sums.iter_mut().zip(bv) {
                            *sum = s.fma(x, b, *sum);
                        }
                    }
                    a = a.wrapping_add(term.lhs_stride);
                    b = b.wrapping_add(rhs.row);
                }
            } else {
                let a: [*const f32; M] = std::array::from_fn(|i| term.lhs.as_ptr().wrapping_add((row + i) * term.lhs_stride));
                for k in 0..term.k {
                    let bv: [S::V; N] = std::array::from_fn(|j| s.load(&*b.add(j * LANES).cast::<[f32; LANES]>()));
                    for (a, sums) in a.iter().zip(&mut acc) {
                        let x = s.splat(*a.add(k));
                        for (sum, b) in sums.iter_mut().zip(bv) {
                            *sum = s.fma(x, b, *sum);
                        }
                    }
                    b = b.wrapping_add(rhs.row);
                }
            }
        }
    }
    let finish = product.finish;
    for (i, sums) in acc.into_iter().enumerate() {
        for (j, sum) in sums.into_iter().enumerate() {
            let first = j * LANES;
            if first >= width {
                break;
            }
            let count = LANES.min(width - first);
            // SAFETY: `Product::check` made sure that the row lies inside the output; tasks have different elements, and products do not overlap.
            let out = unsafe {
                std::slice::from_raw_parts_mut(product.out.ptr().add(product.start + (row + i) * product.stride + col + first), count)
            };
            let mut v = sum;
            if finish.accumulate {
                v = s.fma(s.splat(finish.alpha), v, super::simd::at(s, out, 0));
            } else if finish.alpha != 1.0 {
                v = s.mul(s.splat(finish.alpha), v);
            }
            if let Some(bias) = finish.bias {
                v = s.add(v, super::simd::at(s, bias.get(col + first..).unwrap_or(&[]), 0));
            }
            super::simd::put(s, out, 0, v);
        }
    }
}

/// Values of a packed operand of `k` rows and `n` columns.
pub(super) fn packed_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

/// Packs the row-major `[k, n]` operand `src` (with `stride` from row to row) into panels; missing columns of the last are zeros.
pub(super) fn pack(pool: &Pool, src: &[f32], stride: usize, k: usize, n: usize, dst: &mut [f32]) {
    pool.rows(n.div_ceil(PANEL), 1, [(dst, PANEL * k)], |panels, [out]| {
        let col = panels.start * PANEL;
        let width = PANEL.min(n - col);
        for (row, out) in out.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            let from = src.get(row * stride + col..row * stride + col + width).unwrap_or(&[]);
            out[..from.len()].copy_from_slice(from);
            out[from.len()..].fill(0.0);
        }
    });
}

/// Packs the transpose of row-major sources into panels `[k, Σ n]`: source `i` is `[nᵢ, k]` with `stride` from row to row, multiplied by a
/// factor; its rows become the next `nᵢ` columns. Missing columns of the last panel are zeros.
pub(super) fn pack_transposed(pool: &Pool, sources: &[Transposed<'_>], k: usize, dst: &mut [f32]) {
    let n: usize = sources.iter().map(|t| t.n).sum();
    let mut rows: Vec<(&[f32], f32)> = Vec::with_capacity(n);
    for t in sources {
        rows.extend((0..t.n).map(|i| (t.src.get(i * t.stride..i * t.stride + k).unwrap_or(&[]), t.factor)));
    }
    pool.rows(n.div_ceil(PANEL), 1, [(dst, PANEL * k)], |panels, [out]| {
        let first = panels.start * PANEL;
        let columns = rows.get(first..(first + PANEL).min(n)).unwrap_or(&[]);
        let out = out.as_chunks_mut::<PANEL>().0;
        if columns.len() < PANEL {
            out.iter_mut().for_each(|row| row.fill(0.0));
        }
        // Eight rows of the panel at a time: what is written stays in the first-level cache.
        for (block, out) in out.chunks_mut(8).enumerate() {
            for (j, (column, factor)) in columns.iter().enumerate() {
                for (row, value) in out.iter_mut().zip(column.get(block * 8..).unwrap_or(&[])) {
                    row[j] = value * factor;
                }
            }
        }
    });
}

/// A source of [`pack_transposed`].
#[derive(Clone, Copy)]
pub(super) struct Transposed<'a> {
    pub(super) src: &'a [f32],
    pub(super) stride: usize,
    pub(super) n: usize,
    pub(super) factor: f32,
}

#[cfg(test)]
mod tests {
    use super::super::simd::InstructionSet;
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut x = seed.wrapping_mul(2_654_435_769).wrapping_add(12345);
        (0..n)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 17;
                x ^= x << 5;
                (x >> 8) as f32 / (1u32 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Odd shapes, packed and in place, both orders of the left operand, two chained terms, every way to finish: against a plain chain,
    /// bit for bit where the path is fused.
    #[test]
    fn products_equal_the_plain_chain() {
        for set in [InstructionSet::Avx512, InstructionSet::Avx2, InstructionSet::Portable] {
            let Some(path) = Path::new(set) else { continue };
            for threads in [1, 3] {
                let pool = Pool::new(threads).unwrap();
                for (m, n, k, k2) in
                    [(1, 1, 1, 0), (3, 16, 5, 2), (8, 32, 7, 1), (37, 48, 19, 3), (65, 100, 33, 4), (13, 7, 3, 3), (40, 33, 2, 0)]
                {
                    for transposed in [false, true] {
                        let (a, a2) = (noise(m * k, 1), noise(m * k2.max(1), 2));
                        let (b, b2) = (noise(k * n, 3), noise(k2.max(1) * n, 4));
                        let wide = [&b[..], &[f32::NAN; LANES]].concat();
                        let (mut pb, mut pb2) = (vec![9.0; packed_len(k, n)], vec![9.0; packed_len(k2, n)]);
                        pack(&pool, &b, n, k, n, &mut pb);
                        pack(&pool, &b2, n, k2, n, &mut pb2);
                        let bias = noise(n, 5);
                        for (alpha, accumulate, bias) in [(1.0, false, None), (0.5, true, None), (2.0, false, Some(&bias[..]))] {
                            let old = noise(m * (n + 3) + 2, 6);
                            let mut out = old.clone();
                            let stride = |k: usize| if transposed { m } else { k };
                            let rhs = if m % 2 == 1 { Rhs::in_place(&wide, n) } else { Rhs::packed(&pb, k) };
                            let terms = vec![
                                Term { lhs: &a, lhs_stride: stride(k), rhs, k },
                                Term { lhs: &a2, lhs_stride: stride(k2), rhs: Rhs::packed(&pb2, k2), k: k2 },
                            ];
                            let finish = Finish { alpha, accumulate, bias };
                            run(
                                &pool,
                                path,
                                &[Product { m, n, transposed, terms, out: Parts::new(&mut out), start: 2, stride: n + 3, finish }],
                            );
                            let mut want = old.clone();
                            for i in 0..m {
                                for j in 0..n {
                                    let mut sum = 0.0f32;
                                    let at = |a: &[f32], k: usize, q: usize| if transposed { a[q * m + i] } else { a[i * k + q] };
                                    for q in 0..k {
                                        sum = at(&a, k, q).mul_add(b[q * n + j], sum);
                                    }
                                    for q in 0..k2 {
                                        sum = at(&a2, k2, q).mul_add(b2[q * n + j], sum);
                                    }
                                    let to = &mut want[2 + i * (n + 3) + j];
                                    *to = if accumulate { alpha.mul_add(sum, *to) } else { alpha * sum };
                                    if let Some(bias) = bias {
                                        *to += bias[j];
                                    }
                                }
                            }
                            for (x, y) in out.iter().zip(&want) {
                                let same = if path.fused() { x.to_bits() == y.to_bits() } else { (x - y).abs() < 1e-5 };
                                assert!(same, "{} {m} {n} {k} {k2} {transposed}: {x} {y}", path.name());
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn transposing_pack_equals_pack_of_the_transpose() {
        let pool = Pool::new(2).unwrap();
        for (n1, n2, k) in [(3, 5, 7), (32, 1, 9), (40, 30, 17), (1, 0, 1)] {
            let (x, y) = (noise(n1 * k, 1), noise(n2 * k, 2));
            let n = n1 + n2;
            let mut flat = vec![0.0; k * n];
            for q in 0..k {
                for j in 0..n {
                    flat[q * n + j] = if j < n1 { x[j * k + q] } else { 0.5 * y[(j - n1) * k + q] };
                }
            }
            let (mut one, mut two) = (vec![1.0; packed_len(k, n)], vec![2.0; packed_len(k, n)]);
            pack(&pool, &flat, n, k, n, &mut one);
            let sources = [Transposed { src: &x, stride: k, n: n1, factor: 1.0 }, Transposed { src: &y, stride: k, n: n2, factor: 0.5 }];
            pack_transposed(&pool, &sources, k, &mut two);
            assert_eq!(one, two);
        }
    }
}
