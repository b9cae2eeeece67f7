// Linear layers of 9 to 32 rows straight from NF4 blocks, where clusters of blocks exist: as nf4_small.cu, to the same bits.
//
// With many rows, reading x anew for each tile of weight rows costs more than the weights. Here the eight shares of k belong to the eight blocks of a
// cluster: each keeps its share of x in shared memory for good, its warps multiply tiles of weight rows with it, and the shares' sums are added in order
// through distributed shared memory. The adapters' first product is a launch before (`nf4_ranks`).

#define CLUSTER 8u

static __device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
static __device__ __forceinline__ float4 remote(u32 address, u32 block) {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .u32 a; mapa.shared::cluster.u32 a, %4, %5; ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [a]; }"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address), "r"(block) : "memory");
#endif
    return v;
}

// MT strips of 16 weight rows (PAIR: eight of gate, eight of up) by NT tiles of 8 tokens in each warp. A member's `tiles` are strips.
template <int MT, int NT, bool PAIR>
static __device__ __forceinline__ void wide_linear(
    const Members& members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, const float* mid, u32 ranks, u16* __restrict__ out,
    u32 out_stride) {
    constexpr u32 STRIPS = WARPS * MT, ROWS = 16 * STRIPS, PLACES = ROWS + 4;
    constexpr int D = 4;
    extern __shared__ __align__(16) u32 shared[];
    __shared__ float maps[1024];
    u32 tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
    u32 rank = blockIdx.x % CLUSTER, cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
    u32 share = ((blocks + WARPS - 1) / WARPS + 3) & ~3u;
    u32 first = min(rank * share, blocks), last = min(first + share, blocks);
    u32 x_row = share * 128 + 16;  // bytes: rows of a pair of tokens then fall into different banks
    float* sums = (float*)(shared + LUT_WORDS);
    char* xs = (char*)(sums + 2 * 8 * NT * PLACES);
    u16* low_rank = (u16*)(xs + 8 * NT * x_row);

    let_next_start();
    u32 total = members.of[0].tiles;
    if (!PAIR) total += members.of[1].tiles + members.of[2].tiles + members.of[3].tiles;
    auto find = [&](u32& strip) {
        int which = 0;
        if (!PAIR)
            while (which < 3 && strip >= members.of[which].tiles) strip -= members.of[which++].tiles;
        return which;
    };
    auto row_of = [&](u32 strip, u32 place, u32 rows) { return min(PAIR ? strip * 8 + (place & 7) : strip * 16 + place, rows - 1); };

    u32 next_tile = cluster * STRIPS, next = first;
    bool more = first < last && next_tile < total;
    u32 source[MT][2];  // bytes from the weight's start
    u32 scale_at[MT][2];
    u32 which_of[MT];
    auto aim = [&](u32 tile) {
#pragma unroll
        for (int i = 0; i < MT; ++i) {
            u32 strip = min(tile + warp * MT + i, total - 1);
            which_of[i] = find(strip);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const Member& m = members.of[PAIR ? h : which_of[i]];
                u32 row = row_of(strip, 8 * h + g, m.rows);
                source[i][h] = row * (u32)m.row_bytes + 8 * t;
                scale_at[i][h] = row * blocks + t;
            }
        }
    };
    u32 ring[D][MT][2][2], codes[MT][2];
    float absmax[MT][2];
    auto fetch = [&](int d, int i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            uint2 v = stream8(members.of[PAIR ? h : which_of[i]].weight + (source[i][h] + next * 32) + 32 * d);
            ring[d][i][h][0] = v.x;
            ring[d][i][h][1] = v.y;
        }
    };
    auto fetch_scales = [&]() {
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const Member& m = members.of[PAIR ? h : which_of[i]];
                u32 block = (scale_at[i][h] + next) >> (m.block_shift - 6);
                codes[i][h] = PAIR ? 256 * h : 256 * which_of[i];
                if (m.codes) {
                    codes[i][h] += m.codes[block];
                    block >>= m.nested_shift;
                }
                absmax[i][h] = m.absmax[block];
            }
    };
    if (next_tile < total) aim(next_tile);
    if (more) {
#pragma unroll
        for (int d = 0; d < D; ++d)
#pragma unroll
            for (int i = 0; i < MT; ++i) fetch(d, i);
        fetch_scales();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (members.of[i].codes) maps[256 * i + tid] = members.of[i].map[tid];
    {
        const float* code = members.of[0].code;
        float fit = members.of[0].fit;
        u32 pair = pack2(code[tid >> 4] * fit, code[tid & 15] * fit);
        uint4 four = make_uint4(pair, pair, pair, pair);
#pragma unroll
        for (u32 i = 0; i < 8; ++i) ((uint4*)shared)[tid * 8 + ((i + tid) & 7)] = four;
    }
    wait_for_inputs();
    {
        u32 vectors = (last - first) * 8;
        for (u32 i = tid; i < 8 * NT * vectors; i += 32 * WARPS) {
            u32 token = i / vectors, at = i - token * vectors, size = token < n ? 16 : 0;
            const u16* from = x + (u64)min(token, n - 1) * x_stride + first * 64 + 8 * at;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"((u32)__cvta_generic_to_shared(xs + token * x_row + 16 * at)), "l"(from),
                         "r"(size) : "memory");
        }
        asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 0;" ::: "memory");
    }
    __syncthreads();
    if (mid) gather_ranks(members, n, blocks, mid, ranks, 0, low_rank);

    const char* lut = (const char*)shared;
    u32 lane4 = lane * 4, buffer = 0;
    auto look = [&](u32 w, int byte) {
        u32 at = byte == 0 ? w << 7 : w >> (8 * byte - 7);
        return *(const u32*)(lut + ((at & 0x7f80u) | lane4));
    };
    const char* column = xs + g * x_row + 32 * t;
#pragma unroll 1
    for (u32 tile = cluster * STRIPS; tile < total; tile += clusters * STRIPS) {
        float sum[MT][NT][4];
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < NT; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) sum[i][j][c] = 0.0f;
#pragma unroll 1
        for (u32 at = first; at < last; at += D) {
            float scale[MT][2];
#pragma unroll
            for (int i = 0; i < MT; ++i)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const Member& m = members.of[codes[i][h] >> 8];
                    scale[i][h] = absmax[i][h];
                    if (m.codes) scale[i][h] = __fadd_rn(__fmul_rn(maps[codes[i][h]], absmax[i][h]), m.offset);
                    scale[i][h] *= m.unfit;
                }
            next += D;
            if (next >= last) {
                next = first;
                next_tile += clusters * STRIPS;
                more = next_tile < total;
                if (more) aim(next_tile);
            }
            if (more) fetch_scales();
#pragma unroll
            for (int d = 0; d < D; ++d) {
                uint4 b[NT][2];
#pragma unroll
                for (int j = 0; j < NT; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e) b[j][e] = *(const uint4*)(column + 8 * j * x_row + (at - first + d) * 128 + 16 * e);
#pragma unroll
                for (int i = 0; i < MT; ++i) {
                    u32 w[2][2];
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        w[h][0] = ring[d][i][h][0];
                        w[h][1] = ring[d][i][h][1];
                    }
                    if (more) fetch(d, i);
                    float part[NT][4];
#pragma unroll
                    for (int j = 0; j < NT; ++j)
#pragma unroll
                        for (int c = 0; c < 4; ++c) part[j][c] = 0.0f;
#pragma unroll
                    for (int q = 0; q < 4; ++q) {
                        u32 v0 = w[0][q / 2], v1 = w[1][q / 2];
                        u32 a0 = look(v0, 2 * q & 3), a1 = look(v1, 2 * q & 3), a2 = look(v0, (2 * q & 3) + 1), a3 = look(v1, (2 * q & 3) + 1);
#pragma unroll
                        for (int j = 0; j < NT; ++j) mma(part[j], a0, a1, a2, a3, word(b[j][q / 2], 2 * q & 3), word(b[j][q / 2], (2 * q & 3) + 1));
                    }
                    float s0 = __shfl_sync(0xffffffffu, scale[i][0], d, 4), s1 = __shfl_sync(0xffffffffu, scale[i][1], d, 4);
#pragma unroll
                    for (int j = 0; j < NT; ++j)
#pragma unroll
                        for (int c = 0; c < 4; ++c) sum[i][j][c] = fmaf(c < 2 ? s0 : s1, part[j][c], sum[i][j][c]);
                }
            }
        }

        // The adapter's second product, as more of k: 16 ranks for each share in turn.
        u32 thread = tid;
        asm volatile("" : "+r"(thread));
        u32 warp = thread >> 5, g = thread >> 2 & 7, t = thread & 3;
        if (mid) {
#pragma unroll
            for (int i = 0; i < MT; ++i) {
                u32 strip = min(tile + warp * MT + i, total - 1);
                int which = find(strip);
#pragma unroll 1
                for (int h = 0; h < (PAIR ? 2 : 1); ++h) {
                    const Member& m = members.of[PAIR ? h : which];
                    if (!m.lora) continue;
#pragma unroll 1
                    for (u32 k = 16 * rank; k < m.rank; k += 16 * WARPS) {
                        u32 at = k + 4 * t;
                        u32 a[4];
#pragma unroll
                        for (int r = 0; r < 2; ++r) {
                            const float* b = m.lora + (u64)row_of(strip, 8 * r + g, m.rows) * m.rank;
                            float v[4];
#pragma unroll
                            for (int e = 0; e < 4; ++e) v[e] = (!PAIR || r == h) && at + e < m.rank ? input(b + at + e) : 0.0f;
                            a[r] = pack2(v[0], v[1]);
                            a[2 + r] = pack2(v[2], v[3]);
                        }
#pragma unroll
                        for (int j = 0; j < NT; ++j) {
                            const u16* from = low_rank + min(8 * j + g, n - 1) * ranks + m.mid + at;
                            u32 v[4];
#pragma unroll
                            for (int e = 0; e < 4; ++e) v[e] = at + e < m.rank ? from[e] : 0;
                            mma(sum[i][j], a[0], a[1], a[2], a[3], v[0] | v[1] << 16, v[2] | v[3] << 16);
                        }
                    }
                }
            }
        }

        // All shares' sums to where the cluster's blocks read them, in two buffers by turns: one barrier lies between any two uses of a buffer.
        float* mine = sums + buffer * (8 * NT * PLACES);
        buffer ^= 1;
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < NT; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) mine[(8 * j + 2 * t + (c & 1)) * PLACES + (warp * MT + i) * 16 + (c >> 1) * 8 + g] = sum[i][j][c];
        cluster_barrier();
        // A block adds those of the strips of one warp, four rows at a time.
        constexpr u32 QUADS = PAIR ? 2 : 4;
        u32 base = (u32)__cvta_generic_to_shared(mine);
        for (u32 e = thread; e < n * MT * QUADS; e += 32 * WARPS) {
            u32 token = e / (MT * QUADS), rest = e % (MT * QUADS), i = rest / QUADS, quad = rest % QUADS;
            u32 strip = tile + rank * MT + i;
            if (strip >= total) continue;
            u32 from = base + 4 * (token * PLACES + (rank * MT + i) * 16 + 4 * quad);
            float y[PAIR ? 2 : 1][4] = {};
#pragma unroll
            for (int p = 0; p < (PAIR ? 2 : 1); ++p) {
                float4 v[CLUSTER];
#pragma unroll
                for (u32 w = 0; w < CLUSTER; ++w) v[w] = remote(from + 32 * p, w);
#pragma unroll
                for (u32 w = 0; w < CLUSTER; ++w) {
                    y[p][0] += v[w].x;
                    y[p][1] += v[w].y;
                    y[p][2] += v[w].z;
                    y[p][3] += v[w].w;
                }
            }
            int which = find(strip);
            const Member& m = members.of[which];
            u32 row = strip * (PAIR ? 8 : 16) + 4 * quad;
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                if (row + r >= m.rows) break;
                float v = y[0][r];
                if (m.bias) v += m.bias[row + r];
                if constexpr (PAIR) {
                    float up = y[1][r];
                    if (members.of[1].bias) up += members.of[1].bias[row + r];
                    v = v / (1.0f + __expf(-v)) * up;
                }
                out[(u64)token * out_stride + (PAIR ? 0 : m.column) + row + r] = (u16)pack2(v, 0.0f);
            }
        }
    }
    // Others may still be reading here.
    cluster_barrier();
}

#if __CUDA_ARCH__ >= 900
#define IN_CLUSTERS __cluster_dims__(8, 1, 1)
#else
#define IN_CLUSTERS
#endif
#define ARGS const __grid_constant__ Members members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks, \
    u16* out, u32 out_stride
#define BODY(MT, NT, PAIR) wide_linear<MT, NT, PAIR>(members, x, x_stride, n, blocks, mid, ranks, out, out_stride)
extern "C" __global__ void IN_CLUSTERS __launch_bounds__(256, 1) nf4_wide_2_2(ARGS) { BODY(2, 2, false); }
extern "C" __global__ void IN_CLUSTERS __launch_bounds__(256, 1) nf4_wide_3_2(ARGS) { BODY(3, 2, false); }
extern "C" __global__ void IN_CLUSTERS __launch_bounds__(256, 1) nf4_wide_2_4(ARGS) { BODY(2, 4, false); }
extern "C" __global__ void IN_CLUSTERS __launch_bounds__(256, 1) nf4_wide_3_4(ARGS) { BODY(3, 4, false); }
extern "C" __global__ void IN_CLUSTERS __launch_bounds__(256, 1) nf4_wide_swiglu_3_2(ARGS) { BODY(3, 2, true); }
extern "C" __global__ void IN_CLUSTERS __launch_bounds__(256, 1) nf4_wide_swiglu_3_4(ARGS) { BODY(3, 4, true); }

// The adapters' first product for the kernels above: a block per unit.
extern "C" __global__ void __launch_bounds__(256) nf4_ranks(
    const __grid_constant__ Members members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks) {
    __shared__ float sums[WARPS * 8 * 20];
    let_next_start();
    rank_unit(members, x, x_stride, n, blocks, mid, ranks, blockIdx.x, sums, true, false);
    wait_for_inputs();
    rank_unit(members, x, x_stride, n, blocks, mid, ranks, blockIdx.x, sums, false, false);
}
