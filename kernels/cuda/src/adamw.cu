// AdamW over many parameters in one launch, the norm of their gradients, and clearing them.
//
// Bit for bit the CPU reference: its operations in its order, none of them contracted.

#define CHUNK 8192  // values of one parameter that a thread block works on: the launcher's constant of the same value
#define BLOCK 256   // values that share the scales of their 8-bit moments: one warp's work

// A parameter. Scales are null where the moments are f32.
struct Entry {
    float* param;
    float* grad;
    void* m;
    void* v;
    float* m_absmax;
    float* v_absmax;
    u64 len;
    u64 unused;
};

struct Numbers {
    float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, size, root, scale, limit;
};

// New moments of one value from old ones, and the parameter from them.
static __device__ __forceinline__ void moments(const Numbers& n, float g, float& m, float& v) {
    g = __fmul_rn(g, n.scale);
    m = __fadd_rn(__fmul_rn(n.beta1, m), __fmul_rn(n.one_minus_beta1, g));
    v = __fadd_rn(__fmul_rn(n.beta2, v), __fmul_rn(__fmul_rn(n.one_minus_beta2, g), g));
}
// 8-bit moments alone: the bound that no gradient history can exceed. Comparisons, so that NaN (no bound) changes nothing.
static __device__ __forceinline__ float guarded(const Numbers& n, float m, float root) {
    float most = __fmul_rn(n.limit, root);
    return m > most ? most : m < -most ? -most : m;
}
static __device__ __forceinline__ float parameter(const Numbers& n, float p, float m, float root) {
    float step = __fdiv_rn(m, __fadd_rn(__fdiv_rn(root, n.root), n.eps));
    return __fsub_rn(__fmul_rn(p, n.decay), __fmul_rn(n.size, step));
}

// Eight neighbouring values; past the end they are 0.
static __device__ __forceinline__ void read8(const float* p, u64 at, u64 len, float (&x)[8]) {
    if (at + 8 <= len) return load8(p + at, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = at + j < len ? p[at + j] : 0.0f;
}
static __device__ __forceinline__ void write8(float* p, u64 at, u64 len, const float (&x)[8]) {
    if (at + 8 <= len) {
        ((float4*)(p + at))[0] = make_float4(x[0], x[1], x[2], x[3]);
        ((float4*)(p + at))[1] = make_float4(x[4], x[5], x[6], x[7]);
        return;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j)
        if (at + j < len) p[at + j] = x[j];
}

// Gives back the moments that eight codes stand for; past the end the scale is that of the block and the value 0.
static __device__ __forceinline__ void decode8(const u8* codes, const float* code, float scale, u64 at, u64 len, float (&x)[8]) {
    if (at + 8 <= len) {
        uint2 c = *(const uint2*)(codes + at);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] = __fmul_rn(code[((j < 4 ? c.x : c.y) >> (8 * (j & 3))) & 255], scale);
        return;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = at + j < len ? __fmul_rn(code[codes[at + j]], scale) : 0.0f;
}

// `chunks` says for each thread block which parameter it works on, and which chunk of it. `maps`: the signed map's code points and boundaries as a search
// tree, then the unsigned map's, 256 values each.
extern "C" __global__ void __launch_bounds__(256) adamw(
    const Entry* __restrict__ entries, const uint2* __restrict__ chunks, const float* __restrict__ maps, float beta1, float one_minus_beta1,
    float beta2, float one_minus_beta2, float eps, float decay, float size, float root, float scale, float limit) {
    __shared__ float shared[1024];
    const Numbers n{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, size, root, scale, limit};
    const uint2 chunk = chunks[blockIdx.x];
    const Entry e = entries[chunk.x];
    const u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const u64 first = (u64)chunk.y * CHUNK;
    if (!e.m_absmax) {
        for (u32 i = 0; i < CHUNK / 2048; ++i) {
            u64 at = first + i * 2048 + 8 * threadIdx.x;
            if (at >= e.len) return;
            float p[8], g[8], m[8], v[8];
            read8(e.param, at, e.len, p);
            read8(e.grad, at, e.len, g);
            read8((const float*)e.m, at, e.len, m);
            read8((const float*)e.v, at, e.len, v);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                moments(n, g[j], m[j], v[j]);
                p[j] = parameter(n, p[j], m[j], __fsqrt_rn(v[j]));
            }
            write8(e.param, at, e.len, p);
            write8((float*)e.m, at, e.len, m);
            write8((float*)e.v, at, e.len, v);
        }
        return;
    }
    ((float4*)shared)[threadIdx.x] = ((const float4*)maps)[threadIdx.x];
    __syncthreads();
    for (u32 i = warp; i < CHUNK / BLOCK; i += 8) {
        u64 start = first + i * BLOCK, block = start / BLOCK, at = start + 8 * lane;
        if (start >= e.len) return;  // the whole warp
        float p[8], g[8], m[8], v[8];
        read8(e.param, at, e.len, p);
        read8(e.grad, at, e.len, g);
        decode8((const u8*)e.m, shared, e.m_absmax[block], at, e.len, m);
        decode8((const u8*)e.v, shared + 512, e.v_absmax[block], at, e.len, v);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            moments(n, g[j], m[j], v[j]);
            float r = __fsqrt_rn(v[j]);
            m[j] = guarded(n, m[j], r);
            p[j] = parameter(n, p[j], m[j], r);
        }
        write8(e.param, at, e.len, p);
        // Values past the end are 0 in a block whose old scales are finite, and must stay out of the new scales whatever those were.
#pragma unroll
        for (int j = 0; j < 8; ++j)
            if (at + j >= e.len) m[j] = v[j] = 0.0f;
        float m_scale = encode8((u8*)e.m, shared + 256, at, e.len, m);
        float v_scale = encode8((u8*)e.v, shared + 768, at, e.len, v);
        if (lane == 0) {
            e.m_absmax[block] = m_scale;
            e.v_absmax[block] = v_scale;
        }
    }
}

// The sum of squares of each chunk of each gradient, in f64: chunks depend on lengths alone, and so does the order.
extern "C" __global__ void __launch_bounds__(256) grad_squares(
    const Entry* __restrict__ entries, const uint2* __restrict__ chunks, double* __restrict__ partial) {
    __shared__ double warps[8];
    const uint2 chunk = chunks[blockIdx.x];
    const float* g = entries[chunk.x].grad;
    const u64 len = entries[chunk.x].len, first = (u64)chunk.y * CHUNK;
    double sum = 0.0;
#pragma unroll
    for (u32 i = 0; i < CHUNK / 2048; ++i) {
        u64 at = first + i * 2048 + 8 * threadIdx.x;
        if (at < len) {
            float x[8];
            read8(g, at, len, x);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum += (double)x[j] * x[j];
        }
    }
    for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 8; ++w) sum += warps[w];
        partial[blockIdx.x] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(1024) grad_squares_total(const double* __restrict__ partial, u32 n, double* __restrict__ out) {
    __shared__ double warps[32];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < n; i += 1024) sum += partial[i];
    for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 32; ++w) sum += warps[w];
        *out = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256) zero_grads(const Entry* __restrict__ entries, const uint2* __restrict__ chunks) {
    const uint2 chunk = chunks[blockIdx.x];
    float* g = entries[chunk.x].grad;
    const u64 len = entries[chunk.x].len, first = (u64)chunk.y * CHUNK;
    // Neighbouring threads write neighbouring vectors.
#pragma unroll
    for (u32 i = 0; i < CHUNK / 1024; ++i) {
        u64 at = first + i * 1024 + 4 * threadIdx.x;
        if (at + 4 <= len) {
            *(float4*)(g + at) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        } else {
            for (u64 j = at; j < len; ++j) g[j] = 0.0f;
        }
    }
}
