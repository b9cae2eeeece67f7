// What ends a tile of the linear layers of few rows: the adapter's second product, the warps' sums, and what is stored.

// Blocks of k of a warp: whole groups of four, whatever a kernel takes at once, since the sum's order must not depend on the shape of the tiles.
static __device__ __forceinline__ u32 warp_share(u32 blocks) { return ((blocks + WARPS - 1) / WARPS + 3) & ~3u; }

// The member that a tile belongs to; `tile` becomes that member's own.
template <bool PAIR>
static __device__ __forceinline__ int find_member(const Members& members, u32& tile) {
    int which = 0;
    if (!PAIR)
        while (which < 3 && tile >= members.of[which].tiles) tile -= members.of[which++].tiles;
    return which;
}
// The weight row of a place in the tile; rows past the end repeat the last and are not stored.
template <u32 ROWS, bool PAIR>
static __device__ __forceinline__ u32 row_of(u32 tile, u32 place, u32 rows) {
    return min(PAIR ? tile * (ROWS / 2) + (place >> 4) * 8 + (place & 7) : tile * ROWS + place, rows - 1);
}
static __device__ __forceinline__ u32 fresh2(const u16* p) {
    u16 v;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}
static __device__ __forceinline__ uint4 shared16(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}
static __device__ __forceinline__ uint2 shared8(u32 at) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
}

// Adds the adapter's second product to a warp's sums, as more of k: 16 ranks for each warp in turn. `low_rank` is x A^T, scaled, [n][ranks]; with one
// tile of rows `early` has B's first ranks.
template <int MT, int NT, bool PAIR, int EARLY>
static __device__ __forceinline__ void add_low_rank(
    const Members& members, int which, u32 tile, u32 n, u32 ranks, const u16* low_rank, const float (&early)[EARLY][4], float (&sum)[MT][NT][4]) {
    constexpr u32 ROWS = 16 * MT;
    // Registers are what these kernels are short of: what follows must not be computed ahead of the loop before and kept.
    u32 thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    const u32 warp = thread >> 5, g = thread >> 2 & 7, t = thread & 3;
#pragma unroll 1
    for (int h = 0; h < (PAIR ? 2 : 1); ++h) {
        const Member& m = members.of[PAIR ? h : which];
        if (!m.lora) continue;
        // Up's ranks begin at another warp than gate's.
        u32 chunk = 16 * ((warp + 4 * h) % WARPS);
#pragma unroll 1
        for (u32 k = chunk; k < m.rank; k += 16 * WARPS) {
            u32 at = k + 4 * t;
            u32 a[MT][4];
#pragma unroll
            for (int i = 0; i < MT; ++i)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const float* b = m.lora + (u64)row_of<ROWS, PAIR>(tile, 16 * i + 8 * r + g, m.rows) * m.rank;
                    float v[4];
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        bool there = (!PAIR || r == h) && at + e < m.rank;
                        if (EARLY == 2 && k == chunk) v[e] = there ? early[EARLY == 2 ? r : 0][e] : 0.0f;
                        else v[e] = there ? input(b + at + e) : 0.0f;
                    }
                    a[i][r] = pack2(v[0], v[1]);
                    a[i][2 + r] = pack2(v[2], v[3]);
                }
#pragma unroll
            for (int j = 0; j < NT; ++j) {
                const u16* from = low_rank + min(8 * j + g, n - 1) * ranks + m.mid + at;
                u32 v[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) v[e] = at + e < m.rank ? from[e] : 0;
                u32 b0 = v[0] | v[1] << 16, b1 = v[2] | v[3] << 16;
#pragma unroll
                for (int i = 0; i < MT; ++i) mma(sum[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b0, b1);
            }
        }
    }
}

// Adds the warps' sums in order, for eight tokens at a time, in two buffers by turns (one barrier lies between any two uses of a buffer), and stores
// what they make: y + bias, or silu(gate) * up where PAIR.
template <int MT, int NT, bool NF4, bool PAIR, typename Out>
static __device__ __forceinline__ void store_tile(
    const Members& members, int which, u32 tile, u32 n, float* partial, u32& buffer, const float (&sum)[MT][NT][4], Out* __restrict__ out,
    u32 out_stride) {
    constexpr u32 ROWS = 16 * MT, PLACES = ROWS + 4;
    u32 thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    const u32 warp = thread >> 5, g = thread >> 2 & 7, t = thread & 3;
#pragma unroll
    for (int j = 0; j < NT; ++j) {
        if (8 * j >= n) break;
        float* sums = partial + buffer * (WARPS * 8 * PLACES);
        buffer ^= 1;
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int c = 0; c < 4; ++c) sums[(warp * 8 + 2 * t + (c & 1)) * PLACES + 16 * i + (c >> 1) * 8 + g] = sum[i][j][c];
        __syncthreads();
        u32 tokens = min(n - 8 * j, 8u);
        auto added = [&](u32 column, u32 place) {
            float v = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) v += sums[(w * 8 + column) * PLACES + place];
            return v;
        };
        if constexpr (PAIR) {
            for (u32 e = thread; e < tokens * ROWS / 2; e += 32 * WARPS) {
                u32 column = e / (ROWS / 2), i = e % (ROWS / 2), place = (i >> 3) * 16 + (i & 7), row = tile * (ROWS / 2) + i;
                if (row < members.of[0].rows) {
                    float gate = added(column, place), up = added(column, place + 8);
                    if (members.of[0].bias) gate += members.of[0].bias[row];
                    if (members.of[1].bias) up += members.of[1].bias[row];
                    out[(u64)(8 * j + column) * out_stride + row] = (u16)pack2(gate / (1.0f + __expf(-gate)) * up, 0.0f);
                }
            }
        } else {
            const Member& m = members.of[which];
            for (u32 e = thread; e < tokens * ROWS; e += 32 * WARPS) {
                u32 column = e / ROWS, place = e % ROWS, row = tile * ROWS + place;
                if (row < m.rows) {
                    float y = added(column, place);
                    if (m.bias) y += m.bias[row];
                    u64 to = (u64)(8 * j + column) * out_stride + m.column + row;
                    if constexpr (sizeof(Out) == 2) {
                        u32 rounded = pack2(y, 0.0f);
                        // Rounded before and after, as where sums have a kernel of their own.
                        if (NF4 && members.of[0].add) rounded = pack2(low(fresh2(out + to)) + low(rounded), 0.0f);
                        out[to] = (u16)rounded;
                    } else {
                        out[to] = y;
                    }
                }
            }
        }
    }
}
