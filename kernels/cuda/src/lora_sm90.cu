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

// Rows `row..` (below `last`) and columns `col..` (below `width`) of a long matrix to a tile: a thread copies a vector of every 16th row.
static __device__ __forceinline__ void fetch_tile(u32 to, const u16* __restrict__ x, u32 stride, u32 row, u32 last, u32 col, u32 width) {
    const u32 r = threadIdx.x >> 4, c = threadIdx.x & 15;
    const bool inside = col + 8 * c < width;
    const u16* from = x + (u64)(row + r) * stride + col + 8 * c;
    to += panel64(ROWS, r, c);
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
        bool there = inside && row + r + 16 * i < last;
        copy16(to + 2048 * i, there ? from + (u64)(16 * i) * stride : x, there);
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
static __device__ __forceinline__ uint4 take(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}
static __device__ __forceinline__ void give(u32 at, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" :: "r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
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
    const u16* __restrict__ dy, u32 dy_stride, const u16* __restrict__ mid, u32 mid_stride, u32 n, u32 rank, u32 run, const Members& members,
    float* __restrict__ part_mid, float* __restrict__ part_b) {
    constexpr u32 OUTS = H * 128, B_BYTES = OUTS * R * 2, MID_BYTES = ROWS * R * 2, MIDS = B_BYTES + STAGES * TILE;
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
    const u32 first_out = block * OUTS, first = blockIdx.y * run, last = min(n, first + run), tiles = (last - first + ROWS - 1) / ROWS;
    dy += dy_at;
    mid += mid_at;
    wait_for_inputs();
    let_next_start();

    auto fetch = [&](u32 step) {
        u32 tile = step / H, h = step % H;
        if (tile < tiles) {
            u32 row = first + tile * ROWS;
            fetch_tile(base + B_BYTES + step % STAGES * TILE, dy, dy_stride, row, last, first_out + h * 128, outs);
            if (h == 0) fetch_thin<R, ROWS>(base + MIDS + (tile & 1) * MID_BYTES, mid, mid_stride, row, last, rank);
        }
        copies_end();
    };
    fetch_thin<R, OUTS>(base, b, b_stride, first_out, outs, rank);
    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);

    float db[H][R / 2], dm[R / 2];
#pragma unroll
    for (int h = 0; h < H; ++h) clear(db[h]);
    clear(dm);
    for (u32 tile = 0; tile < tiles; ++tile) {
#pragma unroll
        for (u32 h = 0; h < H; ++h) {
            const u32 step = tile * H + h;
            copies_wait<STAGES - 2>();
            fence_async();
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
                u32 token = first + ROWS * tile + 16 * (threadIdx.x >> 5) + 8 * e + (lane >> 2), c = 8 * j + 2 * (lane & 3);
                if (token < last && c < rank)
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
    name(const u16* __restrict__ dy, u32 dy_stride, const u16* __restrict__ mid, u32 mid_stride, u32 n, u32 rank, u32 run, u32 out0, u32 out1,\
         u32 out2, u32 mid0, u32 mid1, u32 mid2, u32 dy0, u32 dy1, u32 dy2, const u16* b0, const u16* b1, const u16* b2, u32 stride0,        \
         u32 stride1, u32 stride2, float* __restrict__ part_mid, float* __restrict__ part_b) {                                               \
        Members members = {{out0, out1, out2}, {mid0, mid1, mid2}, {dy0, dy1, dy2}, {stride0, stride1, stride2}, {b0, b1, b2}};              \
        backward_body<R, H, STAGES>(dy, dy_stride, mid, mid_stride, n, rank, run, members, part_mid, part_b);                                \
    }
extern "C" __global__ void __launch_bounds__(256, 1) BACKWARD(lora_backward_sm90_32_8, 32, 8, 4)
extern "C" __global__ void __launch_bounds__(256, 1) BACKWARD(lora_backward_sm90_32_4, 32, 4, 4)
extern "C" __global__ void __launch_bounds__(256, 2) BACKWARD(lora_backward_sm90_32_4_pair, 32, 4, 2)
extern "C" __global__ void __launch_bounds__(256, 1) BACKWARD(lora_backward_sm90_64_4, 64, 4, 4)

// --- SwiGLU's backward and that of the adapters of gate and up ---------------------------------------------------------------------------
//
// The gradients of gate and up are made in shared memory, where the products take them, and leave in place of gate and up: nobody reads them for the adapters'
// sake. A block takes H times 128 columns of each and a run of tokens, 64 at a time; the first warpgroup multiplies gates, the second ups. A thread works on
// the vectors that it has copied itself. Partial sums are as in the backward over dy, with gate and up as members.
template <int R, int H, int STAGES>
static __device__ __forceinline__ void swiglu_body(
    const u16* __restrict__ dout, u32 dout_stride, u16* gate_up, u32 stride, u32 width, const u16* __restrict__ mid, u32 mid_stride, u32 n, u32 rank, u32 run,
    u32 mid0, u32 mid1, const u16* b0, const u16* b1, u32 stride0, u32 stride1, float* __restrict__ part_mid, float* __restrict__ part_b) {
    constexpr u32 COUNT = 64, PIECE = COUNT * 256, OUTS = H * 128, B_BYTES = OUTS * R * 2, MID_BYTES = COUNT * R * 2, STAGE = 3 * PIECE;
    constexpr u32 FIRST = 2 * B_BYTES, MIDS = FIRST + STAGES * STAGE;
    static_assert(H >= STAGES, "two tiles of mid serve stages of one tile of tokens and the next");
    extern __shared__ u8 memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u, lane = threadIdx.x & 31, crew = warpgroup();
    const u32 c0 = blockIdx.x * OUTS, first = blockIdx.y * run, last = min(n, first + run), tiles = (last - first + COUNT - 1) / COUNT;
    const u32 r = threadIdx.x >> 4, c = threadIdx.x & 15, place = panel64(COUNT, r, c);
    wait_for_inputs();
    let_next_start();

    auto fetch = [&](u32 step) {
        u32 tile = step / H, h = step % H;
        if (tile < tiles) {
            const u32 row = first + tile * COUNT, col = c0 + h * 128 + 8 * c, to = base + FIRST + step % STAGES * STAGE + place;
            const bool inside = col < width;
            const u16* d = dout + (u64)(row + r) * dout_stride + col;
            const u16* g = gate_up + (u64)(row + r) * stride + col;
#pragma unroll
            for (u32 i = 0; i < COUNT / 16; ++i) {
                const bool there = inside && row + r + 16 * i < last;
                copy16(to + 2048 * i, there ? d + (u64)(16 * i) * dout_stride : dout, there);
                copy16(to + PIECE + 2048 * i, there ? g + (u64)(16 * i) * stride : gate_up, there);
                copy16(to + 2 * PIECE + 2048 * i, there ? g + (u64)(16 * i) * stride + width : gate_up, there);
            }
            if (h == 0) {
                const u32 at = base + MIDS + (tile & 1) * 2 * MID_BYTES;
                fetch_thin<R, COUNT>(at, mid + mid0, mid_stride, row, last, rank);
                fetch_thin<R, COUNT>(at + MID_BYTES, mid + mid1, mid_stride, row, last, rank);
            }
        }
        copies_end();
    };
    fetch_thin<R, OUTS>(base, b0, stride0, c0, width, rank);
    fetch_thin<R, OUTS>(base + B_BYTES, b1, stride1, c0, width, rank);
    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);

    float db[H][2][R / 2], dm[R / 2];
#pragma unroll
    for (int h = 0; h < H; ++h) {
        clear(db[h][0]);
        clear(db[h][1]);
    }
    clear(dm);
    for (u32 tile = 0; tile < tiles; ++tile) {
#pragma unroll
        for (u32 h = 0; h < H; ++h) {
            const u32 step = tile * H + h, stage = base + FIRST + step % STAGES * STAGE;
            copies_wait<STAGES - 2>();
            {
                const u32 row = first + tile * COUNT + r, col = c0 + h * 128 + 8 * c;
                u16* to = gate_up + (u64)row * stride + col;
#pragma unroll
                for (u32 i = 0; i < COUNT / 16; ++i) {
                    const u32 at = stage + place + 2048 * i;
                    float d[8], g[8], u[8];
                    unpack8(take(at), d);
                    unpack8(take(at + PIECE), g);
                    unpack8(take(at + 2 * PIECE), u);
                    backward8(g, u, d);
                    const uint4 dg = pack8(g), du = pack8(u);
                    give(at + PIECE, dg);
                    give(at + 2 * PIECE, du);
                    if (col < width && row + 16 * i < last) {
                        *(uint4*)(to + (u64)(16 * i) * stride) = dg;
                        *(uint4*)(to + (u64)(16 * i) * stride + width) = du;
                    }
                }
            }
            fence_async();
            products_wait<0>();
            __syncthreads();
            fetch(step + STAGES - 1);
            const u32 mine = place_of(stage + (1 + crew) * PIECE), mids = place_of(base + MIDS + ((tile & 1) * 2 + crew) * MID_BYTES, COUNT * 64);
            const u32 b_rows = place_of(base + crew * B_BYTES + h * 128 * 64, OUTS * 64);
            products_begin();
#pragma unroll
            for (u32 s = 0; s < 8; ++s) thin<0, 1>(dm, mine + STEP((s >> 2) * (COUNT * 128) + (s & 3) * 32), b_rows + STEP(s * 1024), h + s > 0);
#pragma unroll
            for (u32 q = 0; q < 2; ++q)
#pragma unroll
                for (u32 s = 0; s < COUNT / 16; ++s) thin<1, 1>(db[h][q], mine + STEP(q * (COUNT * 128) + s * 2048), mids + STEP(s * 1024), 1);
            products_commit();
        }
        products_wait<0>();
        settled(dm);
        const u64 slice = (u64)(crew * gridDim.x + blockIdx.x) * n;
#pragma unroll
        for (u32 j = 0; j < R / 8; ++j)
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                u32 token = first + COUNT * tile + 16 * ((threadIdx.x >> 5) & 3) + 8 * e + (lane >> 2), k = 8 * j + 2 * (lane & 3);
                if (token < last && k < rank)
                    *(float2*)(part_mid + (slice + token) * rank + k) = make_float2(dm[4 * j + 2 * e], dm[4 * j + 2 * e + 1]);
            }
    }
#pragma unroll
    for (u32 h = 0; h < H; ++h)
#pragma unroll
        for (u32 q = 0; q < 2; ++q) {
            settled(db[h][q]);
#pragma unroll
            for (u32 j = 0; j < R / 8; ++j)
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    u32 o = c0 + h * 128 + 64 * q + 16 * ((threadIdx.x >> 5) & 3) + 8 * e + (lane >> 2), k = 8 * j + 2 * (lane & 3);
                    if (o < width && k < rank)
                        *(float2*)(part_b + ((u64)blockIdx.y * 2 * width + crew * width + o) * rank + k) =
                            make_float2(db[h][q][4 * j + 2 * e], db[h][q][4 * j + 2 * e + 1]);
                }
        }
}
extern "C" __global__ void __launch_bounds__(256, 1) lora_backward_swiglu_sm90(
    const u16* __restrict__ dout, u32 dout_stride, u16* gate_up, u32 stride, u32 width, const u16* __restrict__ mid, u32 mid_stride, u32 n, u32 rank, u32 run,
    u32 mid0, u32 mid1, const u16* b0, const u16* b1, u32 stride0, u32 stride1, float* __restrict__ part_mid, float* __restrict__ part_b) {
    swiglu_body<32, 4, 3>(
        dout, dout_stride, gate_up, stride, width, mid, mid_stride, n, rank, run, mid0, mid1, b0, b1, stride0, stride1, part_mid, part_b);
}

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
// A block takes 128 columns of x and a run of tokens, a cluster (along y) all runs. `per`: tokens of a run.
template <int R, int STAGES>
static __device__ __forceinline__ void da_body(
    const u16* __restrict__ dmid, u32 dmid_stride, const u16* __restrict__ x, u32 x_stride, u32 n, u32 width, u32 per, u32 rank0, u32 rank1,
    u32 rank2, float* da0, float* da1, float* da2) {
    constexpr u32 STAGE = TILE + ROWS * R * 2, LINE = 132;
    extern __shared__ u8 memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u, lane = threadIdx.x & 31, crew = warpgroup(), rank = rank0 + rank1 + rank2;
    const u32 c0 = blockIdx.x * 128, first = min(n, blockIdx.y * per), last = min(n, first + per), tiles = (last - first + ROWS - 1) / ROWS;
    wait_for_inputs();
    let_next_start();
    auto fetch = [&](u32 tile) {
        if (tile < tiles) {
            u32 at = base + tile % STAGES * STAGE, row = first + tile * ROWS;
            fetch_tile(at, x, x_stride, row, last, c0, width);
            fetch_thin<R, ROWS>(at + TILE, dmid, dmid_stride, row, last, rank);
        }
        copies_end();
    };
    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);
    float sums[R / 2];
    clear(sums);
    for (u32 tile = 0; tile < tiles; ++tile) {
        copies_wait<STAGES - 2>();
        fence_async();
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
    copies_wait<0>();
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
    name(const u16* __restrict__ dmid, u32 dmid_stride, const u16* __restrict__ x, u32 x_stride, u32 n, u32 width, u32 per, u32 rank0,       \
         u32 rank1, u32 rank2, float* da0, float* da1, float* da2) {                                                                         \
        da_body<R, STAGES>(dmid, dmid_stride, x, x_stride, n, width, per, rank0, rank1, rank2, da0, da1, da2);                               \
    }
extern "C" __global__ void __launch_bounds__(256, 1) DA(lora_da_sm90_32, 32, 5)
extern "C" __global__ void __launch_bounds__(256, 2) DA(lora_da_sm90_32_pair, 32, 2)
extern "C" __global__ void __launch_bounds__(256, 1) DA(lora_da_sm90_64, 64, 4)
extern "C" __global__ void __launch_bounds__(256, 1) DA(lora_da_sm90_96, 96, 4)
extern "C" __global__ void __launch_bounds__(256, 1) DA(lora_da_sm90_128, 128, 3)

// --- mid [n, R] = x [n, K] A[R, K]^T -----------------------------------------------------------------------------------------------------
//
// A block takes 128 tokens and a slice of K, a cluster (along y) all slices.
template <int R, int STAGES>
static __device__ __forceinline__ void mid_body(
    const u16* __restrict__ x, u32 x_stride, u32 n, u32 width, const u16* __restrict__ a, u32 a_stride, u32 rank, u32 slice, u16* __restrict__ out,
    u32 out_stride) {
    constexpr u32 STAGE = TILE + R * 128 * 2, LINE = R + 4;
    extern __shared__ u8 memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u, lane = threadIdx.x & 31, crew = warpgroup();
    const u32 row = blockIdx.x * ROWS, from = min(width, blockIdx.y * slice), to = min(width, from + slice), tiles = (to - from + 127) / 128;
    wait_for_inputs();
    let_next_start();
    auto fetch = [&](u32 tile) {
        if (tile < tiles) {
            u32 at = base + tile % STAGES * STAGE, k = from + tile * 128;
            fetch_tile(at, x, x_stride, row, n, k, to);
            const u32 r = threadIdx.x >> 4, c = threadIdx.x & 15;
            const bool inside = k + 8 * c < to;
#pragma unroll
            for (u32 i = 0; i < R / 16; ++i) {
                bool there = inside && r + 16 * i < rank;
                copy16(at + TILE + panel64(R, r + 16 * i, c), there ? a + (u64)(r + 16 * i) * a_stride + k + 8 * c : a, there);
            }
        }
        copies_end();
    };
    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);
    float sums[R / 2];
    clear(sums);
    for (u32 tile = 0; tile < tiles; ++tile) {
        copies_wait<STAGES - 2>();
        fence_async();
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
    copies_wait<0>();
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
// --- SwiGLU and mid [n, R] of its result ------------------------------------------------------------------------------------------------
//
// As above, with x made on the way: a block takes 64 tokens, and its warpgroups halve each step of 64 columns. The result takes the place of the gates in shared
// memory, where the products find it, and leaves from there.
template <int R, int STAGES>
static __device__ __forceinline__ void swiglu_mid_body(
    const u16* __restrict__ gate_up, u32 stride, u32 n, u32 width, const u16* __restrict__ a, u32 a_stride, u32 rank, u32 slice, u16* __restrict__ act,
    u32 act_stride, u16* __restrict__ out, u32 out_stride) {
    constexpr u32 COUNT = 64, PIECE = COUNT * 128, STAGE = 2 * PIECE + R * 128, LINE = R + 4, SUMS = 4 * COUNT * LINE;
    static_assert(R == 32, "a thread copies one vector of A");
    extern __shared__ u8 memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u, lane = threadIdx.x & 31, crew = warpgroup();
    const u32 row = blockIdx.x * COUNT, from = min(width, blockIdx.y * slice), to = min(width, from + slice), tiles = (to - from + 63) / 64;
    const u32 r = threadIdx.x >> 3, c = threadIdx.x & 7, place = panel64(COUNT, r, c);
    wait_for_inputs();
    let_next_start();
    auto fetch = [&](u32 tile) {
        if (tile < tiles) {
            const u32 at = base + tile % STAGES * STAGE + place, k = from + tile * 64 + 8 * c;
            const u16* g = gate_up + (u64)(row + r) * stride + k;
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                const bool there = k < to && row + r + 32 * i < n;
                copy16(at + 4096 * i, there ? g + (u64)(32 * i) * stride : gate_up, there);
                copy16(at + PIECE + 4096 * i, there ? g + (u64)(32 * i) * stride + width : gate_up, there);
            }
            const bool there = k < to && r < rank;
            copy16(at + 2 * PIECE, there ? a + (u64)r * a_stride + k : a, there);
        }
        copies_end();
    };
    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);
    float sums[R / 2];
    clear(sums);
    for (u32 tile = 0; tile < tiles; ++tile) {
        const u32 stage = base + tile % STAGES * STAGE, k = from + tile * 64 + 8 * c;
        copies_wait<STAGES - 2>();
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            float g[8], u[8];
            unpack8(take(stage + place + 4096 * i), g);
            unpack8(take(stage + place + PIECE + 4096 * i), u);
#pragma unroll
            for (int j = 0; j < 8; ++j) g[j] = g[j] * sigmoid(g[j]) * u[j];
            const uint4 y = pack8(g);
            give(stage + place + 4096 * i, y);
            if (k < to && row + r + 32 * i < n) *(uint4*)(act + (u64)(row + r + 32 * i) * act_stride + k) = y;
        }
        fence_async();
        products_wait<0>();
        __syncthreads();
        fetch(tile + STAGES - 1);
        const u32 rows = place_of(stage + crew * 64), ranks = place_of(stage + 2 * PIECE + crew * 64);
        products_begin();
#pragma unroll
        for (u32 s = 0; s < 2; ++s) thin<0, 0>(sums, rows + STEP(s * 32), ranks + STEP(s * 32), 1);
        products_commit();
    }
    products_wait<0>();
    settled(sums);
    copies_wait<0>();
    __syncthreads();
#pragma unroll
    for (u32 j = 0; j < R / 8; ++j)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            u32 t = 16 * ((threadIdx.x >> 5) & 3) + 8 * (e >> 1) + (lane >> 2), q = 8 * j + 2 * (lane & 3) + (e & 1);
            put(base + crew * SUMS + 4 * (t * LINE + q), sums[4 * j + e]);
        }
    cluster_sync();
    const u32 blocks = cluster_blocks(), share = COUNT / blocks, first = cluster_rank() * share, vectors = rank / 4;
    for (u32 i = threadIdx.x; i < share * vectors; i += 256) {
        u32 t = first + i / vectors, q = 4 * (i % vectors);
        if (row + t >= n) break;
        float4 sum = sum_far(base + 4 * (t * LINE + q), blocks), more = sum_far(base + SUMS + 4 * (t * LINE + q), blocks);
        *(uint2*)(out + (u64)(row + t) * out_stride + q) = make_uint2(pack2(sum.x + more.x, sum.y + more.y), pack2(sum.z + more.z, sum.w + more.w));
    }
    cluster_sync();
}
extern "C" __global__ void __launch_bounds__(256, 2) swiglu_mid_sm90(
    const u16* __restrict__ gate_up, u32 stride, u32 n, u32 width, const u16* __restrict__ a, u32 a_stride, u32 rank, u32 slice, u16* __restrict__ act,
    u32 act_stride, u16* __restrict__ out, u32 out_stride) {
    swiglu_mid_body<32, 5>(gate_up, stride, n, width, a, a_stride, rank, slice, act, act_stride, out, out_stride);
}

#define MID(name, R, STAGES)                                                                                                                 \
    name(const u16* __restrict__ x, u32 x_stride, u32 n, u32 width, const u16* __restrict__ a, u32 a_stride, u32 rank, u32 slice,            \
         u16* __restrict__ out, u32 out_stride) {                                                                                            \
        mid_body<R, STAGES>(x, x_stride, n, width, a, a_stride, rank, slice, out, out_stride);                                               \
    }
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_sm90_32, 32, 5)
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_sm90_64, 64, 4)
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_sm90_96, 96, 4)
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_sm90_128, 128, 3)
