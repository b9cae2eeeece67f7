// Linear layers of few rows (generation): y[n, out] = x[n, in] W^T for n = 1..64, straight from NF4 blocks or from bf16 weights, bound by the
// one read of the weights.
//
// Tensor cores multiply (mma.sync m16n8k16): 16 weight rows by 8 tokens, so that even one token costs a single instruction for eight
// weights of a lane. A lane turns a byte of two NF4 values into two bf16 code points by one look-up in a table of 256 pairs, of which each
// lane has its own copy in its own bank: no look-up ever conflicts. The code points are multiplied as they are; the scale of a block of 64
// multiplies the block's sum in f32 (and undoes a factor that brings the code points near to bf16 values). The order of k within a block is free as long as x follows it: a lane takes the 8 bytes (16 values)
// that it loads at once.
//
// The eight warps of a block split k; their sums are added in order. The split depends on k alone, so a token's result depends neither on
// the other tokens nor on the shape of the tiles.

// RMSNorm of `n` rows of up to 1024 vectors into shared memory, once the input is there. The squares are added as norm.cu's block of threads adds
// them, whose size depends on the width: threads here stand for up to two of those.
static __device__ __forceinline__ void normalise_rows(
    const u16* x, u32 x_stride, u32 n, u32 vectors, const float* __restrict__ norm, float eps, u16* normed) {
    __shared__ float warps[16];
    u32 threads = min(max(((vectors + 1) / 2 + 31) & ~31u, 32u), 1024u), tid = threadIdx.x;
    wait_for_inputs();
#pragma unroll 1
    for (u32 row = 0; row < n; ++row) {
        uint4 v[2][2];
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
            u32 thread = tid + 256 * j;
            if (thread >= threads) break;
            float squares = 0.0f;
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
                if (thread + i * threads < vectors) v[j][i] = fresh16(x + (u64)row * x_stride + 8 * (thread + i * threads));
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
                if (thread + i * threads < vectors) {
                    float y[8];
                    unpack8(v[j][i], y);
#pragma unroll
                    for (int e = 0; e < 8; ++e) squares = fmaf(y[e], y[e], squares);
                }
            squares = group_sum(squares, 32);
            if ((tid & 31) == 0) warps[thread >> 5] = squares;
        }
        __syncthreads();
        float sum = 0.0f;
        for (u32 w = 0; w < threads >> 5; ++w) sum += warps[w];
        float r = 1.0f / sqrtf(sum / (float)(vectors * 8) + eps);
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
            u32 thread = tid + 256 * j;
            if (thread >= threads) break;
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
                if (thread + i * threads < vectors) {
                    u32 at = thread + i * threads;
                    float y[8], w[8];
                    unpack8(v[j][i], y);
                    load8(norm + 8 * at, w);
#pragma unroll
                    for (int e = 0; e < 8; ++e) y[e] = y[e] * r * w[e];
                    ((uint4*)normed)[row * vectors + at] = pack8(y);
                }
        }
        __syncthreads();
    }
}

// MT tiles of 16 weight rows by NT tiles of 8 tokens in each warp, in groups of D blocks of 64 values: while a group is multiplied, the next one is
// on its way, across the ends of tiles, which a block takes one after the other. PAIR: the first eight rows of each tile belong to member 0
// (gate), the others to member 1 (up), and the output is silu(gate) * up. `Out` is u16 (bf16) or float. `blocks` is a multiple of four, and all
// members share their code points.
// NORM: x is not yet normalised, and each block does that for itself (RMSNorm with weights `norm`, to the bits of norm.cu), in shared memory.
template <int MT, int NT, int D, bool NF4, bool PAIR, bool STAGED, bool NORM, typename Out>
static __device__ __forceinline__ void small_linear(
    const Members& members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks, Out* __restrict__ out,
    u32 out_stride, const float* __restrict__ norm = nullptr, float eps = 0.0f) {
    constexpr u32 ROWS = 16 * MT;
    constexpr int XB = NT >= 8 ? 1 : 2;  // blocks of x in registers
    constexpr int WORDS = NF4 ? 2 : 8;
    constexpr u32 PLACES = ROWS + 4;     // keeps the writes of partial sums free of conflicts
    // Staged: a pair's copies are the first half of 256 bytes, so that one instruction makes an address of a byte and a lane, and weights on their
    // way are in the other halves.
    constexpr u32 TABLE = !NF4 ? 0 : STAGED ? 2 * LUT_WORDS : LUT_WORDS;
    extern __shared__ __align__(256) u32 shared[];
    __shared__ float maps[NF4 ? 1024 : 1];
    float* partial = (float*)(shared + TABLE);
    u16* normed = (u16*)(partial + 2 * WARPS * 8 * PLACES);
    u16* low_rank = normed + (NORM ? n * blocks * 64 : 0);
    // No workers: another launch computed the units.
    const u32 workers = min(members.of[0].workers, gridDim.x), units = NF4 && mid && workers > 0 ? rank_units(n, blocks, ranks) : 0;
    u32 tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;

    let_next_start();
    u32 total = members.of[0].tiles;
    if (!PAIR) total += members.of[1].tiles + members.of[2].tiles + members.of[3].tiles;
    u32 share = warp_share(blocks);
    u32 first = min(warp * share, blocks), last = min(first + share, blocks);

    // What comes next: a tile, a block of it, the addresses of its rows, and its first loads.
    u32 next_tile = blockIdx.x, next = first;
    bool more = first < last && next_tile < total;
    int next_which = 0;
    u32 source[STAGED ? 4 : 2 * MT];  // bytes from the weight's start
    u32 scale_at[MT][2];
    auto aim = [&](u32 tile) {
        next_which = find_member<PAIR>(members, tile);
        u32 thread = tid;
        asm volatile("" : "+r"(thread));
        u32 g = thread >> 2 & 7, t = thread & 3;
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const Member& m = members.of[PAIR ? h : next_which];
                u32 row = row_of<ROWS, PAIR>(tile, 16 * i + 8 * h + g, m.rows);
                if (!STAGED) source[2 * i + h] = row * (u32)m.row_bytes + (NF4 ? 8 : 16) * t;
                scale_at[i][h] = row * blocks + (t & (D - 1));
            }
        if constexpr (STAGED) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const Member& m = members.of[PAIR ? i / 2 : next_which];
                source[i] = row_of<ROWS, PAIR>(tile, 4 * i + (thread >> 3 & 3), m.rows) * (u32)m.row_bytes + 16 * (thread & 7);
            }
        }
        if (NF4 && mid && tid < ROWS) {
            const Member& m = members.of[PAIR ? (int)(tid >> 3 & 1) : next_which];
            const float* b = m.lora + (u64)row_of<ROWS, PAIR>(tile, tid, m.rows) * m.rank;
            if (m.lora)
                for (u32 k = 0; k < m.rank; k += 32) asm volatile("prefetch.global.L2 [%0];" :: "l"(b + k));
        }
    };
    // Staged: a warp's own two places in shared memory, each a group of 16 rows of 128 bytes. Blocks change places with each other by the row, so that
    // reads of eight bytes by four rows of four lanes fall into different banks. Whole lines are asked for that way, and no registers wait for them.
    u32 stage = STAGED ? (u32)__cvta_generic_to_shared(shared) + 128 + warp * 8192 : 0;
    const u32 stage_base = stage;
    auto fetch_stage = [&]() {
#pragma unroll
        for (int i = 0; i < (STAGED ? 4 : 0); ++i) {
            const u8* from = members.of[PAIR ? i / 2 : next_which].weight + (source[i] + next * 32);
            asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" :: "r"(stage + (4 * i + (lane >> 3)) * 256 + 16 * ((lane & 7) ^ 2 * (lane >> 3))), "l"(from) : "memory");
        }
    };
    u32 ring[STAGED ? 1 : D][MT][2][WORDS];
    auto fetch = [&](int d, int i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const u8* from = members.of[PAIR ? h : next_which].weight + (source[STAGED ? 0 : 2 * i + h] + next * (NF4 ? 32 : 128));
            if constexpr (NF4) {
                uint2 v = stream8(from + 32 * d);
                ring[d][i][h][0] = v.x;
                ring[d][i][h][1] = v.y;
            } else {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    uint4 v = stream16(from + 128 * d + 64 * j);
                    ring[d][i][h][4 * j] = v.x;
                    ring[d][i][h][4 * j + 1] = v.y;
                    ring[d][i][h][4 * j + 2] = v.z;
                    ring[d][i][h][4 * j + 3] = v.w;
                }
            }
        }
    };
    // A lane looks after the scale of one block of the group, for each of its rows.
    u32 codes[MT][2];
    float absmax[MT][2];
    auto fetch_scales = [&]() {
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const Member& m = members.of[PAIR ? h : next_which];
                u32 block = (scale_at[i][h] + next) >> (m.block_shift - 6);
                codes[i][h] = 0;
                if (m.codes) {
                    codes[i][h] = m.codes[block];
                    block >>= m.nested_shift;
                }
                absmax[i][h] = m.absmax[block];
            }
    };
    if (next_tile < total) aim(next_tile);
    if (more) {
        if constexpr (STAGED) {
            fetch_stage();
        } else {
#pragma unroll
            for (int d = 0; d < D; ++d)
#pragma unroll
                for (int i = 0; i < MT; ++i) fetch(d, i);
        }
        if (NF4) fetch_scales();
    }
    if (STAGED) asm volatile("cp.async.commit_group;" ::: "memory");

    if constexpr (NF4) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (members.of[i].codes) maps[256 * i + tid] = members.of[i].map[tid];
        // Thread i writes the 32 copies of pair i, each thread from another place on so that stores of eight threads do not conflict.
        const float* code = members.of[0].code;
        float fit = members.of[0].fit;
        u32 pair = pack2(code[tid >> 4] * fit, code[tid & 15] * fit);
        uint4 four = make_uint4(pair, pair, pair, pair);
#pragma unroll
        for (u32 i = 0; i < 8; ++i) ((uint4*)shared)[tid * (STAGED ? 16 : 8) + ((i + tid) & 7)] = four;
        if (blockIdx.x < min(units, workers)) rank_unit<false>(members, x, x_stride, n, blocks, mid, ranks, blockIdx.x, partial, true, true);
        __syncthreads();
    }
    if constexpr (NORM) normalise_rows(x, x_stride, n, blocks * 8, norm, eps, normed);
    else wait_for_inputs();
    if (NF4 && blockIdx.x < workers) {
#pragma unroll 1
        for (u32 unit = blockIdx.x; unit < units; unit += workers)
            rank_unit<NORM>(members, NORM ? normed : x, NORM ? blocks * 64 : x_stride, n, blocks, mid, ranks, unit, partial, false, true);
    }

    // x of one block: column g of each tile of tokens; columns past the end repeat the last.
    u32 columns[NT];
#pragma unroll
    for (int j = 0; j < NT; ++j) columns[j] = min(8 * j + g, n - 1) * (NORM ? blocks * 64 : x_stride) + (NF4 ? 16 : 8) * t;
    uint4 xs[XB][NT][2] = {};
    u32 real = g < n;
    auto fetch_x = [&](uint4 (&to)[NT][2], u32 block) {
#pragma unroll
        for (int j = 0; j < NT; ++j) {
            const u16* from = (NORM ? normed : x) + (columns[j] + block * 64);
            if constexpr (NORM) {
                if (real) {
                    to[j][0] = ((const uint4*)from)[0];
                    to[j][1] = ((const uint4*)from)[1];
                }
            } else if constexpr (NT == 1) {
                // Columns that do not exist stay zero: one token is a single line, not eight copies of it.
                input16_if(real, from, to[j][0]);
                input16_if(real, from + (NF4 ? 8 : 32), to[j][1]);
            } else {
                to[j][0] = input16(from);
                to[j][1] = input16(from + (NF4 ? 8 : 32));
            }
        }
    };
    if (XB == 2 && more) fetch_x(xs[0], first);

    const char* lut = (const char*)shared;
    u32 lane4 = lane * 4, buffer = 0;
    auto look = [&](u32 w, int byte) {
        if (STAGED) return *(const u32*)(lut + __byte_perm(w, lane4, 0x5504 | byte << 4));
        u32 at = byte == 0 ? w << 7 : w >> (8 * byte - 7);
        return *(const u32*)(lut + ((at & 0x7f80u) | lane4));
    };
    bool gathered = false;
#pragma unroll 1
    for (u32 linear = blockIdx.x; linear < total; linear += gridDim.x) {
        u32 tile = linear;
        int which = find_member<PAIR>(members, tile);
        float sum[MT][NT][4];
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < NT; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) sum[i][j][c] = 0.0f;

        // B's first ranks are on their way while the tile is multiplied.
        float early[MT == 1 && NF4 ? 2 : 1][4];
        if constexpr (MT == 1 && NF4) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const Member& m = members.of[PAIR ? r : which];
                u32 chunk = 16 * ((warp + (PAIR ? 4 * r : 0)) % WARPS), at = chunk + 4 * t;
                bool there = mid && m.lora && chunk < m.rank;
                const float* b = m.lora + (u64)row_of<ROWS, PAIR>(tile, 8 * r + g, m.rows) * m.rank + at;
#pragma unroll
                for (int e = 0; e < 4; ++e) early[r][e] = there && at + e < m.rank ? input(b + e) : 0.0f;
            }
        }

#pragma unroll 1
        for (u32 at = first; at < last; at += D) {
            float scale[MT][2];
            if constexpr (NF4) {
#pragma unroll
                for (int i = 0; i < MT; ++i)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const Member& m = members.of[PAIR ? h : which];
                        scale[i][h] = absmax[i][h];
                        if (m.codes)
                            scale[i][h] = __fadd_rn(__fmul_rn(maps[256 * (PAIR ? h : which) + codes[i][h]], absmax[i][h]), m.offset);
                        scale[i][h] *= m.unfit;
                    }
            }
            next += D;
            if (next >= last) {
                next = first;
                next_tile += gridDim.x;
                more = next_tile < total;
                if (more) aim(next_tile);
            }
            if (NF4 && more) fetch_scales();
            u32 here = stage;
            if constexpr (STAGED) {
                // The other place was read in the group before.
                stage = stage_base + (stage == stage_base ? 4096 : 0);
                __syncwarp();
                if (more) fetch_stage();
                asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 1;" ::: "memory");
                __syncwarp();
                here += g * 256 + 32 * (g & 3) + 8 * t;
            }
#pragma unroll
            for (int d = 0; d < D; ++d) {
                if (XB == 1) fetch_x(xs[0], at + d);
                if (XB == 2) {
                    if (d + 1 < D) fetch_x(xs[(d + 1) & (XB - 1)], at + d + 1);
                    else if (more) fetch_x(xs[0], next);
                }
#pragma unroll
                for (int i = 0; i < MT; ++i) {
                    u32 w[2][WORDS];
                    if constexpr (STAGED) {
#pragma unroll
                        for (int h = 0; h < 2; ++h) {
                            uint2 v = shared8((here ^ 32 * d) + 2048 * h);
                            w[h][0] = v.x;
                            w[h][1] = v.y;
                        }
                    } else {
#pragma unroll
                        for (int h = 0; h < 2; ++h)
#pragma unroll
                            for (int e = 0; e < WORDS; ++e) w[h][e] = ring[d][i][h][e];
                        if (more) fetch(d, i);
                    }
                    if constexpr (NF4) {
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
                            for (int j = 0; j < NT; ++j) {
                                uint4 b = xs[d & (XB - 1)][j][q / 2];
                                mma(part[j], a0, a1, a2, a3, word(b, 2 * q & 3), word(b, (2 * q & 3) + 1));
                            }
                        }
                        float s0 = __shfl_sync(0xffffffffu, scale[i][0], d, 4), s1 = __shfl_sync(0xffffffffu, scale[i][1], d, 4);
#pragma unroll
                        for (int j = 0; j < NT; ++j)
#pragma unroll
                            for (int c = 0; c < 4; ++c) sum[i][j][c] = fmaf(c < 2 ? s0 : s1, part[j][c], sum[i][j][c]);
                    } else {
#pragma unroll
                        for (int q = 0; q < 4; ++q)
#pragma unroll
                            for (int j = 0; j < NT; ++j) {
                                uint4 b = xs[d & (XB - 1)][j][q / 2];
                                mma(sum[i][j], w[0][2 * q], w[1][2 * q], w[0][2 * q + 1], w[1][2 * q + 1], word(b, 2 * q & 3),
                                    word(b, (2 * q & 3) + 1));
                            }
                    }
                }
            }
        }

        if (NF4 && mid) {
            if (!gathered) gather_ranks(members, n, blocks, mid, ranks, units, low_rank);
            gathered = true;
            add_low_rank<MT, NT, PAIR>(members, which, tile, n, ranks, low_rank, early, sum);
        }
        store_tile<MT, NT, NF4, PAIR>(members, which, tile, n, partial, buffer, sum, out, out_stride);
    }
}

#define ARGS const __grid_constant__ Members members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks
#define BODY(MT, NT, D, NF4, PAIR, STAGED, OUT) small_linear<MT, NT, D, NF4, PAIR, STAGED, false, OUT>(members, x, x_stride, n, blocks, mid, ranks, out, out_stride)
extern "C" __global__ void __launch_bounds__(256, 2) nf4_small_1_1(ARGS, u16* out, u32 out_stride) { BODY(1, 1, 4, true, false, true, u16); }
extern "C" __global__ void __launch_bounds__(256, 2) nf4_norm_small(ARGS, u16* out, u32 out_stride, const float* norm, float eps) {
    small_linear<1, 1, 4, true, false, true, true, u16>(members, x, x_stride, n, blocks, mid, ranks, out, out_stride, norm, eps);
}
extern "C" __global__ void __launch_bounds__(256, 2) nf4_norm_swiglu(ARGS, u16* out, u32 out_stride, const float* norm, float eps) {
    small_linear<1, 1, 4, true, true, true, true, u16>(members, x, x_stride, n, blocks, mid, ranks, out, out_stride, norm, eps);
}
extern "C" __global__ void __launch_bounds__(256, 2) nf4_small_2_1(ARGS, u16* out, u32 out_stride) { BODY(2, 1, 4, true, false, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_small_2_2(ARGS, u16* out, u32 out_stride) { BODY(2, 2, 4, true, false, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_small_2_4(ARGS, u16* out, u32 out_stride) { BODY(2, 4, 4, true, false, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_small_3_4(ARGS, u16* out, u32 out_stride) { BODY(3, 4, 2, true, false, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_small_4_4(ARGS, u16* out, u32 out_stride) { BODY(4, 4, 2, true, false, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_small_2_8(ARGS, u16* out, u32 out_stride) { BODY(2, 8, 2, true, false, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 2) nf4_swiglu_1_1(ARGS, u16* out, u32 out_stride) { BODY(1, 1, 4, true, true, true, u16); }
extern "C" __global__ void __launch_bounds__(256, 2) nf4_swiglu_2_1(ARGS, u16* out, u32 out_stride) { BODY(2, 1, 4, true, true, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_swiglu_2_2(ARGS, u16* out, u32 out_stride) { BODY(2, 2, 4, true, true, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_swiglu_2_4(ARGS, u16* out, u32 out_stride) { BODY(2, 4, 4, true, true, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_swiglu_4_4(ARGS, u16* out, u32 out_stride) { BODY(4, 4, 2, true, true, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_swiglu_2_8(ARGS, u16* out, u32 out_stride) { BODY(2, 8, 2, true, true, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 2) bf16_small_1(ARGS, float* out, u32 out_stride) { BODY(1, 1, 2, false, false, false, float); }
extern "C" __global__ void __launch_bounds__(256, 2) bf16_small_2(ARGS, float* out, u32 out_stride) { BODY(1, 2, 2, false, false, false, float); }
extern "C" __global__ void __launch_bounds__(256, 1) bf16_small_4(ARGS, float* out, u32 out_stride) { BODY(2, 4, 2, false, false, false, float); }
extern "C" __global__ void __launch_bounds__(256, 1) bf16_small_8(ARGS, float* out, u32 out_stride) { BODY(2, 8, 2, false, false, false, float); }

// The adapters' first product for launches that have more units than blocks: a block per unit.
extern "C" __global__ void __launch_bounds__(256) nf4_ranks(
    const __grid_constant__ Members members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks) {
    __shared__ float sums[WARPS * 8 * 20];
    let_next_start();
    rank_unit<false>(members, x, x_stride, n, blocks, mid, ranks, blockIdx.x, sums, true, false);
    wait_for_inputs();
    rank_unit<false>(members, x, x_stride, n, blocks, mid, ranks, blockIdx.x, sums, false, false);
}

// Any shape whose rows are whole groups of eight values and any block size of at least eight: a warp per weight row, in f32. `blocks` counts
// groups of eight here.
template <bool NF4, typename Out>
static __device__ __forceinline__ void any_linear(
    const Members& members, const u16* x, u32 x_stride, u32 n, u32 groups, const float* mid, u32 mid_stride, Out* out, u32 out_stride) {
    __shared__ float code[16];
    u32 tile = blockIdx.x;
    int which = 0;
    while (which < 3 && tile >= members.of[which].tiles) tile -= members.of[which++].tiles;
    const Member& m = members.of[which];
    if (NF4 && threadIdx.x < 16) code[threadIdx.x] = m.code[threadIdx.x];
    __syncthreads();
    u32 row = tile * WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    wait_for_inputs();
    if (row >= m.rows) return;
    for (u32 base = 0; base < n; base += 8) {
        float sum[8] = {};
        for (u32 i = lane; i < groups; i += 32) {
            float w[8];
            if constexpr (NF4) {
                u64 value = (u64)row * groups * 8 + i * 8;
                u32 bytes = *(const u32*)(m.weight + row * m.row_bytes + 4 * i);
                float s = block_scale(m, m.map, value >> m.block_shift);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    w[2 * e] = code[bytes >> (8 * e + 4) & 15] * s;
                    w[2 * e + 1] = code[bytes >> 8 * e & 15] * s;
                }
            } else {
                unpack8(*(const uint4*)(m.weight + row * m.row_bytes + 16 * i), w);
            }
#pragma unroll
            for (u32 c = 0; c < 8; ++c) {
                if (base + c < n) {
                    float v[8];
                    unpack8(input16(x + (u64)(base + c) * x_stride + 8 * i), v);
#pragma unroll
                    for (int e = 0; e < 8; ++e) sum[c] = fmaf(w[e], v[e], sum[c]);
                }
            }
        }
        if (mid && m.lora)
            for (u32 k = lane; k < m.rank; k += 32) {
                float b = m.lora[(u64)row * m.rank + k] * m.lora_scale;
#pragma unroll
                for (u32 c = 0; c < 8; ++c)
                    if (base + c < n) sum[c] = fmaf(b, input(mid + (u64)(base + c) * mid_stride + m.mid + k), sum[c]);
            }
#pragma unroll
        for (u32 c = 0; c < 8; ++c) {
            float y = group_sum(sum[c], 32);
            if (m.bias) y += m.bias[row];
            if (base + c < n && lane == c) {
                u64 to = (u64)(base + c) * out_stride + m.column + row;
                if constexpr (sizeof(Out) == 2) out[to] = (u16)pack2(y, 0.0f);
                else out[to] = y;
            }
        }
    }
}
extern "C" __global__ void __launch_bounds__(256) nf4_small_any(ARGS, u16* out, u32 out_stride) {
    any_linear<true>(members, x, x_stride, n, blocks, mid, ranks, out, out_stride);
}
extern "C" __global__ void __launch_bounds__(256) bf16_small_any(ARGS, float* out, u32 out_stride) {
    any_linear<false>(members, x, x_stride, n, blocks, mid, ranks, out, out_stride);
}

// The adapters' first product for `any_linear`: mid[n, ranks] = x A^T. Up to four matrices side by side.
struct Adapter {
    const float* a;
    u32 rank;
    u32 unused;
};
struct Adapters { Adapter of[4]; };
// A is split into two bf16 terms, so that it loses nothing that matters; 32 warps split k, and their sums are added in order. A block takes 16 rows
// of A and eight tokens.
extern "C" __global__ void __launch_bounds__(1024) lora_mid(
    const __grid_constant__ Adapters adapters, const u16* x, u32 x_stride, u32 n, u32 groups, float* mid, u32 mid_stride) {
    __shared__ float sums[32][8][20];
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, base = blockIdx.y * 8;
    // The rows of A that a lane reads; ranks past the end repeat the last and are not stored.
    const float* a[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        u32 row = min(blockIdx.x * 16 + 8 * h + g, mid_stride - 1);
        int which = 0;
        while (which < 3 && row >= adapters.of[which].rank) row -= adapters.of[which++].rank;
        a[h] = adapters.of[which].a + (u64)row * groups * 8;
    }
    // Sixteen values of k at a time, the last of which may be half a step; a lane takes four of them, in the order of the input.
    u32 steps = (groups + 1) / 2, share = (steps + 31) / 32, first = min(warp * share, steps), last = min(first + share, steps);
    for (u32 s = first + 2 * t; s < last; s += 8) {
        asm volatile("prefetch.global.L2 [%0];" :: "l"(a[0] + 16 * s));
        asm volatile("prefetch.global.L2 [%0];" :: "l"(a[1] + 16 * s));
    }
    let_next_start();
    wait_for_inputs();
    const u16* column = x + (u64)min(base + g, n - 1) * x_stride;
    float sum[4] = {};
#pragma unroll 4
    for (u32 s = first; s < last; ++s) {
        u32 k = 16 * s + 4 * t;
        bool real = k < groups * 8;
        float4 v[2];
        uint2 b = make_uint2(0, 0);
#pragma unroll
        for (int h = 0; h < 2; ++h) v[h] = real ? *(const float4*)(a[h] + k) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (real) asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(b.x), "=r"(b.y) : "l"(column + k));
        u32 high[2][2], rest[2][2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            high[h][0] = pack2(v[h].x, v[h].y);
            high[h][1] = pack2(v[h].z, v[h].w);
            rest[h][0] = pack2(v[h].x - ::low(high[h][0]), v[h].y - ::high(high[h][0]));
            rest[h][1] = pack2(v[h].z - ::low(high[h][1]), v[h].w - ::high(high[h][1]));
        }
        mma(sum, high[0][0], high[1][0], high[0][1], high[1][1], b.x, b.y);
        mma(sum, rest[0][0], rest[1][0], rest[0][1], rest[1][1], b.x, b.y);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) sums[warp][2 * t + (c & 1)][(c >> 1) * 8 + g] = sum[c];
    __syncthreads();
    if (threadIdx.x < 128) {
        u32 token = threadIdx.x >> 4, row = threadIdx.x & 15;
        if (base + token < n && blockIdx.x * 16 + row < mid_stride) {
            float y = 0.0f;
#pragma unroll
            for (u32 w = 0; w < 32; ++w) y += sums[w][token][row];
            mid[(u64)(base + token) * mid_stride + blockIdx.x * 16 + row] = y;
        }
    }
}
