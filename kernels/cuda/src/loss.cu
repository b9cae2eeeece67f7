// Cross-entropy over rows of logits, the gather and scatter of the rows that count, and the greedy token.

#define LOG2E 1.4426950408889634f

static __device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Four neighbouring logits, of which those past the end are -infinity. A row starts at a multiple of 16 bytes only if the vocabulary is a multiple of 4;
// otherwise the same values go to the same thread one by one, so that a row's result does not depend on where it lies.
static __device__ __forceinline__ float4 four(const float* __restrict__ x, u32 at, u32 vocab, bool whole) {
    if (whole) return *(const float4*)(x + at);
    const float low = __int_as_float(0xff800000);
    return make_float4(x[at], at + 1 < vocab ? x[at + 1] : low, at + 2 < vocab ? x[at + 2] : low, at + 3 < vocab ? x[at + 3] : low);
}

// The largest logit so far and the sum of exp(logit - largest).
struct Running {
    float top, sum;
};
// Never -infinity as the largest: the difference of two infinities is NaN.
#define LOWEST -3.402823466e38f

static __device__ __forceinline__ Running merge(Running a, Running b) {
    float top = fmaxf(a.top, b.top);
    return {top, a.sum * exp2_approx((a.top - top) * LOG2E) + b.sum * exp2_approx((b.top - top) * LOG2E)};
}

static __device__ __forceinline__ void take(Running& r, float4 v) {
    float top = fmaxf(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)), r.top);
    if (top > r.top) {
        r.sum *= exp2_approx((r.top - top) * LOG2E);
        r.top = top;
    }
    r.sum += (exp2_approx((v.x - top) * LOG2E) + exp2_approx((v.y - top) * LOG2E)) +
             (exp2_approx((v.z - top) * LOG2E) + exp2_approx((v.w - top) * LOG2E));
}

// One block per row. The second pass goes backwards: what the first one read last is the most likely to be in the cache still.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy_rows(
    const float* __restrict__ logits, u32 vocab, const u32* __restrict__ targets, const float* __restrict__ factors, float* __restrict__ losses,
    u16* __restrict__ dlogits) {
    __shared__ Running warps[32];
    const u32 row = blockIdx.x, step = 4 * blockDim.x;
    const bool whole = (vocab & 3) == 0;
    const float* x = logits + (u64)row * vocab;
    Running r[2] = {{LOWEST, 0.0f}, {LOWEST, 0.0f}};
    u32 at = 4 * threadIdx.x;
    // The launcher keeps the vocabulary below 2^31, so that no index wraps.
    for (; at + step < vocab; at += 2 * step) {
        float4 a = four(x, at, vocab, whole), b = four(x, at + step, vocab, whole);
        take(r[0], a);
        take(r[1], b);
    }
    if (at < vocab) take(r[0], four(x, at, vocab, whole));
    Running total = merge(r[0], r[1]);
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
        Running other = {__shfl_xor_sync(0xffffffffu, total.top, o), __shfl_xor_sync(0xffffffffu, total.sum, o)};
        total = merge(total, other);
    }
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = total;
    __syncthreads();
    total = warps[0];
    for (u32 w = 1; w < blockDim.x >> 5; ++w) total = merge(total, warps[w]);

    const u32 target = targets[row];
    if (threadIdx.x == 0) {
        // f64 for one value: the f32 sum of a large logit and a logarithm would lose digits of a small loss. A target outside of the vocabulary has no
        // logit; NaN says so.
        double wanted = target < vocab ? (double)x[target] : (double)__int_as_float(0x7fffffff);
        losses[row] = (float)((double)total.top + log((double)total.sum) - wanted);
    }
    if (!dlogits) return;
    const float factor = factors[row], k = factor / total.sum, top = total.top;
    u16* d = dlogits + (u64)row * vocab;
    u32 rounds = (vocab + step - 1) / step;
#pragma unroll 2
    for (u32 i = rounds; i-- > 0;) {
        u32 at = i * step + 4 * threadIdx.x;
        if (at >= vocab) continue;
        float4 v = four(x, at, vocab, whole);
        float y[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            y[j] = exp2_approx((y[j] - top) * LOG2E) * k;
            if (at + j == target) y[j] -= factor;
        }
        u32 lo = pack2(y[0], y[1]), hi = pack2(y[2], y[3]);
        if (whole) {
            *(uint2*)(d + at) = make_uint2(lo, hi);
        } else {
            d[at] = (u16)lo;
            if (at + 1 < vocab) d[at + 1] = (u16)(lo >> 16);
            if (at + 2 < vocab) d[at + 2] = (u16)hi;
            if (at + 3 < vocab) d[at + 3] = (u16)(hi >> 16);
        }
    }
}

// The lowest index of the largest logit of each row; 0xffffffff if a logit is NaN or +infinity, or if all are -infinity.
extern "C" __global__ void __launch_bounds__(1024) logits_argmax(const float* __restrict__ logits, u32 vocab, u32* __restrict__ out) {
    __shared__ u64 warps[32];
    const float* x = logits + (u64)blockIdx.x * vocab;
    const bool whole = (vocab & 3) == 0;
    // Above: the logit as an unsigned number in the order of floats; below: the complement of its index. The largest of these is the answer.
    u64 best = 0;
    bool broken = false;
    // Four loads in flight for each thread: few rows leave a multiprocessor nothing but its latency.
    const u32 step = 4 * blockDim.x;
    for (u32 start = 4 * threadIdx.x; start < vocab; start += 4 * step) {
        float4 v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (start + i * step < vocab) v[i] = four(x, start + i * step, vocab, whole);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 at = start + i * step;
            if (at >= vocab) break;
            float y[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (at + j >= vocab) break;
                broken |= !(y[j] <= 3.402823466e38f);
                u32 bits = __float_as_uint(y[j] + 0.0f);  // -0 becomes 0: they are equal
                bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
                u64 key = (u64)bits << 32 | (u32)~(at + j);
                if (y[j] > __int_as_float(0xff800000) && key > best) best = key;
            }
        }
    }
    if (broken) best = ~0ull;
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
        u64 other = __shfl_xor_sync(0xffffffffu, best, o);
        best = other > best ? other : best;
    }
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 w = 1; w < blockDim.x >> 5; ++w) best = warps[w] > best ? warps[w] : best;
        out[blockIdx.x] = best == ~0ull || best == 0 ? 0xffffffffu : ~(u32)best;
    }
}

// to[i] = from[rows[i]] or to[rows[i]] = from[i], in vectors of eight values; `total` is below 2^32. The launcher has checked the largest row.
extern "C" __global__ void __launch_bounds__(256) gather_rows(
    const u32* __restrict__ rows, const uint4* __restrict__ from, u32 from_stride, u32 vectors, u64 total, uint4* __restrict__ to, u32 to_stride) {
    u32 t = blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    u32 i = t / vectors, c = t - i * vectors;
    to[(u64)i * to_stride + c] = from[(u64)rows[i] * from_stride + c];
}

extern "C" __global__ void __launch_bounds__(256) scatter_rows(
    const u32* __restrict__ rows, const uint4* __restrict__ from, u32 from_stride, u32 vectors, u64 total, uint4* __restrict__ to, u32 to_stride) {
    u32 t = blockIdx.x * 256 + threadIdx.x;
    if (t >= total) return;
    u32 i = t / vectors, c = t - i * vectors;
    to[(u64)rows[i] * to_stride + c] = from[(u64)i * from_stride + c];
}
