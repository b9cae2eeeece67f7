// Linear layers of 9 to 32 rows (generation in batches) on cards with 227 KB of shared memory: as nf4_small.cu's, to its bits, with the input too on
// its way through shared memory. Profiled on an H200, those kernels waited: for the input from the second-level cache and for each other's
// instructions, with two warps on a scheduler and 255 registers in each. Here nothing that is waited for takes a register.
//
// A warp has places of its own for three blocks of 64 values of k: the tokens' and the weights'. While one is multiplied, two are on their way,
// across the ends of tiles. No barrier of the block is in that loop.
//
// Shared memory: 512 rows of 256 bytes. The look-up table has a pair's 32 copies in the first half of each of the first 256, so that a single
// instruction makes an address of a byte and a lane; the other halves hold the tokens' rows.

#define STAGES 3u
#define PITCH 256u
#define TABLE_BYTES (512 * PITCH)

template <int MT, int NT, bool PAIR>
static __device__ __forceinline__ void few_linear(
    const Members& members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks, u16* __restrict__ out,
    u32 out_stride) {
    constexpr u32 ROWS = 16 * MT, PLACES = ROWS + 4, WEIGHTS = 32 * ROWS;
    extern __shared__ __align__(256) u32 shared[];
    __shared__ float maps[1024];
    float* partial = (float*)((u8*)shared + TABLE_BYTES);
    u8* staged = (u8*)(partial + 2 * WARPS * 8 * PLACES);
    u16* low_rank = (u16*)(staged + WARPS * STAGES * WEIGHTS);
    const u32 workers = min(members.of[0].workers, gridDim.x), units = mid && workers > 0 ? rank_units(n, blocks, ranks) : 0;
    const u32 tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;

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
        for (int i = 0; i < MT; ++i) source[i] = row_of<ROWS, PAIR>(tile, 16 * i + (lane >> 1), m.rows) * (u32)m.row_bytes;
        // B's rows are wanted when the tile is done.
        if (mid && tid < ROWS) {
            const Member& owner = members.of[PAIR ? (int)(tid >> 3 & 1) : which];
            const float* b = owner.lora + (u64)row_of<ROWS, PAIR>(tile, tid, owner.rows) * owner.rank;
            if (owner.lora)
                for (u32 k = 0; k < owner.rank; k += 32) asm volatile("prefetch.global.L2 [%0];" ::"l"(b + k));
        }
    };
    const u32 base = (u32)__cvta_generic_to_shared(shared), weights_at = (u32)__cvta_generic_to_shared(staged) + warp * STAGES * WEIGHTS;
    auto tokens_at = [&](u32 stage) { return base + warp * 32 * PITCH + (stage == 0 ? 128 : stage == 1 ? 256 * PITCH : 256 * PITCH + 128); };
    auto fetch_weights = [&](u32 stage, u32 block) {
#pragma unroll
        for (int i = 0; i < MT; ++i)
            asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(weights_at + stage * WEIGHTS + 512 * i + 16 * lane),
                         "l"(weight + source[i] + block * 32) : "memory");
    };
    // Tokens past the end repeat the last. Odd rows have their pieces of 16 bytes swapped, so that reads of two rows do not conflict.
    const u32 to = (lane >> 3) * PITCH + 16 * ((lane & 7) ^ (lane >> 3 & 1));
    auto fetch_tokens = [&](u32 stage, u32 block) {
        const u32 place = tokens_at(stage) + to;
#pragma unroll
        for (int j = 0; j < 2 * NT; ++j) {
            const u16* from = x + (min(4 * j + (lane >> 3), n - 1) * x_stride + block * 64 + 8 * (lane & 7));
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place + 4 * j * PITCH), "l"(from) : "memory");
        }
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
                scale_at[i][h] = row_of<ROWS, PAIR>(tile, 16 * i + 8 * h + g, members.of[PAIR ? h : scale_which].rows) * blocks + t;
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
        // A share has four blocks at least.
        aim(next_tile);
#pragma unroll
        for (u32 s = 0; s < STAGES - 1; ++s) fetch_weights(s, next + s);
        aim_scales(scale_tile);
        fetch_scales();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (members.of[i].codes) maps[256 * i + tid] = members.of[i].map[tid];
    {
        // Thread i writes the copies of pair i, each thread from another place on so that stores of eight threads do not conflict.
        const float* code = members.of[0].code;
        float fit = members.of[0].fit;
        u32 pair = pack2(code[tid >> 4] * fit, code[tid & 15] * fit);
        uint4 four = make_uint4(pair, pair, pair, pair);
#pragma unroll
        for (u32 i = 0; i < 8; ++i) *(uint4*)((u8*)shared + tid * PITCH + 16 * ((i + tid) & 7)) = four;
    }
    if (blockIdx.x < min(units, workers)) rank_unit<false>(members, x, x_stride, n, blocks, mid, ranks, blockIdx.x, partial, true, true);
    wait_for_inputs();
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; ++s) {
        if (more) fetch_tokens(s, next + s);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    next += STAGES - 1;
    __syncthreads();
    if (blockIdx.x < workers) {
#pragma unroll 1
        for (u32 unit = blockIdx.x; unit < units; unit += workers)
            rank_unit<false>(members, x, x_stride, n, blocks, mid, ranks, unit, partial, false, true);
    }

    const u32 lane4 = 4 * lane, token = g * PITCH + 16 * ((2 * t) ^ (g & 1));
    auto look = [&](u32 w, u32 byte) { return *(const u32*)((const u8*)shared + __byte_perm(w, lane4, 0x5504 | byte << 4)); };
    u32 stage = 0, buffer = 0;
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
#pragma unroll 1
            for (u32 d = 0; d < 4; ++d) {
                // The place that was read in the block before takes what comes two blocks later.
                const u32 behind = stage == 0 ? STAGES - 1 : stage - 1;
                __syncwarp();
                if (more) {
                    if (next >= last) {
                        next = first;
                        next_tile += gridDim.x;
                        more = next_tile < total;
                        if (more) aim(next_tile);
                    }
                    if (more) {
                        fetch_weights(behind, next);
                        fetch_tokens(behind, next);
                        ++next;
                    }
                }
                asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 2;" ::: "memory");
                __syncwarp();
                const u32 tokens = tokens_at(stage) + token, weights = weights_at + stage * WEIGHTS + 32 * g + 8 * t;
                stage = stage == STAGES - 1 ? 0 : stage + 1;
                uint4 xs[NT][2];
#pragma unroll
                for (int j = 0; j < NT; ++j) {
                    xs[j][0] = shared16(tokens + 8 * j * PITCH);
                    xs[j][1] = shared16((tokens ^ 16) + 8 * j * PITCH);
                }
#pragma unroll
                for (int i = 0; i < MT; ++i) {
                    const uint2 w0 = shared8(weights + 512 * i), w1 = shared8(weights + 512 * i + 256);
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
            add_low_rank<MT, NT, PAIR>(members, which, tile, n, ranks, low_rank, early, sum);
        }
        store_tile<MT, NT, true, PAIR>(members, which, tile, n, partial, buffer, sum, out, out_stride);
    }
}

#define ARGS                                                                                                                                 \
    const __grid_constant__ Members members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, float* mid, u32 ranks, u16* out,    \
        u32 out_stride
#define BODY(MT, NT, PAIR) few_linear<MT, NT, PAIR>(members, x, x_stride, n, blocks, mid, ranks, out, out_stride)
extern "C" __global__ void __launch_bounds__(256, 1) nf4_few_2_2(ARGS) { BODY(2, 2, false); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_few_3_2(ARGS) { BODY(3, 2, false); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_few_4_2(ARGS) { BODY(4, 2, false); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_few_2_4(ARGS) { BODY(2, 4, false); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_few_3_4(ARGS) { BODY(3, 4, false); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_few_4_4(ARGS) { BODY(4, 4, false); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_few_swiglu_2_2(ARGS) { BODY(2, 2, true); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_few_swiglu_4_2(ARGS) { BODY(4, 2, true); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_few_swiglu_2_4(ARGS) { BODY(2, 4, true); }
extern "C" __global__ void __launch_bounds__(256, 1) nf4_few_swiglu_4_4(ARGS) { BODY(4, 4, true); }
