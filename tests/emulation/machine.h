// What kernels and the machine that runs them know of each other.

#pragma once

struct dim3 {
    unsigned x, y, z;
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace fg {

typedef unsigned long long u64;
typedef void (*Body)();
enum State { READY, DONE, AT_BARRIER, AT_WARP, FAILED };
enum Operation { SYNC, GATHER, BALLOT };

// Wait for the other threads of the block or of the warp; what comes back depends on `operation`.
u64 wait(State state, int line, Operation operation, unsigned mask, int source, u64 in);
int own_lane();
void* dynamic_shared();
void refuse(const char* wanted, const char* given);
void run_grid(Body body, const unsigned* shape, unsigned long shared, int order);

}  // namespace fg
