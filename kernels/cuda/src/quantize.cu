// NF4 quantization, bit for bit the CPU reference's, and normal random values for synthetic weights.

// Eight neighbouring values of a row-major matrix whose rows may lie apart. `t` counts vectors of eight; `vectors` of them are a row.
static __device__ __forceinline__ void source8(const uint4* x, u64 t, u32 vectors, u64 stride, float (&v)[8]) {
    u64 row = t / vectors;
    unpack8(x[row * stride + (t - row * vectors)], v);
}
static __device__ __forceinline__ void source8(const float* x, u64 t, u32, u64, float (&v)[8]) { load8(x + 8 * t, v); }

// Blocks of 64 values: eight threads of eight. The index of a value is the number of boundaries below it. `broken`: the lowest index of a value that is
// not finite. `x` is a piece of the weight, which starts at the vector `first` of it, a multiple of eight.
template <typename Source>
static __device__ __forceinline__ void nf4_quantize(
    const Source* x, u32 vectors, u64 stride, u64 total, u64 first, const float* __restrict__ bounds, u32* __restrict__ packed, float* __restrict__ absmax,
    u64* __restrict__ broken) {
    u64 t = (u64)blockIdx.x * 256 + threadIdx.x;
    float v[8] = {}, b[15];
#pragma unroll
    for (int i = 0; i < 15; ++i) b[i] = __ldg(bounds + i);
    if (t < total) source8(x, t, vectors, stride, v);
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        if (!(fabsf(v[j]) <= 3.402823466e38f)) atomicMin(broken, 8 * (first + t) + j);
        largest = fmaxf(largest, fabsf(v[j]));
    }
#pragma unroll
    for (int o = 4; o > 0; o >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, o));
    if (t >= total) return;
    // Keeps blocks of zeros and subnormals finite.
    float divisor = fmaxf(largest, 1e-38f);
    u32 bytes = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float s = __fdiv_rn(v[j], divisor);
        u32 index = 0;
#pragma unroll
        for (int i = 0; i < 15; ++i) index += s > b[i] ? 1 : 0;
        // The first of two values is the high nibble.
        bytes |= index << (4 * (j ^ 1));
    }
    packed[first + t] = bytes;
    if ((t & 7) == 0) absmax[(first + t) >> 3] = largest;
}

extern "C" __global__ void __launch_bounds__(256) nf4_quantize_bf16(
    const uint4* __restrict__ x, u32 vectors, u64 stride, u64 total, u64 first, const float* __restrict__ bounds, u32* __restrict__ packed,
    float* __restrict__ absmax, u64* __restrict__ broken) {
    nf4_quantize(x, vectors, stride, total, first, bounds, packed, absmax, broken);
}

extern "C" __global__ void __launch_bounds__(256) nf4_quantize_f32(
    const float* __restrict__ x, u32 vectors, u64 stride, u64 total, u64 first, const float* __restrict__ bounds, u32* __restrict__ packed,
    float* __restrict__ absmax, u64* __restrict__ broken) {
    nf4_quantize(x, vectors, stride, total, first, bounds, packed, absmax, broken);
}

// Scales less their mean to 8-bit codes, in nested blocks of 256: one warp each. `tree`: the signed map's boundaries.
extern "C" __global__ void __launch_bounds__(256) nest_scales(
    const float* __restrict__ scales, u64 len, float offset, const float* __restrict__ tree, u8* __restrict__ codes, float* __restrict__ absmax) {
    __shared__ float shared[256];
    shared[threadIdx.x] = tree[threadIdx.x];
    __syncthreads();
    u64 block = (u64)blockIdx.x * 8 + (threadIdx.x >> 5), at = 256 * block + 8 * (threadIdx.x & 31);
    if (256 * block >= len) return;  // the whole warp
    float x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = at + j < len ? __fsub_rn(scales[at + j], offset) : 0.0f;
    float scale = encode8(codes, shared, at, len, x);
    if ((threadIdx.x & 31) == 0) absmax[block] = scale;
}

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

// Two normal values from two words (Box & Muller 1958); the first uniform is never 0.
static __device__ __forceinline__ void normal2(u32 a, u32 b, float std, float& x, float& y) {
    float r = std * sqrtf(-2.0f * logf(((float)(a >> 8) + 1.0f) * 0x1p-24f));
    float s, c;
    sincospif(2.0f * ((float)(b >> 8) * 0x1p-24f), &s, &c);
    x = r * c;
    y = r * s;
}

// Values that depend on key, row and column alone; the first row counts as `first`.
extern "C" __global__ void __launch_bounds__(256) random_normal(
    u32 key_low, u32 key_high, float std, u64 first, u32 vectors, u64 total, uint4* __restrict__ out, u64 stride) {
    u64 t = (u64)blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    u64 row = t / vectors;
    u32 c = (u32)(t - row * vectors);
    u64 counter = first + row;
    float x[8];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        uint4 r = philox(make_uint4(2 * c + half, (u32)counter, (u32)(counter >> 32), 0), make_uint2(key_low, key_high));
        normal2(r.x, r.y, std, x[4 * half], x[4 * half + 1]);
        normal2(r.z, r.w, std, x[4 * half + 2], x[4 * half + 3]);
    }
    out[row * stride + c] = pack8(x);
}
