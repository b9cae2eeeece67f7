// Adapters inside fp8 products: columns in e4m3 beside the rows of x and of W (see eight.cu). With `mid = x Aᵀ` the three parts of mid stand beside x as
// high | low | down, those of s B beside W as high | down | low, so that one product is x Wᵀ + mid (s B)ᵀ. All of a row shares its scale; a power of two
// for each rank, `factors`, goes from one side to the other, so that both are of e4m3's middle. Backward the same with dy, W's transpose, dmid and A.

// How many powers of two a column of `weight` is multiplied by: `largest` of it in units of its rows' scales, and the norm of what makes the other side.
static __device__ __forceinline__ float balance(float largest, float squares) {
    // A row of x that is no spike has values of up to 448 units, and a root mean square of about a quarter of that.
    float other = 128.0f * sqrtf(squares);
    float e = rintf(0.5f * (log2f(fmaxf(other, 0x1p-60f)) - log2f(fmaxf(largest, 0x1p-60f))));
    // No weight is beyond e4m3's largest.
    e = fminf(e, floorf(log2f(447.0f / fmaxf(largest, 0x1p-60f))));
    return exp2f(fminf(fmaxf(e, -100.0f), 100.0f));
}

// `factors`: for each rank those of forward, then those of backward. `outs`: s B, [out, ranks]; `ins`: A, [ranks, in]. A block for eight ranks.
extern "C" __global__ void __launch_bounds__(512) adapter_factors(
    const uint4* __restrict__ outs, u32 outs_stride, const uint4* __restrict__ ins, u32 ins_stride, u32 out, u32 in_vectors,
    const float* __restrict__ out_scales, const float* __restrict__ in_scales, u32 ranks, float* __restrict__ factors) {
    __shared__ float shared[16][33];
    let_next_start();
    wait_for_inputs();
    float most[16] = {}, squares[16] = {};
    for (u32 row = threadIdx.x; row < out; row += 512) {
        float x[8], by = __fdiv_rn(1.0f, out_scales[row]);
        unpack8(outs[(u64)row * outs_stride + blockIdx.x], x);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            most[j] = fmaxf(most[j], fabsf(x[j]) * by);
            squares[j] = fmaf(x[j], x[j], squares[j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const uint4* row = ins + (u64)(8 * blockIdx.x + i) * ins_stride;
        for (u32 v = threadIdx.x; v < in_vectors; v += 512) {
            float x[8], s[8];
            unpack8(row[v], x);
            load8(in_scales + 8 * v, s);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                most[8 + i] = fmaxf(most[8 + i], __fdividef(fabsf(x[j]), s[j]));
                squares[8 + i] = fmaf(x[j], x[j], squares[8 + i]);
            }
        }
    }
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        float m = most[i], s = group_sum(squares[i], 32);
        for (int o = 16; o > 0; o >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, o));
        if (lane == 0) {
            shared[warp][i] = m;
            shared[warp][16 + i] = s;
        }
    }
    __syncthreads();
    if (threadIdx.x >= 16) return;
    // The weights' side of forward is s B, and what makes the other is A; backward it is the other way around.
    u32 i = threadIdx.x, other = 16 + (i ^ 8);
    float m = 0.0f, s = 0.0f;
    for (int w = 0; w < 16; ++w) {
        m = fmaxf(m, shared[w][i]);
        s += shared[w][other];
    }
    factors[(i >> 3) * ranks + 8 * blockIdx.x + (i & 7)] = balance(m, s);
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
