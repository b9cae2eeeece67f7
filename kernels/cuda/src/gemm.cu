// C [m, n] = alpha op(A) op(B) + beta C for machines without cublasLt: bf16 operands, f32 sums, tensor cores of sm_80 and newer.
//
// A block computes 128 x BN; its eight warps are two by four. Tiles of 64 along k arrive in three stages. An operand that is contiguous along k is
// held in rows of k; any other in rows of its own side, and its fragments are transposed as they are loaded.

// k-step `s` of a fragment of 16 rows (of op(A)) from `row` on.
template <bool TRANSPOSED, u32 ROWS>
static __device__ __forceinline__ void left(u32 (&m)[4], u32 tile, u32 row, u32 s, u32 lane) {
    if (TRANSPOSED)
        load4_transposed(m, tile + panel64(64, 16 * s + (lane & 7) + ((lane >> 4) << 3), row / 8 + ((lane >> 3) & 1)));
    else
        load4(m, tile + panel64(ROWS, row + (lane & 15), 2 * s + (lane >> 4)));
}
// The same of 16 columns of op(B): two fragments of eight.
template <bool TRANSPOSED, u32 ROWS>
static __device__ __forceinline__ void right(u32 (&w)[4], u32 tile, u32 column, u32 s, u32 lane) {
    if (TRANSPOSED)
        load4_transposed(w, tile + panel64(64, 16 * s + (lane & 15), column / 8 + (lane >> 4)));
    else
        load4(w, tile + panel64(ROWS, column + (lane & 7) + ((lane >> 4) << 3), 2 * s + ((lane >> 3) & 1)));
}
// A tile of `SIDE` rows or columns and 64 along k. `ALONG`: the operand is contiguous along k.
template <bool ALONG, u32 SIDE>
static __device__ __forceinline__ void fetch_tile(u32 to, const u16* __restrict__ x, u32 stride, u32 first, u32 side, u32 k0, u32 k) {
#pragma unroll
    for (u32 i = 0; i < SIDE * 8 / 256; ++i) {
        u32 v = threadIdx.x + 256 * i;
        if (ALONG) {
            u32 row = v / 8, c = v % 8;
            bool there = first + row < side && k0 + 8 * c < k;
            // What lies behind the last of k is somebody else's and may be NaN: it must not meet zeros of the other operand.
            copy_part(to + panel64(SIDE, row, c), x + (there ? (u64)(first + row) * stride + k0 + 8 * c : 0),
                      there ? min(16u, 2 * (k - k0 - 8 * c)) : 0);
        } else {
            u32 row = v / (SIDE / 8), c = v % (SIDE / 8);
            bool there = k0 + row < k && first + 8 * c < side;
            copy16(to + panel64(64, row, c), x + (there ? (u64)(k0 + row) * stride + first + 8 * c : 0), there);
        }
    }
}

static __device__ __forceinline__ void store(void* c, bool f32, u64 at, float x, float y, bool both, float alpha, float beta) {
    x *= alpha;
    y *= alpha;
    if (f32) {
        float* to = (float*)c + at;
        if (beta != 0.0f) {
            x = fmaf(beta, to[0], x);
            if (both) y = fmaf(beta, to[1], y);
        }
        if (both) *(float2*)to = make_float2(x, y);
        else to[0] = x;
    } else {
        u16* to = (u16*)c + at;
        if (beta != 0.0f) {
            x = fmaf(beta, low(to[0]), x);
            if (both) y = fmaf(beta, low(to[1]), y);
        }
        u32 pair = pack2(x, y);
        if (both) *(u32*)to = pair;
        else to[0] = (u16)pair;
    }
}

template <bool A_ALONG, bool B_ALONG, int BN>
static __device__ __forceinline__ void gemm_body(
    const u16* __restrict__ a, u32 a_stride, const u16* __restrict__ b, u32 b_stride, void* c, u32 c_stride, u32 f32, u32 m, u32 n, u32 k,
    float alpha, float beta) {
    constexpr u32 BM = 128, STAGES = 3, A_BYTES = BM * 128, STAGE = A_BYTES + BN * 128, NT = BN / 32;
    extern __shared__ __align__(128) u8 memory[];
    const u32 base = shared_address(memory), lane = threadIdx.x & 31, warp = threadIdx.x >> 5, wm = 64 * (warp & 1), wn = BN / 4 * (warp >> 1);
    // Bands of eight rows of blocks, column by column: what runs at the same time shares operands in the second-level cache.
    const u32 rows = (m + BM - 1) / BM, columns = (n + BN - 1) / BN, band = blockIdx.x / (8 * columns), left_over = min(rows - 8 * band, 8u);
    const u32 inside = blockIdx.x - band * 8 * columns, m0 = BM * (8 * band + inside % left_over), n0 = BN * (inside / left_over);
    const u32 steps = (k + 63) / 64;
    auto fetch = [&](u32 step) {
        if (step < steps) {
            u32 at = base + step % STAGES * STAGE;
            fetch_tile<A_ALONG, BM>(at, a, a_stride, m0, m, 64 * step, k);
            fetch_tile<B_ALONG, BN>(at + A_BYTES, b, b_stride, n0, n, 64 * step, k);
        }
        copies_end();
    };
    float sums[4][NT][4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);
    for (u32 step = 0; step < steps; ++step) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1);
        u32 at = base + step % STAGES * STAGE;
#pragma unroll 2
        for (u32 s = 0; s < 4; ++s) {
            u32 x[4][4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) left<!A_ALONG, BM>(x[i], at, wm + 16 * i, s, lane);
#pragma unroll
            for (u32 j = 0; j < NT; j += 2) {
                u32 w[4];
                right<!B_ALONG, BN>(w, at + A_BYTES, wn + 8 * j, s, lane);
#pragma unroll
                for (u32 i = 0; i < 4; ++i) {
                    multiply(sums[i][j], x[i], w[0], w[1]);
                    multiply(sums[i][j + 1], x[i], w[2], w[3]);
                }
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i)
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            u32 row = m0 + wm + 16 * i + 8 * e + (lane >> 2);
            if (row < m)
#pragma unroll
                for (u32 j = 0; j < NT; ++j) {
                    u32 column = n0 + wn + 8 * j + 2 * (lane & 3);
                    if (column < n)
                        store(c, f32 != 0, (u64)row * c_stride + column, sums[i][j][2 * e], sums[i][j][2 * e + 1], column + 1 < n, alpha, beta);
                }
        }
}
#define GEMM(name, A_ALONG, B_ALONG, BN)                                                                                                     \
    name(const u16* __restrict__ a, u32 a_stride, const u16* __restrict__ b, u32 b_stride, void* c, u32 c_stride, u32 f32, u32 m, u32 n,     \
         u32 k, float alpha, float beta) {                                                                                                   \
        gemm_body<A_ALONG, B_ALONG, BN>(a, a_stride, b, b_stride, c, c_stride, f32, m, n, k, alpha, beta);                                   \
    }
extern "C" __global__ void __launch_bounds__(256, 1) GEMM(gemm_nt_256, true, true, 256)
extern "C" __global__ void __launch_bounds__(256, 1) GEMM(gemm_nn_256, true, false, 256)
extern "C" __global__ void __launch_bounds__(256, 1) GEMM(gemm_tn_256, false, false, 256)
extern "C" __global__ void __launch_bounds__(256, 1) GEMM(gemm_nt_128, true, true, 128)
extern "C" __global__ void __launch_bounds__(256, 1) GEMM(gemm_nn_128, true, false, 128)
extern "C" __global__ void __launch_bounds__(256, 1) GEMM(gemm_tn_128, false, false, 128)
