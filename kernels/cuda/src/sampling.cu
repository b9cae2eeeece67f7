// From logits to tokens: temperature, top-k, top-p and min-p, then a draw; a block per row. The definition, and the order of what has an order, is the CPU
// reference's. Filters by rank work on a sorted list of the best tokens in shared memory; what does not fit into it is left to the host.

#define LIST 2048          // tokens that the list holds
#define BINS 4096          // of a histogram of how far scores lie below the best
#define PER_NAT 64.0f      // bins per unit of score
#define BROKEN 0xffffffffu  // NaN, +infinity, or nothing to draw from
#define HOST 0xfffffffeu    // more tokens pass the filters than the list holds
#define LARGEST 3.402823466e38f
#define INFINITE __int_as_float(0x7f800000)

// Floats as unsigned numbers in the same order; never 0 for a number.
static __device__ __forceinline__ u32 ordered(float x) {
    u32 bits = __float_as_uint(x + 0.0f);  // -0 becomes 0: they are equal
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
static __device__ __forceinline__ float unordered(u32 key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// Calls `f` with the index and the value of each logit that is this thread's.
template <typename F>
static __device__ __forceinline__ void each(const float* __restrict__ x, u32 vocab, F f) {
    if ((vocab & 3) == 0) {
        // Four loads in flight for each thread: a row has one multiprocessor to itself, and latency is all there is to hide.
        const u32 step = 4 * blockDim.x;
        for (u32 start = 4 * threadIdx.x; start < vocab; start += 4 * step) {
            float4 v[4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (start + j * step < vocab) v[j] = *(const float4*)(x + start + j * step);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                u32 at = start + j * step;
                if (at >= vocab) break;
                f(at, v[j].x);
                f(at + 1, v[j].y);
                f(at + 2, v[j].z);
                f(at + 3, v[j].w);
            }
        }
    } else {
        for (u32 at = threadIdx.x; at < vocab; at += blockDim.x) f(at, x[at]);
    }
}

static __device__ __forceinline__ double warp_sum(double v) {
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
// Lanes by butterfly, then warps in order; barriers on both sides.
static __device__ __forceinline__ double block_sum_f64(double v) {
    __shared__ double warps[32];
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = v;
    __syncthreads();
    double sum = 0.0;
    for (u32 w = 0; w < blockDim.x >> 5; ++w) sum += warps[w];
    __syncthreads();
    return sum;
}

// Sorts `size` keys, a power of two, the largest first (Batcher 1968).
static __device__ __forceinline__ void sort_down(u64* keys, u32 size) {
    for (u32 k = 2; k <= size; k <<= 1)
        for (u32 j = k >> 1; j > 0; j >>= 1) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < size; i += blockDim.x) {
                u32 other = i ^ j;
                if (other > i) {
                    u64 a = keys[i], b = keys[other];
                    if ((a < b) == ((i & k) == 0)) {
                        keys[i] = b;
                        keys[other] = a;
                    }
                }
            }
        }
    __syncthreads();
}
static __device__ __forceinline__ u32 power_of_two(u32 n) {
    u32 size = 1;
    while (size < n) size <<= 1;
    return size;
}

// Correctly rounded but for one case in millions, as the C library's expf on the host is.
static __device__ __forceinline__ float weight_of(float score, float top) { return (float)exp((double)(score - top)); }

// How a row's token is drawn: `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off; `uniform` is in [0, 1).
struct Draw {
    double top_p, uniform;
    float temperature, min_p;
    u32 top_k, unused;
};

// 1024 threads.
extern "C" __global__ void __launch_bounds__(1024, 1) sample_rows(
    const float* __restrict__ logits, u32 vocab, const Draw* __restrict__ draws, u32* __restrict__ out) {
    const double top_p = draws[blockIdx.x].top_p, uniform = draws[blockIdx.x].uniform;
    const float temperature = draws[blockIdx.x].temperature, min_p = draws[blockIdx.x].min_p;
    const u32 top_k = draws[blockIdx.x].top_k;
    __shared__ u64 keys[LIST];
    __shared__ u32 bins[BINS];
    __shared__ float weights[LIST];
    __shared__ u64 best_of[32];
    __shared__ u32 sums[32], listed, all, last_bin, kept;
    const float* x = logits + (u64)blockIdx.x * vocab;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;

    // The best token: the lowest id among equals.
    u64 best = 0;
    bool broken = false;
    each(x, vocab, [&](u32 id, float v) {
        broken |= !(v <= LARGEST);
        u64 key = (u64)ordered(v) << 32 | (u32)~id;
        if (v > -INFINITE && key > best) best = key;
    });
    if (broken) best = ~0ull;
    for (int o = 16; o > 0; o >>= 1) {
        u64 other = __shfl_xor_sync(0xffffffffu, best, o);
        best = other > best ? other : best;
    }
    if (lane == 0) best_of[warp] = best;
    __syncthreads();
#pragma unroll 4
    for (u32 w = 0; w < 32; ++w) best = best_of[w] > best ? best_of[w] : best;
    if (best == 0 || best == ~0ull) {
        if (threadIdx.x == 0) out[blockIdx.x] = BROKEN;
        return;
    }
    // A tiny temperature carries the best score to infinity: its limit is the best token, as for 0.
    const float top = __fdiv_rn(unordered((u32)(best >> 32)), temperature);
    if (temperature == 0.0f || !(fabsf(top) <= LARGEST)) {
        if (threadIdx.x == 0) out[blockIdx.x] = ~(u32)best;
        return;
    }
    const bool by_rank = top_k > 0 && top_k < vocab, by_mass = top_p < 1.0;

    if (!by_rank && !by_mass) {
        // Every token has a chance, or every one above a share of the best one's. A warp has neighbouring ids: first the sums of all warps, then the one
        // in which the draw falls goes through its own.
        __shared__ double of_warp[32];
        const u32 span = (vocab + 1023) / 1024 * 32, first = warp * span, end = first + span < vocab ? first + span : vocab;
        float total = 1.0f, least = 0.0f;
        if (min_p > 0.0f) {
            double sum = 0.0;
            each(x, vocab, [&](u32, float v) { sum += (double)expf(__fdiv_rn(v, temperature) - top); });
            total = (float)block_sum_f64(sum);
            least = __fmul_rn(min_p, __fdiv_rn(1.0f, total));
        }
        auto weight = [&](u32 id) {
            float s = id < end ? __fdiv_rn(x[id], temperature) : -INFINITE, w = expf(s - top);
            return min_p > 0.0f && !(__fdiv_rn(w, total) >= least || s == top) ? 0.0f : w;
        };
        double sum = 0.0;
#pragma unroll 4
        for (u32 id = first + lane; id < end; id += 32) sum += (double)weight(id);
        sum = warp_sum(sum);
        if (lane == 0) of_warp[warp] = sum;
        __syncthreads();
        double whole = 0.0, before = 0.0, reached = 0.0;
#pragma unroll 1
        for (u32 w = 0; w < 32; ++w) whole += of_warp[w];
        const double target = uniform * whole;
        // The first warp whose tokens carry the sum over the target; were rounding to find none, the last with any chance.
        u32 mine = 0;
#pragma unroll 1
        for (u32 w = 0; w < 32; ++w) {
            if (of_warp[w] > 0.0) {
                before = reached;
                mine = w;
            }
            reached += of_warp[w];
            if (reached > target) break;
        }
        if (warp != mine) return;
        u32 drawn = BROKEN;
        for (u32 base = first; base < end; base += 32) {
            float w = weight(base + lane);
            double upto = (double)w;
            for (int o = 1; o < 32; o <<= 1) {
                double left = __shfl_up_sync(0xffffffffu, upto, o);
                if ((int)lane >= o) upto += left;
            }
            u32 positive = __ballot_sync(0xffffffffu, w > 0.0f);
            u32 over = __ballot_sync(0xffffffffu, w > 0.0f && before + upto > target);
            if (over) {
                drawn = base + __ffs(over) - 1;
                break;
            }
            if (positive) drawn = base + 31 - __clz(positive);
            before += __shfl_sync(0xffffffffu, upto, 31);
        }
        if (lane == 0) out[blockIdx.x] = drawn;
        return;
    }

    // How many tokens lie how far below the best: bins are in the order of scores, so that whole bins are the best tokens. Those of the last bin, 64 and
    // more below, are left out: all of them together weigh less than half of the sum's last bit, and no draw but exactly 0 reaches one.
    for (u32 i = threadIdx.x; i < BINS; i += 1024) bins[i] = 0;
    if (threadIdx.x == 0) {
        listed = 0;
        last_bin = BINS;
    }
    __syncthreads();
    auto bin_of = [&](float s) {
        float below = (top - s) * PER_NAT;
        return below < (float)(BINS - 1) ? (u32)below : BINS - 1;
    };
    each(x, vocab, [&](u32, float v) {
        float s = __fdiv_rn(v, temperature);
        if (s > -INFINITE && bin_of(s) < BINS - 1) atomicAdd(&bins[bin_of(s)], 1);
    });
    __syncthreads();
    // Four bins a thread, summed over the block.
    u32 counts[4], upto = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) upto += counts[i] = bins[4 * threadIdx.x + i];
    u32 own = upto;
    for (int o = 1; o < 32; o <<= 1) {
        u32 left = __shfl_up_sync(0xffffffffu, upto, o);
        if ((int)lane >= o) upto += left;
    }
    if (lane == 31) sums[warp] = upto;
    __syncthreads();
    u32 cumulated = upto - own;
    for (u32 w = 0; w < warp; ++w) cumulated += sums[w];
    if (threadIdx.x == 1023) all = cumulated + own;
    __syncthreads();
    // By rank: the bin in which the rank is reached. By mass alone: the last bin with which the list is not overfull.
    const u32 rank = by_rank ? (top_k < all ? top_k : all) : 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u32 bin = 4 * threadIdx.x + i, next = cumulated + counts[i], later = bin + 1 < BINS ? bins[bin + 1] : LIST + 1;
        if (by_rank ? cumulated < rank && next >= rank : next <= LIST && next + later > LIST) last_bin = bin;
        cumulated = next;
    }
    __syncthreads();
    const u32 limit = last_bin;
    if (limit < BINS)
        each(x, vocab, [&](u32 id, float v) {
            float s = __fdiv_rn(v, temperature);
            if (s > -INFINITE && bin_of(s) <= (limit < BINS - 1 ? limit : BINS - 2)) {
                u32 place = atomicAdd(&listed, 1);
                if (place < LIST) keys[place] = (u64)ordered(s) << 32 | (u32)~id;
            }
        });
    __syncthreads();
    u32 n = listed;
    if (limit == BINS || n > LIST) {
        if (threadIdx.x == 0) out[blockIdx.x] = HOST;
        return;
    }
    // Places depend on timing, the sorted list does not: keys are unique.
    u32 size = power_of_two(n);
    for (u32 i = n + threadIdx.x; i < size; i += 1024) keys[i] = 0;
    sort_down(keys, size);
    for (u32 i = threadIdx.x; i < n; i += 1024) weights[i] = weight_of(unordered((u32)(keys[i] >> 32)), top);
    __syncthreads();

    // By mass alone the total is that of all tokens, and so is the sum of probabilities.
    double mass = 0.0;
    float total = 0.0f;
    if (!by_rank) {
        double sum = 0.0;
        each(x, vocab, [&](u32, float v) { sum += (double)expf(__fdiv_rn(v, temperature) - top); });
        total = (float)block_sum_f64(sum);
        sum = 0.0;
        each(x, vocab, [&](u32, float v) { sum += (double)__fdiv_rn(expf(__fdiv_rn(v, temperature) - top), total); });
        mass = block_sum_f64(sum);
    }
    if (threadIdx.x == 0) {
        u32 keep = n;
        if (by_rank) {
            // Equals of the last one stay.
            keep = rank;
            while (keep < n && (u32)(keys[keep] >> 32) == (u32)(keys[rank - 1] >> 32)) ++keep;
            double sum = 0.0;
            for (u32 i = 0; i < keep; ++i) sum += (double)weights[i];
            total = (float)sum;
            for (u32 i = 0; i < keep && by_mass; ++i) mass += (double)__fdiv_rn(weights[i], total);
        }
        bool whole = by_rank || n == all;
        if (by_mass) {
            const float dropped = (float)(1.0 - top_p);
            double before = 0.0;
            for (u32 i = 0; i < keep; ++i) {
                if (i > 0 && (float)(mass - before) <= dropped) {
                    keep = i;
                    whole = true;
                    break;
                }
                before += (double)__fdiv_rn(weights[i], total);
            }
        }
        if (min_p > 0.0f && whole) {
            double sum = 0.0;
            for (u32 i = 0; i < keep; ++i) sum += (double)weights[i];
            const float left = (float)sum, least = __fmul_rn(min_p, __fdiv_rn(1.0f, left));
            u32 i = 0;
            while (i < keep && (__fdiv_rn(weights[i], left) >= least || unordered((u32)(keys[i] >> 32)) == top)) ++i;
            keep = i;
        }
        kept = whole ? keep : 0;
    }
    __syncthreads();
    n = kept;
    if (n < 2) {
        if (threadIdx.x == 0) out[blockIdx.x] = n == 0 ? HOST : ~(u32)keys[0];
        return;
    }
    // The draw goes by ascending ids: their complements descend.
    size = power_of_two(n);
    for (u32 i = threadIdx.x; i < size; i += 1024) keys[i] = i < n ? keys[i] << 32 | keys[i] >> 32 : 0;
    sort_down(keys, size);
    for (u32 i = threadIdx.x; i < n; i += 1024) weights[i] = weight_of(unordered((u32)keys[i]), top);
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0, reached = 0.0;
        for (u32 i = 0; i < n; ++i) sum += (double)weights[i];
        const double target = uniform * sum;
        u32 drawn = BROKEN;
        for (u32 i = 0; i < n; ++i) {
            if (!(weights[i] > 0.0f)) continue;
            reached += (double)weights[i];
            drawn = ~(u32)(keys[i] >> 32);
            if (reached > target) break;
        }
        out[blockIdx.x] = drawn;
    }
}

// The repetition penalty for pairs of row and token, none twice; pairs outside are left out. What is broken stays so.
extern "C" __global__ void __launch_bounds__(256) penalise(
    float* __restrict__ logits, u32 rows, u32 vocab, const uint2* __restrict__ pairs, u32 count, float penalty) {
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    uint2 p = pairs[i];
    if (p.x >= rows || p.y >= vocab) return;
    float* to = logits + (u64)p.x * vocab + p.y;
    float x = *to;
    if (x <= LARGEST) *to = fminf(x < 0.0f ? __fmul_rn(x, penalty) : __fdiv_rn(x, penalty), LARGEST);
}
