// NF4 to bf16. Bit for bit the CPU reference: the scale and the product are rounded to f32 separately, then to bf16.

struct Scales {
    const u8* codes;      // one per block of values; null when the scales are plain
    const float* map;     // 256 values that the codes stand for
    const float* absmax;  // one per nested block, or, when plain, one per block
    float offset;
    int block_shift;      // log2 of the values of a block, at least 3
    int nested_shift;     // log2 of the blocks of a nested block
};

// `map` lies in shared memory.
static __device__ __forceinline__ float scale_of(const Scales& s, const float* map, u64 value) {
    u64 block = value >> s.block_shift;
    if (!s.codes) return s.absmax[block];
    return __fadd_rn(__fmul_rn(map[s.codes[block]], __ldg(s.absmax + (block >> s.nested_shift))), s.offset);
}

// Eight values of one block from four bytes: the high nibble comes first.
static __device__ __forceinline__ void values8(u32 bytes, const float* code, float scale, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u32 byte = bytes >> (8 * i);
        x[2 * i] = __fmul_rn(code[(byte >> 4) & 15], scale);
        x[2 * i + 1] = __fmul_rn(code[byte & 15], scale);
    }
}

static __device__ __forceinline__ void tables(const float* code, const Scales& s, float* shared_code, float* shared_map) {
    if (threadIdx.x < 16) shared_code[threadIdx.x] = code[threadIdx.x];
    if (s.codes) for (int i = threadIdx.x; i < 256; i += blockDim.x) shared_map[i] = s.map[i];
    __syncthreads();
}

// Each thread turns four bytes into 16, so that a warp's loads (128 bytes) and stores (512 bytes) are whole lines; four such pieces are in
// flight. The 16 code points lie in 16 banks of shared memory: their look-ups never conflict.
extern "C" __global__ void __launch_bounds__(256) nf4_unpack(
    const u32* __restrict__ packed, const float* __restrict__ code, const u8* __restrict__ codes, const float* __restrict__ map,
    const float* __restrict__ absmax, float offset, int block_shift, int nested_shift, u64 words, u32 vectors, u32 stride,
    uint4* __restrict__ out) {
    __shared__ float shared_code[16], shared_map[256];
    Scales s{codes, map, absmax, offset, block_shift, nested_shift};
    tables(code, s, shared_code, shared_map);
    u64 start = (u64)blockIdx.x * 1024 + threadIdx.x;
    u32 bytes[4];
    float scale[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u64 w = start + i * 256;
        bytes[i] = w < words ? __ldcs(packed + w) : 0;
        scale[i] = w < words ? scale_of(s, shared_map, w * 8) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u64 w = start + i * 256;
        float x[8];
        values8(bytes[i], shared_code, scale[i], x);
        // A row of `vectors` words starts every `stride` words of the output; without gaps there is nothing to divide.
        u64 to = w;
        if (stride != vectors) {
            u32 row = (u32)w / vectors;
            to = (u64)row * stride + ((u32)w - row * vectors);
        }
        if (w < words) out[to] = pack8(x);
    }
}

// [rows, cols] to its transpose [cols, rows], in tiles of 64 x 64; rows and cols are multiples of 8. A thread unpacks eight columns of two
// neighbouring rows, so that shared memory is written in whole words; a row of 33 words keeps the reads free of conflicts.
extern "C" __global__ void __launch_bounds__(256) nf4_unpack_transposed(
    const u32* __restrict__ packed, const float* __restrict__ code, const u8* __restrict__ codes, const float* __restrict__ map,
    const float* __restrict__ absmax, float offset, int block_shift, int nested_shift, u32 rows, u32 cols, uint4* __restrict__ out) {
    __shared__ float shared_code[16], shared_map[256];
    __shared__ u32 tile[64][33];
    Scales s{codes, map, absmax, offset, block_shift, nested_shift};
    tables(code, s, shared_code, shared_map);
    u32 row0 = blockIdx.y * 64, col0 = blockIdx.x * 64;
    u32 group = threadIdx.x & 7, pair = threadIdx.x >> 3;
    u32 row = row0 + 2 * pair, col = col0 + 8 * group;
    if (row < rows && col < cols) {
        // rows is even, so the pair's second row exists too.
        u64 first = (u64)row * cols + col, second = first + cols;
        float a[8], b[8];
        u32 bytes_a = __ldcs(packed + (first >> 3)), bytes_b = __ldcs(packed + (second >> 3));
        values8(bytes_a, shared_code, scale_of(s, shared_map, first), a);
        values8(bytes_b, shared_code, scale_of(s, shared_map, second), b);
#pragma unroll
        for (int i = 0; i < 8; ++i) tile[8 * group + i][pair] = pack2(a[i], b[i]);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        u32 t = threadIdx.x + i * 256;
        u32 c = t >> 3, k = t & 7;
        if (col0 + c < cols && row0 + 8 * k < rows) {
            const u32* w = &tile[c][4 * k];
            out[((u64)(col0 + c) * rows + row0 + 8 * k) >> 3] = make_uint4(w[0], w[1], w[2], w[3]);
        }
    }
}

// NF4 to e4m3 with given scales of rows (see eight.cu), rounded to bf16 in between: the bits of unpacking first. Rows of the result start `stride` vectors of
// eight bytes apart.
extern "C" __global__ void __launch_bounds__(256) nf4_eight(
    const u32* __restrict__ packed, const float* __restrict__ code, const u8* __restrict__ codes, const float* __restrict__ map,
    const float* __restrict__ absmax, float offset, int block_shift, int nested_shift, u64 words, u32 vectors, const float* __restrict__ row_scales,
    uint2* __restrict__ out, u32 stride) {
    __shared__ float shared_code[16], shared_map[256];
    Scales s{codes, map, absmax, offset, block_shift, nested_shift};
    tables(code, s, shared_code, shared_map);
    u64 start = (u64)blockIdx.x * 1024 + threadIdx.x;
    u32 bytes[4];
    u32 row[4];
    float scale[4], by[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u64 w = start + i * 256;
        row[i] = (u32)w / vectors;
        bytes[i] = w < words ? __ldcs(packed + w) : 0;
        scale[i] = w < words ? scale_of(s, shared_map, w * 8) : 0.0f;
        by[i] = w < words ? row_scales[row[i]] : 1.0f;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u64 w = start + i * 256;
        float x[8];
        values8(bytes[i], shared_code, scale[i], x);
        if (w < words) out[(u64)row[i] * stride + ((u32)w - row[i] * vectors)] = eight8(pack8(x), __fdiv_rn(1.0f, by[i]));
    }
}

// The transpose of a matrix [rows, cols] to e4m3 with a given scale for each column, the transpose's row, in tiles of 128 rows and 64 columns. `rows` is
// a multiple of 16 and the transpose's rows start `stride` bytes apart, a multiple of 16. Four rows of a column make a word of shared memory; a row of
// 33 words keeps the reads free of conflicts. `load` gives eight columns of a row, rounded to bf16.
template <class Load>
static __device__ __forceinline__ void transpose_eight(u32 rows, u32 cols, const float* __restrict__ scales, u8* __restrict__ out, u32 stride, Load load) {
    __shared__ u32 tile[64][33];
    u32 row0 = blockIdx.y * 128, col0 = blockIdx.x * 64;
    u32 group = threadIdx.x & 7, quad = threadIdx.x >> 3;
    u32 row = row0 + 4 * quad, col = col0 + 8 * group;
    if (row < rows && col < cols) {
        float scale[8], x[4][8];
        load8(scales + col, scale);
#pragma unroll
        for (int r = 0; r < 4; ++r) unpack8(load(row + r, col), x[r]);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float by = __fdiv_rn(1.0f, scale[i]);
            tile[8 * group + i][quad] = eight2(x[0][i] * by, x[1][i] * by) | eight2(x[2][i] * by, x[3][i] * by) << 16;
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        u32 t = threadIdx.x + i * 256;
        u32 c = t >> 3, k = t & 7;
        if (col0 + c < cols && row0 + 16 * k < rows) {
            const u32* w = &tile[c][4 * k];
            *(uint4*)(out + (u64)(col0 + c) * stride + row0 + 16 * k) = make_uint4(w[0], w[1], w[2], w[3]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) nf4_eight_transposed(
    const u32* __restrict__ packed, const float* __restrict__ code, const u8* __restrict__ codes, const float* __restrict__ map,
    const float* __restrict__ absmax, float offset, int block_shift, int nested_shift, u32 rows, u32 cols, const float* __restrict__ col_scales,
    u8* __restrict__ out, u32 stride) {
    __shared__ float shared_code[16], shared_map[256];
    Scales s{codes, map, absmax, offset, block_shift, nested_shift};
    tables(code, s, shared_code, shared_map);
    transpose_eight(rows, cols, col_scales, out, stride, [&](u32 row, u32 col) {
        u64 first = (u64)row * cols + col;
        float x[8];
        values8(__ldcs(packed + (first >> 3)), shared_code, scale_of(s, shared_map, first), x);
        return pack8(x);
    });
}

extern "C" __global__ void __launch_bounds__(256) bf16_eight_transposed(
    const uint4* __restrict__ x, u32 x_stride, u32 rows, u32 cols, const float* __restrict__ col_scales, u8* __restrict__ out, u32 stride) {
    transpose_eight(rows, cols, col_scales, out, stride, [&](u32 row, u32 col) { return x[(u64)row * x_stride + col / 8]; });
}

// Rows of bf16 to e4m3 with a scale each; a block per row, rows of the result `stride` vectors of eight bytes apart. What does not fit the registers is
// read twice. `least`: if there is one, a row's scale is that of no smaller magnitude.
extern "C" __global__ void __launch_bounds__(1024) eight_rows(
    const uint4* __restrict__ x, u32 x_stride, u32 vectors, const float* __restrict__ least, uint2* __restrict__ out, float* __restrict__ scales,
    u32 stride) {
    let_next_start();
    wait_for_inputs();
    x += (u64)blockIdx.x * x_stride;
    out += (u64)blockIdx.x * stride;
    uint4 rows[4];
    float largest = least ? *least : 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u32 v = threadIdx.x + i * blockDim.x;
        if (v < vectors) rows[i] = x[v];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (threadIdx.x + i * blockDim.x < vectors) largest = largest8(rows[i], largest);
    for (u32 v = threadIdx.x + 4 * blockDim.x; v < vectors; v += blockDim.x) largest = largest8(x[v], largest);
    float by = row_factor(largest, scales);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u32 v = threadIdx.x + i * blockDim.x;
        if (v < vectors) out[v] = eight8(rows[i], by);
    }
    for (u32 v = threadIdx.x + 4 * blockDim.x; v < vectors; v += blockDim.x) out[v] = eight8(x[v], by);
}

// The largest magnitude of each column as the bits of a float, which order as integers do, so that the maxima of blocks meet in any order. `largest` starts
// at 0. A thread has eight columns of every eighth of 256 rows.
extern "C" __global__ void __launch_bounds__(256) largest_of_columns(
    const uint4* __restrict__ x, u32 x_stride, u32 rows, u32 vectors, u32* __restrict__ largest) {
    u32 v = blockIdx.x * 32 + (threadIdx.x & 31);
    if (v >= vectors) return;
    float most[8] = {};
    u32 end = min(rows, (blockIdx.y + 1) * 256);
    for (u32 row = blockIdx.y * 256 + (threadIdx.x >> 5); row < end; row += 8) {
        float a[8];
        unpack8(x[(u64)row * x_stride + v], a);
#pragma unroll
        for (int j = 0; j < 8; ++j) most[j] = fmaxf(most[j], fabsf(a[j]));
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) atomicMax(largest + 8 * v + j, __float_as_uint(most[j]));
}

// Largest magnitudes to scales, in place, by one block. None is of less than 1/256 of the largest of all: e4m3 spans 2^15, so a row that small loses
// nothing by it, and what adapters add to its weights fits the same scale. That magnitude goes to `least`.
extern "C" __global__ void __launch_bounds__(1024) scales_from_largest(float* __restrict__ largest, u32 n, float* __restrict__ least) {
    float most = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, largest[i]);
    most = block_largest(most) * 0x1p-8f;
    if (threadIdx.x == 0) *least = most;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) largest[i] = scale_for(fmaxf(largest[i], most));
}
