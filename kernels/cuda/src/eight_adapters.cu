// Adapters inside fp8 products: columns in e4m3 beside the rows of x and of W (see eight.cu). With `mid = x Aᵀ` the three parts of mid stand beside x as
// high | low | down, those of s B beside W as high | down | low, so that one product is x Wᵀ + mid (s B)ᵀ. All of a row shares its scale; a power of two
// for each rank, `factors`, goes from one side to the other, so that both are of e4m3's middle. Backward the same with dy, W's transpose, dmid and A.

// How many powers of two a rank of the weights' side is multiplied by: `largest` of it in units of its rows' scales, and an estimate of the other side's
// largest, `other`.
static __device__ __forceinline__ float balance(float largest, float other) {
    float e = rintf(0.5f * (log2f(fmaxf(other, 0x1p-60f)) - log2f(fmaxf(largest, 0x1p-60f))));
    // No weight is beyond e4m3's largest.
    e = fminf(e, floorf(log2f(447.0f / fmaxf(largest, 0x1p-60f))));
    return exp2f(fminf(fmaxf(e, -100.0f), 100.0f));
}

// `factors`: for each rank those of forward, then those of backward. `outs`: s B, [out, ranks]; `ins`: A, [ranks, in]. Blocks in x for eight ranks, in y for
// a share of B's rows and A's columns. `most` and `counters` are zeros before and after: largest magnitudes, as the bits of floats, which order as integers
// do, so that blocks meet in any order: of B and A in units of scales, and of B and A. The last block of eight ranks makes the factors.
extern "C" __global__ void __launch_bounds__(256) adapter_factors(
    const uint4* __restrict__ outs, u32 outs_stride, const uint4* __restrict__ ins, u32 ins_stride, u32 out, u32 in_vectors,
    const float* __restrict__ out_scales, const float* __restrict__ in_scales, u32 ranks, u32* __restrict__ most, u32* __restrict__ counters,
    float* __restrict__ factors) {
    __shared__ float shared[8][32];
    let_next_start();
    wait_for_inputs();
    u32 first = blockIdx.y * 256 + threadIdx.x, step = gridDim.y * 256;
    float b[8] = {}, scaled_b[8] = {};
    for (u32 row = first; row < out; row += step) {
        float x[8], by = __fdiv_rn(1.0f, out_scales[row]);
        unpack8(outs[(u64)row * outs_stride + blockIdx.x], x);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            b[j] = fmaxf(b[j], fabsf(x[j]));
            scaled_b[j] = fmaxf(scaled_b[j], fabsf(x[j]) * by);
        }
    }
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    // A warp for each of eight rows of A.
    float a = 0.0f, scaled_a = 0.0f;
    const uint4* row = ins + (u64)(8 * blockIdx.x + warp) * ins_stride;
    for (u32 v = blockIdx.y * 32 + lane; v < in_vectors; v += gridDim.y * 32) {
        float x[8], s[8];
        unpack8(row[v], x);
        load8(in_scales + 8 * v, s);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            a = fmaxf(a, fabsf(x[j]));
            scaled_a = fmaxf(scaled_a, __fdividef(fabsf(x[j]), s[j]));
        }
    }
    for (int o = 16; o > 0; o >>= 1) {
        a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, o));
        scaled_a = fmaxf(scaled_a, __shfl_xor_sync(0xffffffffu, scaled_a, o));
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            b[j] = fmaxf(b[j], __shfl_xor_sync(0xffffffffu, b[j], o));
            scaled_b[j] = fmaxf(scaled_b[j], __shfl_xor_sync(0xffffffffu, scaled_b[j], o));
        }
    }
    if (lane == 0) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            shared[warp][j] = scaled_b[j];
            shared[warp][16 + j] = b[j];
            shared[warp][8 + j] = j == warp ? scaled_a : 0.0f;
            shared[warp][24 + j] = j == warp ? a : 0.0f;
        }
    }
    __syncthreads();
    if (warp > 0) return;
    float m = 0.0f;
    for (int w = 0; w < 8; ++w) m = fmaxf(m, shared[w][lane]);
    u32* place = most + (lane >> 3) * ranks + 8 * blockIdx.x + (lane & 7);
    atomicMax(place, __float_as_uint(m));
    __threadfence();
    __syncwarp();
    u32 ticket = lane == 0 ? atomicAdd(counters + blockIdx.x, 1u) : 0;
    if (__shfl_sync(0xffffffffu, ticket, 0) != gridDim.y - 1) return;
    __threadfence();
    m = __uint_as_float(atomicExch(place, 0u));
    if (lane == 0) counters[blockIdx.x] = 0;
    // A row of x that is no spike has values of up to 448 units, and a root mean square of about a quarter of that; that of A or B is about half its largest.
    float other = 50.0f * m * sqrtf((float)(lane < 24 ? out : 8 * in_vectors));
    // The weights' side of forward is s B, and what makes the other is A; backward it is the other way around.
    other = __shfl_sync(0xffffffffu, other, 16 + ((lane & 15) ^ 8));
    if (lane < 16) factors[(lane >> 3) * ranks + 8 * blockIdx.x + (lane & 7)] = balance(m, other);
}

// Parts go to three places `apart` vectors from each other; `pad`: the first of a row clears one more vector behind them.
static __device__ __forceinline__ void put(uint2* to, uint2 first, uint2 second, uint2 third, u32 apart, bool pad) {
    to[0] = first;
    to[apart] = second;
    to[2 * apart] = third;
    if (pad) to[3 * apart] = make_uint2(0, 0);
}

// s B beside W; `to`: the first column behind W. A thread for eight ranks of a row.
extern "C" __global__ void __launch_bounds__(256) adapter_outs_8(
    const uint4* __restrict__ outs, u32 outs_stride, u32 out, u32 narrow, const float* __restrict__ scales, const float* __restrict__ factors,
    uint2* __restrict__ to, u32 stride, u32 pad) {
    let_next_start();
    wait_for_inputs();
    u32 t = blockIdx.x * 256 + threadIdx.x, row = t / narrow, c = t - row * narrow;
    if (row >= out) return;
    float x[8], f[8], by = __fdiv_rn(1.0f, scales[row]);
    unpack8(outs[(u64)row * outs_stride + c], x);
    load8(factors + 8 * c, f);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] *= f[j] * by;
    Parts p = parts8(x);
    put(to + (u64)row * stride + c, p.high, p.down, p.low, narrow, pad && c == 0);
}

// A, transposed, beside W's transpose. Threads of a warp are for neighbouring inputs, blocks in y for eight ranks.
extern "C" __global__ void __launch_bounds__(256) adapter_ins_8(
    const u16* __restrict__ ins, u32 ins_stride, u32 in, u32 narrow, const float* __restrict__ scales, const float* __restrict__ factors,
    uint2* __restrict__ to, u32 stride, u32 pad) {
    let_next_start();
    wait_for_inputs();
    u32 k = blockIdx.x * 256 + threadIdx.x, c = blockIdx.y;
    if (k >= in) return;
    float x[8], f[8], by = __fdiv_rn(1.0f, scales[k]);
    load8(factors + 8 * c, f);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = low(ins[(u64)(8 * c + j) * 8 * ins_stride + k]) * (f[j] * by);
    Parts p = parts8(x);
    put(to + (u64)k * stride + c, p.high, p.down, p.low, narrow, pad && c == 0);
}

// mid beside x: `lanes` neighbouring threads, a power of two up to 32, for each row. Where some mid is too large for the scale of its row, the row gets a
// larger one and x is rounded again: to the same values, but for the smallest, because a power of two is between the two scales.
extern "C" __global__ void __launch_bounds__(128) adapter_mid_8(
    const uint4* __restrict__ mid, u32 mid_stride, u32 rows, u32 narrow, u32 lanes, const float* __restrict__ factors, const uint4* __restrict__ x,
    u32 x_stride, u32 vectors, float* __restrict__ scales, uint2* __restrict__ values, u32 stride, u32 pad) {
    let_next_start();
    wait_for_inputs();
    u32 t = blockIdx.x * 128 + threadIdx.x, row = t / lanes, lane = t & (lanes - 1);
    // Whole warps take part in the exchange; what is beyond the end reads the last row and writes nothing.
    bool real = row < rows;
    row = real ? row : rows - 1;
    mid += (u64)row * mid_stride;
    values += (u64)row * stride;
    float largest = 0.0f;
    for (u32 c = lane; c < narrow; c += lanes) {
        float m[8], f[8];
        unpack8(mid[c], m);
        load8(factors + 8 * c, f);
#pragma unroll
        for (int j = 0; j < 8; ++j) largest = fmaxf(largest, fabsf(__fdividef(m[j], f[j])));
    }
    for (u32 o = lanes >> 1; o > 0; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, o));
    float scale = scales[row];
    bool beyond = largest > 448.0f * scale;
    // Every lane has read the scale before it is replaced.
    __syncwarp();
    if (!real) return;
    if (beyond) {
        int e = (int)fminf(ceilf(log2f(__fdividef(largest, 448.0f * scale))), 120.0f);
        scale *= __int_as_float(127 + e << 23);
        if (lane == 0) scales[row] = scale;
        float by = __fdiv_rn(1.0f, scale);
        x += (u64)row * x_stride;
        for (u32 v = lane; v < vectors; v += lanes) values[v] = eight8(x[v], by);
    }
    float by = __fdiv_rn(1.0f, scale);
    for (u32 c = lane; c < narrow; c += lanes) {
        float m[8], f[8];
        unpack8(mid[c], m);
        load8(factors + 8 * c, f);
#pragma unroll
        for (int j = 0; j < 8; ++j) m[j] = __fdividef(m[j], f[j]) * by;
        Parts p = parts8(m);
        put(values + vectors + c, p.high, p.low, p.down, narrow, pad && c == 0);
    }
}
