// The backward of adapters over dy, once: dmid [n, r] = dy [n, out] B[out, r] and dB [out, r] += scale dy^T [out, n] mid [n, r]
//
// A block takes H times 256 of a member's outputs and a run of tokens, 64 at a time. Each tile of dy in shared memory serves both products: read
// along outputs it is the left side of dmid (warps: four groups of 16 tokens, two halves of the ranks), read transposed that of dB (warps: 32
// outputs each, whose sums stay in registers over all of the block's tokens). dmid's sums over the block's outputs and dB's over its tokens are
// partial: [block of outputs][n][r] and [run of tokens][all outputs][r].
// With clusters (CLUSTER > 1, sm_90 and newer), dmid's sums of neighbouring blocks meet in shared memory first: each block leaves its sums of a tile,
// and one tile later adds its share of the tokens over the cluster, in the order of the blocks.
#define MEMBERS 3
struct Members {
    u32 out[MEMBERS], mid[MEMBERS], dy[MEMBERS], b_stride[MEMBERS];
    const u16* b[MEMBERS];
};

static __device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
static __device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
static __device__ __forceinline__ float2 load_from_block(u32 at, u32 block) {
    float2 v;
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %2, %3; ld.shared::cluster.v2.f32 {%0, %1}, [there]; }"
                 : "=f"(v.x), "=f"(v.y) : "r"(at), "r"(block) : "memory");
    return v;
}

template <int R, int H, int CLUSTER>
static __device__ __forceinline__ void backward_body(
    const u16* __restrict__ dy, u32 dy_stride, const u16* __restrict__ mid, u32 mid_stride, u32 n, u32 rank, u32 run, const Members& members,
    float* __restrict__ part_mid, float* __restrict__ part_b) {
    constexpr u32 O = 256, DY = 64 * O * 2, MID_BYTES = 64 * R * 2, B_BYTES = H * O * R * 2, NT = R / 16;
    extern __shared__ __align__(128) u8 memory[];
    const u32 base = shared_address(memory), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    // Which member, where its outputs begin among all, and this block's first.
    u32 block = blockIdx.x, outs = members.out[0], before = 0, total = members.out[0] + members.out[1] + members.out[2];
    const u16* b = members.b[0];
    u32 b_stride = members.b_stride[0], mid_at = members.mid[0], dy_at = members.dy[0];
#pragma unroll
    for (int i = 1; i < MEMBERS; ++i) {
        u32 blocks = (outs + H * O * CLUSTER - 1) / (H * O * CLUSTER) * CLUSTER;
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
            u32 t0 = first + step / H * 64, o0 = first_out + step % H * O, at = base + B_BYTES + (step & 1) * DY;
#pragma unroll
            for (u32 i = 0; i < 64 * O / 8 / 256; ++i) {
                u32 v = threadIdx.x + 256 * i, row = v / (O / 8), c = v % (O / 8);
                bool there = t0 + row < last && o0 + 8 * c < outs;
                copy16(at + panel64(64, row, c), dy + (there ? (u64)(t0 + row) * dy_stride + o0 + 8 * c : 0), there);
            }
            if (step % H == 0) {
                at = base + B_BYTES + 2 * DY + (step / H & 1) * MID_BYTES;
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
    const u32 wm = warp & 3, wn = warp >> 2;

    // Where a pair of sums lies: four rows of a fragment in different banks.
    constexpr u32 SUMS = B_BYTES + 2 * DY + 2 * MID_BYTES;
    auto place = [](u32 row, u32 c) { return 4 * (row * R + (c ^ ((row & 3) << 3))); };
    // Waits for the cluster's sums of a tile and adds this block's share of the tokens.
    auto gather = [&](u32 tile) {
        cluster_wait();
        constexpr u32 ROWS = 64 / CLUSTER;
        u32 rank_of_block = blockIdx.x % CLUSTER;
        for (u32 i = threadIdx.x; i < ROWS * R / 2; i += 256) {
            u32 row = rank_of_block * ROWS + i / (R / 2), c = i % (R / 2) * 2, token = first + 64 * tile + row;
            u32 from = base + SUMS + (tile & 1) * 64 * R * 4 + place(row, c);
            float2 sum = load_from_block(from, 0);
#pragma unroll
            for (u32 k = 1; k < CLUSTER; ++k) {
                float2 v = load_from_block(from, k);
                sum.x += v.x; sum.y += v.y;
            }
            if (token < last && c < rank) *(float2*)(part_mid + ((u64)(blockIdx.x / CLUSTER) * n + token) * rank + c) = sum;
        }
    };

    fetch(0);
    for (u32 tile = 0; tile * H < steps; ++tile) {
        float dm[NT][4];
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) dm[j][e] = 0.0f;
#pragma unroll
        for (u32 h = 0; h < H; ++h) {
            u32 step = tile * H + h;
            copies_wait<0>();
            __syncthreads();
            fetch(step + 1);
            u32 at = base + B_BYTES + (step & 1) * DY, mid_tile = base + B_BYTES + 2 * DY + (tile & 1) * MID_BYTES;
#pragma unroll 2
            for (u32 s = 0; s < O / 16; ++s) {
                u32 m[4];
                load4(m, at + panel64(64, 16 * wm + (lane & 15), 2 * s + (lane >> 4)));
#pragma unroll
                for (u32 j = 0; j < NT; j += 2) {
                    u32 w[4];
                    load4_transposed(w, base + panel32(H * O, h * O + 16 * s + (lane & 15), wn * (R / 16) + j + (lane >> 4)));
                    multiply(dm[j], m, w[0], w[1]);
                    multiply(dm[j + 1], m, w[2], w[3]);
                }
            }
#pragma unroll
            for (u32 s = 0; s < 4; ++s) {
                u32 m[2][4];
#pragma unroll
                for (u32 i = 0; i < 2; ++i)
                    load4_transposed(m[i], at + panel64(64, 16 * s + (lane & 7) + ((lane >> 4) << 3), 4 * warp + 2 * i + ((lane >> 3) & 1)));
#pragma unroll
                for (u32 j = 0; j < R / 8; j += 2) {
                    u32 w[4];
                    load4_transposed(w, mid_tile + panel32(64, 16 * s + (lane & 15), j + (lane >> 4)));
#pragma unroll
                    for (u32 i = 0; i < 2; ++i) {
                        multiply(db[h][i][j], m[i], w[0], w[1]);
                        multiply(db[h][i][j + 1], m[i], w[2], w[3]);
                    }
                }
            }
        }
        if (CLUSTER > 1 && tile > 0) gather(tile - 1);
#pragma unroll
        for (u32 j = 0; j < NT; ++j)
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                u32 row = 16 * wm + 8 * e + (lane >> 2), token = first + 64 * tile + row, c = wn * (R / 2) + 8 * j + 2 * (lane & 3);
                float2 v = make_float2(dm[j][2 * e], dm[j][2 * e + 1]);
                if (CLUSTER > 1)
                    *(float2*)(memory + SUMS + (tile & 1) * 64 * R * 4 + place(row, c)) = v;
                else if (token < last && c < rank)
                    *(float2*)(part_mid + ((u64)blockIdx.x * n + token) * rank + c) = v;
            }
        if (CLUSTER > 1) cluster_arrive();
    }
    if (CLUSTER > 1) {
        // No block may end while another reads its sums.
        gather((steps - 1) / H);
        cluster_arrive();
        cluster_wait();
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
#define BACKWARD(name, R, H, CLUSTER)                                                                                                               \
    name(const u16* __restrict__ dy, u32 dy_stride, const u16* __restrict__ mid, u32 mid_stride, u32 n, u32 rank, u32 run, u32 out0, u32 out1,\
         u32 out2, u32 mid0, u32 mid1, u32 mid2, u32 dy0, u32 dy1, u32 dy2, const u16* b0, const u16* b1, const u16* b2, u32 stride0,        \
         u32 stride1, u32 stride2, float* __restrict__ part_mid, float* __restrict__ part_b) {                                               \
        Members members = {{out0, out1, out2}, {mid0, mid1, mid2}, {dy0, dy1, dy2}, {stride0, stride1, stride2}, {b0, b1, b2}};              \
        backward_body<R, H, CLUSTER>(dy, dy_stride, mid, mid_stride, n, rank, run, members, part_mid, part_b);                               \
    }
