// Hopper's own instructions (sm_90a): barriers in shared memory, the bulk copy engine, and matrix products by warpgroups of 128 threads
// (`wgmma`). The common part of the Hopper attention kernels.
//
// Matrices in shared memory are blocks of 64 bf16 columns, rows of 128 bytes, with the copy engine's 128-byte swizzle: the 16-byte chunk
// c of row r lies at chunk c ^ (r & 7). A block begins at a multiple of 1024 bytes.

// A tile of work: rows `start..` of the sequence that begins at row `first` and has `len` rows.
struct Tile { u32 first, len, start, unused; };
struct __align__(128) Map { u8 bytes[128]; };

#define NEGATIVE_INFINITY __int_as_float(0xff800000)
#define POSITIVE_INFINITY __int_as_float(0x7f800000)

static __device__ __forceinline__ float power2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// --- barriers ---------------------------------------------------------------------------------------------------------------------------
static __device__ __forceinline__ void barrier_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(count) : "memory");
}
static __device__ __forceinline__ void barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
}
static __device__ __forceinline__ void arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory"); }
static __device__ __forceinline__ void arrive(u32 bar, u32 count) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(count) : "memory");
}
static __device__ __forceinline__ void arrive_expect(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
}
static __device__ __forceinline__ void wait(u32 bar, u32 parity) {
    u32 done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(done) :
            "r"(bar), "r"(parity) : "memory");
    } while (!done);
}
// What ordinary stores wrote to shared memory becomes visible to the tensor cores and the copy engine.
static __device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
static __device__ __forceinline__ void group_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}
static __device__ __forceinline__ void group_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

// --- the copy engine --------------------------------------------------------------------------------------------------------------------
// 64 rows of 64 columns from (column, row).
static __device__ __forceinline__ void load_box(u32 to, const Map& map, int column, int row, u32 bar) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 :: "r"(to), "l"(&map), "r"(column), "r"(row), "r"(bar) : "memory");
}
// ROWS rows of 128 columns: two blocks.
template <int ROWS>
static __device__ __forceinline__ void load_rows(u32 to, const Map& map, int column, int row, u32 bar) {
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int r = 0; r < ROWS; r += 64) load_box(to + b * ROWS * 128 + r * 128, map, column + 64 * b, row + r, bar);
}

// --- products by a warpgroup ------------------------------------------------------------------------------------------------------------
static __device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
static __device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }
// The compiler must not move uses of an accumulator over the wait before this.
template <int N>
static __device__ __forceinline__ void settled(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i]) :: "memory");
}
// Describes an operand: the lower half of a descriptor, which steps are added to; the upper half is the same for all. Summed over columns
// (rows are outputs): groups of eight rows lie 1024 bytes apart, a step of 16 is 32 bytes on. Summed over rows (columns are outputs):
// groups of eight rows as before, a step of 16 is 2048 bytes on, and blocks of 64 outputs lie `block` apart.
static __device__ __forceinline__ u32 operand(u32 at, u32 block = 16) { return at >> 4 | (block >> 4) << 16; }
#define STEP(bytes) ((bytes) >> 4)
// Warpgroup of the thread, as a value that the compiler knows to be the same in a warp: descriptors then stay in uniform registers.
static __device__ __forceinline__ int same(int v) { return __shfl_sync(0xffffffffu, v, 0); }
static __device__ __forceinline__ int warpgroup() { return same(threadIdx.x >> 7); }
#define ACC8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
    "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define ACC32(d, i) ACC8(d, i), ACC8(d, i + 8), ACC8(d, i + 16), ACC8(d, i + 24)
// d[64 x 64] (+)= a b, both in shared memory; TA, TB: summed over rows.
template <int TA, int TB>
static __device__ __forceinline__ void product_64(float (&d)[32], u32 a, u32 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 a, b;\nmov.b64 a, {%32, 0x40000040};\nmov.b64 b, {%33, 0x40000040};\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, a, b, p, 1, 1, %35, %36;\n}"
        : ACC32(d, 0)
        : "r"(a), "r"(b), "r"(add), "n"(TA), "n"(TB));
}
// d[64 x 128] (+)= a b, both in shared memory; TA, TB: summed over rows.
template <int TA, int TB>
static __device__ __forceinline__ void product_128(float (&d)[64], u32 a, u32 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 a, b;\nmov.b64 a, {%64, 0x40000040};\nmov.b64 b, {%65, 0x40000040};\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, a, b, p, 1, 1, %67, %68;\n}"
        : ACC32(d, 0), ACC32(d, 32)
        : "r"(a), "r"(b), "r"(add), "n"(TA), "n"(TB));
}
// The same with the left operand in registers, as an accumulator of the same rows lies in them once rounded.
template <int TB>
static __device__ __forceinline__ void product_128(float (&d)[64], const u32* a, u32 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 b;\nmov.b64 b, {%68, 0x40000040};\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, b, p, 1, 1, %70;\n}"
        : ACC32(d, 0), ACC32(d, 32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(add), "n"(TB));
}

// Turns what four neighbouring lanes hold of a row in pairs of columns into 16 bytes to a lane: lane q gets block q's pairs in order.
static __device__ __forceinline__ uint4 gather_block(u32 v0, u32 v1, u32 v2, u32 v3) {
    const int lane = threadIdx.x;
    u32 r;
    r = __shfl_xor_sync(0xffffffffu, lane & 1 ? v0 : v1, 1);
    if (lane & 1) v0 = r; else v1 = r;
    r = __shfl_xor_sync(0xffffffffu, lane & 1 ? v2 : v3, 1);
    if (lane & 1) v2 = r; else v3 = r;
    r = __shfl_xor_sync(0xffffffffu, lane & 2 ? v0 : v2, 2);
    if (lane & 2) v0 = r; else v2 = r;
    r = __shfl_xor_sync(0xffffffffu, lane & 2 ? v1 : v3, 2);
    if (lane & 2) v1 = r; else v3 = r;
    return make_uint4(v0, v1, v2, v3);
}
// Stores row g (h = 0) and row g + 8 (h = 1) of an accumulator of 64 rows, times a factor each, as bf16.
template <int N>
static __device__ __forceinline__ void store_rows(const float (&d)[N], int h, float factor, u16* row, bool there) {
    const int q = threadIdx.x & 3;
#pragma unroll
    for (int m = 0; m < N / 16; ++m) {
        u32 v[4];
#pragma unroll
        for (int b = 0; b < 4; ++b) v[b] = pack2(d[16 * m + 4 * b + 2 * h] * factor, d[16 * m + 4 * b + 2 * h + 1] * factor);
        uint4 block = gather_block(v[0], v[1], v[2], v[3]);
        if (there) ((uint4*)row)[4 * m + q] = block;
    }
}
