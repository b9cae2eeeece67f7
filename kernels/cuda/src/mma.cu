// Tensor-core building blocks for sm_80 and newer: copies to shared memory that do not wait, matrix fragments, and products of m16n8k16.
// Fragment layouts: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".

static __device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// The first `bytes` of 16 from global to shared memory, zeros in place of the rest (which is not read).
static __device__ __forceinline__ void copy_part(u32 to, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
static __device__ __forceinline__ void copy16(u32 to, const void* from, bool there) { copy_part(to, from, there ? 16 : 0); }
static __device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
static __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices; lane 8i + j gives the address of row j of matrix i.
static __device__ __forceinline__ void load4(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
static __device__ __forceinline__ void load4_transposed(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
static __device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Where the 16-byte vector `c` of row `row` lies in a tile of `rows` rows: panels of 64 columns (128 bytes), or of 32 columns (64 bytes), vectors
// permuted within a row so that eight rows of one column of vectors lie in different banks.
static __device__ __forceinline__ u32 panel64(u32 rows, u32 row, u32 c) { return (c >> 3) * (rows * 128) + row * 128 + (((c ^ row) & 7) << 4); }
static __device__ __forceinline__ u32 panel32(u32 rows, u32 row, u32 c) {
    return (c >> 2) * (rows * 64) + row * 64 + (((c ^ (row >> 1)) & 3) << 4);
}

// Four values, summed over `count` slices of `size` in their order.
static __device__ __forceinline__ float4 sum_slices(const float* __restrict__ part, u32 count, u64 size) {
    float4 sum = *(const float4*)part;
#pragma unroll 4
    for (u32 s = 1; s < count; ++s) {
        float4 v = *(const float4*)(part + s * size);
        sum.x += v.x; sum.y += v.y; sum.z += v.z; sum.w += v.w;
    }
    return sum;
}
