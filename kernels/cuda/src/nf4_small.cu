// Linear layers of few rows (generation): y[n, out] = x[n, in] W^T for n = 1..64, straight from NF4 blocks or from bf16 weights, bound by the
// one read of the weights.
//
// Tensor cores multiply (mma.sync m16n8k16): 16 weight rows by 8 tokens, so that even one token costs a single instruction for eight
// weights of a lane. A lane turns a byte of two NF4 values into two bf16 code points by one look-up in a table of 256 pairs, of which each
// lane has its own copy in its own bank: no look-up ever conflicts. The code points are multiplied as they are; the scale of a block of 64
// multiplies the block's sum in f32. The order of k within a block is free as long as x follows it: a lane takes the 8 bytes (16 values)
// that it loads at once.
//
// The eight warps of a block split k; their sums are added in order. The split depends on k alone, so a token's result depends neither on
// the other tokens nor on the shape of the tiles.

#define WARPS 8u
#define LUT_WORDS 8192u  // 256 pairs for each of 32 lanes

struct Member {
    const u8* weight;     // NF4 pairs, or bf16
    const float* code;    // 16 code points
    const u8* codes;      // codes of the scales; null: plain scales
    const float* map;     // 256 values of those codes
    const float* absmax;
    const float* lora;    // B of the adapter, [rows, rank], or null
    const float* bias;    // [rows], or null
    u64 row_bytes;        // from one row of the weight to the next
    float offset;
    float lora_scale;
    int block_shift;      // log2 of the values of a block
    int nested_shift;     // log2 of the blocks of a nested block
    u32 rows;
    u32 column;           // of the output
    u32 rank;
    u32 mid;              // column of the adapter's input
    u32 tiles;            // blocks of the grid
    u32 unused;
};
struct Members { Member of[4]; };

// What runs before `wait_for_inputs` may overlap with the previous kernel: it reads frozen weights only.
static __device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
static __device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Weights are read once: they pass by the first-level cache.
static __device__ __forceinline__ uint2 stream8(const u8* p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
static __device__ __forceinline__ uint4 stream16(const u8* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
// Not through the read-only path: the previous kernel may still have been writing when this one began.
static __device__ __forceinline__ uint4 input16(const u16* p) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
static __device__ __forceinline__ float input(const float* p) {
    float v;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
}
static __device__ __forceinline__ void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ u32 word(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

static __device__ __forceinline__ float block_scale(const Member& m, const float* map, u64 block) {
    if (!m.codes) return m.absmax[block];
    return __fadd_rn(__fmul_rn(map[m.codes[block]], m.absmax[block >> m.nested_shift]), m.offset);
}

// Words from one row of scales to the next: 4 modulo 32, so that eight rows lie in eight banks and four blocks are one store.
static __device__ __forceinline__ u32 scale_stride(u32 blocks) { return (blocks + 27) / 32 * 32 + 4; }

// MT tiles of 16 weight rows by NT tiles of 8 tokens in each warp, D blocks of 64 values in flight. PAIR: the first eight rows of each tile
// belong to member 0 (gate), the others to member 1 (up), and the output is silu(gate) * up. `Out` is u16 (bf16) or float.
template <int MT, int NT, int D, bool NF4, bool PAIR, typename Out>
static __device__ __forceinline__ void small_linear(
    const Members& members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, const float* mid, u32 mid_stride, Out* __restrict__ out,
    u32 out_stride) {
    constexpr u32 ROWS = 16 * MT;
    constexpr int XB = NT * MT >= 16 ? 1 : 2;  // blocks of x in registers
    constexpr int WORDS = NF4 ? 2 : 8;
    extern __shared__ __align__(16) u32 shared[];
    __shared__ float shared_map[PAIR ? 512 : 256];
    float* scales = (float*)(shared + LUT_WORDS);
    u32 tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;

    let_next_start();
    u32 tile = blockIdx.x;
    int which = 0;
    if (!PAIR)
        while (which < 3 && tile >= members.of[which].tiles) tile -= members.of[which++].tiles;
    // The weight row of a place in the tile; rows past the end repeat the last and are not stored.
    auto member_of = [&](u32 place) -> const Member& { return members.of[PAIR ? (int)(place >> 3 & 1) : which]; };
    auto row_of = [&](u32 place) {
        u32 row = PAIR ? tile * (ROWS / 2) + (place >> 4) * 8 + (place & 7) : tile * ROWS + place;
        return min(row, member_of(place).rows - 1);
    };

    u32 share = (blocks + WARPS - 1) / WARPS;
    u32 first = min(warp * share, blocks), last = min(first + share, blocks);
    const u8* source[MT][2];
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const Member& m = member_of(16 * i + 8 * h);
            source[i][h] = m.weight + row_of(16 * i + 8 * h + g) * m.row_bytes + (NF4 ? 8 : 16) * t;
        }
    u32 ring[D][MT][2][WORDS];
    auto fetch = [&](u32 (&to)[MT][2][WORDS], u32 block) {
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if constexpr (NF4) {
                    uint2 v = stream8(source[i][h] + (u64)block * 32);
                    to[i][h][0] = v.x;
                    to[i][h][1] = v.y;
                } else {
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        uint4 v = stream16(source[i][h] + (u64)block * 128 + 64 * j);
                        to[i][h][4 * j] = v.x;
                        to[i][h][4 * j + 1] = v.y;
                        to[i][h][4 * j + 2] = v.z;
                        to[i][h][4 * j + 3] = v.w;
                    }
                }
            }
    };
#pragma unroll
    for (int d = 0; d < D; ++d)
        if (first + d < last) fetch(ring[d], first + d);

    u32 stride = scale_stride(blocks);
    if constexpr (NF4) {
        if (PAIR || members.of[which].codes) {
            for (u32 i = tid; i < (PAIR ? 512 : 256); i += 32 * WARPS) {
                const Member& m = members.of[PAIR ? (int)(i >> 8) : which];
                if (m.codes) shared_map[i] = m.map[i & 255];
            }
        }
        {
            // Thread i writes the 32 copies of pair i, each thread from another place on so that stores of eight threads do not conflict.
            // The members of a pair share their code points.
            const float* code = members.of[PAIR ? 0 : which].code;
            u32 pair = pack2(code[tid >> 4], code[tid & 15]);
            uint4 four = make_uint4(pair, pair, pair, pair);
#pragma unroll
            for (u32 i = 0; i < 8; ++i) ((uint4*)shared)[tid * 8 + ((i + tid) & 7)] = four;
        }
        __syncthreads();
        bool fours = blocks % 4 == 0;
        for (int h = 0; h < (PAIR ? 2 : 1); ++h) fours = fours && members.of[PAIR ? h : which].block_shift == 6;
        if (fours) {
            u32 groups = blocks / 4;
            for (u32 i = tid; i < ROWS * groups; i += 32 * WARPS) {
                u32 place = i / groups, group = i - place * groups;
                const Member& m = member_of(place);
                u64 block = (u64)row_of(place) * blocks + 4 * group;
                float4 s;
                if (m.codes) {
                    u32 four = *(const u32*)(m.codes + block);
                    const float* map = shared_map + (PAIR ? (place >> 3 & 1) * 256 : 0);
                    float a[4];
#pragma unroll
                    for (int j = 0; j < 4; ++j) a[j] = m.absmax[(block + j) >> m.nested_shift];
                    s.x = __fadd_rn(__fmul_rn(map[four & 255], a[0]), m.offset);
                    s.y = __fadd_rn(__fmul_rn(map[four >> 8 & 255], a[1]), m.offset);
                    s.z = __fadd_rn(__fmul_rn(map[four >> 16 & 255], a[2]), m.offset);
                    s.w = __fadd_rn(__fmul_rn(map[four >> 24], a[3]), m.offset);
                } else {
                    s = *(const float4*)(m.absmax + block);
                }
                *(float4*)(scales + place * stride + 4 * group) = s;
            }
        } else {
            for (u32 i = tid; i < ROWS * blocks; i += 32 * WARPS) {
                u32 place = i / blocks, block = i - place * blocks;
                const Member& m = member_of(place);
                const float* map = shared_map + (PAIR ? (place >> 3 & 1) * 256 : 0);
                scales[place * stride + block] = block_scale(m, map, ((u64)row_of(place) * blocks + block) * 64 >> m.block_shift);
            }
        }
        __syncthreads();
    }
    wait_for_inputs();

    // x of one block: column g of each tile of tokens; columns past the end repeat the last.
    const u16* columns[NT];
#pragma unroll
    for (int j = 0; j < NT; ++j) columns[j] = x + (u64)min(8 * j + g, n - 1) * x_stride + (NF4 ? 16 : 8) * t;
    uint4 xs[XB][NT][2];
    auto fetch_x = [&](uint4 (&to)[NT][2], u32 block) {
#pragma unroll
        for (int j = 0; j < NT; ++j) {
            to[j][0] = input16(columns[j] + block * 64);
            to[j][1] = input16(columns[j] + block * 64 + (NF4 ? 8 : 32));
        }
    };
    if (XB == 2 && first < last) fetch_x(xs[0], first);

    float sum[MT][NT][4];
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) sum[i][j][c] = 0.0f;

    // The adapter's second product, as more of k: 16 ranks for each warp in turn.
    if (mid) {
#pragma unroll 1
        for (int h = 0; h < (PAIR ? 2 : 1); ++h) {
            const Member& m = members.of[PAIR ? h : which];
            if (!m.lora) continue;
#pragma unroll 1
            for (u32 k = 16 * warp; k < m.rank; k += 16 * WARPS) {
                u32 at = k + 4 * t;
                u32 a[MT][4];
#pragma unroll
                for (int i = 0; i < MT; ++i)
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const float* b = m.lora + (u64)row_of(16 * i + 8 * r + g) * m.rank;
                        float v[4];
#pragma unroll
                        for (int e = 0; e < 4; ++e) v[e] = (!PAIR || r == h) && at + e < m.rank ? input(b + at + e) : 0.0f;
                        a[i][r] = pack2(v[0], v[1]);
                        a[i][2 + r] = pack2(v[2], v[3]);
                    }
#pragma unroll
                for (int j = 0; j < NT; ++j) {
                    const float* from = mid + (u64)min(8 * j + g, n - 1) * mid_stride + m.mid;
                    float v[4];
#pragma unroll
                    for (int e = 0; e < 4; ++e) v[e] = at + e < m.rank ? input(from + at + e) * m.lora_scale : 0.0f;
                    u32 b0 = pack2(v[0], v[1]), b1 = pack2(v[2], v[3]);
#pragma unroll
                    for (int i = 0; i < MT; ++i) mma(sum[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b0, b1);
                }
            }
        }
    }

    const char* lut = (const char*)shared;
    u32 lane4 = lane * 4;
    auto look = [&](u32 w, int byte) {
        u32 at = byte == 0 ? w << 7 : w >> (8 * byte - 7);
        return *(const u32*)(lut + ((at & 0x7f80u) | lane4));
    };
#pragma unroll 1
    for (u32 at = first; at < last; at += D) {
#pragma unroll
        for (int d = 0; d < D; ++d) {
            u32 block = at + d;
            if (block < last) {
                u32 w[MT][2][WORDS];
#pragma unroll
                for (int i = 0; i < MT; ++i)
#pragma unroll
                    for (int h = 0; h < 2; ++h)
#pragma unroll
                        for (int e = 0; e < WORDS; ++e) w[i][h][e] = ring[d][i][h][e];
                if (XB == 1) fetch_x(xs[0], block);
                if (block + D < last) fetch(ring[d], block + D);
                if (XB == 2 && block + 1 < last) fetch_x(xs[(d + 1) & (XB - 1)], block + 1);
#pragma unroll
                for (int i = 0; i < MT; ++i) {
                    if constexpr (NF4) {
                        float s0 = scales[(16 * i + g) * stride + block], s1 = scales[(16 * i + 8 + g) * stride + block];
                        float part[NT][4];
#pragma unroll
                        for (int j = 0; j < NT; ++j)
#pragma unroll
                            for (int c = 0; c < 4; ++c) part[j][c] = 0.0f;
#pragma unroll
                        for (int q = 0; q < 4; ++q) {
                            u32 v0 = w[i][0][q / 2], v1 = w[i][1][q / 2];
                            u32 a0 = look(v0, 2 * q & 3), a1 = look(v1, 2 * q & 3), a2 = look(v0, (2 * q & 3) + 1), a3 = look(v1, (2 * q & 3) + 1);
#pragma unroll
                            for (int j = 0; j < NT; ++j) {
                                uint4 b = xs[d & (XB - 1)][j][q / 2];
                                mma(part[j], a0, a1, a2, a3, word(b, 2 * q & 3), word(b, (2 * q & 3) + 1));
                            }
                        }
#pragma unroll
                        for (int j = 0; j < NT; ++j)
#pragma unroll
                            for (int c = 0; c < 4; ++c) sum[i][j][c] = fmaf(c < 2 ? s0 : s1, part[j][c], sum[i][j][c]);
                    } else {
#pragma unroll
                        for (int q = 0; q < 4; ++q)
#pragma unroll
                            for (int j = 0; j < NT; ++j) {
                                uint4 b = xs[d & (XB - 1)][j][q / 2];
                                mma(sum[i][j], w[i][0][2 * q], w[i][1][2 * q], w[i][0][2 * q + 1], w[i][1][2 * q + 1], word(b, 2 * q & 3),
                                    word(b, (2 * q & 3) + 1));
                            }
                    }
                }
            }
        }
    }

    // The warps' sums, in order, for at most 32 tokens at a time; they lie where the tables were.
    float* partial = (float*)shared;
    constexpr u32 COLUMNS = NT < 4 ? 8 * NT : 32;
    for (u32 base = 0; base < 8 * NT && base < n; base += COLUMNS) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < NT; ++j)
            if (8 * j >= base && 8 * j < base + COLUMNS)
#pragma unroll
                for (int i = 0; i < MT; ++i)
#pragma unroll
                    for (int c = 0; c < 4; ++c)
                        partial[(warp * COLUMNS + 8 * j - base + 2 * t + (c & 1)) * ROWS + 16 * i + (c >> 1) * 8 + g] = sum[i][j][c];
        __syncthreads();
        auto total = [&](u32 column, u32 place) {
            float v = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) v += partial[(w * COLUMNS + column) * ROWS + place];
            return v;
        };
        if constexpr (PAIR) {
            for (u32 e = tid; e < COLUMNS * ROWS / 2; e += 32 * WARPS) {
                u32 column = e / (ROWS / 2), i = e % (ROWS / 2), place = (i >> 3) * 16 + (i & 7);
                u32 row = tile * (ROWS / 2) + i;
                if (row < members.of[0].rows && base + column < n) {
                    float gate = total(column, place), up = total(column, place + 8);
                    if (members.of[0].bias) gate += members.of[0].bias[row];
                    if (members.of[1].bias) up += members.of[1].bias[row];
                    float y = gate / (1.0f + __expf(-gate)) * up;
                    out[(u64)(base + column) * out_stride + row] = (u16)pack2(y, 0.0f);
                }
            }
        } else {
            const Member& m = members.of[which];
            for (u32 e = tid; e < COLUMNS * ROWS; e += 32 * WARPS) {
                u32 column = e / ROWS, place = e % ROWS, row = tile * ROWS + place;
                if (row < m.rows && base + column < n) {
                    float y = total(column, place);
                    if (m.bias) y += m.bias[row];
                    u64 to = (u64)(base + column) * out_stride + m.column + row;
                    if constexpr (sizeof(Out) == 2) out[to] = (u16)pack2(y, 0.0f);
                    else out[to] = y;
                }
            }
        }
    }
}

#define ARGS const __grid_constant__ Members members, const u16* __restrict__ x, u32 x_stride, u32 n, u32 blocks, const float* mid, u32 mid_stride
#define BODY(MT, NT, D, NF4, PAIR, OUT) small_linear<MT, NT, D, NF4, PAIR, OUT>(members, x, x_stride, n, blocks, mid, mid_stride, out, out_stride)
extern "C" __global__ void __launch_bounds__(256, 3) nf4_small_1_1(ARGS, u16* out, u32 out_stride) { BODY(1, 1, 4, true, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 2) nf4_small_2_1(ARGS, u16* out, u32 out_stride) { BODY(2, 1, 4, true, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 2) nf4_small_2_2(ARGS, u16* out, u32 out_stride) { BODY(2, 2, 2, true, false, u16); }
extern "C" __global__ void __launch_bounds__(256) nf4_small_2_4(ARGS, u16* out, u32 out_stride) { BODY(2, 4, 4, true, false, u16); }
extern "C" __global__ void __launch_bounds__(256) nf4_small_2_8(ARGS, u16* out, u32 out_stride) { BODY(2, 8, 2, true, false, u16); }
extern "C" __global__ void __launch_bounds__(256, 3) nf4_swiglu_1_1(ARGS, u16* out, u32 out_stride) { BODY(1, 1, 4, true, true, u16); }
extern "C" __global__ void __launch_bounds__(256, 2) nf4_swiglu_2_1(ARGS, u16* out, u32 out_stride) { BODY(2, 1, 4, true, true, u16); }
extern "C" __global__ void __launch_bounds__(256, 2) nf4_swiglu_2_2(ARGS, u16* out, u32 out_stride) { BODY(2, 2, 2, true, true, u16); }
extern "C" __global__ void __launch_bounds__(256) nf4_swiglu_2_4(ARGS, u16* out, u32 out_stride) { BODY(2, 4, 4, true, true, u16); }
extern "C" __global__ void __launch_bounds__(256) nf4_swiglu_2_8(ARGS, u16* out, u32 out_stride) { BODY(2, 8, 2, true, true, u16); }
extern "C" __global__ void __launch_bounds__(256, 2) bf16_small_1(ARGS, float* out, u32 out_stride) { BODY(1, 1, 4, false, false, float); }
extern "C" __global__ void __launch_bounds__(256, 2) bf16_small_2(ARGS, float* out, u32 out_stride) { BODY(1, 2, 2, false, false, float); }
extern "C" __global__ void __launch_bounds__(256) bf16_small_4(ARGS, float* out, u32 out_stride) { BODY(2, 4, 2, false, false, float); }
extern "C" __global__ void __launch_bounds__(256) bf16_small_8(ARGS, float* out, u32 out_stride) { BODY(2, 8, 2, false, false, float); }

// Any shape whose rows are whole groups of eight values and any block size of at least eight: a warp per weight row, in f32. `blocks` counts
// groups of eight here.
template <bool NF4, typename Out>
static __device__ __forceinline__ void any_linear(
    const Members& members, const u16* x, u32 x_stride, u32 n, u32 groups, const float* mid, u32 mid_stride, Out* out, u32 out_stride) {
    __shared__ float code[16];
    u32 tile = blockIdx.x;
    int which = 0;
    while (which < 3 && tile >= members.of[which].tiles) tile -= members.of[which++].tiles;
    const Member& m = members.of[which];
    if (NF4 && threadIdx.x < 16) code[threadIdx.x] = m.code[threadIdx.x];
    __syncthreads();
    u32 row = tile * WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    wait_for_inputs();
    if (row >= m.rows) return;
    for (u32 base = 0; base < n; base += 8) {
        float sum[8] = {};
        for (u32 i = lane; i < groups; i += 32) {
            float w[8];
            if constexpr (NF4) {
                u64 value = (u64)row * groups * 8 + i * 8;
                u32 bytes = *(const u32*)(m.weight + row * m.row_bytes + 4 * i);
                float s = block_scale(m, m.map, value >> m.block_shift);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    w[2 * e] = code[bytes >> (8 * e + 4) & 15] * s;
                    w[2 * e + 1] = code[bytes >> 8 * e & 15] * s;
                }
            } else {
                unpack8(*(const uint4*)(m.weight + row * m.row_bytes + 16 * i), w);
            }
#pragma unroll
            for (u32 c = 0; c < 8; ++c) {
                if (base + c < n) {
                    float v[8];
                    unpack8(input16(x + (u64)(base + c) * x_stride + 8 * i), v);
#pragma unroll
                    for (int e = 0; e < 8; ++e) sum[c] = fmaf(w[e], v[e], sum[c]);
                }
            }
        }
        if (mid && m.lora)
            for (u32 k = lane; k < m.rank; k += 32) {
                float b = m.lora[(u64)row * m.rank + k] * m.lora_scale;
#pragma unroll
                for (u32 c = 0; c < 8; ++c)
                    if (base + c < n) sum[c] = fmaf(b, input(mid + (u64)(base + c) * mid_stride + m.mid + k), sum[c]);
            }
#pragma unroll
        for (u32 c = 0; c < 8; ++c) {
            float y = group_sum(sum[c], 32);
            if (m.bias) y += m.bias[row];
            if (base + c < n && lane == c) {
                u64 to = (u64)(base + c) * out_stride + m.column + row;
                if constexpr (sizeof(Out) == 2) out[to] = (u16)pack2(y, 0.0f);
                else out[to] = y;
            }
        }
    }
}
extern "C" __global__ void __launch_bounds__(256) nf4_small_any(ARGS, u16* out, u32 out_stride) {
    any_linear<true>(members, x, x_stride, n, blocks, mid, mid_stride, out, out_stride);
}
extern "C" __global__ void __launch_bounds__(256) bf16_small_any(ARGS, float* out, u32 out_stride) {
    any_linear<false>(members, x, x_stride, n, blocks, mid, mid_stride, out, out_stride);
}

// The adapters' first product: mid[n, ranks] = x A^T, a block per row of A and eight tokens. Up to four matrices side by side.
struct Adapter {
    const float* a;
    u32 rank;
    u32 unused;
};
struct Adapters { Adapter of[4]; };
extern "C" __global__ void __launch_bounds__(256) lora_mid(
    const __grid_constant__ Adapters adapters, const u16* x, u32 x_stride, u32 n, u32 groups, float* mid, u32 mid_stride) {
    __shared__ float sums[WARPS][8];
    let_next_start();
    u32 row = blockIdx.x, base = blockIdx.y * 8;
    int which = 0;
    while (which < 3 && row >= adapters.of[which].rank) row -= adapters.of[which++].rank;
    const float* a = adapters.of[which].a + (u64)row * groups * 8;
    for (u32 i = threadIdx.x; i < groups / 4; i += 256) asm volatile("prefetch.global.L2 [%0];" :: "l"(a + 32 * i));
    wait_for_inputs();
    float sum[8] = {};
#pragma unroll 2
    for (u32 i = threadIdx.x; i < groups; i += 256) {
        float w[8];
        load8(a + 8 * i, w);
#pragma unroll
        for (u32 c = 0; c < 8; ++c) {
            if (base + c < n) {
                float v[8];
                unpack8(input16(x + (u64)(base + c) * x_stride + 8 * i), v);
#pragma unroll
                for (int e = 0; e < 8; ++e) sum[c] = fmaf(w[e], v[e], sum[c]);
            }
        }
    }
#pragma unroll
    for (u32 c = 0; c < 8; ++c)
        if (base + c < n) {
            float y = group_sum(sum[c], 32);
            if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5][c] = y;
        }
    __syncthreads();
    if (threadIdx.x < 8 && base + threadIdx.x < n) {
        float y = 0.0f;
        for (u32 w = 0; w < WARPS; ++w) y += sums[w][threadIdx.x];
        mid[(u64)(base + threadIdx.x) * mid_stride + blockIdx.x] = y;
    }
}
