// SwiGLU forward and backward, the embedding gather, and the sum of squares behind the gradient norm.

static __device__ __forceinline__ float sigmoid(float x) { return __frcp_rn(1.0f + __expf(-x)); }

// out = silu(gate) * up for rows of gate | up; `vectors` of eight values per half row. Grid: x over vectors, y over rows.
extern "C" __global__ void __launch_bounds__(256) swiglu(const uint4* __restrict__ gate_up, u32 vectors, u64 total, uint4* __restrict__ out) {
    u64 t = (u64)blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    u64 row = t / vectors, at = row * 2 * vectors + (t - row * vectors);
    float g[8], u[8];
    unpack8(gate_up[at], g);
    unpack8(gate_up[at + vectors], u);
#pragma unroll
    for (int j = 0; j < 8; ++j) g[j] = g[j] * sigmoid(g[j]) * u[j];
    out[t] = pack8(g);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward(
    const uint4* __restrict__ dout, const uint4* __restrict__ gate_up, u32 vectors, u64 total, uint4* __restrict__ d_gate_up) {
    u64 t = (u64)blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    u64 row = t / vectors, at = row * 2 * vectors + (t - row * vectors);
    float g[8], u[8], d[8];
    unpack8(gate_up[at], g);
    unpack8(gate_up[at + vectors], u);
    unpack8(dout[t], d);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float sig = sigmoid(g[j]);
        // silu'(g) = sig * (1 + g * (1 - sig))
        float slope = sig * fmaf(g[j], 1.0f - sig, 1.0f);
        float du = d[j] * g[j] * sig;
        g[j] = d[j] * u[j] * slope;
        u[j] = du;
    }
    d_gate_up[at] = pack8(g);
    d_gate_up[at + vectors] = pack8(u);
}

// out[i] = table[ids[i]]; the launcher has checked the ids against the table.
extern "C" __global__ void __launch_bounds__(256) embed(
    const u32* __restrict__ ids, const uint4* __restrict__ table, u32 vectors, u64 total, uint4* __restrict__ out) {
    u64 t = (u64)blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    u64 row = t / vectors;
    out[t] = table[(u64)ids[row] * vectors + (t - row * vectors)];
}

// Partial sums of squares in f64, one per block. The grid is a constant of the launcher, so the order depends on the length alone.
extern "C" __global__ void __launch_bounds__(256) squares_partial(const float* __restrict__ g, u64 n, double* __restrict__ partial) {
    __shared__ double warps[8];
    double sum = 0.0;
    u64 stride = (u64)gridDim.x * 256, vectors = n / 4;
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < vectors; i += stride) {
        float4 v = ((const float4*)g)[i];
        // Four products in f32 would lose what the f64 sum is there to keep.
        sum += (double)v.x * v.x + (double)v.y * v.y + (double)v.z * v.z + (double)v.w * v.w;
    }
    u64 tail = vectors * 4 + threadIdx.x;
    if (blockIdx.x == 0 && tail < n) sum += (double)g[tail] * g[tail];
    for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 8; ++w) sum += warps[w];
        partial[blockIdx.x] = sum;
    }
}

// The partial sums, by one thread block in fixed order; adds to *out, so that parameters chain.
extern "C" __global__ void __launch_bounds__(32) squares_total(const double* __restrict__ partial, u32 n, double* __restrict__ out) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < n; i += 32) sum += partial[i];
    for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if (threadIdx.x == 0) *out += sum;
}
