// Causal grouped-query attention inside sequences, forward, for every card: online softmax over key tiles (Dao 2023). A block takes 128
// query rows of one head, 16 to a warp; key and value tiles of 64 rows come double-buffered. Log-sum-exps are kept in units of log 2, as
// [heads][n]: the backward's `exp2(s c - lse)` then needs no other constant than c = log2(e) / sqrt(D).

template <int D>
static __device__ __forceinline__ void attention_forward(const Tile* __restrict__ tiles, const u16* __restrict__ qk, u32 sqk,
    const u16* __restrict__ qkv, u32 sqkv, u16* __restrict__ out, u32 so, float* __restrict__ lse, u32 n, u32 heads, u32 group, float c) {
    constexpr int ROWS = 128, KEYS = 64, THREADS = 256, TILE = KEYS * D * 2;
    extern __shared__ __align__(128) u8 shared[];
    const Tile tile = tiles[blockIdx.x / heads];
    const int head = blockIdx.x % heads, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int len = tile.len, start = tile.start, seen = min(start + ROWS, len), count = (seen + KEYS - 1) / KEYS;
    const u64 stride = 8ull * sqk, wide = 8ull * sqkv;
    const u16* q = qk + tile.first * stride + head * D;
    const u16* k = qk + tile.first * stride + (heads + head / group) * D;
    const u16* v = qkv + tile.first * wide + (heads + heads / group + head / group) * D;
    const u32 qs = shared_address(shared), ks = qs + ROWS * D * 2, vs = ks + 2 * TILE;

    load_tile<D, ROWS, THREADS>(qs, q, stride, start, len);
    load_tile<D, KEYS, THREADS>(ks, k, stride, 0, len);
    load_tile<D, KEYS, THREADS>(vs, v, wide, 0, len);
    copy_commit();

    float o[D / 8][4] = {}, sum[2] = {0.0f, 0.0f}, top[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
    const int row = start + 16 * warp + (lane >> 2);
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
        // The first 64 rows see nothing of the last tile.
        if (j * KEYS <= start + 16 * warp + 15) {
            float s[8][4] = {};
            product_rows<D>(s, qs, 16 * warp, ks + turn);
            if (j * KEYS + KEYS > start + 16 * warp || j * KEYS + KEYS > len) {
#pragma unroll
                for (int t = 0; t < 8; ++t)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        int key = j * KEYS + 8 * t + 2 * (lane & 3) + (e & 1);
                        if (key > row + 8 * (e >> 1) || key >= len) s[t][e] = NEGATIVE_INFINITY;
                    }
            }
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float most = top[h];
#pragma unroll
                for (int t = 0; t < 8; ++t) most = fmaxf(most, fmaxf(s[t][2 * h], s[t][2 * h + 1]));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                // The first tile has a key that every row sees, so `most` is finite.
                float shrink = power2((top[h] - most) * c), shift = most * c;
                top[h] = most;
                sum[h] *= shrink;
#pragma unroll
                for (int t = 0; t < D / 8; ++t) o[t][2 * h] *= shrink, o[t][2 * h + 1] *= shrink;
#pragma unroll
                for (int t = 0; t < 8; ++t) {
                    s[t][2 * h] = power2(fmaf(s[t][2 * h], c, -shift));
                    s[t][2 * h + 1] = power2(fmaf(s[t][2 * h + 1], c, -shift));
                    sum[h] += s[t][2 * h] + s[t][2 * h + 1];
                }
            }
            product_columns<D>(o, s, vs + turn);
        }
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float total = group_sum(sum[h], 4), inverse = 1.0f / total;
        int r = row + 8 * h;
        if (r < len) {
            u32* to = (u32*)(out + (u64)(tile.first + r) * (8ull * so) + head * D);
#pragma unroll
            for (int t = 0; t < D / 8; ++t) to[4 * t + (lane & 3)] = pack2(o[t][2 * h] * inverse, o[t][2 * h + 1] * inverse);
            if ((lane & 3) == 0) lse[(u64)head * n + tile.first + r] = fmaf(top[h], c, log2f(total));
        }
    }
}

#define FORWARD_PARAMETERS \
    const Tile *__restrict__ tiles, const u16 *__restrict__ qk, u32 sqk, const u16 *__restrict__ qkv, u32 sqkv, u16 *__restrict__ out, \
        u32 so, float *__restrict__ lse, u32 n, u32 heads, u32 group, float c
#define FORWARD(D) attention_forward<D>(tiles, qk, sqk, qkv, sqkv, out, so, lse, n, heads, group, c)

extern "C" __global__ void __launch_bounds__(256) attention_32(FORWARD_PARAMETERS) { FORWARD(32); }
extern "C" __global__ void __launch_bounds__(256) attention_64(FORWARD_PARAMETERS) { FORWARD(64); }
extern "C" __global__ void __launch_bounds__(256) attention_128(FORWARD_PARAMETERS) { FORWARD(128); }
