// Backward of causal grouped-query attention for Hopper and heads of 128 values, in one pass over the probabilities. A block takes 128
// keys of one key/value head, 64 to each of two warpgroups, and goes in tiles of 64 through the query rows that see the keys, from the
// last to the diagonal, and for each through the query heads of the group: dk and dv stay in registers. A query tile's dq is a sum over
// key tiles, that is over blocks: each adds its part in f32, in the order of the key tiles, so the bits depend on the sequence alone. A
// counter per head and query tile says whose turn it is; warps of their own wait for the turn and let the copy engine add, so that the
// products seldom wait for it. The block whose keys are on a query tile's diagonal is the last: it fetches the sum of the others, adds its
// part in registers and stores dq.
//
// Rows are outside and heads inside so that the blocks of a key/value head stay side by side: with heads outside, one that sees few rows
// would come to the next head early and wait there for those that see many.
//
// Blocks stay and take work in order from a counter, so that what the next one begins with is on its way while one ends. A block waits only
// for blocks with earlier keys, which took that work before: so the wait ends whatever number of blocks runs at a time. Working with
// transposed scores (keys are rows) leaves probabilities and their gradients in registers where the products for dv and dk want them; only
// dq needs the gradients in shared memory.
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
#define KV_EMPTY BARRIER(1)
#define Q_FULL(s) BARRIER(2 + (s))
#define Q_EMPTY(s) BARRIER(4 + (s))
#define D_FULL(s) BARRIER(6 + (s))
#define D_EMPTY(s) BARRIER(8 + (s))
#define DQ_FULL(a) BARRIER(10 + (a))
#define DQ_EMPTY(s) BARRIER(13 + (s))
#define DQ_SUM(s) BARRIER(15 + (s))
#define ITEM_FULL(i) BARRIER(17 + (i))
#define ITEM_EMPTY(i) BARRIER(19 + (i))
#define ITEM_AT(i) (BARRIER(22) + 16 * (i))
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

// What a block works at: keys `start..` of the sequence of `len` rows from `first`, for a key/value head; a negative one: nothing is left.
struct Work { int kv, first, len, start; };
static __device__ __forceinline__ Work work_at(u32 at) {
    int kv, first, len, start;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(kv), "=r"(first), "=r"(len), "=r"(start) : "r"(at) : "memory");
    return {kv, first, len, start};
}
static __device__ __forceinline__ Work same(const Work& w) { return {same(w.kv), same(w.first), same(w.len), same(w.start)}; }

// Its query tiles are counted from 0 in their order; from `edge` on, their rows are those of the keys. Each role takes the work apart for
// itself: what lives through the change of registers has to fit the fewer.
#define UNPACK(work)                                                                                                                \
    const int kv = (work).kv, first = (work).first, len = (work).len, start = (work).start, last = (len - 1) & ~63;                 \
    const u32 first_head = kv * group, end_head = first_head + group, before = start >> 7;                                          \
    const u32 all = group * ((last - start) / 64 + 1), edge = all > 2 * group ? all - 2 * group : 0

// `turns`: for each head and first row of a query tile, how many key tiles have added to its dq; behind them, how much work has been taken.
// All are 0 before. `sums`: dq by head and row in f32; of each 16 columns {0, 1, 8, 9}, {2, 3, 10, 11}, {4, 5, 12, 13}, {6, 7, 14, 15} lie
// together.
extern "C" __global__ void __launch_bounds__(384, 1) attention_backward_sm90(const Tile* __restrict__ tiles, u32 total,
    const __grid_constant__ Map qk, const __grid_constant__ Map qkv, const __grid_constant__ Map dout, const float* __restrict__ lse,
    const float* __restrict__ delta, u16* __restrict__ dqk, u32 sdqk, u16* __restrict__ dqkv, u32 sdqkv, float* __restrict__ sums,
    u32* turns, u32 n, u32 heads, u32 group, float c, float scale) {
    extern __shared__ u8 shared[];
    const u32 base = ((u32)__cvta_generic_to_shared(shared) + 1023) & ~1023u;
    const int crew = warpgroup(), lane = threadIdx.x & 31;
    if (threadIdx.x == 0) {
        barrier_init(KV_FULL, 1);
        barrier_init(KV_EMPTY, 8);
        for (int s = 0; s < 2; ++s) {
            barrier_init(Q_FULL(s), 33);
            barrier_init(Q_EMPTY(s), 8);
            barrier_init(D_FULL(s), 1);
            barrier_init(D_EMPTY(s), 8);
            barrier_init(DQ_EMPTY(s), 8);
            barrier_init(DQ_SUM(s), 1);
            barrier_init(ITEM_FULL(s), 1);
            barrier_init(ITEM_EMPTY(s), 8 + ADDERS);
        }
        for (int a = 0; a < ADDERS; ++a) barrier_init(DQ_FULL(a), 256);
        barriers_ready();
    }
    wait_for_inputs();
    __syncthreads();
    if (crew == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        const u32 warp = threadIdx.x >> 5;
        if (warp == 0) {
            const u32 kv_heads = heads / group;
            // Query tiles of all work so far: says where in the rings the next is.
            u32 g = 0;
            for (u32 turn = 0;; ++turn) {
                if (lane == 0) {
                    const u32 item = atomicAdd(turns + (u64)heads * n, 1);
                    const Tile tile = tiles[min(item, total - 1) / kv_heads];
                    wait(ITEM_EMPTY(turn & 1), ((turn >> 1) & 1) ^ 1);
                    const int kv = item < total ? (int)(item % kv_heads) : -1;
                    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" :: "r"(ITEM_AT(turn & 1)), "r"(kv), "r"(tile.first),
                        "r"(tile.len), "r"(tile.start) : "memory");
                    arrive(ITEM_FULL(turn & 1));
                }
                __syncwarp();
                const Work work = same(work_at(ITEM_AT(turn & 1)));
                UNPACK(work);
                if (kv < 0) break;
                int row = last;
                u32 head = first_head;
                for (u32 t = 0; t < all; ++t, ++g) {
                    const u32 s = g & 1, parity = ((g >> 1) & 1) ^ 1;
                    const u32 at = head * n + first + row + lane;
                    const bool a = row + lane < len, b = row + lane + 32 < len;
                    const float l0 = a ? lse[at] : POSITIVE_INFINITY, l1 = b ? lse[at + 32] : POSITIVE_INFINITY;
                    const float g0 = a ? delta[at] : 0.0f, g1 = b ? delta[at + 32] : 0.0f;
                    wait(Q_EMPTY(s), parity);
                    store_shared(STATS_AT(s) + 4 * lane, l0);
                    store_shared(STATS_AT(s) + 4 * lane + 128, l1);
                    store_shared(STATS_AT(s) + 4 * lane + 256, g0);
                    store_shared(STATS_AT(s) + 4 * lane + 384, g1);
                    if (lane == 0) {
                        arrive_expect(Q_FULL(s), 16384);
                        load_rows<64>(Q_AT(s), qk, head * 128, first + row, Q_FULL(s));
                    }
                    arrive(Q_FULL(s));
                    wait(D_EMPTY(s), parity);
                    if (lane == 0) {
                        arrive_expect(D_FULL(s), 16384);
                        load_rows<64>(D_AT(s), dout, head * 128, first + row, D_FULL(s));
                    }
                    // The first queries are there before the work before this has let go of its keys.
                    if (t == 0 && lane == 0) {
                        wait(KV_EMPTY, (turn & 1) ^ 1);
                        arrive_expect(KV_FULL, 65536);
                        load_rows<128>(K_AT, qk, (heads + kv) * 128, first + start, KV_FULL);
                        load_rows<128>(V_AT, qkv, (heads + kv_heads + kv) * 128, first + start, KV_FULL);
                    }
                    if (++head == end_head) {
                        head = first_head;
                        row -= 64;
                    }
                }
            }
        } else if (lane == 0) {
            // Each of these warps takes every third tile: while one waits until its sums have arrived, so that it may pass the turn on,
            // the next already adds.
            const u32 adder = warp - 1;
            u32 uses = 0, g = 0;
            for (u32 turn = 0;; ++turn) {
                wait(ITEM_FULL(turn & 1), (turn >> 1) & 1);
                const Work work = work_at(ITEM_AT(turn & 1));
                UNPACK(work);
                arrive(ITEM_EMPTY(turn & 1));
                if (kv < 0) break;
                u32 head = first_head + adder;
                int row = last;
                for (u32 t = adder; t < (before > 0 ? all : edge); t += ADDERS) {
                    while (head >= end_head) {
                        head -= group;
                        row -= 64;
                    }
                    const u32 at = head * n + first + row, s = (g + t) & 1;
                    const u32 bytes = min(64, len - row) * 512;
                    head += ADDERS;
                    if (before > 0) {
                        u32 done;
                        do {
                            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(turns + at) : "memory");
                        } while (done < before);
                        asm volatile("fence.proxy.async;" ::: "memory");
                    }
                    wait(DQ_FULL(adder), uses++ & 1);
                    if (t < edge) {
                        if (before > 0)
                            asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::
                                "l"(sums + (u64)at * 128), "r"(DQ_AT(s)), "r"(bytes) : "memory");
                        else
                            asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" :: "l"(sums + (u64)at * 128),
                                "r"(DQ_AT(s)), "r"(bytes) : "memory");
                        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
                        asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
                        arrive(DQ_EMPTY(s), 8);
                        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
                        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(turns + at) : "memory");
                    } else {
                        // Nobody adds after this block: what the others have added comes to it.
                        arrive_expect(DQ_SUM(s), bytes);
                        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
                            "r"(DQ_AT(s)), "l"(sums + (u64)at * 128), "r"(bytes), "r"(DQ_SUM(s)) : "memory");
                    }
                }
                g += all;
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        const int w = crew - 1, warp = (threadIdx.x >> 5) & 3, mine = 64 * w + 16 * warp + (lane >> 2), pair = 2 * (lane & 3);
        // Where a lane's rows of gradient matrices go: lanes 0-7 and 16-23 name keys 0-7, the others keys 8-15; 16 lanes name one block
        // of queries.
        const u32 ds_row = (64 * w + 16 * warp + (lane & 15)) * 128, ds_block = lane >> 4;
        // A lane's part of dq of a tile in shared memory: two rows of this half of the columns.
        const u32 dq_part = (16 * warp + (lane >> 2)) * 512 + w * 256 + (lane & 3) * 16;
        const bool odd = (lane >> 2) & 1;
        // Query tiles of all work so far, and which phase of sums is due in either place.
        u32 g = 0, due = 0;
        for (u32 turn = 0;; ++turn) {
            wait(ITEM_FULL(turn & 1), (turn >> 1) & 1);
            const Work work = same(work_at(ITEM_AT(turn & 1)));
            UNPACK(work);
            __syncwarp();
            if (lane == 0) arrive(ITEM_EMPTY(turn & 1));
            if (kv < 0) break;
            float dk[64] = {}, dv[64] = {};
            u32 adder = 0, head = first_head;
            int row = last;
            float p[32];
            wait(KV_FULL, turn & 1);
            wait(Q_FULL(g & 1), (g >> 1) & 1);
            products_begin();
            by_columns(p, operand(K_AT + w * 8192), operand(Q_AT(g & 1)));
            products_commit();
            products_wait<0>();
            settled(p);
            for (u32 t = 0; t < all; ++t, ++g) {
                const u32 s = g & 1, parity = (g >> 1) & 1;
                float dp[32];
                wait(D_FULL(s), parity);
                products_begin();
                by_columns(dp, operand(V_AT + w * 8192), operand(D_AT(s)));
                products_commit();
#pragma unroll
                for (int b = 0; b < 8; ++b) {
                    const float2 l = load_pair(STATS_AT(s) + 4 * (8 * b + pair));
                    p[4 * b] = power2(fmaf(p[4 * b], c, -l.x));
                    p[4 * b + 1] = power2(fmaf(p[4 * b + 1], c, -l.y));
                    p[4 * b + 2] = power2(fmaf(p[4 * b + 2], c, -l.x));
                    p[4 * b + 3] = power2(fmaf(p[4 * b + 3], c, -l.y));
                }
                if (t >= edge) {
                    // The tile's place for sums is free: those of the blocks before may come.
                    wait(DQ_EMPTY(s), parity ^ 1);
                    if (before > 0) {
                        arrive(DQ_FULL(adder));
                        adder = adder == ADDERS - 1 ? 0 : adder + 1;
                    }
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
                if (lane == 0) {
                    arrive(Q_EMPTY(s));
                    arrive(D_EMPTY(s));
                }
                if (t + 1 < all) wait(Q_FULL(s ^ 1), s ? parity ^ 1 : parity);
                products_begin();
                by_columns(p, operand(K_AT + w * 8192), operand(Q_AT(s ^ 1)));
                products_commit();
                products_wait<1>();
                settled(dq);
                // dq of 64 queries and this half of the columns. In shared memory the two values of four blocks' pairs lie together; rows
                // that share banks come in another order.
                const u32 at = DQ_AT(s) + dq_part;
                if (t < edge) {
                    wait(DQ_EMPTY(s), parity ^ 1);
#pragma unroll
                    for (int h = 0; h < 2; ++h)
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            float v[4];
#pragma unroll
                            for (int e = 0; e < 4; ++e) {
                                const int in_order = 8 * i + 4 * (e >> 1) + 2 * h + (e & 1), swapped = in_order ^ 8;
                                v[e] = odd ? dq[swapped] : dq[in_order];
                            }
                            asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                                         :: "r"(at + h * 4096 + (odd ? i ^ 1 : i) * 64), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) :
                                             "memory");
                        }
                    fence_async();
                    arrive(DQ_FULL(adder));
                    adder = adder == ADDERS - 1 ? 0 : adder + 1;
                } else {
                    if (before > 0) {
                        wait(DQ_SUM(s), (due >> s) & 1);
                        due ^= 1u << s;
#pragma unroll
                        for (int h = 0; h < 2; ++h)
#pragma unroll
                            for (int i = 0; i < 4; ++i) {
                                float4 v;
                                asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) :
                                    "r"(at + h * 4096 + i * 64) : "memory");
                                dq[8 * i + 2 * h] += v.x;
                                dq[8 * i + 2 * h + 1] += v.y;
                                dq[8 * i + 4 + 2 * h] += v.z;
                                dq[8 * i + 4 + 2 * h + 1] += v.w;
                            }
                        __syncwarp();
                    }
                    if (lane == 0) arrive(DQ_EMPTY(s));
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const int line = row + 16 * warp + (lane >> 2) + 8 * h;
                        store_rows(dq, h, scale, dqk + (u64)(first + line) * (8ull * sdqk) + head * 128 + 64 * w, line < len);
                    }
                }
                if (++head == end_head) {
                    head = first_head;
                    row -= 64;
                }
                products_wait<0>();
                settled(p);
            }
            if (lane == 0) arrive(KV_EMPTY);
            settled(dk);
            settled(dv);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const u32 row = start + mine + 8 * h;
                const u64 at = first + row;
                store_rows(dk, h, scale, dqk + at * (8ull * sdqk) + (heads + kv) * 128, row < len);
                store_rows(dv, h, 1.0f, dqkv + at * (8ull * sdqkv) + (heads + heads / group + kv) * 128, row < len);
            }
        }
    }
}
