// Backward of causal grouped-query attention, for every card, in two passes over the probabilities, which are made anew from the
// log-sum-exps (Dao 2023): by query tiles for dq, by key tiles for dk and dv. So every gradient is summed by one warp in an order that
// only lengths decide.

// delta[head][row] = sum of dout * out over a head: 8 values to a lane, D / 8 lanes to a head. `turns` are counters that a later kernel
// begins with at 0.
extern "C" __global__ void __launch_bounds__(256) attention_delta(const u16* __restrict__ dout, u32 sd, const u16* __restrict__ out,
    u32 so, u32 n, u32 heads, u32 lanes, float* __restrict__ delta, u32* __restrict__ turns, u32 turn_count) {
    // Four pairs of loads at a time: fewer do not fill the way to memory.
    constexpr int EACH = 4;
    let_next_start();
    const u32 shift = 31 - __clz(lanes), lane = threadIdx.x & (lanes - 1);
    const u64 first = (u64)blockIdx.x * (256 * EACH) + threadIdx.x;
    uint4 a[EACH], b[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const u64 at = first + 256 * i;
        const u32 item = (u32)(at >> shift), row = item / heads, head = item - row * heads;
        if (at < turn_count) turns[at] = 0;
        const bool there = row < n;
        a[i] = there ? ((const uint4*)dout)[(u64)row * sd + head * lanes + lane] : make_uint4(0, 0, 0, 0);
        b[i] = there ? ((const uint4*)out)[(u64)row * so + head * lanes + lane] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const u32 item = (u32)((first + 256 * i) >> shift), row = item / heads, head = item - row * heads;
        float x[8], y[8], sum = 0.0f;
        unpack8(a[i], x);
        unpack8(b[i], y);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum = fmaf(x[e], y[e], sum);
        sum = group_sum(sum, lanes);
        if (row < n && lane == 0) delta[(u64)head * n + row] = sum;
    }
}

// From raw scores and dp to probabilities and their gradients (without the scale).
static __device__ __forceinline__ void gradient(float& s, float& dp, float c, float lse, float delta, bool hidden) {
    float p = hidden ? 0.0f : power2(fmaf(s, c, -lse));
    s = p;
    dp = p * (dp - delta);
}

// dq of 64 query rows of one head, 16 to a warp.
template <int D>
static __device__ __forceinline__ void attention_dq(const Tile* __restrict__ tiles, const u16* __restrict__ dout, u32 sdo,
    const u16* __restrict__ qk, u32 sqk, const u16* __restrict__ qkv, u32 sqkv, const float* __restrict__ lse,
    const float* __restrict__ delta, u16* __restrict__ dqk, u32 sdqk, u32 n, u32 heads, u32 group, float c, float scale) {
    constexpr int ROWS = 64, KEYS = 64, THREADS = 128, TILE = KEYS * D * 2;
    extern __shared__ __align__(128) u8 shared[];
    const Tile tile = tiles[blockIdx.x / heads];
    const int head = blockIdx.x % heads, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int len = tile.len, start = tile.start, seen = min(start + ROWS, len), count = (seen + KEYS - 1) / KEYS;
    const u64 stride = 8ull * sqk, wide = 8ull * sqkv;
    const u16* k = qk + tile.first * stride + (heads + head / group) * D;
    const u16* v = qkv + tile.first * wide + (heads + heads / group + head / group) * D;
    const u32 qs = shared_address(shared), ds = qs + TILE, ks = ds + TILE, vs = ks + 2 * TILE;

    load_tile<D, ROWS, THREADS>(qs, qk + tile.first * stride + head * D, stride, start, len);
    load_tile<D, ROWS, THREADS>(ds, dout + tile.first * (8ull * sdo) + head * D, 8ull * sdo, start, len);
    load_tile<D, KEYS, THREADS>(ks, k, stride, 0, len);
    load_tile<D, KEYS, THREADS>(vs, v, wide, 0, len);
    copy_commit();

    const int row = start + 16 * warp + (lane >> 2);
    float row_lse[2], row_delta[2], dq[D / 8][4] = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        bool there = row + 8 * h < len;
        u64 at = (u64)head * n + tile.first + row + 8 * h;
        // e^-inf = 0: a row past the end gives nothing.
        row_lse[h] = there ? lse[at] : POSITIVE_INFINITY;
        row_delta[h] = there ? delta[at] : 0.0f;
    }
    for (int j = 0; j < count; ++j) {
        const u32 turn = (j & 1) * TILE;
        if (j + 1 < count) {
            load_tile<D, KEYS, THREADS>(ks + (TILE - turn), k, stride, (j + 1) * KEYS, len);
            load_tile<D, KEYS, THREADS>(vs + (TILE - turn), v, wide, (j + 1) * KEYS, len);
            copy_commit();
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float s[8][4] = {}, dp[8][4] = {};
        product_rows<D>(s, qs, 16 * warp, ks + turn);
        product_rows<D>(dp, ds, 16 * warp, vs + turn);
        // Only the last tile has keys that a row does not see; it is also the only one that can reach past the end.
        const bool edge = j + 1 == count;
#pragma unroll
        for (int t = 0; t < 8; ++t)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                int key = j * KEYS + 8 * t + 2 * (lane & 3) + (e & 1);
                gradient(s[t][e], dp[t][e], c, row_lse[e >> 1], row_delta[e >> 1], edge && key > row + 8 * (e >> 1));
            }
        product_columns<D>(dq, dp, ks + turn);
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (row + 8 * h >= len) continue;
        u32* to = (u32*)(dqk + (u64)(tile.first + row + 8 * h) * (8ull * sdqk) + head * D);
#pragma unroll
        for (int t = 0; t < D / 8; ++t) to[4 * t + (lane & 3)] = pack2(dq[t][2 * h] * scale, dq[t][2 * h + 1] * scale);
    }
}

// dk and dv of 64 keys of one key/value head: over the query heads of the group, and over the query tiles that see the keys.
template <int D>
static __device__ __forceinline__ void attention_dkv(const Tile* __restrict__ tiles, const u16* __restrict__ dout, u32 sdo,
    const u16* __restrict__ qk, u32 sqk, const u16* __restrict__ qkv, u32 sqkv, const float* __restrict__ lse,
    const float* __restrict__ delta, u16* __restrict__ dqk, u32 sdqk, u16* __restrict__ dqkv, u32 sdqkv,
    u32 n, u32 heads, u32 group, float c, float scale) {
    constexpr int ROWS = 64, KEYS = 64, THREADS = 128, TILE = KEYS * D * 2;
    extern __shared__ __align__(128) u8 shared[];
    const u32 kv_heads = heads / group;
    const Tile tile = tiles[blockIdx.x / kv_heads];
    const int kv = blockIdx.x % kv_heads, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int len = tile.len, start = tile.start, per_head = (len - start + ROWS - 1) / ROWS, count = per_head * (int)group;
    const u64 stride = 8ull * sqk, wide = 8ull * sqkv, ostride = 8ull * sdo;
        const u32 ks = shared_address(shared), vs = ks + TILE, qs = vs + TILE, ds = qs + 2 * TILE;
    // Behind the tiles: log-sum-exps and deltas of two query tiles.
    float* stats = (float*)(shared + 6 * TILE);

    auto load = [&](int t) {
        int head = kv * group + t / per_head, from = start + (t % per_head) * ROWS, turn = t & 1;
        load_tile<D, ROWS, THREADS>(qs + turn * TILE, qk + tile.first * stride + head * D, stride, from, len);
        load_tile<D, ROWS, THREADS>(ds + turn * TILE, dout + tile.first * ostride + head * D, ostride, from, len);
        int r = threadIdx.x & 63;
        bool there = from + r < len;
        u64 at = (u64)head * n + tile.first + from + r;
        float value = threadIdx.x < 64 ? (there ? lse[at] : POSITIVE_INFINITY) : (there ? delta[at] : 0.0f);
        stats[turn * 128 + threadIdx.x] = value;
        copy_commit();
    };
    load_tile<D, KEYS, THREADS>(ks, qk + tile.first * stride + (heads + kv) * D, stride, start, len);
    load_tile<D, KEYS, THREADS>(vs, qkv + tile.first * wide + (heads + kv_heads + kv) * D, wide, start, len);
    load(0);

    const int key = start + 16 * warp + (lane >> 2);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    for (int t = 0; t < count; ++t) {
        const int turn = t & 1, from = start + (t % per_head) * ROWS;
        if (t + 1 < count) {
            load(t + 1);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float s[8][4] = {}, dp[8][4] = {};
        product_rows<D>(s, ks, 16 * warp, qs + turn * TILE);
        product_rows<D>(dp, vs, 16 * warp, ds + turn * TILE);
        const bool edge = from == start;
        const float2* tile_lse = (const float2*)(stats + turn * 128);
        const float2* tile_delta = tile_lse + 32;
#pragma unroll
        for (int b = 0; b < 8; ++b) {
            float2 l = tile_lse[4 * b + (lane & 3)], g = tile_delta[4 * b + (lane & 3)];
            int query = from + 8 * b + 2 * (lane & 3);
            gradient(s[b][0], dp[b][0], c, l.x, g.x, edge && key > query);
            gradient(s[b][1], dp[b][1], c, l.y, g.y, edge && key > query + 1);
            gradient(s[b][2], dp[b][2], c, l.x, g.x, edge && key + 8 > query);
            gradient(s[b][3], dp[b][3], c, l.y, g.y, edge && key + 8 > query + 1);
        }
        product_columns<D>(dv, s, ds + turn * TILE);
        product_columns<D>(dk, dp, qs + turn * TILE);
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (key + 8 * h >= len) continue;
        u64 r = tile.first + key + 8 * h;
        u32* to_k = (u32*)(dqk + r * (8ull * sdqk) + (heads + kv) * D);
        u32* to_v = (u32*)(dqkv + r * (8ull * sdqkv) + (heads + kv_heads + kv) * D);
#pragma unroll
        for (int t = 0; t < D / 8; ++t) {
            to_k[4 * t + (lane & 3)] = pack2(dk[t][2 * h] * scale, dk[t][2 * h + 1] * scale);
            to_v[4 * t + (lane & 3)] = pack2(dv[t][2 * h], dv[t][2 * h + 1]);
        }
    }
}

#define DQ_PARAMETERS \
    const Tile *__restrict__ tiles, const u16 *__restrict__ dout, u32 sdo, const u16 *__restrict__ qk, u32 sqk, \
        const u16 *__restrict__ qkv, u32 sqkv, const float *__restrict__ lse, const float *__restrict__ delta, \
        u16 *__restrict__ dqk, u32 sdqk, u32 n, u32 heads, u32 group, float c, float scale
#define DQ(D) attention_dq<D>(tiles, dout, sdo, qk, sqk, qkv, sqkv, lse, delta, dqk, sdqk, n, heads, group, c, scale)
#define DKV_PARAMETERS \
    const Tile *__restrict__ tiles, const u16 *__restrict__ dout, u32 sdo, const u16 *__restrict__ qk, u32 sqk, \
        const u16 *__restrict__ qkv, u32 sqkv, const float *__restrict__ lse, const float *__restrict__ delta, \
        u16 *__restrict__ dqk, u32 sdqk, u16 *__restrict__ dqkv, u32 sdqkv, u32 n, u32 heads, u32 group, float c, float scale
#define DKV(D) attention_dkv<D>(tiles, dout, sdo, qk, sqk, qkv, sqkv, lse, delta, dqk, sdqk, dqkv, sdqkv, n, heads, group, c, scale)

extern "C" __global__ void __launch_bounds__(128) attention_dq_32(DQ_PARAMETERS) { DQ(32); }
extern "C" __global__ void __launch_bounds__(128) attention_dq_64(DQ_PARAMETERS) { DQ(64); }
extern "C" __global__ void __launch_bounds__(128) attention_dq_128(DQ_PARAMETERS) { DQ(128); }
extern "C" __global__ void __launch_bounds__(128) attention_dkv_32(DKV_PARAMETERS) { DKV(32); }
extern "C" __global__ void __launch_bounds__(128) attention_dkv_64(DKV_PARAMETERS) { DKV(64); }
extern "C" __global__ void __launch_bounds__(128) attention_dkv_128(DKV_PARAMETERS) { DKV(128); }
