// Rounding rows to e4m3 (Micikevicius et al. 2022): four bits of exponent with bias 7, three of mantissa, largest 448, no infinities. To nearest
// even, saturating; NaN stays NaN. A row's scale is its largest magnitude / 448, and a value is its byte times the row's scale.

#if __CUDA_ARCH__ >= 890
// `lo` takes the lower byte, the lower address.
static __device__ __forceinline__ u32 eight2(float lo, float hi) {
    u16 r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}
#else
// Cards without the conversion have no fp8 products either, but every kernel is right on every card.
static __device__ __forceinline__ u32 eight1(float x) {
    u32 bits = __float_as_uint(x), sign = bits >> 24 & 0x80;
    float a = fabsf(x);
    if (!(a == a)) return 0x7f;
    if (a < 0.015625f) return sign | (u32)rintf(a * 512.0f);
    u32 b = __float_as_uint(fminf(a, 448.0f));
    return sign | ((b + 0x7ffff + (b >> 20 & 1)) >> 20) - 960;
}
static __device__ __forceinline__ u32 eight2(float lo, float hi) { return eight1(lo) | eight1(hi) << 8; }
#endif

static __device__ __forceinline__ uint2 eight8(const float (&x)[8], float by) {
    return make_uint2(
        eight2(x[0] * by, x[1] * by) | eight2(x[2] * by, x[3] * by) << 16, eight2(x[4] * by, x[5] * by) | eight2(x[6] * by, x[7] * by) << 16);
}
static __device__ __forceinline__ uint2 eight8(uint4 v, float by) {
    float x[8];
    unpack8(v, x);
    return eight8(x, by);
}

// Neither a row of zeros nor the smallest numbers may make a factor infinite.
static __device__ __forceinline__ float scale_for(float largest) { return __fdiv_rn(fmaxf(largest, 0x1p-100f), 448.0f); }

static __device__ __forceinline__ float largest8(uint4 v, float so_far) {
    float x[8];
    unpack8(v, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) so_far = fmaxf(so_far, fabsf(x[j]));
    return so_far;
}

// Largest over the block; a barrier on both sides.
static __device__ __forceinline__ float block_largest(float v) {
    __shared__ float warps[32];
    for (int o = 16; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = v;
    __syncthreads();
    float most = warps[0];
    for (int w = 1; w < (int)(blockDim.x >> 5); ++w) most = fmaxf(most, warps[w]);
    __syncthreads();
    return most;
}

// What a block multiplies its row with, once it knows the row's largest magnitude; the scale goes to the row's place in `scales`.
static __device__ __forceinline__ float row_factor(float largest, float* __restrict__ scales) {
    float scale = scale_for(block_largest(largest));
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
    return __fdiv_rn(1.0f, scale);
}

// The bytes of `eight8` as numbers: e4m3 is f16 with fewer bits and an exponent that is eight less.
static __device__ __forceinline__ float from_eight(u32 byte) {
    float x;
    u16 half = (u16)((byte & 0x80) << 8 | (byte & 0x7f) << 7);
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
    return x * 256.0f;
}

// Numbers as the sum of two in e4m3, `high + low / 16`, as exact as bf16; `down` is `high / 16`. A product of two such sums, but for the product of both
// remainders, is high * high + low * down + down * low.
struct Parts {
    uint2 high, low, down;
};
static __device__ __forceinline__ Parts parts8(const float (&x)[8]) {
    Parts p;
    p.high = eight8(x, 1.0f);
    float h[8], rest[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        h[j] = from_eight((j < 4 ? p.high.x >> 8 * j : p.high.y >> 8 * (j - 4)) & 0xff);
        rest[j] = x[j] - h[j];
    }
    p.low = eight8(rest, 16.0f);
    p.down = eight8(h, 0.0625f);
    return p;
}
