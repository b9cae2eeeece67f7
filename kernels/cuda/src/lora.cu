// What adapters need beside the matrix products: their weights in the extended matrix, dropout, biases.

// The adapter of one projection of a group: its f32 matrices A [rank, in] and B [out, rank] and where they go. `rank` is 0 where there is none.
struct Part {
    const float* a;
    const float* b;
    u32 rank;
    float scale;
    u32 out_start, out, rank_start;
};

// `outs` [out, width] are scale * B, each member in its own rows and columns, zeros elsewhere; `ins` [width, 8 * wide] are A, one member below the other,
// followed by zeros where rows are longer than `in`. One thread per vector of eight.
static __device__ __forceinline__ void pack(
    const Part* parts, uint4* __restrict__ outs, u32 outs_stride, uint4* __restrict__ ins, u32 ins_stride, u32 out, u32 in, u32 width, u32 wide) {
    u32 t = blockIdx.x * 256 + threadIdx.x;
    const u32 narrow = width / 8;
    float x[8] = {};
    if (t < out * narrow) {
        u32 row = t / narrow, c = 8 * (t - row * narrow);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Part& p = parts[i];
            if (row < p.out_start || row - p.out_start >= p.out || c + 8 <= p.rank_start || c >= p.rank_start + p.rank) continue;
            const float* b = p.b + (u64)(row - p.out_start) * p.rank;
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (c + j >= p.rank_start && c + j < p.rank_start + p.rank) x[j] = p.scale * b[c + j - p.rank_start];
        }
        outs[(u64)row * outs_stride + c / 8] = pack8(x);
        return;
    }
    t -= out * narrow;
    u32 row = t / wide, c = 8 * (t - row * wide);
    if (row >= width) return;
    if (c < in) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Part& p = parts[i];
            if (row >= p.rank_start && row - p.rank_start < p.rank) load8(p.a + (u64)(row - p.rank_start) * in + c, x);
        }
    }
    ins[(u64)row * ins_stride + c / 8] = pack8(x);
}

#define PART(i) const float* a##i, const float* b##i, u32 rank##i, float scale##i, u32 out_start##i, u32 out##i, u32 rank_start##i
#define GIVE(i) {a##i, b##i, rank##i, scale##i, out_start##i, out##i, rank_start##i}

extern "C" __global__ void __launch_bounds__(256) lora_pack(
    PART(0), PART(1), PART(2), PART(3), uint4* __restrict__ outs, u32 outs_stride, uint4* __restrict__ ins, u32 ins_stride, u32 out, u32 in, u32 width,
    u32 wide) {
    const Part parts[4] = {GIVE(0), GIVE(1), GIVE(2), GIVE(3)};
    pack(parts, outs, outs_stride, ins, ins_stride, out, in, width, wide);
}

// Philox4x32-10 (Salmon et al. 2011).
static __device__ __forceinline__ uint4 philox(uint4 c, uint2 k) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        u32 a_high = __umulhi(0xD2511F53u, c.x), a_low = 0xD2511F53u * c.x, b_high = __umulhi(0xCD9E8D57u, c.z), b_low = 0xCD9E8D57u * c.z;
        c = make_uint4(b_high ^ c.y ^ k.x, b_low, a_high ^ c.w ^ k.y, a_low);
        k.x += 0x9E3779B9u;
        k.y += 0xBB67AE85u;
    }
    return c;
}

// x * mask / (1 - p), alone or added to `out`; one block per row. The mask is that of the CPU reference: what identifies the row is hashed to a key and half
// of a counter, position and block of four features are the other half. `key`: the stream's.
template <bool ADD>
static __device__ __forceinline__ void drop_row(
    const uint4* __restrict__ x, u32 x_stride, const u64* __restrict__ samples, const u32* __restrict__ positions, uint2 key, u32 step, u32 module,
    u32 threshold, float scale, u32 vectors, uint4* __restrict__ out, u32 out_stride) {
    const u64 sample = samples[blockIdx.x];
    const u32 position = positions[blockIdx.x];
    const uint4 hash = philox(make_uint4((u32)sample, (u32)(sample >> 32), step, module), key);
    x += (u64)blockIdx.x * x_stride;
    out += (u64)blockIdx.x * out_stride;
    for (u32 at = threadIdx.x; at < vectors; at += blockDim.x) {
        float v[8], y[8];
        unpack8(x[at], v);
        if (ADD) unpack8(out[at], y);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint4 r = philox(make_uint4(2 * at + half, position, hash.z, hash.w), make_uint2(hash.x, hash.y));
            u32 words[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float kept = words[j] < threshold ? 0.0f : __fmul_rn(v[4 * half + j], scale);
                y[4 * half + j] = ADD ? __fadd_rn(y[4 * half + j], kept) : kept;
            }
        }
        out[at] = pack8(y);
    }
}

extern "C" __global__ void __launch_bounds__(256) dropout(
    const uint4* __restrict__ x, u32 x_stride, const u64* __restrict__ samples, const u32* __restrict__ positions, u32 key_low, u32 key_high, u32 step,
    u32 module, u32 threshold, float scale, u32 vectors, uint4* __restrict__ out, u32 out_stride) {
    drop_row<false>(x, x_stride, samples, positions, make_uint2(key_low, key_high), step, module, threshold, scale, vectors, out, out_stride);
}

extern "C" __global__ void __launch_bounds__(256) dropout_add(
    const uint4* __restrict__ x, u32 x_stride, const u64* __restrict__ samples, const u32* __restrict__ positions, u32 key_low, u32 key_high, u32 step,
    u32 module, u32 threshold, float scale, u32 vectors, uint4* __restrict__ out, u32 out_stride) {
    drop_row<true>(x, x_stride, samples, positions, make_uint2(key_low, key_high), step, module, threshold, scale, vectors, out, out_stride);
}

// out += bias in `vectors` vectors of eight columns; `out` points at the first of them.
extern "C" __global__ void __launch_bounds__(256) add_bias(
    uint4* __restrict__ out, u32 stride, const float* __restrict__ bias, u32 vectors, u64 total) {
    u32 t = blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    u32 row = t / vectors, c = t - row * vectors;
    float x[8], b[8];
    uint4* to = out + (u64)row * stride + c;
    unpack8(*to, x);
    load8(bias + 8 * c, b);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] += b[j];
    *to = pack8(x);
}

// acc += column sums of dy. A block sums 64 columns: eight vectors side by side, 32 rows at a time, then the 32 partial sums in order.
extern "C" __global__ void __launch_bounds__(256) bias_grad(
    const uint4* __restrict__ dy, u32 stride, u32 vectors, u32 rows, float* __restrict__ acc) {
    __shared__ float sums[32][64 + 1];
    const u32 lane = threadIdx.x & 7, group = threadIdx.x >> 3, at = blockIdx.x * 8 + lane;
    float s[8] = {};
    if (at < vectors) {
        for (u32 row = group; row < rows; row += 32) {
            float x[8];
            unpack8(dy[(u64)row * stride + at], x);
#pragma unroll
            for (int j = 0; j < 8; ++j) s[j] += x[j];
        }
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) sums[group][8 * lane + j] = s[j];
    __syncthreads();
    u32 column = blockIdx.x * 64 + threadIdx.x;
    if (threadIdx.x < 64 && column < 8 * vectors) {
        float sum = 0.0f;
        for (int g = 0; g < 32; ++g) sum += sums[g][threadIdx.x];
        acc[column] += sum;
    }
}
