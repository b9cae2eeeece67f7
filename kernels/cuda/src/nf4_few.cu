// Linear layers of 9 to 32 rows (generation in batches) on cards with 227 KB of shared memory: as nf4_small.cu's, to its bits, with the input too on
// its way through shared memory. Profiled on an H200, those kernels waited: for the input from the second-level cache and for each other's
// instructions, with two warps on a scheduler and 255 registers in each. Here nothing that is waited for takes a register.
//
// Sixteen warps of a block split k into the eight shares of nf4_small.cu, two warps to a share, which have one half of the tile's rows each. The two have
// places for two blocks of 64 values of k: the tokens', which both read, and the weights'. While one is multiplied, the next is on its way, across the ends
// of tiles. No barrier of the whole block is in that loop.
//
// Shared memory: the warps' sums first. At a multiple of 64 KB, so that a single instruction makes an address of a byte and a lane, the look-up table: 256
// pairs, each with 32 copies in the first half of 256 bytes. In the other halves are the tokens of even blocks. Then as many rows of 256 bytes with
// the tokens of odd blocks and the weights on their way, and last x A^T.

#define PITCH 256u
#define REGION 65536u

template <int MT, int NT, bool PAIR>
static __device__ __forceinline__ void few_linear(
    const Members& members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks, u16* __restrict__ out,
    u32 out_stride) {
    constexpr u32 ROWS = 32 * MT, PLACES = ROWS + 4;
    extern __shared__ __align__(256) u32 shared[];
    __shared__ float maps[1024];
    float* partial = (float*)shared;
    const u32 base = (u32)__cvta_generic_to_shared(shared), table = (base + REGION - 1) & ~(REGION - 1);
    static_assert(2 * WARPS * 8 * PLACES * sizeof(float) + 16384 <= REGION, "the sums lie below the table");
    u16* low_rank = (u16*)((u8*)shared + (table + 2 * REGION - base));
    const u32 workers = min(members.of[0].workers, gridDim.x), units = mid && workers > 0 ? rank_units(n, blocks, ranks) : 0;
    const u32 tid = threadIdx.x, warp = tid >> 5 & (WARPS - 1), half = tid >> 8, lane = tid & 31, g = lane >> 2, t = lane & 3;

    let_next_start();
    u32 total = members.of[0].tiles;
    if (!PAIR) total += members.of[1].tiles + members.of[2].tiles + members.of[3].tiles;
    const u32 share = warp_share(blocks), first = min(warp * share, blocks), last = min(first + share, blocks);

    // What comes next: a tile, a block of it, and where this lane finds its parts of the rows.
    u32 next_tile = blockIdx.x, next = first;
    bool more = first < last && next_tile < total;
    const u8* weight = nullptr;
    u32 source[MT];
    auto aim = [&](u32 tile) {
        int which = find_member<PAIR>(members, tile);
        const Member& m = members.of[PAIR ? lane >> 4 : which];
        weight = m.weight + 16 * (lane & 1);
#pragma unroll
        for (int i = 0; i < MT; ++i) source[i] = row_of<ROWS, PAIR>(tile, 16 * (half * MT + i) + (lane >> 1), m.rows) * (u32)m.row_bytes;
    };
    // A warp's places, and where in them this lane writes. Tokens: one half of them each; those past the end repeat the last. Odd rows have their pieces
    // of 16 bytes swapped, so that reads of two rows do not conflict.
    const u32 tokens = table + warp * 32 * PITCH, weights = table + REGION + 128 + (tid >> 5) * 16 * PITCH;
    const u32 weights_to = weights + (lane >> 3) * PITCH + 16 * (lane & 7);
    const u32 tokens_to = tokens + (4 * NT * half + (lane >> 3)) * PITCH + 16 * ((lane & 7) ^ (lane >> 3 & 1));
    u32 token_row[NT];
#pragma unroll
    for (int j = 0; j < NT; ++j) token_row[j] = min(4 * (NT * half + j) + (lane >> 3), n - 1) * x_stride + 8 * (lane & 7);
    auto fetch_weights = [&](u32 odd, u32 block) {
#pragma unroll
        for (int i = 0; i < MT; ++i)
            asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(weights_to + (8 * odd + 4 * i) * PITCH),
                         "l"(weight + (source[i] + block * 32)) : "memory");
    };
    auto fetch_tokens = [&](u32 odd, u32 block) {
#pragma unroll
        for (int j = 0; j < NT; ++j)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(tokens_to + 4 * j * PITCH + (odd ? REGION : 128)),
                         "l"(x + (token_row[j] + block * 64)) : "memory");
    };

    // A lane looks after the scale of one block of four, for each of its rows; those of the next four are on their way.
    u32 scale_tile = blockIdx.x, scale_next = first, scale_at[MT][2], codes[MT][2];
    int scale_which = 0;
    float absmax[MT][2];
    auto aim_scales = [&](u32 tile) {
        scale_which = find_member<PAIR>(members, tile);
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h)
                scale_at[i][h] = row_of<ROWS, PAIR>(tile, 16 * (half * MT + i) + 8 * h + g, members.of[PAIR ? h : scale_which].rows) * blocks + t;
    };
    auto fetch_scales = [&]() {
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const Member& m = members.of[PAIR ? h : scale_which];
                u32 block = (scale_at[i][h] + scale_next) >> (m.block_shift - 6);
                codes[i][h] = 0;
                if (m.codes) {
                    codes[i][h] = m.codes[block];
                    block >>= m.nested_shift;
                }
                absmax[i][h] = m.absmax[block];
            }
    };

    if (more) {
        aim(next_tile);
        fetch_weights(0, next);
        aim_scales(scale_tile);
        fetch_scales();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const Member& m = members.of[2 * i + half];
        if (m.codes) maps[256 * (2 * i + half) + (tid & 255)] = m.map[tid & 255];
    }
    {
        // Two threads write the copies of a pair, each thread from another place on so that stores of eight threads do not conflict.
        const float* code = members.of[0].code;
        float fit = members.of[0].fit;
        u32 pair = pack2(code[tid >> 4 & 15] * fit, code[tid & 15] * fit);
        uint4 four = make_uint4(pair, pair, pair, pair);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) *(uint4*)((u8*)shared + (table - base + (tid & 255) * PITCH + 16 * ((i + 4 * half + tid) & 7))) = four;
    }
    const u32 unit = blockIdx.x + half * workers;
    if (blockIdx.x < workers && unit < units) rank_unit<false, true>(members, x, x_stride, n, blocks, mid, ranks, unit, partial, true, true);
    wait_for_inputs();
    if (more) fetch_tokens(0, next++);
    asm volatile("cp.async.commit_group;" ::: "memory");
    __syncthreads();
    if (blockIdx.x < workers) {
#pragma unroll 1
        for (u32 u = unit; u < units; u += 2 * workers)
            rank_unit<false, true>(members, x, x_stride, n, blocks, mid, ranks, u, partial + half * (WARPS * 8 * 20), false, true);
    }

    // Where this lane reads; bytes 0, 2 and 3 of an address in the table.
    const u32 token = tokens + g * PITCH + 16 * ((2 * t) ^ (g & 1)), own_weights = weights + (g >> 2) * PITCH + 32 * (g & 3) + 8 * t;
    const u32 where = 4 * lane | table >> 16 << 8;
    auto look = [&](u32 w, u32 byte) {
        u32 v;
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(__byte_perm(w, where, 0x6504 | byte << 4)));
        return v;
    };
    u32 buffer = 0;
    bool gathered = false;
#pragma unroll 1
    for (u32 linear = blockIdx.x; linear < total; linear += gridDim.x) {
        u32 tile = linear;
        const int which = find_member<PAIR>(members, tile);
        float sum[MT][NT][4];
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < NT; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) sum[i][j][c] = 0.0f;

#pragma unroll 1
        for (u32 at = first; at < last; at += 4) {
            float scale[MT][2];
#pragma unroll
            for (int i = 0; i < MT; ++i)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const Member& m = members.of[PAIR ? h : which];
                    scale[i][h] = absmax[i][h];
                    if (m.codes) scale[i][h] = __fadd_rn(__fmul_rn(maps[256 * (PAIR ? h : which) + codes[i][h]], absmax[i][h]), m.offset);
                    scale[i][h] *= m.unfit;
                }
            scale_next += 4;
            if (scale_next >= last) {
                scale_next = first;
                scale_tile += gridDim.x;
                if (scale_tile < total) aim_scales(scale_tile);
            }
            if (scale_tile < total) fetch_scales();
// Two, so that where a block lies is part of the instructions; four would not leave registers enough.
#pragma unroll 2
            for (u32 d = 0; d < 4; ++d) {
                // Both warps' copies of this block are there, and both have read the block before, whose places take the next.
                asm volatile("cp.async.wait_group 0;" ::: "memory");
                asm volatile("bar.sync %0, 64;" ::"r"(1 + warp) : "memory");
                if (d == 3 && more && next >= last) {
                    next = first;
                    next_tile += gridDim.x;
                    more = next_tile < total;
                    if (more) aim(next_tile);
                }
                if (more) {
                    fetch_weights((d + 1) & 1, next);
                    fetch_tokens((d + 1) & 1, next);
                    ++next;
                }
                asm volatile("cp.async.commit_group;" ::: "memory");
                const u32 from = token + (d & 1 ? REGION : 128), weights_from = own_weights + (d & 1) * 8 * PITCH;
                uint4 xs[NT][2];
#pragma unroll
                for (int j = 0; j < NT; ++j) {
                    xs[j][0] = shared16(from + 8 * j * PITCH);
                    xs[j][1] = shared16((from ^ 16) + 8 * j * PITCH);
                }
#pragma unroll
                for (int i = 0; i < MT; ++i) {
                    const uint2 w0 = shared8(weights_from + 4 * i * PITCH), w1 = shared8(weights_from + (4 * i + 2) * PITCH);
                    float part[NT][4];
#pragma unroll
                    for (int j = 0; j < NT; ++j)
#pragma unroll
                        for (int c = 0; c < 4; ++c) part[j][c] = 0.0f;
#pragma unroll
                    for (int q = 0; q < 4; ++q) {
                        const u32 v0 = q < 2 ? w0.x : w0.y, v1 = q < 2 ? w1.x : w1.y, byte = 2 * q & 3;
                        const u32 a0 = look(v0, byte), a1 = look(v1, byte), a2 = look(v0, byte + 1), a3 = look(v1, byte + 1);
#pragma unroll
                        for (int j = 0; j < NT; ++j) {
                            const uint4 b = xs[j][q / 2];
                            mma(part[j], a0, a1, a2, a3, word(b, 2 * q & 3), word(b, (2 * q & 3) + 1));
                        }
                    }
                    const float s0 = __shfl_sync(0xffffffffu, scale[i][0], d, 4), s1 = __shfl_sync(0xffffffffu, scale[i][1], d, 4);
#pragma unroll
                    for (int j = 0; j < NT; ++j)
#pragma unroll
                        for (int c = 0; c < 4; ++c) sum[i][j][c] = fmaf(c < 2 ? s0 : s1, part[j][c], sum[i][j][c]);
                }
            }
        }

        if (mid) {
            if (!gathered) gather_ranks(members, n, blocks, mid, ranks, units, low_rank);
            gathered = true;
            float early[1][4] = {};
            add_low_rank<MT, NT, PAIR, 2>(members, which, tile, n, ranks, low_rank, early, sum);
        }
        store_tile<MT, NT, true, PAIR, 2>(members, which, tile, n, partial, buffer, sum, out, out_stride);
    }
}

#define FEW(MT, NT)                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(512, 1) nf4_few_##MT##_##NT(                                                                \
        const __grid_constant__ Members members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks, u16* out, \
        u32 out_stride) {                                                                                                                    \
        few_linear<MT, NT, false>(members, x, x_stride, n, blocks, mid, ranks, out, out_stride);                                             \
    }
#define FEW_SWIGLU(MT, NT)                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(512, 1) nf4_few_swiglu_##MT##_##NT(                                                         \
        const __grid_constant__ Members members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks, u16* out, \
        u32 out_stride) {                                                                                                                    \
        few_linear<MT, NT, true>(members, x, x_stride, n, blocks, mid, ranks, out, out_stride);                                              \
    }
FEW(1, 2)
FEW(2, 2)
FEW(1, 4)
FEW(2, 4)
FEW_SWIGLU(1, 2)
FEW_SWIGLU(2, 2)
FEW_SWIGLU(1, 4)
FEW_SWIGLU(2, 4)
