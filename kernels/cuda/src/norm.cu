// RMSNorm over rows of bf16: one block per row, the row kept in registers between the reduction and its use.

#define VECTORS 4  // of eight values per thread: a block of 1024 threads holds rows of up to 32768

static __device__ __forceinline__ void normalise(
    const float (&x)[VECTORS][8], const float* __restrict__ weight, float eps, u32 vectors, uint4* __restrict__ out, float* __restrict__ rstd) {
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
            out[v] = pack8(y);
        }
    }
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm(
    const uint4* x, u32 x_stride, const float* __restrict__ weight, float eps, u32 vectors, uint4* __restrict__ out, u32 out_stride,
    float* __restrict__ rstd) {
    let_next_start();
    wait_for_inputs();
    x += (u64)blockIdx.x * x_stride;
    float v[VECTORS][8];
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        u32 at = threadIdx.x + i * blockDim.x;
        if (at < vectors) unpack8(x[at], v[i]);
    }
    normalise(v, weight, eps, vectors, out + (u64)blockIdx.x * out_stride, rstd);
}

// sum = x + delta, stored as bf16; the norm is that of the stored value, which is what the backward pass will read. `sum` may be `x`.
extern "C" __global__ void __launch_bounds__(1024) add_rms_norm(
    const uint4* x, u32 x_stride, const uint4* delta, u32 delta_stride, uint4* sum, u32 sum_stride,
    const float* __restrict__ weight, float eps, u32 vectors, uint4* __restrict__ out, u32 out_stride, float* __restrict__ rstd) {
    let_next_start();
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
    normalise(v, weight, eps, vectors, out + (u64)blockIdx.x * out_stride, rstd);
}

// With g = dy * weight: dx += rstd * g - x * rstd^3 * mean(g * x).
extern "C" __global__ void __launch_bounds__(1024) rms_norm_backward(
    const uint4* __restrict__ dy, u32 dy_stride, const uint4* __restrict__ x, u32 x_stride, const float* __restrict__ weight,
    const float* __restrict__ rstd, u32 vectors, uint4* __restrict__ dx, u32 dx_stride) {
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
            dx[at] = pack8(d);
        }
    }
}
