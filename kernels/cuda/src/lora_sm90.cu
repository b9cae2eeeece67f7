// The thin products of adapters for Hopper: see lora_gemm.cu and lora_backward.cu for what is computed. Here warpgroups multiply straight from shared
// memory, where a long matrix lies in blocks of 64 columns (128-byte swizzle) and a thin one in blocks of 32 (64-byte swizzle): each value of the long one
// is loaded once, and nothing but copies is left for the threads to do. A tile is 128 rows (tokens) of 128 columns, 32 KB.
//
// Sums over runs of tokens (dA) or slices of the width (mid) are those of a cluster: its blocks leave theirs in shared memory and each adds up a share of
// them in the order of the blocks.
#define TILE 32768
#define ROWS 128

// An operand's descriptor. In a cluster a shared address has the block's number above the 18 bits of the place.
static __device__ __forceinline__ u32 place_of(u32 at, u32 block = 16) { return operand(at & 0x3ffff, block); }

// d[64 x N] (+)= a b, both in shared memory; a: 128-byte swizzle, TA: summed over rows. TB: b is summed over rows, blocks of 32 columns; else rows of 128
// bytes.
#define THIN_ASM(n, acc, pa, pb, pc, pt, high)                                                                                               \
    "{\n.reg .pred p;\n.reg .b64 a, b;\nmov.b64 a, {" pa ", 0x40000040};\nmov.b64 b, {" pb ", " high "};\nsetp.ne.b32 p, " pc ", 0;\n"        \
    "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" acc "}, a, b, p, 1, 1, " pt ";\n}"
#define L16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define L32 L16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define L48 L32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define L64 L48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ACC16(d, i) ACC8(d, i), ACC8(d, i + 8)
#define THIN(N, A, LIST, PA, PB, PC, PT0, PT1, ...)                                                                                          \
    template <int TA, int TB>                                                                                                                \
    static __device__ __forceinline__ void thin(float (&d)[A], u32 a, u32 b, int add) {                                                      \
        if (TB)                                                                                                                              \
            asm volatile(THIN_ASM(N, LIST, PA, PB, PC, PT0 ", " PT1, "0x80000020")                                                            \
                         : __VA_ARGS__ : "r"(a), "r"(b), "r"(add), "n"(TA), "n"(TB));                                                        \
        else                                                                                                                                 \
            asm volatile(THIN_ASM(N, LIST, PA, PB, PC, PT0 ", " PT1, "0x40000040")                                                            \
                         : __VA_ARGS__ : "r"(a), "r"(b), "r"(add), "n"(TA), "n"(TB));                                                        \
    }
THIN("32", 16, L16, "%16", "%17", "%18", "%19", "%20", ACC16(d, 0))
THIN("64", 32, L32, "%32", "%33", "%34", "%35", "%36", ACC32(d, 0))
THIN("96", 48, L48, "%48", "%49", "%50", "%51", "%52", ACC32(d, 0), ACC16(d, 32))
THIN("128", 64, L64, "%64", "%65", "%66", "%67", "%68", ACC32(d, 0), ACC32(d, 32))

// R columns of 128 rows of a thin matrix, in blocks of 32.
template <int R>
static __device__ __forceinline__ void load_thin(u32 to, const Map& map, int column, int row, u32 bar) {
#pragma unroll
    for (int p = 0; p < R / 32; ++p) load_box(to + p * ROWS * 64, map, column + 32 * p, row, bar);
}
// One barrier for each stage, which a thread fills by what it loads. The rest of a block joins in the barrier that follows.
template <int STAGES>
static __device__ __forceinline__ void barriers(u32 at) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) barrier_init(at + 8 * i, 1);
        barriers_ready();
    }
}
// COUNT rows of up to R columns of a thin matrix, in blocks of 32.
template <u32 R, u32 COUNT>
static __device__ __forceinline__ void fetch_thin(u32 to, const u16* __restrict__ m, u32 stride, u32 row, u32 last, u32 rank) {
#pragma unroll
    for (u32 i = 0; i < COUNT * R / 8 / 256; ++i) {
        u32 v = threadIdx.x + 256 * i, r = v / (R / 8), c = v % (R / 8);
        bool there = row + r < last && 8 * c < rank;
        copy16(to + panel32(COUNT, r, c), m + (there ? (u64)(row + r) * stride + 8 * c : 0), there);
    }
}
template <int N>
static __device__ __forceinline__ void clear(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) d[i] = 0.0f;
}

// --- the backward over dy --------------------------------------------------------------------------------------------------------------
//
// A block takes H times 128 of a member's outputs and a run of tokens; sums of dmid over its outputs and of dB over its tokens are partial, as in
// lora_backward.cu.
#define MEMBERS 3
struct Members {
    u32 out[MEMBERS], mid[MEMBERS], dy[MEMBERS], b_stride[MEMBERS];
    const u16* b[MEMBERS];
};

template <int R, int H, int STAGES>
static __device__ __forceinline__ void backward_body(
    const Map& dy, const Map& mid, u32 n, u32 rank, const Members& members, float* __restrict__ part_mid, float* __restrict__ part_b) {
    constexpr u32 OUTS = H * 128, B_BYTES = OUTS * R * 2, MID_BYTES = ROWS * R * 2, MIDS = B_BYTES + STAGES * TILE;
    constexpr u32 BARS = MIDS + 2 * MID_BYTES;
    static_assert(H >= STAGES, "two tiles of mid serve stages of one tile of tokens and the next");
    extern __shared__ u8 memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u, lane = threadIdx.x & 31, crew = warpgroup();
    u32 block = blockIdx.x, outs = members.out[0], before = 0, total = members.out[0] + members.out[1] + members.out[2];
    const u16* b = members.b[0];
    u32 b_stride = members.b_stride[0], mid_at = members.mid[0], dy_at = members.dy[0];
#pragma unroll
    for (int i = 1; i < MEMBERS; ++i) {
        u32 blocks = (outs + OUTS - 1) / OUTS;
        if (block >= blocks && members.out[i] > 0) {
            block -= blocks;
            before += outs;
            outs = members.out[i];
            b = members.b[i]; b_stride = members.b_stride[i]; mid_at = members.mid[i]; dy_at = members.dy[i];
        } else {
            break;
        }
    }
    // Runs take turns in the tiles of tokens, from the last one down: what was written last may still be in the second-level cache.
    const u32 first_out = block * OUTS, all = (n + ROWS - 1) / ROWS, tiles = (all - blockIdx.y + gridDim.y - 1) / gridDim.y;
    auto first_row = [&](u32 tile) { return (all - 1 - blockIdx.y - tile * gridDim.y) * ROWS; };
    barriers<STAGES>(base + BARS);
    wait_for_inputs();
    let_next_start();

    auto fetch = [&](u32 step) {
        u32 tile = step / H, h = step % H, bar = base + BARS + 8 * (step % STAGES);
        if (threadIdx.x == 0 && tile < tiles) {
            arrive_expect(bar, h == 0 ? TILE + MID_BYTES : TILE);
            load_rows<ROWS>(base + B_BYTES + step % STAGES * TILE, dy, dy_at + first_out + h * 128, first_row(tile), bar);
            if (h == 0) load_thin<R>(base + MIDS + (tile & 1) * MID_BYTES, mid, mid_at, first_row(tile), bar);
        }
    };
    fetch_thin<R, OUTS>(base, b, b_stride, first_out, outs, rank);
    copies_end();
    copies_wait<0>();
    fence_async();
    __syncthreads();
    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);

    float db[H][R / 2], dm[R / 2];
#pragma unroll
    for (int h = 0; h < H; ++h) clear(db[h]);
    clear(dm);
    for (u32 tile = 0; tile < tiles; ++tile) {
#pragma unroll
        for (u32 h = 0; h < H; ++h) {
            const u32 step = tile * H + h;
            wait(base + BARS + 8 * (step % STAGES), step / STAGES & 1);
            products_wait<0>();
            __syncthreads();
            fetch(step + STAGES - 1);
            // Rows of this warpgroup for dmid, its block of 64 columns for dB.
            const u32 at = base + B_BYTES + (STAGES == 2 || STAGES == 4 ? h % STAGES : step % STAGES) * TILE;
            const u32 dy_rows = place_of(at + crew * 8192), dy_columns = place_of(at + crew * 16384);
            const u32 b_rows = place_of(base + h * 128 * 64, OUTS * 64), mid_rows = place_of(base + MIDS + (tile & 1) * MID_BYTES, ROWS * 64);
            products_begin();
#pragma unroll
            for (u32 s = 0; s < 8; ++s) thin<0, 1>(dm, dy_rows + STEP((s >> 2) * 16384 + (s & 3) * 32), b_rows + STEP(s * 1024), h + s > 0);
#pragma unroll
            for (u32 s = 0; s < 8; ++s) thin<1, 1>(db[h], dy_columns + STEP(s * 2048), mid_rows + STEP(s * 1024), 1);
            products_commit();
        }
        products_wait<0>();
        settled(dm);
#pragma unroll
        for (u32 j = 0; j < R / 8; ++j)
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                u32 token = first_row(tile) + 16 * (threadIdx.x >> 5) + 8 * e + (lane >> 2), c = 8 * j + 2 * (lane & 3);
                if (token < n && c < rank)
                    *(float2*)(part_mid + ((u64)blockIdx.x * n + token) * rank + c) = make_float2(dm[4 * j + 2 * e], dm[4 * j + 2 * e + 1]);
            }
    }
#pragma unroll
    for (u32 h = 0; h < H; ++h) {
        settled(db[h]);
#pragma unroll
        for (u32 j = 0; j < R / 8; ++j)
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                u32 o = first_out + h * 128 + 16 * (threadIdx.x >> 5) + 8 * e + (lane >> 2), c = 8 * j + 2 * (lane & 3);
                if (o < outs && c < rank)
                    *(float2*)(part_b + ((u64)blockIdx.y * total + before + o) * rank + c) =
                        make_float2(db[h][4 * j + 2 * e], db[h][4 * j + 2 * e + 1]);
            }
    }
}
#define BACKWARD(name, R, H, STAGES)                                                                                                         \
    name(const __grid_constant__ Map dy, const __grid_constant__ Map mid, u32 n, u32 rank, u32 out0, u32 out1, u32 out2, u32 mid0, u32 mid1, \
         u32 mid2, u32 dy0, u32 dy1, u32 dy2, const u16* b0, const u16* b1, const u16* b2, u32 stride0, u32 stride1, u32 stride2,            \
         float* __restrict__ part_mid, float* __restrict__ part_b) {                                                                         \
        Members members = {{out0, out1, out2}, {mid0, mid1, mid2}, {dy0, dy1, dy2}, {stride0, stride1, stride2}, {b0, b1, b2}};              \
        backward_body<R, H, STAGES>(dy, mid, n, rank, members, part_mid, part_b);                                                            \
    }
extern "C" __global__ void __launch_bounds__(256, 1) BACKWARD(lora_backward_sm90_32_8, 32, 8, 4)
extern "C" __global__ void __launch_bounds__(256, 1) BACKWARD(lora_backward_sm90_32_4, 32, 4, 4)
extern "C" __global__ void __launch_bounds__(256, 1) BACKWARD(lora_backward_sm90_64_4, 64, 4, 4)

// --- sums over a cluster ---------------------------------------------------------------------------------------------------------------
static __device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
static __device__ __forceinline__ u32 cluster_rank() {
    u32 r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
static __device__ __forceinline__ u32 cluster_blocks() {
    u32 r;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
    return r;
}
// Four values of a block of the cluster at the place `at` of one's own shared memory.
static __device__ __forceinline__ float4 load_far(u32 at, u32 rank) {
    float4 v;
    asm volatile("{\n.reg .u32 p;\nmapa.shared::cluster.u32 p, %4, %5;\nld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [p];\n}"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at), "r"(rank) : "memory");
    return v;
}
static __device__ __forceinline__ float4 sum_far(u32 at, u32 blocks) {
    float4 sum = load_far(at, 0);
    for (u32 i = 1; i < blocks; ++i) {
        float4 v = load_far(at, i);
        sum.x += v.x; sum.y += v.y; sum.z += v.z; sum.w += v.w;
    }
    return sum;
}
static __device__ __forceinline__ void put(u32 at, float v) { asm volatile("st.shared.f32 [%0], %1;" :: "r"(at), "f"(v) : "memory"); }

// --- dA [R, K] += dmid^T [R, n] x [n, K], all members at once -----------------------------------------------------------------------------
//
// A block takes 128 columns of x; the blocks of a cluster (along y) take turns in the tiles of tokens.
template <int R, int STAGES>
static __device__ __forceinline__ void da_body(
    const Map& dmid, const Map& x, u32 n, u32 width, u32 rank0, u32 rank1, u32 rank2, float* da0, float* da1, float* da2) {
    constexpr u32 STAGE = TILE + ROWS * R * 2, LINE = 132, BARS = STAGES * STAGE;
    extern __shared__ u8 memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u, lane = threadIdx.x & 31, crew = warpgroup(), rank = rank0 + rank1 + rank2;
    const u32 c0 = blockIdx.x * 128, all = (n + ROWS - 1) / ROWS, tiles = all > blockIdx.y ? (all - blockIdx.y + gridDim.y - 1) / gridDim.y : 0;
    barriers<STAGES>(base + BARS);
    __syncthreads();
    wait_for_inputs();
    let_next_start();
    auto fetch = [&](u32 tile) {
        if (threadIdx.x == 0 && tile < tiles) {
            const u32 at = base + tile % STAGES * STAGE, row = (all - 1 - blockIdx.y - tile * gridDim.y) * ROWS, bar = base + BARS + 8 * (tile % STAGES);
            arrive_expect(bar, STAGE);
            load_rows<ROWS>(at, x, c0, row, bar);
            load_thin<R>(at + TILE, dmid, 0, row, bar);
        }
    };
    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);
    float sums[R / 2];
    clear(sums);
    for (u32 tile = 0; tile < tiles; ++tile) {
        wait(base + BARS + 8 * (tile % STAGES), tile / STAGES & 1);
        products_wait<0>();
        __syncthreads();
        fetch(tile + STAGES - 1);
        const u32 at = base + tile % STAGES * STAGE, columns = place_of(at + crew * 16384), rows = place_of(at + TILE, ROWS * 64);
        products_begin();
#pragma unroll
        for (u32 s = 0; s < 8; ++s) thin<1, 1>(sums, columns + STEP(s * 2048), rows + STEP(s * 1024), 1);
        products_commit();
    }
    products_wait<0>();
    settled(sums);
    __syncthreads();
#pragma unroll
    for (u32 j = 0; j < R / 8; ++j)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            u32 c = 16 * (threadIdx.x >> 5) + 8 * (e >> 1) + (lane >> 2), r = 8 * j + 2 * (lane & 3) + (e & 1);
            put(base + 4 * (r * LINE + c), sums[4 * j + e]);
        }
    cluster_sync();
    const u32 blocks = cluster_blocks(), share = (rank + blocks - 1) / blocks, from = cluster_rank() * share, to = min(rank, from + share);
    for (u32 i = from * 32 + threadIdx.x; i < to * 32; i += 256) {
        u32 r = i >> 5, c = 4 * (i & 31);
        if (c0 + c >= width) continue;
        float4 sum = sum_far(base + 4 * (r * LINE + c), blocks);
        float* da = da0;
        if (r >= rank0) {
            r -= rank0; da = da1;
            if (r >= rank1) { r -= rank1; da = da2; }
        }
        float4* at = (float4*)(da + (u64)r * width + c0 + c);
        float4 v = *at;
        v.x += sum.x; v.y += sum.y; v.z += sum.z; v.w += sum.w;
        *at = v;
    }
    cluster_sync();
}
#define DA(name, R, STAGES)                                                                                                                  \
    name(const __grid_constant__ Map dmid, const __grid_constant__ Map x, u32 n, u32 width, u32 rank0, u32 rank1, u32 rank2, float* da0,     \
         float* da1, float* da2) {                                                                                                           \
        da_body<R, STAGES>(dmid, x, n, width, rank0, rank1, rank2, da0, da1, da2);                                                           \
    }
extern "C" __global__ void __launch_bounds__(256, 1) DA(lora_da_sm90_32, 32, 5)
extern "C" __global__ void __launch_bounds__(256, 1) DA(lora_da_sm90_64, 64, 4)
extern "C" __global__ void __launch_bounds__(256, 1) DA(lora_da_sm90_96, 96, 4)
extern "C" __global__ void __launch_bounds__(256, 1) DA(lora_da_sm90_128, 128, 3)

// --- mid [n, R] = x [n, K] A[R, K]^T -----------------------------------------------------------------------------------------------------
//
// A block takes 128 tokens and a slice of K, a cluster (along y) all slices.
template <int R, int STAGES>
static __device__ __forceinline__ void mid_body(
    const Map& x, const Map& a, u32 n, u32 width, u32 rank, u32 slice, u16* __restrict__ out, u32 out_stride) {
    constexpr u32 STAGE = TILE + R * 128 * 2, LINE = R + 4, BARS = STAGES * STAGE;
    extern __shared__ u8 memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u, lane = threadIdx.x & 31, crew = warpgroup();
    const u32 row = blockIdx.x * ROWS, from = min(width, blockIdx.y * slice), to = min(width, from + slice), tiles = (to - from + 127) / 128;
    barriers<STAGES>(base + BARS);
    __syncthreads();
    wait_for_inputs();
    let_next_start();
    auto fetch = [&](u32 tile) {
        if (threadIdx.x == 0 && tile < tiles) {
            const u32 at = base + tile % STAGES * STAGE, k = from + tile * 128, bar = base + BARS + 8 * (tile % STAGES);
            arrive_expect(bar, STAGE);
            load_rows<ROWS>(at, x, k, row, bar);
            load_box(at + TILE, a, k, 0, bar);
            load_box(at + TILE + R * 128, a, k + 64, 0, bar);
        }
    };
    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);
    float sums[R / 2];
    clear(sums);
    for (u32 tile = 0; tile < tiles; ++tile) {
        wait(base + BARS + 8 * (tile % STAGES), tile / STAGES & 1);
        products_wait<0>();
        __syncthreads();
        fetch(tile + STAGES - 1);
        const u32 at = base + tile % STAGES * STAGE, rows = place_of(at + crew * 8192), ranks = place_of(at + TILE);
        products_begin();
#pragma unroll
        for (u32 s = 0; s < 8; ++s)
            thin<0, 0>(sums, rows + STEP((s >> 2) * 16384 + (s & 3) * 32), ranks + STEP((s >> 2) * (R * 128) + (s & 3) * 32), 1);
        products_commit();
    }
    products_wait<0>();
    settled(sums);
    __syncthreads();
#pragma unroll
    for (u32 j = 0; j < R / 8; ++j)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            u32 t = 16 * (threadIdx.x >> 5) + 8 * (e >> 1) + (lane >> 2), r = 8 * j + 2 * (lane & 3) + (e & 1);
            put(base + 4 * (t * LINE + r), sums[4 * j + e]);
        }
    cluster_sync();
    const u32 blocks = cluster_blocks(), share = ROWS / blocks, first = cluster_rank() * share, vectors = rank / 4;
    for (u32 i = threadIdx.x; i < share * vectors; i += 256) {
        u32 t = first + i / vectors, c = 4 * (i % vectors);
        if (row + t >= n) break;
        float4 sum = sum_far(base + 4 * (t * LINE + c), blocks);
        *(uint2*)(out + (u64)(row + t) * out_stride + c) = make_uint2(pack2(sum.x, sum.y), pack2(sum.z, sum.w));
    }
    cluster_sync();
}
#define MID(name, R, STAGES)                                                                                                                 \
    name(const __grid_constant__ Map x, const __grid_constant__ Map a, u32 n, u32 width, u32 rank, u32 slice, u16* __restrict__ out,         \
         u32 out_stride) {                                                                                                                   \
        mid_body<R, STAGES>(x, a, n, width, rank, slice, out, out_stride);                                                                   \
    }
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_sm90_32, 32, 5)
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_sm90_64, 64, 4)
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_sm90_96, 96, 4)
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_sm90_128, 128, 3)
