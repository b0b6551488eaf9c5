// Numbers from the arguments of a launch: row addresses, weights. Unlike a copy from the host it
// needs no memory there that must outlive the call, and a CUDA graph can hold it. One block.
//
// 480 numbers: arguments have 4096 bytes on every GPU and with every driver.

struct Numbers {
    long long item[480];
};

extern "C" __global__ void __launch_bounds__(128)
table(long long* out, const __grid_constant__ Numbers given, long long count) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = given.item[i];
}
