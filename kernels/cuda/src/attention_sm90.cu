// Causal grouped-query attention inside sequences, forward, for Hopper and heads of 128 values. A block is a loader warp and two
// warpgroups of 64 query rows each; key and value tiles of 128 rows come through rings of two. While a warpgroup's product with the
// values of one tile and the scores of the next run, its softmax uses the other units; the two warpgroups take turns at starting
// products, so that one's softmax falls into the other's products (both ideas: Shah et al. 2024). Blocks stay and take tiles, heaviest
// first, from a counter, and load the next tile's rows while they finish one.
//
// Key tiles are taken from the diagonal down: only the first needs a mask, and there every row sees a key. Rows past a sequence's end are
// the next sequence's, or zeros at the end: as keys they lie behind the diagonal of every row that counts.

#define TILE_BYTES 32768
#define BARRIER(i) (bars + 8 * (i))
#define Q_FULL BARRIER(0)
#define Q_EMPTY BARRIER(1)
#define K_FULL(s) BARRIER(2 + (s))
#define K_EMPTY(s) BARRIER(4 + (s))
#define V_FULL(s) BARRIER(6 + (s))
#define V_EMPTY(s) BARRIER(8 + (s))

// The next weights from raw scores, in place; `o` is to be multiplied by `shrink`.
static __device__ __forceinline__ void softmax(float (&s)[64], float (&top)[2], float (&sum)[2], float (&shrink)[2], float c) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        // Two chains, for speed.
        float a = fmaxf(s[2 * h], s[2 * h + 1]), b = fmaxf(s[4 + 2 * h], s[4 + 2 * h + 1]);
#pragma unroll
        for (int t = 2; t < 16; t += 2) {
            a = fmaxf(a, fmaxf(s[4 * t + 2 * h], s[4 * t + 2 * h + 1]));
            b = fmaxf(b, fmaxf(s[4 * t + 4 + 2 * h], s[4 * t + 4 + 2 * h + 1]));
        }
        a = fmaxf(a, b);
        a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 1));
        a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 2));
        a = fmaxf(a, top[h]);
        shrink[h] = power2((top[h] - a) * c);
        top[h] = a;
        float shift = a * c, x = 0.0f, y = 0.0f;
#pragma unroll
        for (int t = 0; t < 16; ++t) {
            s[4 * t + 2 * h] = power2(fmaf(s[4 * t + 2 * h], c, -shift));
            s[4 * t + 2 * h + 1] = power2(fmaf(s[4 * t + 2 * h + 1], c, -shift));
            x += s[4 * t + 2 * h];
            y += s[4 * t + 2 * h + 1];
        }
        sum[h] = fmaf(sum[h], shrink[h], x + y);
    }
}
static __device__ __forceinline__ void weights(u32 (&p)[32], const float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack2(s[2 * i], s[2 * i + 1]);
}
static __device__ __forceinline__ void scores(float (&s)[64], u32 q, u32 k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) product_128<0, 0>(s, q + STEP((i >> 2) * 16384 + (i & 3) * 32),
        k + STEP((i >> 2) * 16384 + (i & 3) * 32), i > 0);
}
static __device__ __forceinline__ void values(float (&o)[64], const u32 (&p)[32], u32 v, bool add) {
#pragma unroll
    for (int i = 0; i < 8; ++i) product_128<1>(o, p + 4 * i, v + STEP(i * 2048), i > 0 || add);
}

// `counters`: tickets taken beyond the first of each block, and blocks that are done; both are 0 before and after.
extern "C" __global__ void __launch_bounds__(384, 1) attention_sm90(const Tile* __restrict__ tiles, u32 total,
    const __grid_constant__ Map qk, const __grid_constant__ Map qkv, u16* __restrict__ out, u32 so, float* __restrict__ lse, u32 n,
    u32 heads, u32 group, float c, u32* counters) {
    extern __shared__ u8 shared[];
    const u32 qs = ((u32)__cvta_generic_to_shared(shared) + 1023) & ~1023u, ks = qs + TILE_BYTES, vs = ks + 2 * TILE_BYTES,
        bars = vs + 2 * TILE_BYTES;
    const u32 slot = bars + 128;
    const int crew = warpgroup();
    if (threadIdx.x == 0) {
        barrier_init(Q_FULL, 1);
        barrier_init(Q_EMPTY, 8);
        for (int s = 0; s < 2; ++s) {
            barrier_init(K_FULL(s), 1);
            barrier_init(V_FULL(s), 1);
            barrier_init(K_EMPTY(s), 8);
            barrier_init(V_EMPTY(s), 8);
        }
        barriers_ready();
    }
    __syncthreads();

    if (crew == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0) {
            u32 k_at = 0, v_at = 0, ticket = blockIdx.x;
            for (u32 turn = 0;; ++turn) {
                wait(Q_EMPTY, (turn & 1) ^ 1);
                asm volatile("st.shared.u32 [%0], %1;" :: "r"(slot), "r"(ticket) : "memory");
                if (ticket >= total) {
                    arrive(Q_FULL);
                    break;
                }
                const Tile tile = tiles[ticket / heads];
                const int head = ticket % heads, kv = head / group, k_column = (heads + kv) * 128,
                    v_column = (heads + heads / group + kv) * 128;
                arrive_expect(Q_FULL, TILE_BYTES);
                load_rows<128>(qs, qk, head * 128, tile.first + tile.start, Q_FULL);
                ticket = gridDim.x + atomicAdd(counters, 1);
                for (int row = tile.start;; row -= 128) {
                    if (row >= 0) {
                        const u32 s = k_at & 1;
                        wait(K_EMPTY(s), ((k_at >> 1) & 1) ^ 1);
                        arrive_expect(K_FULL(s), TILE_BYTES);
                        load_rows<128>(ks + s * TILE_BYTES, qk, k_column, tile.first + row, K_FULL(s));
                        ++k_at;
                    }
                    // The values are wanted one tile later than the keys.
                    if (row < (int)tile.start) {
                        const u32 s = v_at & 1;
                        wait(V_EMPTY(s), ((v_at >> 1) & 1) ^ 1);
                        arrive_expect(V_FULL(s), TILE_BYTES);
                        load_rows<128>(vs + s * TILE_BYTES, qkv, v_column, tile.first + row + 128, V_FULL(s));
                        ++v_at;
                    }
                    if (row < 0) break;
                }
            }
            // The last block to take no tile leaves the counters as it found them: nobody looks at them after.
            if (atomicAdd(counters + 1, 1) == gridDim.x - 1) {
                counters[0] = 0;
                counters[1] = 0;
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        const int w = crew - 1, lane = threadIdx.x & 31, mine = 64 * w + 16 * ((threadIdx.x >> 5) & 3) + (lane >> 2);
        const u32 q = operand(qs + w * 8192);
        u32 k_at = 0, v_at = 0;
        if (w == 1) group_arrive(1, 256);
        for (u32 turn = 0;; ++turn) {
            wait(Q_FULL, turn & 1);
            u32 ticket;
            asm volatile("ld.shared.u32 %0, [%1];" : "=r"(ticket) : "r"(slot) : "memory");
            if (ticket >= total) break;
            const Tile tile = tiles[ticket / heads];
            const int head = ticket % heads, count = tile.start / 128 + 1;
            float s[64], o[64], top[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {0.0f, 0.0f}, shrink[2];
            u32 p[32];
            wait(K_FULL(k_at & 1), (k_at >> 1) & 1);
            group_sync(1 + w, 256);
            products_begin();
            scores(s, q, operand(ks + (k_at & 1) * TILE_BYTES));
            products_commit();
            group_arrive(2 - w, 256);
            products_wait<0>();
            settled(s);
            if (lane == 0) {
                arrive(K_EMPTY(k_at & 1));
                if (count == 1) arrive(Q_EMPTY);
            }
            ++k_at;
#pragma unroll
            for (int i = 0; i < 64; ++i)
                if (8 * (i >> 2) + 2 * (lane & 3) + (i & 1) > mine + 8 * ((i >> 1) & 1)) s[i] = NEGATIVE_INFINITY;
            softmax(s, top, sum, shrink, c);
            weights(p, s);
            if (count > 1) wait(K_FULL(k_at & 1), (k_at >> 1) & 1);
            for (int j = 1; j < count; ++j) {
                const u32 k_stage = k_at & 1, v_stage = v_at & 1;
                group_sync(1 + w, 256);
                products_begin();
                scores(s, q, operand(ks + k_stage * TILE_BYTES));
                products_commit();
                wait(V_FULL(v_stage), (v_at >> 1) & 1);
                products_begin();
                values(o, p, operand(vs + v_stage * TILE_BYTES, 16384), j > 1);
                products_commit();
                group_arrive(2 - w, 256);
                products_wait<1>();
                settled(s);
                if (lane == 0) {
                    arrive(K_EMPTY(k_stage));
                    if (j == count - 1) arrive(Q_EMPTY);
                }
                softmax(s, top, sum, shrink, c);
                ++k_at;
                // Here, because the assembler moves the wait below up to the last branch, and the softmax would run after the product.
                if (j + 1 < count) wait(K_FULL(k_at & 1), (k_at >> 1) & 1);
                products_wait<0>();
                settled(o);
                if (lane == 0) arrive(V_EMPTY(v_stage));
                // The largest score seldom changes after the first tiles; times 1 changes no bit.
                if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
                    for (int i = 0; i < 64; ++i) o[i] *= shrink[(i >> 1) & 1];
                }
                weights(p, s);
                ++v_at;
            }
            wait(V_FULL(v_at & 1), (v_at >> 1) & 1);
            products_begin();
            values(o, p, operand(vs + (v_at & 1) * TILE_BYTES, 16384), count > 1);
            products_commit();
            products_wait<0>();
            settled(o);
            if (lane == 0) arrive(V_EMPTY(v_at & 1));
            ++v_at;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float all = group_sum(sum[h], 4);
                const u32 row = tile.start + mine + 8 * h;
                const bool there = row < tile.len;
                store_rows(o, h, 1.0f / all, out + (u64)(tile.first + row) * (8ull * so) + head * 128, there);
                if (there && (lane & 3) == 0) lse[(u64)head * n + tile.first + row] = fmaf(top[h], c, log2f(all));
            }
        }
    }
}
