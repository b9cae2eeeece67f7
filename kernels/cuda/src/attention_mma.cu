// Tiles in shared memory and the tensor cores' `mma.sync`, as every card since Ampere has them: the common part of the portable attention
// kernels. A tile is `rows` rows of D values; its 16-byte chunks are permuted within the row so that eight rows' chunks of one column,
// which `ldmatrix` reads together, lie in different banks.

// A tile of work: rows `start..` of the sequence that begins at row `first` and has `len` rows.
struct Tile { u32 first, len, start, unused; };

template <int D>
static __device__ __forceinline__ u32 chunk_at(u32 base, int row, int chunk) {
    const int turn = D >= 64 ? (row & 7) : ((row >> 1) & 3);
    return base + (u32)(row * D * 2 + ((chunk ^ turn) << 4));
}
static __device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
static __device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
    // Zeros where there is no row: nothing is read then.
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(bytes) : "memory");
}
static __device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
static __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

// Rows `start..start + ROWS` of a sequence of `len` rows that begins at `from`, `stride` values apart; zeros past its end.
template <int D, int ROWS, int THREADS>
static __device__ __forceinline__ void load_tile(u32 to, const u16* __restrict__ from, u64 stride, int start, int len) {
    constexpr int CHUNKS = D / 8;
    // Not unrolled fully, or the addresses of all copies would be kept in registers.
#pragma unroll 2
    for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
        int c = threadIdx.x + i * THREADS, row = c / CHUNKS, chunk = c % CHUNKS;
        bool there = start + row < len;
        copy16(chunk_at<D>(to, row, chunk), from + (there ? (u64)(start + row) * stride + chunk * 8 : 0), there);
    }
}

static __device__ __forceinline__ void matrices(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) :
        "r"(at));
}
static __device__ __forceinline__ void matrices_transposed(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
        "=r"(r[3]) : "r"(at));
}
// Left operand: 16 rows from `row`, 16 columns from chunk `chunk`.
template <int D>
static __device__ __forceinline__ void left(u32 (&a)[4], u32 tile, int row, int chunk) {
    int lane = threadIdx.x & 31;
    matrices(a, chunk_at<D>(tile, row + (lane & 15), chunk + (lane >> 4)));
}
// Right operands of two neighbouring blocks of eight outputs: the tile's rows are the outputs, its columns are summed over.
template <int D>
static __device__ __forceinline__ void right_rows(u32 (&b)[4], u32 tile, int row, int chunk) {
    int lane = threadIdx.x & 31;
    matrices(b, chunk_at<D>(tile, row + (lane & 7) + ((lane >> 4) << 3), chunk + ((lane >> 3) & 1)));
}
// The same where the tile's columns are the outputs and 16 of its rows are summed over.
template <int D>
static __device__ __forceinline__ void right_columns(u32 (&b)[4], u32 tile, int row, int chunk) {
    int lane = threadIdx.x & 31;
    matrices_transposed(b, chunk_at<D>(tile, row + (lane & 15), chunk + (lane >> 4)));
}
static __device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c += 16 rows of `a` from `row` times 64 rows of `b`, over D columns.
template <int D>
static __device__ __forceinline__ void product_rows(float (&c)[8][4], u32 a_tile, int row, u32 b_tile) {
    // Not unrolled further: the backward for 128 values would run out of registers.
#pragma unroll 2
    for (int k = 0; k < D / 16; ++k) {
        u32 a[4];
        left<D>(a, a_tile, row, 2 * k);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            u32 b[4];
            right_rows<D>(b, b_tile, 16 * n, 2 * k);
            mma(c[2 * n], a, b[0], b[1]);
            mma(c[2 * n + 1], a, b[2], b[3]);
        }
    }
}
// c += p times the 64 rows of `b`; p is 16 x 64 as a product left it, rounded to bf16 here.
template <int D>
static __device__ __forceinline__ void product_columns(float (&c)[D / 8][4], const float (&p)[8][4], u32 b_tile) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        u32 a[4] = {pack2(p[2 * k][0], p[2 * k][1]), pack2(p[2 * k][2], p[2 * k][3]), pack2(p[2 * k + 1][0], p[2 * k + 1][1]),
                    pack2(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            u32 b[4];
            right_columns<D>(b, b_tile, 16 * k, 2 * n);
            mma(c[2 * n], a, b[0], b[1]);
            mma(c[2 * n + 1], a, b[2], b[3]);
        }
    }
}
static __device__ __forceinline__ float power2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
#define NEGATIVE_INFINITY __int_as_float(0xff800000)
#define POSITIVE_INFINITY __int_as_float(0x7f800000)
