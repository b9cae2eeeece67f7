// The key/value cache of generation and attention to it. Of each layer the cache holds keys and values as [slot][kv_head][length][dim] in bf16.
//
// Attention to a cache is bound by the one read of the keys and values (Flash-Decoding, Dao et al. 2023): a block takes 128 keys of one row and
// one key/value head with up to four of its query heads; the last block of a row and head to finish combines the parts in order of position. The
// cut depends on positions alone, so a row's result does not depend on the batch.

#define SPLIT 128u
#define GROUP 4  // query heads of a block

// Not through the read-only path: the previous kernel may still have been writing when this one began.
static __device__ __forceinline__ uint4 input16(const void* p) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
static __device__ __forceinline__ void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ u32 input(const u32* p) {
    u32 v;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

// One vector of eight of a row's keys and values per thread. Rows whose slot or position does not exist are left out.
extern "C" __global__ void __launch_bounds__(256) cache_append(
    const uint4* qk, u32 qk_stride, u32 q_vectors, const uint4* qkv, u32 qkv_stride, const u32* positions, const u32* slots, u64 n, u32 kv_heads,
    u32 dim_vectors, u32 slot_count, u32 length, uint4* keys, uint4* values) {
    let_next_start();
    wait_for_inputs();
    u32 width = kv_heads * dim_vectors;
    u64 item = (u64)blockIdx.x * 256 + threadIdx.x, row = item / (2 * width);
    if (row >= n) return;
    u32 i = (u32)(item - row * (2 * width)), position = input(positions + row), slot = input(slots + row);
    if (position >= length || slot >= slot_count) return;
    bool value = i >= width;
    if (value) i -= width;
    u32 head = i / dim_vectors, at = i - head * dim_vectors;
    uint4 v = value ? input16(qkv + row * qkv_stride + q_vectors + width + i) : input16(qk + row * qk_stride + q_vectors + i);
    (value ? values : keys)[(((u64)slot * kv_heads + head) * length + position) * dim_vectors + at] = v;
}

// What rope.cu's qk_norm_rope computes, with the keys and values put into the cache at once: `q` gets the queries alone.
extern "C" __global__ void __launch_bounds__(128) qk_norm_rope_append(
    const uint4* qkv, u32 qkv_stride, const float* __restrict__ q_weight, const float* __restrict__ k_weight, const u32* positions,
    const u32* slots, const float* __restrict__ angles, float eps, u64 n, u32 q_heads, u32 k_heads, u32 lanes, u32 slot_count, u32 length,
    u32 angle_positions, uint4* q, u32 q_stride, uint4* keys, uint4* values) {
    let_next_start();
    wait_for_inputs();
    u32 heads = q_heads + 2 * k_heads, half = lanes * 8;
    u64 thread = (u64)blockIdx.x * 128 + threadIdx.x, item = thread / lanes;
    u32 lane = (u32)(thread % lanes);
    // Threads past the end work on the first head, without storing: shuffles need whole warps.
    bool real = item < n * heads;
    if (!real) item = 0;
    u64 row = item / heads;
    u32 head = (u32)(item - row * heads), position = input(positions + row), slot = input(slots + row);
    real = real && position < length && position < angle_positions && slot < slot_count;
    if (!real) position = 0;
    const uint4* x = qkv + row * qkv_stride + head * 2 * lanes;
    uint4 first = input16(x + lane), second = input16(x + lanes + lane);
    if (head < q_heads + k_heads) {
        const float* weight = head < q_heads ? q_weight : k_weight;
        const float* angle = angles + (u64)position * 2 * half + 8 * lane;
        float a[8], b[8], wa[8], wb[8], c[8], s[8];
        unpack8(first, a);
        unpack8(second, b);
        load8(weight + 8 * lane, wa);
        load8(weight + half + 8 * lane, wb);
        load8(angle, c);
        load8(angle + half, s);
        float squares = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) squares = fmaf(a[j], a[j], fmaf(b[j], b[j], squares));
        // A head's lanes all take this branch; others may not.
        u32 mask = (lanes == 32 ? 0xffffffffu : ((1u << lanes) - 1) << (threadIdx.x & 31 & ~(lanes - 1)));
        for (int o = lanes >> 1; o > 0; o >>= 1) squares += __shfl_xor_sync(mask, squares, o);
        float r = 1.0f / sqrtf(squares / (float)(2 * half) + eps);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            float y1 = a[j] * r * wa[j], y2 = b[j] * r * wb[j];
            a[j] = y1 * c[j] - y2 * s[j];
            b[j] = y2 * c[j] + y1 * s[j];
        }
        first = pack8(a);
        second = pack8(b);
    }
    if (!real) return;
    uint4* to;
    if (head < q_heads) {
        to = q + row * q_stride + head * 2 * lanes;
    } else {
        bool key = head < q_heads + k_heads;
        to = (key ? keys : values) + (((u64)slot * k_heads + head - q_heads - (key ? 0 : k_heads)) * length + position) * 2 * lanes;
    }
    to[lane] = first;
    to[lanes + lane] = second;
}

// What attention needs to rotate its rows itself.
struct Rotation {
    const float* q_weight;
    const float* k_weight;
    const float* angles;
    float eps;
    u32 positions;  // of the angles
};

// The norm and rotation of a head whose first `lanes` vectors of eight are `first` and the others `second`, as in qk_norm_rope_append.
template <u32 LANES>
static __device__ __forceinline__ void rotate(uint4& first, uint4& second, u32 lane, const float* weight, const float* angle, float eps) {
    constexpr u32 HALF = LANES * 8;
    float a[8], b[8], wa[8], wb[8], c[8], s[8];
    load8(weight + 8 * lane, wa);
    load8(weight + HALF + 8 * lane, wb);
    load8(angle + 8 * lane, c);
    load8(angle + HALF + 8 * lane, s);
    unpack8(first, a);
    unpack8(second, b);
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) squares = fmaf(a[j], a[j], fmaf(b[j], b[j], squares));
    for (int o = LANES >> 1; o > 0; o >>= 1) squares += __shfl_xor_sync(0xffffffffu, squares, o);
    float r = 1.0f / sqrtf(squares / (float)(2 * HALF) + eps);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float y1 = a[j] * r * wa[j], y2 = b[j] * r * wb[j];
        a[j] = y1 * c[j] - y2 * s[j];
        b[j] = y2 * c[j] + y1 * s[j];
    }
    first = pack8(a);
    second = pack8(b);
}

// FUSED: `q` holds queries, keys and values as they were projected, one row of each slot: the queries are rotated here, and the block whose part
// the row's own position belongs to rotates the key and puts it and the value into the cache.
template <int DIM, bool FUSED>
static __device__ __forceinline__ void attend(
    const u16* q, u32 q_stride, u16* keys, u16* values, const u32* positions, const u32* slots, u32 kv_heads, u32 group, u32 slot_count,
    u32 length, float scale, float* parts, float2* weights, u32* counters, u16* out, u32 out_stride, const Rotation& by) {
    constexpr u32 VALUE_LANES = DIM / 8, VALUE_PASS = 32 / VALUE_LANES, VALUE_PASSES = 16 / VALUE_PASS;  // of the 16 keys of a warp
    __shared__ __align__(16) float scores[SPLIT][GROUP];
    __shared__ float2 norms[GROUP];
    __shared__ float sums[8][GROUP][DIM];
    __shared__ bool last;
    __shared__ __align__(16) u16 rotated[FUSED ? (GROUP + 1) * DIM : 8];  // queries, and the row's own key
    let_next_start();
    // No kernel of a step writes positions and slots.
    if (!FUSED) wait_for_inputs();
    u32 row = blockIdx.z, chunks = (group + GROUP - 1) / GROUP, kv = blockIdx.y / chunks, chunk = blockIdx.y % chunks;
    u32 position = input(positions + row), slot = input(slots + row);
    if (position >= length || slot >= slot_count || (FUSED && position >= by.positions)) {
        // Whoever waits for this kernel relies on its having waited itself.
        if (FUSED) wait_for_inputs();
        return;
    }
    // A position past the grid's reach is the caller's mistake; it must not hang the count of finished blocks.
    u32 splits = min(position / SPLIT + 1, gridDim.x);
    if (blockIdx.x >= splits) return;
    u32 tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    u32 first_key = blockIdx.x * SPLIT + warp * 16, seen = position + 1;
    u64 base = ((u64)slot * kv_heads + kv) * length * DIM;
    u32 first_head = kv * group + chunk * GROUP, heads = min(group - chunk * GROUP, (u32)GROUP);

    // Tensor cores multiply a warp's 16 keys by the heads: a lane holds four eighths of keys g and g + 8, and of head g.
    u32 g = lane >> 2, t = lane & 3, vl = lane % VALUE_LANES;
    // The row's own key and value are not in the cache yet where it is this kernel that puts them there; all others are older than this step.
    u32 there = FUSED ? position : seen;
    uint4 k[2][DIM / 32];
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        u32 key = first_key + g + 8 * h;
        const u16* from = keys + base + (u64)key * DIM + 8 * t;
#pragma unroll
        for (u32 c = 0; c < DIM / 32; ++c) k[h][c] = key < there ? input16(from + 32 * c) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (u32 p = 0; p < VALUE_PASSES; ++p) {
        u32 key = first_key + p * VALUE_PASS + lane / VALUE_LANES;
        if (key < there && vl % 2 == 0) asm volatile("prefetch.global.L2 [%0];" :: "l"(values + base + (u64)key * DIM + 8 * vl));
    }
    const u16* own_value = q + (u64)row * q_stride + (kv_heads * (group + 1) + kv) * DIM;
    bool own = blockIdx.x == splits - 1 && position / SPLIT == splits - 1;
    if constexpr (FUSED) {
        constexpr u32 LANES = DIM / 16;
        const float* angle = by.angles + (u64)position * DIM;
        u32 l = lane % LANES, head = lane / LANES;
        if (warp == 1 && lane < 4 * LANES) {
            asm volatile("prefetch.global.L2 [%0];" :: "l"(by.q_weight + 16 * l));
            asm volatile("prefetch.global.L2 [%0];" :: "l"(by.k_weight + 16 * l));
        }
        wait_for_inputs();
        if (warp == 0 || (warp == 1 && own)) {
            bool key = warp == 1;
            const u16* from = q + (u64)row * q_stride + (key ? kv_heads * group + kv : first_head + min(head, heads - 1)) * DIM + 8 * l;
            uint4 first = input16(from), second = input16(from + DIM / 2);
            rotate<LANES>(first, second, l, key ? by.k_weight : by.q_weight, angle, by.eps);
            if (head < (key ? 1 : GROUP)) {
                u16* to = rotated + (key ? GROUP : head) * DIM + 8 * l;
                *(uint4*)to = first;
                *(uint4*)(to + DIM / 2) = second;
                if (key && chunk == 0) {
                    u16* cache = keys + base + (u64)position * DIM + 8 * l;
                    *(uint4*)cache = first;
                    *(uint4*)(cache + DIM / 2) = second;
                    const u16* v = own_value + 16 * l;
                    uint4 low = input16(v), high = input16(v + 8);
                    cache = values + base + (u64)position * DIM + 16 * l;
                    *(uint4*)cache = low;
                    *(uint4*)(cache + 8) = high;
                }
            }
        }
        __syncthreads();
    }
    {
        float dot[4] = {};
#pragma unroll
        for (u32 h = 0; h < 2; ++h)
            if (FUSED && own && first_key + g + 8 * h == position)
#pragma unroll
                for (u32 c = 0; c < DIM / 32; ++c) k[h][c] = *(const uint4*)(rotated + GROUP * DIM + 32 * c + 8 * t);
        const u16* from = FUSED ? rotated + min(g, heads - 1) * DIM + 8 * t : q + (u64)row * q_stride + (first_head + min(g, heads - 1)) * DIM + 8 * t;
#pragma unroll
        for (u32 c = 0; c < DIM / 32; ++c) {
            uint4 query = FUSED ? *(const uint4*)(from + 32 * c) : input16(from + 32 * c);
            mma(dot, k[0][c].x, k[1][c].x, k[0][c].y, k[1][c].y, query.x, query.y);
            mma(dot, k[0][c].z, k[1][c].z, k[0][c].w, k[1][c].w, query.z, query.w);
        }
        if (t < GROUP / 2) {
            float low = __uint_as_float(0xff800000u);
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
                bool real = first_key + g + 8 * h < seen;
                *(float2*)&scores[warp * 16 + g + 8 * h][2 * t] =
                    make_float2(real ? dot[2 * h] * scale : low, real ? dot[2 * h + 1] * scale : low);
            }
        }
    }
    uint4 v[VALUE_PASSES];
#pragma unroll
    for (u32 p = 0; p < VALUE_PASSES; ++p) {
        u32 key = first_key + p * VALUE_PASS + lane / VALUE_LANES;
        v[p] = key < there ? input16(values + base + (u64)key * DIM + 8 * vl) : make_uint4(0, 0, 0, 0);
        if (FUSED && own && key == position) v[p] = input16(own_value + 8 * vl);
    }
    __syncthreads();
    // Softmax of the part: a warp per head. The part's first key is always seen, so the maximum is finite.
    if (warp < GROUP) {
        float s[SPLIT / 32], most = __uint_as_float(0xff800000u), total = 0.0f;
#pragma unroll
        for (u32 i = 0; i < SPLIT / 32; ++i) {
            s[i] = scores[lane + 32 * i][warp];
            most = fmaxf(most, s[i]);
        }
        for (int o = 16; o > 0; o >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, o));
#pragma unroll
        for (u32 i = 0; i < SPLIT / 32; ++i) {
            s[i] = exp2f(s[i] - most);
            total += s[i];
            scores[lane + 32 * i][warp] = s[i];
        }
        total = group_sum(total, 32);
        if (lane == 0) norms[warp] = make_float2(most, total);
    }
    __syncthreads();
    float sum[GROUP][8] = {};
#pragma unroll
    for (u32 p = 0; p < VALUE_PASSES; ++p) {
        float4 w = *(const float4*)scores[warp * 16 + p * VALUE_PASS + lane / VALUE_LANES];
        float x[8];
        unpack8(v[p], x);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            sum[0][e] = fmaf(w.x, x[e], sum[0][e]);
            sum[1][e] = fmaf(w.y, x[e], sum[1][e]);
            sum[2][e] = fmaf(w.z, x[e], sum[2][e]);
            sum[3][e] = fmaf(w.w, x[e], sum[3][e]);
        }
    }
#pragma unroll
    for (u32 h = 0; h < GROUP; ++h) {
#pragma unroll
        for (int e = 0; e < 8; ++e)
            for (u32 o = VALUE_LANES; o < 32; o <<= 1) sum[h][e] += __shfl_xor_sync(0xffffffffu, sum[h][e], o);
        if (lane < VALUE_LANES) {
            ((float4*)&sums[warp][h][8 * vl])[0] = make_float4(sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
            ((float4*)&sums[warp][h][8 * vl])[1] = make_float4(sum[h][4], sum[h][5], sum[h][6], sum[h][7]);
        }
    }
    __syncthreads();
    u64 part = ((u64)row * kv_heads * group + first_head) * gridDim.x;  // of the first head and split
    u16* to = out + (u64)row * out_stride + first_head * DIM;
    for (u32 i = tid; i < heads * DIM; i += 256) {
        u32 h = i / DIM, e = i % DIM;
        float y = 0.0f;
#pragma unroll
        for (u32 w = 0; w < 8; ++w) y += sums[w][h][e];
        if (splits == 1) to[i] = (u16)pack2(y / norms[h].y, 0.0f);
        else parts[(part + h * gridDim.x + blockIdx.x) * DIM + e] = y;
    }
    if (splits == 1) return;
    if (tid < heads) weights[part + tid * gridDim.x + blockIdx.x] = norms[tid];
    __threadfence();
    __syncthreads();
    if (tid == 0) {
        u32* counter = counters + row * gridDim.y + blockIdx.y;
        last = atomicAdd(counter, 1u) == splits - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    // In chunks of parts whose weights fit where the sums were; a chunk's maximum rescales what came before.
    constexpr u32 CHUNK = 64;
    float2* shared_weights = (float2*)&sums[0][0][0];  // [GROUP][CHUNK]
    constexpr u32 MINE = (GROUP * DIM + 255) / 256;
    float most[MINE], total[MINE], value[MINE];
#pragma unroll
    for (u32 m = 0; m < MINE; ++m) {
        most[m] = __uint_as_float(0xff800000u);
        total[m] = value[m] = 0.0f;
    }
    for (u32 base = 0; base < splits; base += CHUNK) {
        u32 count = min(splits - base, CHUNK);
        __syncthreads();
        for (u32 i = tid; i < heads * CHUNK; i += 256)
            if (i % CHUNK < count) shared_weights[i] = __ldcg(weights + part + i / CHUNK * gridDim.x + base + i % CHUNK);
        __syncthreads();
#pragma unroll
        for (u32 m = 0; m < MINE; ++m) {
            u32 i = tid + 256 * m, h = i / DIM, e = i % DIM;
            if (i < heads * DIM) {
                const float2* w = shared_weights + h * CHUNK;
                const float* y = parts + (part + h * gridDim.x + base) * DIM + e;
                float before = most[m];
                for (u32 s = 0; s < count; ++s) most[m] = fmaxf(most[m], w[s].x);
                float kept = exp2f(before - most[m]);
                total[m] *= kept;
                value[m] *= kept;
#pragma unroll 4
                for (u32 s = 0; s < count; ++s) {
                    float share = exp2f(w[s].x - most[m]);
                    total[m] = fmaf(share, w[s].y, total[m]);
                    value[m] = fmaf(share, __ldcg(y + (u64)s * DIM), value[m]);
                }
            }
        }
    }
#pragma unroll
    for (u32 m = 0; m < MINE; ++m) {
        u32 i = tid + 256 * m;
        if (i < heads * DIM) to[i] = (u16)pack2(value[m] / total[m], 0.0f);
    }
}

#define ARGS const u16* q, u32 q_stride, u16* keys, u16* values, const u32* positions, const u32* slots, u32 kv_heads, u32 group, \
    u32 slot_count, u32 length, float scale, float* parts, float2* weights, u32* counters, u16* out, u32 out_stride
#define PASS q, q_stride, keys, values, positions, slots, kv_heads, group, slot_count, length, scale, parts, weights, counters, out, out_stride
extern "C" __global__ void __launch_bounds__(256, 3) attention_cached_128(ARGS) { attend<128, false>(PASS, {}); }
extern "C" __global__ void __launch_bounds__(256, 3) attention_cached_64(ARGS) { attend<64, false>(PASS, {}); }
extern "C" __global__ void __launch_bounds__(256, 3) attention_cached_32(ARGS) { attend<32, false>(PASS, {}); }
#define TURN const float *q_weight, const float *k_weight, const float *angles, float eps, u32 angle_positions
#define BY {q_weight, k_weight, angles, eps, angle_positions}
extern "C" __global__ void __launch_bounds__(256, 3) attention_rotated_128(ARGS, TURN) { attend<128, true>(PASS, BY); }
extern "C" __global__ void __launch_bounds__(256, 3) attention_rotated_64(ARGS, TURN) { attend<64, true>(PASS, BY); }
extern "C" __global__ void __launch_bounds__(256, 3) attention_rotated_32(ARGS, TURN) { attend<32, true>(PASS, BY); }
