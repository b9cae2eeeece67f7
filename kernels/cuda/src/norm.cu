// RMSNorm over rows of bf16: one block per row, the row kept in registers between the reduction and its use.

// Vectors of eight values per thread: with four, a block of 1024 threads holds rows of up to 32768; with two, of 16384 in half the registers.

// Where a kernel also leaves its row in e4m3, and the row's scale (see eight.cu); rows start `stride` vectors of eight bytes apart.
struct Eight {
    uint2* values;
    float* scales;
    u32 stride;
};

// The packed row, `v`, to e4m3.
template <int VECTORS>
static __device__ __forceinline__ void round_row(const uint4 (&v)[VECTORS], u32 vectors, Eight to) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i)
        if (threadIdx.x + i * blockDim.x < vectors) largest = largest8(v[i], largest);
    float by = row_factor(largest, to.scales);
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        u32 at = threadIdx.x + i * blockDim.x;
        if (at < vectors) to.values[(u64)blockIdx.x * to.stride + at] = eight8(v[i], by);
    }
}

template <int VECTORS, bool EIGHT>
static __device__ __forceinline__ void normalise(
    const float (&x)[VECTORS][8], const float* __restrict__ weight, float eps, u32 vectors, uint4* __restrict__ out, float* __restrict__ rstd,
    Eight to) {
    uint4 rows[VECTORS];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i)
        if (threadIdx.x + i * blockDim.x < vectors)
#pragma unroll
            for (int j = 0; j < 8; ++j) squares = fmaf(x[i][j], x[i][j], squares);
    float r = 1.0f / sqrtf(block_sum(squares) / (float)(vectors * 8) + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = r;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        u32 v = threadIdx.x + i * blockDim.x;
        if (v < vectors) {
            float w[8], y[8];
            load8(weight + 8 * v, w);
#pragma unroll
            for (int j = 0; j < 8; ++j) y[j] = x[i][j] * r * w[j];
            rows[i] = pack8(y);
            out[v] = rows[i];
        }
    }
    if (EIGHT) round_row(rows, vectors, to);
}

// The weights, which no kernel of a step writes, on their way to the second-level cache.
static __device__ __forceinline__ void expect_weights(const float* weight, u32 vectors) {
    for (u32 at = 4 * threadIdx.x; at < vectors; at += 4 * blockDim.x) asm volatile("prefetch.global.L2 [%0];" :: "l"(weight + 8 * at));
}

template <int VECTORS, bool EIGHT>
static __device__ __forceinline__ void norm_row(
    const uint4* x, u32 x_stride, const float* __restrict__ weight, float eps, u32 vectors, uint4* __restrict__ out, u32 out_stride,
    float* __restrict__ rstd, Eight to) {
    let_next_start();
    expect_weights(weight, vectors);
    wait_for_inputs();
    x += (u64)blockIdx.x * x_stride;
    float v[VECTORS][8];
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        u32 at = threadIdx.x + i * blockDim.x;
        if (at < vectors) unpack8(x[at], v[i]);
    }
    normalise<VECTORS, EIGHT>(v, weight, eps, vectors, out + (u64)blockIdx.x * out_stride, rstd, to);
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm(
    const uint4* __restrict__ x, u32 x_stride, const float* __restrict__ weight, float eps, u32 vectors, uint4* __restrict__ out, u32 out_stride,
    float* __restrict__ rstd) {
    norm_row<4, false>(x, x_stride, weight, eps, vectors, out, out_stride, rstd, {});
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm_8(
    const uint4* __restrict__ x, u32 x_stride, const float* __restrict__ weight, float eps, u32 vectors, uint4* __restrict__ out, u32 out_stride,
    float* __restrict__ rstd, uint2* __restrict__ values, float* __restrict__ scales, u32 stride) {
    norm_row<2, true>(x, x_stride, weight, eps, vectors, out, out_stride, rstd, {values, scales, stride});
}

// sum = x + delta, stored as bf16; the norm is that of the stored value, which is what the backward pass will read. `sum` may be `x`.
template <int VECTORS, bool EIGHT>
static __device__ __forceinline__ void add_norm_row(
    const uint4* x, u32 x_stride, const uint4* delta, u32 delta_stride, uint4* sum, u32 sum_stride,
    const float* __restrict__ weight, float eps, u32 vectors, uint4* __restrict__ out, u32 out_stride, float* __restrict__ rstd, Eight to) {
    let_next_start();
    expect_weights(weight, vectors);
    wait_for_inputs();
    x += (u64)blockIdx.x * x_stride;
    delta += (u64)blockIdx.x * delta_stride;
    sum += (u64)blockIdx.x * sum_stride;
    float v[VECTORS][8];
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        u32 at = threadIdx.x + i * blockDim.x;
        if (at < vectors) {
            float d[8];
            unpack8(x[at], v[i]);
            unpack8(delta[at], d);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[i][j] += d[j];
            uint4 rounded = pack8(v[i]);
            sum[at] = rounded;
            unpack8(rounded, v[i]);
        }
    }
    normalise<VECTORS, EIGHT>(v, weight, eps, vectors, out + (u64)blockIdx.x * out_stride, rstd, to);
}

extern "C" __global__ void __launch_bounds__(1024) add_rms_norm(
    const uint4* x, u32 x_stride, const uint4* __restrict__ delta, u32 delta_stride, uint4* sum, u32 sum_stride,
    const float* __restrict__ weight, float eps, u32 vectors, uint4* __restrict__ out, u32 out_stride, float* __restrict__ rstd) {
    add_norm_row<4, false>(x, x_stride, delta, delta_stride, sum, sum_stride, weight, eps, vectors, out, out_stride, rstd, {});
}

extern "C" __global__ void __launch_bounds__(1024) add_rms_norm_8(
    const uint4* x, u32 x_stride, const uint4* __restrict__ delta, u32 delta_stride, uint4* sum, u32 sum_stride,
    const float* __restrict__ weight, float eps, u32 vectors, uint4* __restrict__ out, u32 out_stride, float* __restrict__ rstd,
    uint2* __restrict__ values, float* __restrict__ scales, u32 stride) {
    add_norm_row<2, true>(x, x_stride, delta, delta_stride, sum, sum_stride, weight, eps, vectors, out, out_stride, rstd, {values, scales, stride});
}

// With g = dy * weight: dx += rstd * g - x * rstd^3 * mean(g * x).
template <int VECTORS, bool EIGHT>
static __device__ __forceinline__ void norm_row_backward(
    const uint4* __restrict__ dy, u32 dy_stride, const uint4* __restrict__ x, u32 x_stride, const float* __restrict__ weight,
    const float* __restrict__ rstd, u32 vectors, uint4* __restrict__ dx, u32 dx_stride, Eight to) {
    let_next_start();
    wait_for_inputs();
    uint4 rows[VECTORS];
    dy += (u64)blockIdx.x * dy_stride;
    x += (u64)blockIdx.x * x_stride;
    dx += (u64)blockIdx.x * dx_stride;
    float g[VECTORS][8], v[VECTORS][8];
    float dot = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        u32 at = threadIdx.x + i * blockDim.x;
        if (at < vectors) {
            float w[8];
            unpack8(dy[at], g[i]);
            unpack8(x[at], v[i]);
            load8(weight + 8 * at, w);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                g[i][j] *= w[j];
                dot = fmaf(g[i][j], v[i][j], dot);
            }
        }
    }
    float r = rstd[blockIdx.x];
    float k = -(block_sum(dot) / (float)(vectors * 8)) * r * r * r;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        u32 at = threadIdx.x + i * blockDim.x;
        if (at < vectors) {
            float d[8];
            unpack8(dx[at], d);
#pragma unroll
            for (int j = 0; j < 8; ++j) d[j] = fmaf(k, v[i][j], fmaf(r, g[i][j], d[j]));
            rows[i] = pack8(d);
            dx[at] = rows[i];
        }
    }
    if (EIGHT) round_row(rows, vectors, to);
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm_backward_long(
    const uint4* __restrict__ dy, u32 dy_stride, const uint4* __restrict__ x, u32 x_stride, const float* __restrict__ weight,
    const float* __restrict__ rstd, u32 vectors, uint4* __restrict__ dx, u32 dx_stride) {
    norm_row_backward<4, false>(dy, dy_stride, x, x_stride, weight, rstd, vectors, dx, dx_stride, {});
}

// The same for rows of up to 16384 values: everything a thread needs is under way before the block's sum is waited for.
extern "C" __global__ void __launch_bounds__(1024) rms_norm_backward(
    const uint4* __restrict__ dy, u32 dy_stride, const uint4* __restrict__ x, u32 x_stride, const float* __restrict__ weight,
    const float* __restrict__ rstd, u32 vectors, uint4* __restrict__ dx, u32 dx_stride) {
    constexpr int VECTORS = 2;
    wait_for_inputs();
    let_next_start();
    dy += (u64)blockIdx.x * dy_stride;
    x += (u64)blockIdx.x * x_stride;
    dx += (u64)blockIdx.x * dx_stride;
    const float r = rstd[blockIdx.x];
    uint4 y[VECTORS], v[VECTORS], d[VECTORS];
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const u32 at = threadIdx.x + i * blockDim.x;
        y[i] = v[i] = d[i] = make_uint4(0, 0, 0, 0);
        if (at < vectors) {
            y[i] = dy[at];
            v[i] = x[at];
            d[i] = dx[at];
        }
    }
    float dot = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const u32 at = threadIdx.x + i * blockDim.x;
        if (at < vectors) {
            float w[8], g[8], f[8];
            load8(weight + 8 * at, w);
            unpack8(y[i], g);
            unpack8(v[i], f);
#pragma unroll
            for (int j = 0; j < 8; ++j) dot = fmaf(g[j] * w[j], f[j], dot);
        }
    }
    const float k = -(block_sum(dot) / (float)(vectors * 8)) * r * r * r;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const u32 at = threadIdx.x + i * blockDim.x;
        if (at < vectors) {
            float w[8], g[8], f[8], sum[8];
            load8(weight + 8 * at, w);
            unpack8(y[i], g);
            unpack8(v[i], f);
            unpack8(d[i], sum);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum[j] = fmaf(k, f[j], fmaf(r, g[j] * w[j], sum[j]));
            dx[at] = pack8(sum);
        }
    }
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm_backward_8(
    const uint4* __restrict__ dy, u32 dy_stride, const uint4* __restrict__ x, u32 x_stride, const float* __restrict__ weight,
    const float* __restrict__ rstd, u32 vectors, uint4* __restrict__ dx, u32 dx_stride, uint2* __restrict__ values, float* __restrict__ scales, u32 stride) {
    norm_row_backward<2, true>(dy, dy_stride, x, x_stride, weight, rstd, vectors, dx, dx_stride, {values, scales, stride});
}
