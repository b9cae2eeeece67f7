// SwiGLU forward and backward, the embedding gather, and the sum of squares behind the gradient norm.

static __device__ __forceinline__ float sigmoid(float x) { return __frcp_rn(1.0f + __expf(-x)); }

// Rows are addressed in vectors of eight values: `vectors` of them in a row, `total` in all rows together (less than 2^32), and a row starts every
// `stride` vectors.
struct At {
    u32 row, col;
};
static __device__ __forceinline__ At at(u32 t, u32 vectors) {
    u32 row = t / vectors;
    return {row, t - row * vectors};
}

// out = silu(gate) * up for rows of gate | up; `vectors` of eight values per half row.
extern "C" __global__ void __launch_bounds__(256) swiglu(
    const uint4* __restrict__ gate_up, u32 x_stride, u32 vectors, u64 total, uint4* __restrict__ out, u32 out_stride) {
    u32 t = blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    At p = at(t, vectors);
    const uint4* x = gate_up + (u64)p.row * x_stride + p.col;
    float g[8], u[8];
    unpack8(x[0], g);
    unpack8(x[vectors], u);
#pragma unroll
    for (int j = 0; j < 8; ++j) g[j] = g[j] * sigmoid(g[j]) * u[j];
    out[(u64)p.row * out_stride + p.col] = pack8(g);
}

// Gates and ups become their gradients.
static __device__ __forceinline__ void backward8(float (&g)[8], float (&u)[8], const float (&d)[8]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float sig = sigmoid(g[j]);
        // silu'(g) = sig * (1 + g * (1 - sig))
        float slope = sig * fmaf(g[j], 1.0f - sig, 1.0f);
        float du = d[j] * g[j] * sig;
        g[j] = d[j] * u[j] * slope;
        u[j] = du;
    }
}

// `d_gate_up` may be `gate_up`.
extern "C" __global__ void __launch_bounds__(256) swiglu_backward(
    const uint4* __restrict__ dout, u32 dout_stride, const uint4* gate_up, u32 x_stride, u32 vectors, u64 total,
    uint4* d_gate_up, u32 dx_stride) {
    u32 t = blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    At p = at(t, vectors);
    const uint4* x = gate_up + (u64)p.row * x_stride + p.col;
    uint4* dx = d_gate_up + (u64)p.row * dx_stride + p.col;
    float g[8], u[8], d[8];
    unpack8(x[0], g);
    unpack8(x[vectors], u);
    unpack8(dout[(u64)p.row * dout_stride + p.col], d);
    backward8(g, u, d);
    dx[0] = pack8(g);
    dx[vectors] = pack8(u);
}

#define PAIRS 4  // of vectors per thread: a block of 1024 threads holds gates and ups of up to 32768

// As swiglu and swiglu_backward, a block per row, which also leaves the row in e4m3 (see eight.cu), rows `stride` vectors of eight bytes apart. All loads of a thread are under way before the first
// is used, and blocks are small, so that some load while others wait for their largest value.
extern "C" __global__ void __launch_bounds__(1024) swiglu_8(
    const uint4* __restrict__ gate_up, u32 x_stride, u32 vectors, uint4* __restrict__ out, u32 out_stride, uint2* __restrict__ values,
    float* __restrict__ scales, u32 stride) {
    let_next_start();
    wait_for_inputs();
    const uint4* x = gate_up + (u64)blockIdx.x * x_stride;
    uint4 rows[PAIRS], ups[PAIRS];
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
        u32 v = threadIdx.x + i * blockDim.x;
        rows[i] = ups[i] = make_uint4(0, 0, 0, 0);
        if (v < vectors) {
            rows[i] = x[v];
            ups[i] = x[v + vectors];
        }
    }
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
        u32 v = threadIdx.x + i * blockDim.x;
        float g[8], u[8];
        unpack8(rows[i], g);
        unpack8(ups[i], u);
#pragma unroll
        for (int j = 0; j < 8; ++j) g[j] = g[j] * sigmoid(g[j]) * u[j];
        rows[i] = pack8(g);
        largest = largest8(rows[i], largest);
        if (v < vectors) out[(u64)blockIdx.x * out_stride + v] = rows[i];
    }
    float by = row_factor(largest, scales);
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
        u32 v = threadIdx.x + i * blockDim.x;
        if (v < vectors) values[(u64)blockIdx.x * stride + v] = eight8(rows[i], by);
    }
}

extern "C" __global__ void __launch_bounds__(1024) swiglu_backward_8(
    const uint4* __restrict__ dout, u32 dout_stride, const uint4* gate_up, u32 x_stride, u32 vectors, uint4* d_gate_up,
    u32 dx_stride, uint2* __restrict__ values, float* __restrict__ scales, u32 stride) {
    let_next_start();
    wait_for_inputs();
    const uint4* x = gate_up + (u64)blockIdx.x * x_stride;
    uint4* dx = d_gate_up + (u64)blockIdx.x * dx_stride;
    uint4 gates[PAIRS], ups[PAIRS];
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
        u32 v = threadIdx.x + i * blockDim.x;
        gates[i] = ups[i] = make_uint4(0, 0, 0, 0);
        if (v < vectors) {
            gates[i] = x[v];
            ups[i] = x[v + vectors];
        }
    }
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
        u32 v = threadIdx.x + i * blockDim.x;
        if (v < vectors) {
            float g[8], u[8], d[8];
            unpack8(dout[(u64)blockIdx.x * dout_stride + v], d);
            unpack8(gates[i], g);
            unpack8(ups[i], u);
            backward8(g, u, d);
            gates[i] = pack8(g);
            ups[i] = pack8(u);
            dx[v] = gates[i];
            dx[v + vectors] = ups[i];
            largest = largest8(ups[i], largest8(gates[i], largest));
        }
    }
    float by = row_factor(largest, scales);
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
        u32 v = threadIdx.x + i * blockDim.x;
        if (v < vectors) {
            uint2* to = values + (u64)blockIdx.x * stride + v;
            to[0] = eight8(gates[i], by);
            to[vectors] = eight8(ups[i], by);
        }
    }
}

// x += delta.
extern "C" __global__ void __launch_bounds__(256) add(
    uint4* __restrict__ x, u32 x_stride, const uint4* __restrict__ delta, u32 delta_stride, u32 vectors, u64 total) {
    u32 t = blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    At p = at(t, vectors);
    float a[8], b[8];
    uint4* to = x + (u64)p.row * x_stride + p.col;
    unpack8(*to, a);
    unpack8(delta[(u64)p.row * delta_stride + p.col], b);
#pragma unroll
    for (int j = 0; j < 8; ++j) a[j] += b[j];
    *to = pack8(a);
}

// out[i] = table[ids[i]]; the launcher has checked the ids against the table.
extern "C" __global__ void __launch_bounds__(256) embed(
    const u32* __restrict__ ids, const uint4* __restrict__ table, u32 table_stride, u32 vectors, u64 total, uint4* __restrict__ out, u32 out_stride) {
    u32 t = blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    At p = at(t, vectors);
    out[(u64)p.row * out_stride + p.col] = table[(u64)ids[p.row] * table_stride + p.col];
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
