// Rounding to 8-bit codes of a dynamic map, bit for bit the CPU reference: put before the sources that use it.

// The code of the nearest code point, the lower one on a tie: how many of the 255 boundaries lie below the value. They form a search tree in the order
// of its levels (the children of k are 2k and 2k + 1), so that the lanes of a warp read neighbouring words, not words of one bank.
static __device__ __forceinline__ u32 nearest(const float* tree, float value) {
    value = value != value ? 0.0f : fminf(fmaxf(value, -1.0f), 1.0f);
    u32 k = 1;
#pragma unroll
    for (int level = 0; level < 8; ++level) k = 2 * k + (value > tree[k] ? 1 : 0);
    return k - 256;
}

// Quantizes a block that the warp holds, eight values a lane; gives its scale.
static __device__ __forceinline__ float encode8(u8* codes, const float* tree, u64 at, u64 len, float (&x)[8]) {
    float absmax = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) absmax = fmaxf(absmax, fabsf(x[j]));
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) absmax = fmaxf(absmax, __shfl_xor_sync(0xffffffffu, absmax, o));
    float inverse = __fdiv_rn(1.0f, absmax);
    // The reciprocal of a subnormal scale overflows; the quotient does not.
    bool divide = !(inverse <= 3.402823466e38f);
    u32 c[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) c[j] = nearest(tree, absmax == 0.0f ? 0.0f : divide ? __fdiv_rn(x[j], absmax) : __fmul_rn(x[j], inverse));
    if (at + 8 <= len) {
        *(uint2*)(codes + at) = make_uint2(c[0] | c[1] << 8 | c[2] << 16 | c[3] << 24, c[4] | c[5] << 8 | c[6] << 16 | c[7] << 24);
    } else {
#pragma unroll
        for (int j = 0; j < 8; ++j)
            if (at + j < len) codes[at + j] = (u8)c[j];
    }
    return absmax;
}
