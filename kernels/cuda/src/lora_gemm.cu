// The thin matrix products of adapters: one side is a rank of at most 128, so each is one pass over a long activation matrix at memory speed.
// Every kernel has 256 threads. Partial sums go to scratch and are added in a fixed order by a second launch.

// How many stages of so many bytes: as fit the smallest shared memory of a block, at most six.
static __device__ constexpr u32 stages(u32 bytes) { return 98304 / bytes < 6 ? 98304 / bytes : 6; }

// ---- mid [n, R] = x [n, K] A[R, K]^T -----------------------------------------------------------------------------------------------------
//
// A block takes 32 * TG tokens, all of the (padded) 8 * NT ranks, and one slice of K. Warps are TG groups of 32 tokens, times 8 / TG that take
// turns in the steps of 16 along K: each element of x is read from shared memory once. Their sums are added in order at the end.
template <int TG, int NT>
static __device__ __forceinline__ void mid_body(
    const u16* __restrict__ x, u32 x_stride, u32 n, u32 width, const u16* __restrict__ a, u32 a_stride, u32 rank, u32 slice, u16* __restrict__ out,
    u32 out_stride, float* __restrict__ part) {
    constexpr u32 T = 32 * TG, KG = 8 / TG, KC = TG == 1 ? 128 : 64, R = 8 * NT;
    constexpr u32 X_BYTES = T * KC * 2, STAGE = X_BYTES + R * KC * 2, STAGES = stages(STAGE);
    extern __shared__ __align__(128) u8 memory[];
    const u32 base = shared_address(memory), lane = threadIdx.x & 31, warp = threadIdx.x >> 5, tg = warp % TG, kg = warp / TG;
    const u32 first = blockIdx.x * T, from = blockIdx.y * slice, to = min(width, from + slice);
    const u32 chunks = (to - from + KC - 1) / KC;

    auto fetch = [&](u32 chunk) {
        if (chunk < chunks) {
            u32 at = base + chunk % STAGES * STAGE, k0 = from + chunk * KC;
#pragma unroll
            for (u32 i = 0; i < T * KC / 8 / 256; ++i) {
                u32 v = threadIdx.x + 256 * i, row = v / (KC / 8), c = v % (KC / 8), k = k0 + 8 * c;
                bool there = first + row < n && k < to;
                copy16(at + panel64(T, row, c), x + (there ? (u64)(first + row) * x_stride + k : 0), there);
            }
#pragma unroll
            for (u32 i = 0; i < R * KC / 8 / 256; ++i) {
                u32 v = threadIdx.x + 256 * i, row = v / (KC / 8), c = v % (KC / 8), k = k0 + 8 * c;
                bool there = row < rank && k < to;
                copy16(at + X_BYTES + panel64(R, row, c), a + (there ? (u64)row * a_stride + k : 0), there);
            }
        }
        copies_end();
    };

    float sums[2][NT][4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;

    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);
    for (u32 chunk = 0; chunk < chunks; ++chunk) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        fetch(chunk + STAGES - 1);
        u32 at = base + chunk % STAGES * STAGE;
#pragma unroll
        for (u32 s = 0; s < KC / 16 / KG; ++s) {
            u32 c = 2 * (s * KG + kg), m[2][4];
#pragma unroll
            for (u32 i = 0; i < 2; ++i) load4(m[i], at + panel64(T, 32 * tg + 16 * i + (lane & 15), c + (lane >> 4)));
#pragma unroll
            for (u32 j = 0; j < NT; j += 2) {
                u32 b[4];
                load4(b, at + X_BYTES + panel64(R, 8 * j + (lane & 7) + ((lane >> 4) << 3), c + ((lane >> 3) & 1)));
#pragma unroll
                for (u32 i = 0; i < 2; ++i) {
                    multiply(sums[i][j], m[i], b[0], b[1]);
                    multiply(sums[i][j + 1], m[i], b[2], b[3]);
                }
            }
        }
    }
    copies_wait<0>();

    // Rows of R + 8 words: four rows of a fragment lie in different banks.
    float* total = (float*)memory;
    constexpr u32 ROW = R + 8;
    for (u32 turn = 0; turn < KG; ++turn) {
        __syncthreads();
        if (kg == turn)
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
#pragma unroll
                for (u32 j = 0; j < NT; ++j)
#pragma unroll
                    for (u32 h = 0; h < 2; ++h) {
                        float2* at = (float2*)(total + (32 * tg + 16 * i + 8 * h + (lane >> 2)) * ROW + 8 * j + 2 * (lane & 3));
                        float2 v = make_float2(sums[i][j][2 * h], sums[i][j][2 * h + 1]);
                        if (turn > 0) {
                            float2 before = *at;
                            v.x += before.x;
                            v.y += before.y;
                        }
                        *at = v;
                    }
    }
    __syncthreads();
    const u32 vectors = rank / 8;
    for (u32 i = threadIdx.x; i < T * vectors; i += 256) {
        u32 row = i / vectors, c = i % vectors;
        if (first + row >= n) break;
        float v[8];
        load8(total + row * ROW + 8 * c, v);
        if (gridDim.y == 1) {
            *(uint4*)(out + (u64)(first + row) * out_stride + 8 * c) = pack8(v);
        } else {
            float4* at = (float4*)(part + ((u64)blockIdx.y * n + first + row) * rank + 8 * c);
            at[0] = make_float4(v[0], v[1], v[2], v[3]);
            at[1] = make_float4(v[4], v[5], v[6], v[7]);
        }
    }
}
#define MID(name, TG, NT)                                                                                                                    \
    name(const u16* __restrict__ x, u32 x_stride, u32 n, u32 width, const u16* __restrict__ a, u32 a_stride, u32 rank, u32 slice,            \
         u16* __restrict__ out, u32 out_stride, float* __restrict__ part) {                                                                  \
        mid_body<TG, NT>(x, x_stride, n, width, a, a_stride, rank, slice, out, out_stride, part);                                            \
    }
extern "C" __global__ void __launch_bounds__(256, 2) MID(lora_mid_1_32, 1, 4)
extern "C" __global__ void __launch_bounds__(256, 2) MID(lora_mid_1_64, 1, 8)
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_1_96, 1, 12)
extern "C" __global__ void __launch_bounds__(256, 2) MID(lora_mid_4_32, 4, 4)
extern "C" __global__ void __launch_bounds__(256, 2) MID(lora_mid_4_64, 4, 8)
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_4_96, 4, 12)
extern "C" __global__ void __launch_bounds__(256, 1) MID(lora_mid_4_128, 4, 16)

// out [rows, cols] (bf16) = sum of `count` slices [rows, cols] in their order.
extern "C" __global__ void __launch_bounds__(256) lora_sum(
    const float* __restrict__ part, u32 count, u32 rows, u32 cols, u16* __restrict__ out, u32 out_stride) {
    u64 i = 4 * ((u64)blockIdx.x * 256 + threadIdx.x), size = (u64)rows * cols;
    if (i >= size) return;
    float4 sum = *(const float4*)(part + i);
#pragma unroll 4
    for (u32 s = 1; s < count; ++s) {
        float4 v = *(const float4*)(part + s * size + i);
        sum.x += v.x; sum.y += v.y; sum.z += v.z; sum.w += v.w;
    }
    *(uint2*)(out + i / cols * out_stride + i % cols) = make_uint2(pack2(sum.x, sum.y), pack2(sum.z, sum.w));
}

// ---- dA [R, K] += dmid^T [R, n] x [n, K], all members at once ------------------------------------------------------------------------------
//
// A block takes 128 columns of x and a run of tokens, 64 at a time; a warp 16 of the columns and all ranks. Partial sums: [run][R][K].
template <int MT>
static __device__ __forceinline__ void da_body(
    const u16* __restrict__ dmid, u32 dmid_stride, u32 rank, const u16* __restrict__ x, u32 x_stride, u32 n, u32 width, u32 run,
    float* __restrict__ part) {
    constexpr u32 C = 128, R = 16 * MT, X_BYTES = 64 * C * 2, STAGE = X_BYTES + 64 * R * 2, STAGES = stages(STAGE);
    extern __shared__ __align__(128) u8 memory[];
    const u32 base = shared_address(memory), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 c0 = blockIdx.x * C, first = blockIdx.y * run, last = min(n, first + run), steps = (last - first + 63) / 64;
    auto fetch = [&](u32 step) {
        if (step < steps) {
            u32 t0 = first + 64 * step, at = base + step % STAGES * STAGE;
#pragma unroll
            for (u32 i = 0; i < 64 * C / 8 / 256; ++i) {
                u32 v = threadIdx.x + 256 * i, row = v / (C / 8), c = v % (C / 8);
                bool there = t0 + row < last && c0 + 8 * c < width;
                copy16(at + panel64(64, row, c), x + (there ? (u64)(t0 + row) * x_stride + c0 + 8 * c : 0), there);
            }
#pragma unroll
            for (u32 i = 0; i < 64 * R / 8 / 256; ++i) {
                u32 v = threadIdx.x + 256 * i, row = v / (R / 8), c = v % (R / 8);
                bool there = t0 + row < last && 8 * c < rank;
                copy16(at + X_BYTES + panel32(64, row, c), dmid + (there ? (u64)(t0 + row) * dmid_stride + 8 * c : 0), there);
            }
        }
        copies_end();
    };
    float sums[MT][2][4];
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
    for (u32 s = 0; s < STAGES - 1; ++s) fetch(s);
    for (u32 step = 0; step < steps; ++step) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1);
        u32 at = base + step % STAGES * STAGE;
#pragma unroll
        for (u32 s = 0; s < 4; ++s) {
            u32 w[4];
            load4_transposed(w, at + panel64(64, 16 * s + (lane & 15), 2 * warp + (lane >> 4)));
#pragma unroll
            for (u32 i = 0; i < MT; ++i) {
                u32 m[4];
                load4_transposed(m, at + X_BYTES + panel32(64, 16 * s + (lane & 7) + ((lane >> 4) << 3), 2 * i + ((lane >> 3) & 1)));
                multiply(sums[i][0], m, w[0], w[1]);
                multiply(sums[i][1], m, w[2], w[3]);
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < MT; ++i)
#pragma unroll
        for (u32 j = 0; j < 2; ++j)
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                u32 r = 16 * i + 8 * e + (lane >> 2), c = c0 + 16 * warp + 8 * j + 2 * (lane & 3);
                if (r < rank && c < width)
                    *(float2*)(part + ((u64)blockIdx.y * rank + r) * width + c) = make_float2(sums[i][j][2 * e], sums[i][j][2 * e + 1]);
            }
}
#define DA(name, MT)                                                                                                                         \
    name(const u16* __restrict__ dmid, u32 dmid_stride, u32 rank, const u16* __restrict__ x, u32 x_stride, u32 n, u32 width, u32 run,        \
         float* __restrict__ part) {                                                                                                         \
        da_body<MT>(dmid, dmid_stride, rank, x, x_stride, n, width, run, part);                                                              \
    }
extern "C" __global__ void __launch_bounds__(256, 2) DA(lora_da_32, 2)
extern "C" __global__ void __launch_bounds__(256, 2) DA(lora_da_64, 4)
extern "C" __global__ void __launch_bounds__(256, 2) DA(lora_da_96, 6)
extern "C" __global__ void __launch_bounds__(256, 2) DA(lora_da_128, 8)

// The members' gradients [rank of each, K] += the sums of the runs.
extern "C" __global__ void __launch_bounds__(256) lora_da_sum(
    const float* __restrict__ part, u32 runs, u32 width, u32 rank0, u32 rank1, u32 rank2, float* da0, float* da1, float* da2) {
    u64 i = 4 * ((u64)blockIdx.x * 256 + threadIdx.x), size = (u64)(rank0 + rank1 + rank2) * width;
    if (i >= size) return;
    float4 sum = sum_slices(part + i, runs, size);
    u64 first = (u64)rank0 * width, second = first + (u64)rank1 * width;
    float4* at = (float4*)(i < first ? da0 + i : i < second ? da1 + (i - first) : da2 + (i - second));
    float4 v = *at;
    v.x += sum.x; v.y += sum.y; v.z += sum.z; v.w += sum.w;
    *at = v;
}
