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

// How blocks and threads take turns: one block after the other, its threads from first to last or
// from last to first; or several blocks at a time, all in an order that follows from a seed.
enum Order { ASCENDING, DESCENDING, SHUFFLED };

// What a launch is asked for besides the kernel and its arguments.
struct Launch {
    const unsigned* shape;  // of the grid and of a block
    unsigned long shared;   // bytes of dynamic shared memory
    int order;
    u64 seed, first_block, last_block;  // the blocks from the first up to the last run
};

// Wait for the other threads of the block or of the warp; what comes back depends on `operation`.
u64 wait(State state, int line, Operation operation, unsigned mask, int source, u64 in);
void fence();
void atomic(void* place);  // comes before an atomic operation there
int own_lane();
void* dynamic_shared();
void refuse(const char* wanted, const char* given);
void run_grid(Body body, const Launch& launch);

}  // namespace fg
