// What every kernel uses: types and conversions without any header, so that NVRTC alone compiles them. Prepended to each source.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Two f32 to two bf16, each rounded to nearest even; `lo` takes the lower half, the lower address.
static __device__ __forceinline__ u32 pack2(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
static __device__ __forceinline__ float low(u32 v) { return __uint_as_float(v << 16); }
static __device__ __forceinline__ float high(u32 v) { return __uint_as_float(v & 0xffff0000u); }

static __device__ __forceinline__ void unpack8(uint4 v, float (&x)[8]) {
    x[0] = low(v.x); x[1] = high(v.x); x[2] = low(v.y); x[3] = high(v.y);
    x[4] = low(v.z); x[5] = high(v.z); x[6] = low(v.w); x[7] = high(v.w);
}
static __device__ __forceinline__ uint4 pack8(const float (&x)[8]) {
    return make_uint4(pack2(x[0], x[1]), pack2(x[2], x[3]), pack2(x[4], x[5]), pack2(x[6], x[7]));
}
// Eight f32 from a 32-byte aligned place.
static __device__ __forceinline__ void load8(const float* __restrict__ p, float (&x)[8]) {
    float4 a = ((const float4*)p)[0], b = ((const float4*)p)[1];
    x[0] = a.x; x[1] = a.y; x[2] = a.z; x[3] = a.w;
    x[4] = b.x; x[5] = b.y; x[6] = b.z; x[7] = b.w;
}

// Sum over groups of `lanes` (a power of two) neighbouring lanes, by a butterfly: every lane gets the same bits.
static __device__ __forceinline__ float group_sum(float v, int lanes) {
    for (int o = lanes >> 1; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
// Sum over the block: lanes by butterfly, then warps in order. Uses a barrier on both sides; at most 1024 threads.
static __device__ __forceinline__ float block_sum(float v) {
    __shared__ float warps[32];
    v = group_sum(v, 32);
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = v;
    __syncthreads();
    float sum = 0.0f;
    for (int w = 0; w < (int)(blockDim.x >> 5); ++w) sum += warps[w];
    __syncthreads();
    return sum;
}

// What runs before `wait_for_inputs` may overlap with the previous kernel: it may read what no kernel of a step writes, nothing else, and write
// nothing. `let_next_start` lets the next kernel come that far. Both do nothing before Hopper and in kernels that were launched plainly.
static __device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
static __device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
