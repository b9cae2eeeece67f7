// RMSNorm of each query and key head and rotation by position (half-split RoPE), forward and backward. A head belongs to head_dim / 16
// neighbouring lanes; each holds eight values of the first half and their eight partners of the second.

// The gradient of a head before norm and rotation: this lane's eight values of the first half and of the second.
static __device__ __forceinline__ void head_backward(
    const uint4* __restrict__ dy, const uint4* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ angle, float r, u32 lane,
    u32 lanes, uint4& first, uint4& second) {
    u32 half = lanes * 8;
    float a[8], b[8], xa[8], xb[8], wa[8], wb[8], c[8], s[8];
    unpack8(dy[lane], a);
    unpack8(dy[lanes + lane], b);
    unpack8(x[lane], xa);
    unpack8(x[lanes + lane], xb);
    load8(weight + 8 * lane, wa);
    load8(weight + half + 8 * lane, wb);
    load8(angle + 8 * lane, c);
    load8(angle + half + 8 * lane, s);
    float dot = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        // The transposed rotation, then the norm's weight.
        float g1 = (a[j] * c[j] + b[j] * s[j]) * wa[j], g2 = (b[j] * c[j] - a[j] * s[j]) * wb[j];
        dot = fmaf(g1, xa[j], fmaf(g2, xb[j], dot));
        a[j] = g1;
        b[j] = g2;
    }
    float k = -(group_sum(dot, lanes) / (float)(2 * half)) * r * r * r;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        a[j] = fmaf(k, xa[j], r * a[j]);
        b[j] = fmaf(k, xb[j], r * b[j]);
    }
    first = pack8(a);
    second = pack8(b);
}

// `qk_norm_rope_backward` with a block for each row, which also leaves all of the row, with the gradient of v that is there already, in e4m3 (see eight.cu), rows `stride`
// vectors of eight bytes apart. A block has a thread for each lane of each head, and no fewer than v has vectors.
extern "C" __global__ void __launch_bounds__(1024) qk_norm_rope_backward_8(
    const uint4* __restrict__ dqk, u32 dqk_stride, const uint4* __restrict__ qkv, u32 qkv_stride, const float* __restrict__ q_weight,
    const float* __restrict__ k_weight, const u32* __restrict__ positions, const float* __restrict__ angles, const float* __restrict__ rstd,
    u32 q_heads, u32 k_heads, u32 lanes, uint4* __restrict__ dqkv, u32 dqkv_stride, uint2* __restrict__ values, float* __restrict__ scales, u32 stride) {
    let_next_start();
    wait_for_inputs();
    u64 row = blockIdx.x;
    u32 heads = q_heads + k_heads, item = threadIdx.x / lanes, lane = threadIdx.x % lanes, behind = heads * 2 * lanes;
    bool real = item < heads, has_v = threadIdx.x < k_heads * 2 * lanes;
    // Threads past the end work on the first head, without storing: shuffles need whole warps.
    u32 head = real ? item : 0, at = head * 2 * lanes + lane;
    dqkv += row * dqkv_stride;
    values += row * stride;
    uint4 v = has_v ? dqkv[behind + threadIdx.x] : make_uint4(0, 0, 0, 0), first, second;
    head_backward(
        dqk + row * dqk_stride + head * 2 * lanes, qkv + row * qkv_stride + head * 2 * lanes, head < q_heads ? q_weight : k_weight,
        angles + (u64)positions[row] * 16 * lanes, rstd[row * heads + head], lane, lanes, first, second);
    if (real) {
        dqkv[at] = first;
        dqkv[at + lanes] = second;
    }
    float by = row_factor(largest8(v, largest8(second, largest8(first, 0.0f))), scales);
    if (real) {
        values[at] = eight8(first, by);
        values[at + lanes] = eight8(second, by);
    }
    if (has_v) values[behind + threadIdx.x] = eight8(v, by);
}

// A warp takes STEP heads for each group of lanes, of the queries or of the keys of one row, so that a thread loads its angles and weights once for all of
// them and has all of its loads under way at once.
template <int STEP, bool BACKWARD>
static __device__ __forceinline__ void several_heads(
    const uint4* __restrict__ dy, u32 dy_stride, const uint4* __restrict__ x, u32 x_stride, const float* __restrict__ q_weight,
    const float* __restrict__ k_weight, const u32* __restrict__ positions, const float* __restrict__ angles, float eps, u64 n, u32 q_heads,
    u32 k_heads, u32 lanes, uint4* __restrict__ out, u32 out_stride, const float* rstd_in, float* rstd_out) {
    const u32 group = (threadIdx.x & 31) / lanes, groups = 32 / lanes, lane = threadIdx.x & (lanes - 1), half = lanes * 8, heads = q_heads + k_heads;
    const u32 of_queries = (q_heads + STEP * groups - 1) / (STEP * groups), chunks = of_queries + (k_heads + STEP * groups - 1) / (STEP * groups);
    const u64 item = (u64)blockIdx.x * 8 + (threadIdx.x >> 5);
    if (item >= n * chunks) return;
    const u64 row = item / chunks;
    const u32 chunk = (u32)(item % chunks);
    const bool key = chunk >= of_queries;
    const u32 first = (key ? q_heads + (chunk - of_queries) * STEP * groups : chunk * STEP * groups) + group, last = key ? heads : q_heads;
    x += row * x_stride + lane;
    out += row * out_stride + lane;
    if (BACKWARD) dy += row * dy_stride + lane;
    uint4 u[STEP][2], v[STEP][2];
    float r[STEP], wa[8], wb[8], c[8], s[8];
#pragma unroll
    for (int i = 0; i < STEP; ++i) {
        // Groups past the last head work on it again, without storing: shuffles need whole warps.
        const u32 head = min(first + i * groups, last - 1), at = head * 2 * lanes;
        u[i][0] = x[at];
        u[i][1] = x[at + lanes];
        if (BACKWARD) {
            v[i][0] = dy[at];
            v[i][1] = dy[at + lanes];
            r[i] = rstd_in[row * heads + head];
        }
    }
    const float* angle = angles + (u64)positions[row] * 2 * half + 8 * lane;
    const float* weight = (key ? k_weight : q_weight) + 8 * lane;
    load8(angle, c);
    load8(angle + half, s);
    load8(weight, wa);
    load8(weight + half, wb);
#pragma unroll
    for (int i = 0; i < STEP; ++i) {
        const u32 head = first + i * groups;
        float xa[8], xb[8], a[8], b[8];
        unpack8(u[i][0], xa);
        unpack8(u[i][1], xb);
        if (BACKWARD) {
            unpack8(v[i][0], a);
            unpack8(v[i][1], b);
            float dot = 0.0f;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                // The transposed rotation, then the norm's weight.
                float g1 = (a[j] * c[j] + b[j] * s[j]) * wa[j], g2 = (b[j] * c[j] - a[j] * s[j]) * wb[j];
                dot = fmaf(g1, xa[j], fmaf(g2, xb[j], dot));
                a[j] = g1;
                b[j] = g2;
            }
            const float k = -(group_sum(dot, lanes) / (float)(2 * half)) * r[i] * r[i] * r[i];
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                a[j] = fmaf(k, xa[j], r[i] * a[j]);
                b[j] = fmaf(k, xb[j], r[i] * b[j]);
            }
        } else {
            float squares = 0.0f;
#pragma unroll
            for (int j = 0; j < 8; ++j) squares = fmaf(xa[j], xa[j], fmaf(xb[j], xb[j], squares));
            r[i] = 1.0f / sqrtf(group_sum(squares, lanes) / (float)(2 * half) + eps);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float y1 = xa[j] * r[i] * wa[j], y2 = xb[j] * r[i] * wb[j];
                a[j] = y1 * c[j] - y2 * s[j];
                b[j] = y2 * c[j] + y1 * s[j];
            }
        }
        if (head < last) {
            out[head * 2 * lanes] = pack8(a);
            out[head * 2 * lanes + lanes] = pack8(b);
            if (!BACKWARD && lane == 0) rstd_out[row * heads + head] = r[i];
        }
    }
}
extern "C" __global__ void __launch_bounds__(256, 3) qk_norm_rope(
    const uint4* __restrict__ qkv, u32 qkv_stride, const float* __restrict__ q_weight, const float* __restrict__ k_weight,
    const u32* __restrict__ positions, const float* __restrict__ angles, float eps, u64 n, u32 q_heads, u32 k_heads, u32 lanes,
    uint4* __restrict__ qk, u32 qk_stride, float* __restrict__ rstd) {
    several_heads<2, false>(
        nullptr, 0, qkv, qkv_stride, q_weight, k_weight, positions, angles, eps, n, q_heads, k_heads, lanes, qk, qk_stride, nullptr, rstd);
}
extern "C" __global__ void __launch_bounds__(256, 2) qk_norm_rope_backward(
    const uint4* __restrict__ dqk, u32 dqk_stride, const uint4* __restrict__ qkv, u32 qkv_stride, const float* __restrict__ q_weight,
    const float* __restrict__ k_weight, const u32* __restrict__ positions, const float* __restrict__ angles, const float* __restrict__ rstd,
    u64 n, u32 q_heads, u32 k_heads, u32 lanes, uint4* __restrict__ dqkv, u32 dqkv_stride) {
    several_heads<2, true>(
        dqk, dqk_stride, qkv, qkv_stride, q_weight, k_weight, positions, angles, 0.0f, n, q_heads, k_heads, lanes, dqkv, dqkv_stride, rstd, nullptr);
}
