// The backward of adapters with clusters: see lora_backward.cu.

extern "C" __global__ void __cluster_dims__(4, 1, 1) __launch_bounds__(256, 2) BACKWARD(lora_backward_32_1_4, 32, 1, 4)
extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(256, 2) BACKWARD(lora_backward_32_1_8, 32, 1, 8)
