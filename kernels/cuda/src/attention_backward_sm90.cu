// Backward of causal grouped-query attention for Hopper and heads of 128 values, in one pass over the probabilities. A block takes 128
// keys of one key/value head, 64 to each of two warpgroups, and goes through the query heads of the group and, in tiles of 64 from the
// last to the diagonal, the query rows that see the keys: dk and dv stay in registers. A query tile's dq is a sum over key tiles, that is
// over blocks: each adds its part in f32, in the order of the key tiles, so the bits depend on the sequence alone. A counter per head and
// query tile says whose turn it is; warps of their own wait for the turn and let the copy engine add, so that the products seldom wait
// for it. The block whose keys are on a query tile's diagonal is the last to add, and in the end rounds the sums of its 128 rows.
//
// Blocks take their work in order from a counter, and a block waits only for blocks with earlier keys, which took their work before it did:
// so the wait ends whatever number of blocks runs at a time. Working with transposed scores (keys are rows) leaves probabilities and their
// gradients in registers where the products for dv and dk want them; only dq needs the gradients in shared memory.
//
// The order within a tile keeps the tensor cores supplied: dp runs during the exponentials, dv while gradients are formed, dk while they
// reach shared memory, and the scores of the next tile while dq leaves. Nothing may be in flight at the loop's end but what the loop's
// start waits for: the assembler would run every product by itself.
//
// Rows past a sequence's end are the next sequence's, or zeros at the end. As queries they get the log-sum-exp +inf, so probability 0; as
// keys they lie behind the diagonal of every query that counts.

#define K_AT base
#define V_AT (base + 32768)
#define Q_AT(s) (base + 65536 + (s) * 16384)
#define D_AT(s) (base + 98304 + (s) * 16384)
#define DS_AT(s) (base + 131072 + (s) * 16384)
#define DQ_AT(s) (base + 163840 + (s) * 32768)
#define STATS_AT(s) (base + 229376 + (s) * 512)
#define BARRIER(i) (base + 230400 + 8 * (i))
#define KV_FULL BARRIER(0)
#define Q_FULL(s) BARRIER(1 + (s))
#define Q_EMPTY(s) BARRIER(3 + (s))
#define D_FULL(s) BARRIER(5 + (s))
#define D_EMPTY(s) BARRIER(7 + (s))
#define DQ_FULL(a) BARRIER(9 + (a))
#define DQ_EMPTY(s) BARRIER(12 + (s))
#define DQ_DONE BARRIER(14)
#define ITEM_AT BARRIER(15)
// Warps that add up dq, in turn.
#define ADDERS 3

static __device__ __forceinline__ void store_shared(u32 at, float v) {
    asm volatile("st.shared.f32 [%0], %1;" :: "r"(at), "f"(v) : "memory");
}
static __device__ __forceinline__ float2 load_pair(u32 at) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
    return v;
}
static __device__ __forceinline__ void store_matrices(u32 at, const u32* v) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"(at), "r"(v[0]), "r"(v[1]), "r"(v[2]),
        "r"(v[3]) : "memory");
}
// d += the 64 query rows of a tile, each times a column of probabilities or gradients: a is 64 keys x 64 queries.
static __device__ __forceinline__ void by_queries(float (&d)[64], const u32 (&a)[16], u32 tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) product_128<1>(d, a + 4 * i, tile + STEP(i * 2048), 1);
}
// d = 64 keys of `keys` (its blocks are 128 rows) times the 64 rows of `queries`.
static __device__ __forceinline__ void by_columns(float (&d)[32], u32 keys, u32 queries) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
        product_64<0, 0>(d, keys + STEP((i >> 2) * 16384 + (i & 3) * 32), queries + STEP((i >> 2) * 8192 + (i & 3) * 32), i > 0);
}

// `turns`: for each head and first row of a query tile, how many key tiles have added to its dq; behind them, how many blocks have taken
// work. All are 0 before. `sums`: dq by head and row in f32; of each 16 columns {0, 1, 8, 9}, {2, 3, 10, 11}, {4, 5, 12, 13}, {6, 7, 14,
// 15} lie together.
extern "C" __global__ void __launch_bounds__(384, 1) attention_backward_sm90(const Tile* __restrict__ tiles, const __grid_constant__ Map qk,
    const __grid_constant__ Map qkv, const __grid_constant__ Map dout, const float* __restrict__ lse, const float* __restrict__ delta,
    u16* __restrict__ dqk, u32 sdqk, u16* __restrict__ dqkv, u32 sdqkv, float* __restrict__ sums, u32* turns, u32 n, u32 heads,
    u32 group, float c, float scale) {
    extern __shared__ u8 shared[];
    const u32 base = ((u32)__cvta_generic_to_shared(shared) + 1023) & ~1023u;
    const int crew = warpgroup(), lane = threadIdx.x & 31;
    if (threadIdx.x == 0) {
        barrier_init(KV_FULL, 1);
        for (int s = 0; s < 2; ++s) {
            barrier_init(Q_FULL(s), 33);
            barrier_init(Q_EMPTY(s), 8);
            barrier_init(D_FULL(s), 1);
            barrier_init(D_EMPTY(s), 8);
            barrier_init(DQ_EMPTY(s), 1);
        }
        for (int a = 0; a < ADDERS; ++a) barrier_init(DQ_FULL(a), 256);
        barrier_init(DQ_DONE, ADDERS);
        barriers_ready();
        u32 item = atomicAdd(turns + (u64)heads * n, 1);
        asm volatile("st.shared.u32 [%0], %1;" :: "r"(ITEM_AT), "r"(item) : "memory");
    }
    __syncthreads();
    u32 item;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(item) : "r"(ITEM_AT) : "memory");
    const u32 kv_heads = heads / group;
    const Tile tile = tiles[item / kv_heads];
    const int kv = item % kv_heads, len = tile.len, start = tile.start, last = (len - 1) & ~63;
    const int first_head = kv * group, end_head = first_head + group;

    if (crew == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        const int warp = threadIdx.x >> 5;
        if (warp == 0) {
            if (lane == 0) {
                arrive_expect(KV_FULL, 65536);
                load_rows<128>(K_AT, qk, (heads + kv) * 128, tile.first + start, KV_FULL);
                load_rows<128>(V_AT, qkv, (heads + kv_heads + kv) * 128, tile.first + start, KV_FULL);
            }
            u32 t = 0;
            for (int row = last; row >= start; row -= 64)
                for (int head = first_head; head < end_head; ++head, ++t) {
                    const u32 s = t & 1, parity = ((t >> 1) & 1) ^ 1;
                    const float* l = lse + (u64)head * n + tile.first + row + lane;
                    const float* g = delta + (u64)head * n + tile.first + row + lane;
                    const bool a = row + lane < len, b = row + lane + 32 < len;
                    const float l0 = a ? l[0] : POSITIVE_INFINITY, l1 = b ? l[32] : POSITIVE_INFINITY;
                    const float g0 = a ? g[0] : 0.0f, g1 = b ? g[32] : 0.0f;
                    wait(Q_EMPTY(s), parity);
                    store_shared(STATS_AT(s) + 4 * lane, l0);
                    store_shared(STATS_AT(s) + 4 * lane + 128, l1);
                    store_shared(STATS_AT(s) + 4 * lane + 256, g0);
                    store_shared(STATS_AT(s) + 4 * lane + 384, g1);
                    if (lane == 0) {
                        arrive_expect(Q_FULL(s), 16384);
                        load_rows<64>(Q_AT(s), qk, head * 128, tile.first + row, Q_FULL(s));
                    }
                    arrive(Q_FULL(s));
                    wait(D_EMPTY(s), parity);
                    if (lane == 0) {
                        arrive_expect(D_FULL(s), 16384);
                        load_rows<64>(D_AT(s), dout, head * 128, tile.first + row, D_FULL(s));
                    }
                }
        } else if (lane == 0) {
            // Each of these warps takes every third tile: while one waits until its sums have arrived, so that it may pass the turn on,
            // the next already adds.
            const u32 before = start >> 7, adder = warp - 1;
            u32 next = 0, uses = 0, t = 0;
            for (int row = last; row >= start; row -= 64)
                for (int head = first_head; head < end_head; ++head, ++t) {
                    const bool mine = next == adder;
                    next = next == ADDERS - 1 ? 0 : next + 1;
                    if (!mine) continue;
                    const u64 at = (u64)head * n + tile.first + row;
                    const u32 bytes = min(64, len - row) * 512;
                    if (before > 0) {
                        u32 done;
                        do {
                            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(turns + at) : "memory");
                        } while (done < before);
                        asm volatile("fence.proxy.async;" ::: "memory");
                    }
                    wait(DQ_FULL(adder), uses++ & 1);
                    if (before > 0)
                        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::
                            "l"(sums + at * 128), "r"(DQ_AT(t & 1)), "r"(bytes) : "memory");
                    else
                        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" :: "l"(sums + at * 128),
                            "r"(DQ_AT(t & 1)), "r"(bytes) : "memory");
                    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
                    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
                    arrive(DQ_EMPTY(t & 1));
                    // Later key tiles add only to query tiles behind them.
                    if (row >= start + 128) {
                        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
                        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(turns + at) : "memory");
                    }
                }
            asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
            asm volatile("fence.proxy.async;" ::: "memory");
            arrive(DQ_DONE);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        const int w = crew - 1, warp = (threadIdx.x >> 5) & 3, mine = 64 * w + 16 * warp + (lane >> 2), pair = 2 * (lane & 3);
        // Where a lane's rows of gradient matrices go: lanes 0-7 and 16-23 name keys 0-7, the others keys 8-15; 16 lanes name one block
        // of queries.
        const u32 ds_row = (64 * w + 16 * warp + (lane & 15)) * 128, ds_block = lane >> 4;
        float dk[64] = {}, dv[64] = {};
        u32 t = 0, adder = 0;
        const u32 all = group * ((last - start) / 64 + 1);
        float p[32];
        wait(KV_FULL, 0);
        wait(Q_FULL(0), 0);
        products_begin();
        by_columns(p, operand(K_AT + w * 8192), operand(Q_AT(0)));
        products_commit();
        products_wait<0>();
        settled(p);
        for (int row = last; row >= start; row -= 64)
            for (int head = first_head; head < end_head; ++head, ++t) {
                const u32 s = t & 1, parity = (t >> 1) & 1;
                float dp[32];
                wait(D_FULL(s), parity);
                products_begin();
                by_columns(dp, operand(V_AT + w * 8192), operand(D_AT(s)));
                products_commit();
                const bool edge = row < start + 128;
#pragma unroll
                for (int b = 0; b < 8; ++b) {
                    const float2 l = load_pair(STATS_AT(s) + 4 * (8 * b + pair));
                    p[4 * b] = power2(fmaf(p[4 * b], c, -l.x));
                    p[4 * b + 1] = power2(fmaf(p[4 * b + 1], c, -l.y));
                    p[4 * b + 2] = power2(fmaf(p[4 * b + 2], c, -l.x));
                    p[4 * b + 3] = power2(fmaf(p[4 * b + 3], c, -l.y));
                }
                if (edge) {
                    const int ahead = start + mine - row;
#pragma unroll
                    for (int i = 0; i < 32; ++i)
                        if (ahead + 8 * ((i >> 1) & 1) > 8 * (i >> 2) + pair + (i & 1)) p[i] = 0.0f;
                }
                u32 rounded[16];
#pragma unroll
                for (int i = 0; i < 16; ++i) rounded[i] = pack2(p[2 * i], p[2 * i + 1]);
                products_begin();
                by_queries(dv, rounded, operand(D_AT(s), 8192));
                products_commit();
                products_wait<1>();
                settled(dp);
                u32 ds[16];
#pragma unroll
                for (int b = 0; b < 8; ++b) {
                    const float2 g = load_pair(STATS_AT(s) + 256 + 4 * (8 * b + pair));
                    ds[2 * b] = pack2(p[4 * b] * (dp[4 * b] - g.x), p[4 * b + 1] * (dp[4 * b + 1] - g.y));
                    ds[2 * b + 1] = pack2(p[4 * b + 2] * (dp[4 * b + 2] - g.x), p[4 * b + 3] * (dp[4 * b + 3] - g.y));
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) store_matrices(DS_AT(s) + ds_row + (((2 * i + ds_block) ^ (lane & 7)) << 4), ds + 4 * i);
                fence_async();
                products_begin();
                by_queries(dk, ds, operand(Q_AT(s), 8192));
                products_commit();
                group_sync(1, 256);
                float dq[32];
                products_begin();
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    product_64<1, 1>(dq, operand(DS_AT(s)) + STEP(i * 2048), operand(K_AT + w * 16384) + STEP(i * 2048), i > 0);
                products_commit();
                // Frees the registers of probabilities and gradients for the scores of the next tile. Behind the last tile these are made
                // of the tile before it, and not used.
                products_wait<1>();
                settled(dk);
                if (t + 1 < all) wait(Q_FULL(s ^ 1), s ? parity ^ 1 : parity);
                products_begin();
                by_columns(p, operand(K_AT + w * 8192), operand(Q_AT(s ^ 1)));
                products_commit();
                products_wait<1>();
                settled(dq);
                if (lane == 0) {
                    arrive(Q_EMPTY(s));
                    arrive(D_EMPTY(s));
                }
                // dq of 64 queries and this half of the columns. The two values of four blocks' pairs lie together; rows that share banks
                // write in another order.
                wait(DQ_EMPTY(s), parity ^ 1);
                const u32 to = DQ_AT(s) + (16 * warp + (lane >> 2)) * 512 + w * 256 + (lane & 3) * 16;
                const bool odd = (lane >> 2) & 1;
#pragma unroll
                for (int h = 0; h < 2; ++h)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float v[4];
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            const int even_at = 8 * i + 4 * (e >> 1) + 2 * h + (e & 1),
                                odd_at = 8 * (i ^ 1) + 4 * (e >> 1) + 2 * h + (e & 1);
                            v[e] = odd ? dq[odd_at] : dq[even_at];
                        }
                        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                                     :: "r"(to + h * 4096 + (odd ? (i ^ 1) : i) * 64), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) :
                                         "memory");
                    }
                fence_async();
                arrive(DQ_FULL(adder));
                adder = adder == ADDERS - 1 ? 0 : adder + 1;
                products_wait<0>();
                settled(p);
            }
        settled(dk);
        settled(dv);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const u32 row = start + mine + 8 * h;
            const u64 at = tile.first + row;
            store_rows(dk, h, scale, dqk + at * (8ull * sdqk) + (heads + kv) * 128, row < len);
            store_rows(dv, h, 1.0f, dqkv + at * (8ull * sdqkv) + (heads + kv_heads + kv) * 128, row < len);
        }
        // Nobody adds to the dq of these 128 rows after this block: rounds and scales it. Two rows to a warp, 16 bytes of sums to a lane:
        // its pairs of two neighbouring blocks of eight columns.
        wait(DQ_DONE, 0);
        const int rows = start + 64 * w + 16 * warp;
        for (int head = first_head; head < end_head; ++head) {
            const float4* from = (const float4*)(sums + ((u64)head * n + tile.first + rows) * 128) + lane;
            float4 v[16];
#pragma unroll
            for (int r = 0; r < 16; ++r) v[r] = rows + r < len ? __ldcg(from + 32 * r) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (int r = 0; r < 16; r += 2) {
                const float4 a = v[r], b = v[r + 1];
                const uint4 block = gather_block(pack2(a.x * scale, a.y * scale), pack2(a.z * scale, a.w * scale),
                    pack2(b.x * scale, b.y * scale), pack2(b.z * scale, b.w * scale));
                const int row = rows + r + ((lane >> 1) & 1);
                if (row < len) ((uint4*)(dqk + (u64)(tile.first + row) * (8ull * sdqk) + head * 128))[2 * (lane >> 2) + (lane & 1)] = block;
            }
        }
    }
}
