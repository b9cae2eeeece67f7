// SwiGLU of single values: what its kernels share.

static __device__ __forceinline__ float sigmoid(float x) { return __frcp_rn(1.0f + __expf(-x)); }

// Gates and ups become their gradients.
static __device__ __forceinline__ void backward8(float (&g)[8], float (&u)[8], const float (&d)[8]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float sig = sigmoid(g[j]);
        // silu'(g) = sig * (1 + g * (1 - sig))
        float slope = sig * fmaf(g[j], 1.0f - sig, 1.0f);
        float du = d[j] * g[j] * sig;
        g[j] = d[j] * u[j] * slope;
        u[j] = du;
    }
}
