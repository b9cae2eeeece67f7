// The backward of adapters over dy, once: dmid [n, r] = dy [n, out] B[out, r] and dB [out, r] += scale dy^T [out, n] mid [n, r]
//
// A block takes H times 256 of a member's outputs and a run of tokens, 64 at a time. Each tile of dy in shared memory serves both products: read
// along outputs it is the left side of dmid (warps: four groups of 16 tokens, two halves of the ranks), read transposed that of dB (warps: 32
// outputs each, whose sums stay in registers over all of the block's tokens). dmid's sums over the block's outputs and dB's over its tokens are
// partial: [block of outputs][n][r] and [run of tokens][all outputs][r].
//
// Where a tile of 64 tokens takes two steps (H = 2), the groups of warps for dmid halve the outputs rather than the ranks: dy is read once for it, and
// four chains of products run side by side instead of two. The second half leaves its sums in shared memory, and the first adds them a step later.
#define MEMBERS 3
struct Members {
    u32 out[MEMBERS], mid[MEMBERS], dy[MEMBERS], b_stride[MEMBERS];
    const u16* b[MEMBERS];
};

template <int R, int H, int STAGES>
static __device__ __forceinline__ void backward_body(
    const u16* __restrict__ dy, u32 dy_stride, const u16* __restrict__ mid, u32 mid_stride, u32 n, u32 rank, u32 run, const Members& members,
    float* __restrict__ part_mid, float* __restrict__ part_b) {
    constexpr u32 O = 256, DY = 64 * O * 2, MID_BYTES = 64 * R * 2, B_BYTES = H * O * R * 2;
    constexpr bool SPLIT = H == 2;
    constexpr u32 NT = SPLIT ? R / 8 : R / 16, STEPS = SPLIT ? O / 32 : O / 16, MIDS = B_BYTES + STAGES * DY, SUMS = MIDS + 2 * MID_BYTES;
    static_assert(STAGES == 2 || H == 2, "two tiles of mid serve a third stage only where a tile of tokens takes two steps");
    extern __shared__ __align__(128) u8 memory[];
    const u32 base = shared_address(memory), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    wait_for_inputs();
    // Which member, where its outputs begin among all, and this block's first.
    u32 block = blockIdx.x, outs = members.out[0], before = 0, total = members.out[0] + members.out[1] + members.out[2];
    const u16* b = members.b[0];
    u32 b_stride = members.b_stride[0], mid_at = members.mid[0], dy_at = members.dy[0];
#pragma unroll
    for (int i = 1; i < MEMBERS; ++i) {
        u32 blocks = (outs + H * O - 1) / (H * O);
        if (block >= blocks && members.out[i] > 0) {
            block -= blocks;
            before += outs;
            outs = members.out[i];
            b = members.b[i]; b_stride = members.b_stride[i]; mid_at = members.mid[i]; dy_at = members.dy[i];
        } else {
            break;
        }
    }
    const u32 first_out = block * H * O, first = blockIdx.y * run, last = min(n, first + run), steps = (last - first + 63) / 64 * H;
    dy += dy_at;
    mid += mid_at;

    for (u32 v = threadIdx.x; v < H * O * R / 8; v += 256) {
        u32 row = v / (R / 8), c = v % (R / 8);
        bool there = first_out + row < outs && 8 * c < rank;
        copy16(base + panel32(H * O, row, c), b + (there ? (u64)(first_out + row) * b_stride + 8 * c : 0), there);
    }
    auto fetch = [&](u32 step) {
        if (step < steps) {
            u32 t0 = first + step / H * 64, o0 = first_out + step % H * O, at = base + B_BYTES + step % STAGES * DY;
            // A warp copies 256 values of a row; the next of its rows lies eight further, in the same bank.
            u32 row = warp, to = at + panel64(64, row, lane);
            bool inside = o0 + 8 * lane < outs;
            const u16* from = dy + (u64)(t0 + row) * dy_stride + o0 + 8 * lane;
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                bool there = inside && t0 + row + 8 * i < last;
                copy16(to + 1024 * i, there ? from + (u64)(8 * i) * dy_stride : dy, there);
            }
            if (step % H == 0) {
                at = base + MIDS + (step / H & 1) * MID_BYTES;
#pragma unroll
                for (u32 i = 0; i < 64 * R / 8 / 256; ++i) {
                    u32 v = threadIdx.x + 256 * i, row = v / (R / 8), c = v % (R / 8);
                    bool there = t0 + row < last && 8 * c < rank;
                    copy16(at + panel32(64, row, c), mid + (there ? (u64)(t0 + row) * mid_stride + 8 * c : 0), there);
                }
            }
        }
        copies_end();
    };

    float db[H][2][R / 8][4];
#pragma unroll
    for (int h = 0; h < H; ++h)
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < R / 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) db[h][i][j][e] = 0.0f;
    const u32 wm = warp & 3, wn = SPLIT ? 0 : warp >> 2, wk = SPLIT ? warp >> 2 : 0;

    // Where a lane's rows lie in their tiles, at the first step: later steps along a row differ in bits 5 and 6 only, which the permutation of a row
    // keeps apart from the rest.
    const u32 dy_rows = panel64(64, 16 * wm + (lane & 15), lane >> 4) + wk * (O / 128) * 8192;
    const u32 dy_columns = panel64(64, (lane & 7) + ((lane >> 4) << 3), 4 * warp + ((lane >> 3) & 1));
    const u32 b_rows = base + panel32(H * O, wk * (O / 2) + (lane & 15), wn * (R / 16) + (lane >> 4));
    const u32 mid_rows = panel32(64, lane & 15, lane >> 4);

    float dm[NT][4];
    // Where a pair of sums lies: four rows of a fragment in different banks.
    auto place = [&](u32 j, u32 e) {
        u32 row = 16 * wm + 8 * e + (lane >> 2), c = 8 * j + 2 * (lane & 3);
        return (float2*)(memory + SUMS + 4 * (row * R + (c ^ ((row & 3) << 3))));
    };
    auto finish = [&](u32 tile) {
        if (SPLIT && wk == 1) return;
#pragma unroll
        for (u32 j = 0; j < NT; ++j)
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                u32 token = first + 64 * tile + 16 * wm + 8 * e + (lane >> 2), c = wn * (R / 2) + 8 * j + 2 * (lane & 3);
                float2 v = make_float2(dm[j][2 * e], dm[j][2 * e + 1]);
                if (SPLIT) {
                    float2 other = *place(j, e);
                    v.x += other.x;
                    v.y += other.y;
                }
                if (token < last && c < rank) *(float2*)(part_mid + ((u64)blockIdx.x * n + token) * rank + c) = v;
            }
    };

    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);
    for (u32 tile = 0; tile * H < steps; ++tile) {
#pragma unroll
        for (u32 h = 0; h < H; ++h) {
            u32 step = tile * H + h;
            copies_wait<STAGES - 2>();
            __syncthreads();
            fetch(step + STAGES - 1);
            if (h == 0) {
                if (SPLIT && tile > 0) finish(tile - 1);
#pragma unroll
                for (u32 j = 0; j < NT; ++j)
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) dm[j][e] = 0.0f;
            }
            u32 at = base + B_BYTES + step % STAGES * DY, mid_tile = base + MIDS + (tile & 1) * MID_BYTES;
#pragma unroll 4
            for (u32 s = 0; s < STEPS; ++s) {
                u32 m[4];
                load4(m, at + ((dy_rows ^ ((s & 3) << 5)) + (s >> 2) * 8192));
#pragma unroll
                for (u32 j = 0; j < NT; j += 2) {
                    u32 w[4];
                    load4_transposed(w, (b_rows ^ ((j & 2) << 4)) + (j >> 2) * (H * O * 64) + h * O * 64 + s * 1024);
                    multiply(dm[j], m, w[0], w[1]);
                    multiply(dm[j + 1], m, w[2], w[3]);
                }
            }
#pragma unroll
            for (u32 s = 0; s < 4; ++s) {
                u32 m[2][4];
#pragma unroll
                for (u32 i = 0; i < 2; ++i) load4_transposed(m[i], at + ((dy_columns ^ (i << 5)) + s * 2048));
#pragma unroll
                for (u32 j = 0; j < R / 8; j += 2) {
                    u32 w[4];
                    load4_transposed(w, mid_tile + ((mid_rows ^ ((j & 2) << 4)) + (j >> 2) * 4096 + s * 1024));
#pragma unroll
                    for (u32 i = 0; i < 2; ++i) {
                        multiply(db[h][i][j], m[i], w[0], w[1]);
                        multiply(db[h][i][j + 1], m[i], w[2], w[3]);
                    }
                }
            }
        }
        if (!SPLIT) {
            finish(tile);
        } else if (wk == 1) {
            // The steps' barriers keep this from overtaking the reading of the tile before.
#pragma unroll
            for (u32 j = 0; j < NT; ++j)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) *place(j, e) = make_float2(dm[j][2 * e], dm[j][2 * e + 1]);
        }
    }
    if (SPLIT) {
        __syncthreads();
        finish((steps - 1) / H);
    }
#pragma unroll
    for (u32 h = 0; h < H; ++h)
#pragma unroll
        for (u32 i = 0; i < 2; ++i)
#pragma unroll
            for (u32 j = 0; j < R / 8; ++j)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    u32 o = first_out + h * O + 32 * warp + 16 * i + 8 * e + (lane >> 2), c = 8 * j + 2 * (lane & 3);
                    if (o < outs && c < rank)
                        *(float2*)(part_b + ((u64)blockIdx.y * total + before + o) * rank + c) =
                            make_float2(db[h][i][j][2 * e], db[h][i][j][2 * e + 1]);
                }
}
#define BACKWARD(name, R, H, STAGES)                                                                                                                \
    name(const u16* __restrict__ dy, u32 dy_stride, const u16* __restrict__ mid, u32 mid_stride, u32 n, u32 rank, u32 run, u32 out0, u32 out1,\
         u32 out2, u32 mid0, u32 mid1, u32 mid2, u32 dy0, u32 dy1, u32 dy2, const u16* b0, const u16* b1, const u16* b2, u32 stride0,        \
         u32 stride1, u32 stride2, float* __restrict__ part_mid, float* __restrict__ part_b) {                                               \
        Members members = {{out0, out1, out2}, {mid0, mid1, mid2}, {dy0, dy1, dy2}, {stride0, stride1, stride2}, {b0, b1, b2}};              \
        backward_body<R, H, STAGES>(dy, dy_stride, mid, mid_stride, n, rank, run, members, part_mid, part_b);                                        \
    }
extern "C" __global__ void __launch_bounds__(256, 2) BACKWARD(lora_backward_32_2, 32, 2, 2)
extern "C" __global__ void __launch_bounds__(256, 2) BACKWARD(lora_backward_32_1, 32, 1, 2)
extern "C" __global__ void __launch_bounds__(256, 2) BACKWARD(lora_backward_64_1, 64, 1, 2)
extern "C" __global__ void __launch_bounds__(256, 1) BACKWARD(lora_backward_32_2_deep, 32, 2, 3)

// The second launch of the backward, four values a thread: first dmid of each member, then dB. `per` is the outputs of a block.
extern "C" __global__ void __launch_bounds__(256) lora_backward_sum(
    const float* __restrict__ part_mid, const float* __restrict__ part_b, u32 n, u32 rank, u32 per, u32 runs, u32 out0, u32 out1, u32 out2,
    u16* dmid, u32 dmid_stride, u32 mid0, u32 mid1, u32 mid2, float* db0, float* db1, float* db2, u32 db_stride, float scale0, float scale1,
    float scale2, u32 members) {
    wait_for_inputs();
    let_next_start();
    u64 i = 4 * ((u64)blockIdx.x * 256 + threadIdx.x), rows = (u64)n * rank;
    u64 mids = rows * members;
    if (i < mids) {
        u32 member = (u32)(i / rows), first = (out0 + per - 1) / per, second = (out1 + per - 1) / per, third = (out2 + per - 1) / per;
        i -= member * rows;
        u32 skip = member == 0 ? 0 : member == 1 ? first : first + second, count = member == 0 ? first : member == 1 ? second : third;
        float4 sum = sum_slices(part_mid + skip * rows + i, count, rows);
        u32 column = member == 0 ? mid0 : member == 1 ? mid1 : mid2;
        *(uint2*)(dmid + i / rank * dmid_stride + column + i % rank) = make_uint2(pack2(sum.x, sum.y), pack2(sum.z, sum.w));
        return;
    }
    i -= mids;
    u64 size = (u64)(out0 + out1 + out2) * rank;
    if (i >= size) return;
    float4 sum = sum_slices(part_b + i, runs, size);
    float* db = db0;
    float scale = scale0;
    u32 row = (u32)(i / rank);
    if (row >= out0) {
        row -= out0; db = db1; scale = scale1;
        if (row >= out1) { row -= out1; db = db2; scale = scale2; }
    }
    float4* at = (float4*)(db + (u64)row * db_stride + i % rank);
    float4 v = *at;
    v.x = fmaf(scale, sum.x, v.x); v.y = fmaf(scale, sum.y, v.y); v.z = fmaf(scale, sum.z, v.z); v.w = fmaf(scale, sum.w, v.w);
    *at = v;
}
