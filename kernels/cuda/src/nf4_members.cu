// What the linear layers of few rows have in common: their weights and adapters, loads, and the adapters' first product.

#define WARPS 8u
#define LUT_WORDS 8192u  // 256 pairs for each of 32 lanes

struct Member {
    const u8* weight;     // NF4 pairs, or bf16
    const float* code;    // 16 code points
    const u8* codes;      // codes of the scales; null: plain scales
    const float* map;     // 256 values of those codes
    const float* absmax;
    const float* lora;    // B of the adapter, [rows, rank], or null
    const float* a;       // A of the adapter, [rank, in]
    const float* bias;    // [rows], or null
    u64 row_bytes;        // from one row of the weight to the next
    float offset;
    float lora_scale;
    int block_shift;      // log2 of the values of a block
    int nested_shift;     // log2 of the blocks of a nested block
    u32 rows;
    u32 column;           // of the output
    u32 rank;
    u32 mid;              // column of the adapter's input
    u32 tiles;
    u32 workers;          // of the first member: blocks that compute units of the adapters' first product, no more than run at the same time
    u32 add;              // of the first member: the result is added to what the output holds
    u32 unused;
    float fit;            // the code points times this are near to bf16 values
    float unfit;          // its reciprocal
};
struct Members { Member of[4]; };

// Weights are read once: they pass by the first-level cache.
static __device__ __forceinline__ uint2 stream8(const u8* p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
static __device__ __forceinline__ uint4 stream16(const u8* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
// Not through the read-only path: the previous kernel may still have been writing when this one began.
static __device__ __forceinline__ uint4 input16(const u16* p) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
static __device__ __forceinline__ void input16_if(u32 real, const u16* p, uint4& v) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "l"(p), "r"(real));
}
// Past the first-level cache, which may hold what was there before.
static __device__ __forceinline__ uint4 fresh16(const u16* p) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
static __device__ __forceinline__ float input(const float* p) {
    float v;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
}
// Not from the first-level cache, which may hold what was there before.
static __device__ __forceinline__ float fresh(const float* p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
}
static __device__ __forceinline__ void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ u32 word(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

static __device__ __forceinline__ float block_scale(const Member& m, const float* map, u64 block) {
    if (!m.codes) return m.absmax[block];
    return __fadd_rn(__fmul_rn(map[m.codes[block]], m.absmax[block >> m.nested_shift]), m.offset);
}

// The adapters' first product, x A^T, is cut into units of 16 ranks (of all members, side by side), eight tokens and SEGMENT values of k, which
// the blocks do before anything else; they leave sums in `mid`, [segment][n][ranks], and count themselves. Every block waits for all of them when its
// own first tile is done: by then they have been there for long, as a rule. A is split into two bf16 terms, so that it loses nothing that matters.
#define SEGMENT 512u
// Finished units, then blocks that know of all of them; 0 between launches, which follow each other on one stream.
static __device__ u32 arrivals;

static __device__ __forceinline__ u32 rank_units(u32 n, u32 blocks, u32 ranks) {
    return (ranks + 15) / 16 * ((n + 7) / 8) * ((blocks * 64 + SEGMENT - 1) / SEGMENT);
}
static __device__ __forceinline__ const float* rank_row(const Members& members, u32 rank, u32 k) {
    int which = 0;
    while (which < 3 && rank >= members.of[which].rank) rank -= members.of[which++].rank;
    return members.of[which].a + (u64)rank * k;
}
// With SHARED, `x` is in shared memory.
template <bool SHARED>
static __device__ __forceinline__ void rank_unit(
    const Members& members, const u16* x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks, u32 unit, float* sums, bool prefetch, bool counted) {
    u32 k = blocks * 64, segments = (k + SEGMENT - 1) / SEGMENT, groups = (n + 7) / 8;
    u32 segment = unit % segments, rest = unit / segments, base = rest % groups * 8, row = rest / groups * 16;
    u32 thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    u32 warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
    u32 from = segment * SEGMENT + warp * (SEGMENT / WARPS);
    if (prefetch) {
        const float* a = rank_row(members, min(row + (lane >> 1), ranks - 1), k) + from + 32 * (lane & 1);
        if (from < k) asm volatile("prefetch.global.L2 [%0];" :: "l"(a));
        return;
    }
    const float* a0 = rank_row(members, min(row + g, ranks - 1), k) + from + 4 * t;
    const float* a1 = rank_row(members, min(row + 8 + g, ranks - 1), k) + from + 4 * t;
    const u16* column = x + ((u64)min(base + g, n - 1) * x_stride + from + 4 * t);
    float sum[4] = {};
    if (from < k) {
        float4 v[2][4];
        uint2 b[4];
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            v[0][s] = *(const float4*)(a0 + 16 * s);
            v[1][s] = *(const float4*)(a1 + 16 * s);
            if (SHARED) b[s] = *(const uint2*)(column + 16 * s);
            else asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(b[s].x), "=r"(b[s].y) : "l"(column + 16 * s));
        }
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            u32 whole[2][2], part[2][2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                whole[h][0] = pack2(v[h][s].x, v[h][s].y);
                whole[h][1] = pack2(v[h][s].z, v[h][s].w);
                part[h][0] = pack2(v[h][s].x - low(whole[h][0]), v[h][s].y - high(whole[h][0]));
                part[h][1] = pack2(v[h][s].z - low(whole[h][1]), v[h][s].w - high(whole[h][1]));
            }
            mma(sum, whole[0][0], whole[1][0], whole[0][1], whole[1][1], b[s].x, b[s].y);
            mma(sum, part[0][0], part[1][0], part[0][1], part[1][1], b[s].x, b[s].y);
        }
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) sums[(warp * 8 + 2 * t + (c & 1)) * 20 + (c >> 1) * 8 + g] = sum[c];
    __syncthreads();
    if (thread < 128) {
        u32 token = thread >> 4, place = thread & 15;
        if (base + token < n && row + place < ranks) {
            float y = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) y += sums[(w * 8 + token) * 20 + place];
            mid[((u64)segment * n + base + token) * ranks + row + place] = y;
        }
    }
    __threadfence();
    __syncthreads();
    if (counted && thread == 0) atomicAdd(&arrivals, 1u);
}
// Leaves x A^T, scaled and rounded, in `to`, [8 NT tokens][ranks]; the whole block. Waits for all `units`, unless another launch computed them (0).
static __device__ __forceinline__ void gather_ranks(
    const Members& members, u32 n, u32 blocks, const float* mid, u32 ranks, u32 units, u16* to) {
    u32 thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    if (thread == 0 && units > 0) {
        u32 seen;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(&arrivals) : "memory");
        while (seen < units);
        // The last of the blocks makes ready for the next launch.
        if (atomicAdd(&arrivals, 1u) == units + gridDim.x - 1) arrivals = 0;
    }
    __syncthreads();
    u32 segments = (blocks * 64 + SEGMENT - 1) / SEGMENT, values = n * ranks;
    auto store = [&](u32 i, float y) {
        u32 rank = i % ranks;
        int which = 0;
        while (which < 3 && rank >= members.of[which].rank) rank -= members.of[which++].rank;
        to[i] = (u16)pack2(y * members.of[which].lora_scale, 0.0f);
    };
    if (values > 1024 && values % 4 == 0) {
        for (u32 i = 4 * thread; i < values; i += 128 * WARPS) {
            float y[4] = {};
#pragma unroll 8
            for (u32 s = 0; s < segments; ++s) {
                uint4 v = fresh16((const u16*)(mid + (s * values + i)));
                y[0] += __uint_as_float(v.x);
                y[1] += __uint_as_float(v.y);
                y[2] += __uint_as_float(v.z);
                y[3] += __uint_as_float(v.w);
            }
#pragma unroll
            for (u32 e = 0; e < 4; ++e) store(i + e, y[e]);
        }
    } else {
        for (u32 i = thread; i < values; i += 32 * WARPS) {
            float y = 0.0f;
#pragma unroll 24
            for (u32 s = 0; s < segments; ++s) y += fresh(mid + (s * values + i));
            store(i, y);
        }
    }
    __syncthreads();
}

